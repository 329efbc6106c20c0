"""The fastest configuration is taken, remembered, found again by another process; what cannot run is passed over."""

import dataclasses
import json
import logging
import re

import pytest
import torch

from mla_compiler import lowering
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu, gpu_latent, tune
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.machine import MACHINES, machine_of
from mla_compiler.lowering.select import candidates, choose

from . import latents
from .attentions import CASES

H100 = MACHINES["sm_90"]
ONE, TWO, THREE = (Choice("decode", 16, n, 4, 2) for n in (16, 32, 64))
TIMES = {ONE: 3.0, TWO: 1.0, THREE: 2.0}


@pytest.fixture(autouse=True)
def a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tune, "_known", {})


def test_the_fastest_is_timed_once_and_found_again_by_another_process(monkeypatch):
    assert tune.known("key") is None
    assert tune.best("key", [ONE, TWO, THREE], TIMES.__getitem__) == TWO
    assert tune.best("key", [ONE], {}.__getitem__) == tune.known("key") == TWO
    monkeypatch.setattr(tune, "_known", {})
    assert tune.known("key") == TWO and tune.known("another") is None
    assert json.loads(tune.path().read_text())["key"]["ms"] == {str(c): ms for c, ms in TIMES.items()}
    tune.best("another", [ONE], TIMES.__getitem__)
    assert set(json.loads(tune.path().read_text())) == {"key", "another"}


def test_what_cannot_run_is_passed_over_and_told(caplog):
    def time(choice):
        if choice == TWO:
            raise RuntimeError("out of shared memory")
        return TIMES[choice]

    with caplog.at_level(logging.INFO, logger=tune.log.name):
        assert tune.best("key", [ONE, TWO, THREE], time) == THREE
    assert "out of shared memory" in caplog.text and str(TWO) in caplog.text
    assert re.search(r"fastest of 2, compiled and timed in \d+\.\d s", caplog.text)
    with pytest.raises(RuntimeError, match="out of shared memory"):
        tune.best("none runs", [TWO], time)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_file_that_cannot_be_read_is_begun_anew(text, caplog):
    tune.path().parent.mkdir(parents=True)
    tune.path().write_text(text)
    assert tune.best("key", [ONE, TWO], TIMES.__getitem__) == TWO
    assert set(json.loads(tune.path().read_text())) == {"key"}
    assert ("cannot be read" in caplog.text) == (text != "[1]")


@pytest.mark.parametrize("queries", [1, 16, 200, 8192])
@pytest.mark.parametrize("name", CASES)
def test_the_untimed_choice_is_the_first_candidate(name, queries):
    spec = AttentionSpec.parse(CASES[name].spec)
    for dim in (64, 128, 256):
        asked = (spec, 2, 8 * spec.group, queries, 8192, dim, dim, torch.bfloat16, H100)
        found = candidates(*asked)
        assert found[0] == choose(*asked) and len(set(found)) == len(found)


def test_attend_takes_what_is_fastest(monkeypatch):
    launched, spec = [], "score: 0.1*s; hi: i + 1; autotune: 1"
    monkeypatch.setattr(gpu, "launch", lambda spec, choice, *rest: launched.append(choice))
    monkeypatch.setattr(gpu, "tune_facts", lambda device: ("a GPU",))
    options = candidates(AttentionSpec.parse(spec), 1, 4, 300, 300, 64, 64, torch.float16, machine_of(torch.device("cpu")))
    slowest_first = iter(range(len(options), 0, -1))

    def milliseconds(call):
        call()
        return next(slowest_first)

    monkeypatch.setattr(gpu, "milliseconds", milliseconds)
    q = torch.randn(1, 4, 300, 64, dtype=torch.float16)
    gpu.attend(q, q, q, [], [], [], spec)
    assert len(options) > 2 and launched == [*options, options[-1]]
    launched.clear()
    k = torch.cat([q, q], 2)[:, :, :290]
    gpu.attend(q, k, k, [], [], [], spec)                     # as many keys to the next power of two
    assert launched == [options[-1]]


