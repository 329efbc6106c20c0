"""Multi-head latent attention of transformers, absorbed: prompts too, chosen tokens, LongCat through its graph breaks, SmolLM2.

That each architecture decodes over its latents and expands its prompts, by cost, test_models asserts in every scenario.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, StaticCache

from mla_compiler.lowering import head_groups
from tests.harness import BACKEND, FAST, Float64, Seen, assert_within_twice, compiled, root_mean_square, watching
from tests.models import latents
from tests.models.architectures import model, widened
from tests.models.scenarios import MAX_LEN, decoder_padded, decoder_prefill, decoder_static, tokens

PROSE = Path(__file__).parents[2] / "DESIGN.md"
NEW_TOKENS = 64
CACHED = tuple(name for name in latents.NAMES if not (latents.OLD and name in latents.SPARSE))
"""Those that cache their latents in this version of transformers."""


@pytest.mark.parametrize("scenario", [decoder_prefill, decoder_padded])
@pytest.mark.parametrize("name", [n for n in ("deepseek_v3", "deepseek_v32", "mistral4", "kimi_linear") if n in latents.NAMES])
def test_a_prompt_may_be_absorbed(name: str, scenario) -> None:
    subject, exact = model(name), model(name, torch.float64)
    with watching() as seen:
        found = scenario(subject, compiled(subject.forward, **{"flashmla.absorb": "always", "flashmla.certificate": True}))
        eager = scenario(subject, subject)
        with Float64():
            truth = scenario(exact, exact)
    assert_within_twice(found, eager, truth)
    assert_absorbed(seen)
    assert all(0 <= site.certificate < 1e-5 for site in seen.sites)


@pytest.mark.parametrize("scenario", [decoder_prefill, decoder_padded])
@pytest.mark.parametrize("name", [n for n in ("deepseek_v3", "minicpm3") if n in latents.NAMES])
def test_a_prompt_may_be_expanded_by_heads(monkeypatch, name: str, scenario) -> None:
    """For a buffer of one head, and processors that are always busy."""
    monkeypatch.setattr(head_groups, "BUFFER", 1)
    monkeypatch.setattr(head_groups, "processors", lambda device: 1)
    subject, exact = model(name), model(name, torch.float64)
    with watching() as seen:
        found = scenario(subject, compiled(subject.forward, **{"flashmla.absorb": "never"}))
        eager = scenario(subject, subject)
        with Float64():
            truth = scenario(exact, exact)
    assert_within_twice(found, eager, truth)
    assert seen.sites and all(site.latent.endswith("at a time") and " 1 of " in site.config for site in seen.sites)


@pytest.mark.parametrize("name", [n for n in ("deepseek_v2", "deepseek_v32", "minicpm3") if n in CACHED])
def test_bfloat16(name: str) -> None:
    """A decode step in the dtype that models are served in: the typical error, against the same weights in float64."""
    subject = model(name, torch.bfloat16)
    with watching() as seen:
        found = decoder_static(subject, compiled(subject.forward))
        eager = decoder_static(subject, subject)
        exact = widened(copy.deepcopy(subject))
        with Float64():
            truth = decoder_static(exact, exact)
    assert_absorbed(seen)
    assert root_mean_square(found, truth) <= 2 * root_mean_square(eager, truth)


def assert_absorbed(seen: Seen) -> None:
    assert seen.sites and all(site.latent.startswith("absorbed") for site in seen.sites), [s.latent for s in seen.sites]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [n for n in latents.SPARSE if n in CACHED])
def test_chosen_tokens_are_read_alone(name: str, implementation: str) -> None:
    """The tokens of the indexer, no mask of them, and what the dense mask gives."""
    subject = model(name)
    subject.set_attn_implementation(implementation)
    with watching() as seen:
        sparse = decoder_static(subject, compiled(subject.forward))
    assert_absorbed(seen)
    for site in seen.sites:
        assert site.latent.endswith("6 tokens a query") and "residue" not in site.spec and "hi: T0[0] + 1" in site.spec
    with watching() as seen:
        dense = decoder_static(subject, compiled(subject.forward, **{"flashmla.absorb": "never"}))
    assert all("residue" in site.spec for site in seen.sites)
    exact = model(name, torch.float64)
    with torch.no_grad(), Float64():
        assert_within_twice(sparse, dense, decoder_static(exact, exact))


@pytest.mark.parametrize("cache", [StaticCache, DynamicCache])
@pytest.mark.skipif("longcat_flash" not in latents.NAMES, reason="transformers has no LongCat")
def test_longcat(cache: type) -> None:
    """Its experts loop over a tensor of indices, which breaks the graph: between the breaks, attention is absorbed."""
    subject, exact = model("longcat_flash"), model("longcat_flash", torch.float64)

    def run(model, forward) -> list[Tensor]:
        past = cache(config=model.config, **({"max_cache_len": MAX_LEN} if cache is StaticCache else {}))
        model(input_ids=tokens(), past_key_values=past)
        return [forward(input_ids=tokens(1, seed), past_key_values=past).logits for seed in range(3)]

    with watching() as seen:
        found = run(subject, torch.compile(subject.forward, backend=BACKEND, options=FAST))
        eager = run(subject, subject)
        with Float64():
            truth = run(exact, exact)
    assert len(seen.sites) >= 2
    latents.assert_by_cost(seen.sites, "longcat_flash")
    assert_within_twice(found, eager, truth)


@pytest.mark.parametrize("prefix", [prefix for prefix in latents.BACKBONES if hasattr(transformers, f"{prefix}Model")])
def test_backbones(prefix: str) -> None:
    torch.manual_seed(0)
    subject = latents.backbone(prefix)
    exact = widened(copy.deepcopy(subject))

    def run(model, forward) -> list[Tensor]:
        past = StaticCache(config=model.config, max_cache_len=MAX_LEN)
        model(input_ids=tokens(), past_key_values=past)
        return [forward(input_ids=tokens(1, seed), past_key_values=past).last_hidden_state for seed in range(3)]

    with watching() as seen:
        found, eager = run(subject, compiled(subject.forward)), run(subject, subject)
        with Float64():
            truth = run(exact, exact)
    assert_absorbed(seen)
    assert_within_twice(found, eager, truth)


@pytest.fixture(scope="module")
def trained(smollm2):
    from tests.models.smollm2_mla import as_latent

    return as_latent(smollm2[0]), smollm2[1]


@pytest.mark.slow
def test_smollm2_is_the_same_model(smollm2, trained) -> None:
    ids = trained[1]("The capital of France is Paris, and the capital of Italy is", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(trained[0](ids).logits, smollm2[0](ids).logits, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_smollm2_generates_the_same_tokens(trained, cache: str) -> None:
    subject, tokenizer = trained
    ids = tokenizer("The capital of France is Paris, and the capital of Italy is", return_tensors="pt").input_ids
    arguments = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 2,
                 "cache_implementation": cache, "disable_compile": True}
    with watching() as seen:
        expected = subject.generate(ids, **arguments)
        eager, subject.forward = subject.forward, compiled(subject.forward)
        try:
            found = subject.generate(ids, **arguments)
        finally:
            subject.forward = eager
    assert torch.equal(found, expected) and found.shape[1] == ids.shape[1] + NEW_TOKENS
    assert all(len(graph) == 30 for graph in seen.graphs)
    latents.assert_by_cost(seen.sites, "deepseek_v2")


@pytest.mark.slow
@pytest.mark.parametrize("absorb", ["auto", "always"])
def test_smollm2_has_the_same_perplexity(trained, absorb: str) -> None:
    """Of 400 tokens of prose, to four digits."""
    subject, tokenizer = trained
    ids = tokenizer(PROSE.read_text(), return_tensors="pt").input_ids[:, :400]

    def perplexity(forward) -> str:
        logits = forward(input_ids=ids, use_cache=False).logits
        return f"{torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).exp().item():.4g}"

    with watching() as seen:
        found = perplexity(compiled(subject.forward, **{"flashmla.absorb": absorb}))
        assert found == perplexity(subject.forward)
    assert len(seen.sites) == 30
    if absorb == "always":
        assert_absorbed(seen)
