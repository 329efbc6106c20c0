"""flashmla calibrate on a tiny model: what it measures is so, and the file it writes is what options read."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM

import mla_compiler
from mla_compiler import cli
from mla_compiler.calibration.curves import curves, weigh
from mla_compiler.calibration.search import compare
from mla_compiler.calibration.subject import Subject
from mla_compiler.calibration.texts import load, windows
from mla_compiler.errors import OptionError
from mla_compiler.sparsity import Rules, Sparsity

from .tiny import save

TOKENS = 400
LAYERS = ["layers.0.self_attn", "layers.1.self_attn"]
MOST = Sparsity("threshold", "", 0.5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def subject(home):
    torch._dynamo.reset()
    return Subject(load(home, "cpu")[0], MOST)


@pytest.fixture(scope="module")
def ids(home):
    return windows(load(home, "cpu")[1], [home / "text.txt"], TOKENS, 1).calibrating[0]


def test_exact_is_the_model(subject, ids, home):
    outcome = subject.run(ids)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(home, dtype=torch.float64)(ids[None]).logits[0, :-1]
    torch.testing.assert_close(outcome.nll, F.cross_entropy(logits, ids[1:], reduction="none"), atol=1e-4, rtol=0)
    end = subject.run(ids, last=7)
    assert torch.equal(end.top, outcome.top[-7:])
    torch.testing.assert_close(end.nll, outcome.nll[-7:], atol=1e-5, rtol=0)
    assert outcome.accounts.left_out == 0 and subject.layers(ids) == LAYERS and subject.layers(ids, "1[.]") == LAYERS[1:]
    with pytest.raises(OptionError, match="no attention of 'none' can"):
        subject.layers(ids, "none")


def test_what_is_compared_is_so(subject, ids):
    exact, other = subject.run(ids), subject.run(ids, {LAYERS[1]: Sparsity("threshold", "", 1.0)})
    assert [account.left_out > 0 for account in other.accounts] == [False, True]
    found = compare([exact], [other], [ids], LAYERS[1])
    assert found.work == list(other.accounts)[1].left_out == pytest.approx(found.pv / 2) and found.qk == 0
    assert found.loss == pytest.approx(found.perplexity[1] / found.perplexity[0] - 1)
    assert found.loss == pytest.approx(math.expm1((other.nll - exact.nll).mean().item())) and found.upper > found.loss
    assert found.agreement == (exact.top == other.top).double().mean() < 1
    assert compare([exact], [exact], [ids]).agreement == 1


def test_a_layer_alone_has_its_curve_and_its_weight(subject, ids):
    policies = [Sparsity("threshold", "", value) for value in (1e-12, 0.1, 0.5)]
    exact, (first, second) = subject.run(ids), curves(subject, ids, policies, LAYERS)
    for curve in (first, second):
        errors, gone = ([getattr(point, name) for point in curve.points] for name in ("error", "flops"))
        assert errors[0] == 0 == gone[0][1] and errors == sorted(errors) and gone == sorted(gone) and errors[2] > 0
    other = subject.run(ids, {LAYERS[0]: MOST})
    assert first.points[2].flops == next(iter(other.accounts)).flops
    weight = weigh(subject, ids, exact, first)
    assert weight > 0 and subject.divergence(exact.hidden, exact.hidden) == pytest.approx(0, abs=1e-6)


def test_the_command(home, tmp_path, capsys):
    out = tmp_path / "policy.json"
    status = cli.main(["calibrate", str(home), str(home / "text.txt"), "--tokens", str(TOKENS), "--loss", "5%",
                       "--device", "cpu", "--out", str(out)])
    shown, about = capsys.readouterr().out, json.loads(out.read_text())["about"]
    assert status == 0 and f"wrote {out}" in shown and "loss of each layer" in shown
    assert about["calibrated"]["loss"] + about["calibrated"]["standard_error"] <= 0.05 and about["bound"] == 0.05
    assert about["calibrated"]["work_left_out"] > 0.01
    _the_file_is_what_was_held_out(home, out, about["held_out"])


def _the_file_is_what_was_held_out(home, out, expected):
    """The model compiled with the file, on the text held out, without an account of it."""
    torch._dynamo.reset()
    model, tokenizer = load(home, "cpu")
    ids = windows(tokenizer, [home / "text.txt"], TOKENS, 1).held_out[0]
    compiled = torch.compile(model, backend="flashmla", options={"flashmla.policy": str(out)})
    with torch.no_grad():
        nll = [F.cross_entropy(run(ids[None], use_cache=False).logits[0, :-1], ids[1:]).item() for run in (model, compiled)]
    assert math.expm1(nll[1] - nll[0]) == pytest.approx(expected["loss"], abs=1e-5)
    rules, sites = Rules.read(str(out)), list(mla_compiler.reports()[-1])
    assert [site.sparsity for site in sites] == [str(rules.of(site.layer)) for site in sites] != ["exact", "exact"]


def test_a_short_text_and_an_absent_model_are_said(home, capsys):
    text = str(home / "text.txt")
    assert cli.main(["calibrate", str(home), text, "--tokens", "100000"]) == 2
    assert "too short: a window of 100000 tokens" in capsys.readouterr().err
    assert cli.main(["calibrate", str(home / "none"), text]) == 2
    assert "there is no model" in capsys.readouterr().err
    assert cli.main(["calibrate", str(home), str(home / "none.txt"), "--tokens", "8"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_logits_that_are_made_otherwise_are_refused():
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = GraniteForCausalLM(GraniteConfig(vocab_size=64, num_key_value_heads=2, logits_scaling=4.0, **shape)).eval()
    with pytest.raises(OptionError, match="GraniteForCausalLM are more than"):
        Subject(model, MOST)