LATENTS = latents.Case("score: 0.1*s; hi: T0[b] + 1", ("lengths",), batch=2, heads=20, queries=1, keys=3000, rank=512, width=64,
                       dtype=torch.bfloat16)


@pytest.mark.parametrize("chosen", [0, 100])
@pytest.mark.parametrize("splits", ["", "; kv_splits: 3"])
@pytest.mark.parametrize("arch", MACHINES)
def test_the_untimed_choice_of_latents_is_the_first_candidate(chosen, splits, arch):
    case = LATENTS.but(chosen=chosen)
    given, _ = latents.operands(case)
    spec = AttentionSpec.parse(case.spec + splits)
    found = gpu_latent.candidates(spec, given, MACHINES[arch])
    assert found[0] == gpu_latent.choose(spec, given, MACHINES[arch]) and len(set(found)) == len(found) > 1
    hopper = "tokens_exchange" if chosen else "mla_narrow"
    assert found[0].family == (hopper if arch == "sm_90" else "tokens" if chosen else "mla")
    assert all(choice.kv_splits == 3 if splits else 1 <= choice.kv_splits <= 128 for choice in found)


def test_attend_latent_takes_what_is_fastest(monkeypatch):
    launched, spec = [], LATENTS.spec + "; autotune: 1"
    monkeypatch.setattr(gpu_latent, "launch", lambda spec, choice, *rest: launched.append(choice))
    monkeypatch.setattr(gpu, "tune_facts", lambda device: ("a GPU",))
    monkeypatch.setattr(gpu, "milliseconds", lambda call: call() or -len(launched))
    given, tables = latents.operands(LATENTS)
    options = gpu_latent.candidates(AttentionSpec.parse(spec), given, machine_of(torch.device("cpu")))
    gpu_latent.attend_latent(*vars(given).values(), tables, [], [], spec)
    assert len(options) > 2 and launched == [*options, options[-1]]
    launched.clear()
    gpu_latent.attend_latent(*vars(given).values(), tables, [], [], LATENTS.spec)
    assert launched == [options[0]]


def test_a_choice_that_says_more_has_another_key(monkeypatch):
    before = tune.key_of("facts")
    assert before == tune.key_of("facts") != tune.key_of("other facts")
    monkeypatch.setattr(tune, "Choice", dataclasses.make_dataclass("Choice", ["family", "more"]))
    assert tune.key_of("facts") != before


def test_the_report_says_that_it_will_be_timed():
    shape = ((1, 8, 1, 64), (1, 8, 4096, 64), (1, 8, 4096, 64))
    spec = AttentionSpec.parse("score: s; autotune: 1")
    assert str(spec) == "score: s; autotune: 1" and spec.autotune is True
    assert lowering.choose(spec, *shape, torch.float16, torch.device("cpu")) == ("cpu", "hull")


@pytest.mark.gpu
def test_latents_are_timed_on_a_gpu():
    given, tables = latents.operands(LATENTS)
    there = [None if x is None else x.cuda() for x in vars(given).values()]
    lowering.register()
    args = (*there, [x.cuda() for x in tables], [], [])
    found = [torch.ops.flashmla.attend_latent(*args, LATENTS.spec + more) for more in ("", "; autotune: 1")]
    (finding,) = json.loads(tune.path().read_text()).values()
    assert len(finding["ms"]) > 2 and (found[0] - found[1]).abs().max() <= 2**-7 * found[0].abs().max()


@pytest.mark.gpu
def test_timed_on_a_gpu():
    q, k, v = (torch.randn(2, h, s, 64, device="cuda", dtype=torch.bfloat16) for h, s in ((8, 1), (2, 3000), (2, 3000)))
    lowering.register()
    found = [torch.ops.flashmla.attend(q, k, v, [], [], [], f"score: 0.1*s; group: 4{more}") for more in ("", "; autotune: 1")]
    assert json.loads(tune.path().read_text()) and (found[0] - found[1]).abs().max() <= 2**-7 * found[0].abs().max()
