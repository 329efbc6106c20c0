"""A pool at work, measured: its bars, that what is timed is right, and that what is wrong is found out."""

import json
import math

import pytest
import torch

from mla_compiler.bench import __main__ as bench
from mla_compiler.bench import serve_append, serve_offload
from mla_compiler.bench.cases import LLAMA_8B
from mla_compiler.bench.compare import Settings
from mla_compiler.bench.serve_generate import Told
from mla_compiler.bench.serve_model import check, model_of, pooled, work_of
from mla_compiler.bench.serving import SERVING, Served, Wrong, failures

SETTINGS = Settings("cpu", torch.float32, repeats=1)
GENERATE, FULL, APPEND, OFFLOAD = SERVING
TINY = ["--device", "cpu", "--tiny", "--group", "serve", "--repeats", "1"]


def test_the_bars_of_the_project_are_the_ones_measured():
    assert {case.name: [str(bar) for bar in case.bars] for case in SERVING} == {
        "generate B=16, 8k of 16k": [">= 5 x the static cache"],
        "generate B=16, 8k": ["goal: >= 5 x the static cache"],
        "append B=64, 32 layers, 2k": ["<= 1 % of the step"],
        "offload B=1, 4 of 32 layers, 32k": [">= 80 % of the copy hidden"],
    }
    assert (GENERATE.longest, FULL.longest, OFFLOAD.context, APPEND.layers) == (16384, 8192 + 64, 32768, 32)
    assert dict(APPEND.shape) == {**LLAMA_8B, "num_hidden_layers": 32} and all(not case.shrunk().bars for case in SERVING)


def test_bars_are_of_figures_and_a_failure_is_one():
    row = Served(OFFLOAD, {"% of the copy hidden": 79.0})
    assert list(failures([row])) == ["offload B=1, 4 of 32 layers, 32k: >= 80 % of the copy hidden: 79"]
    assert list(failures([Served(OFFLOAD, {"% of the copy hidden": 80.0}), Served(GENERATE)])) == []
    assert list(failures([Served(APPEND, failure="Wrong: no")])) == ["append B=64, 32 layers, 2k: Wrong: no"]


def test_an_error_is_held_to_twice_that_of_eager():
    truth = torch.zeros(3, dtype=torch.float64)
    assert check("ours", truth + 2e-3, truth + 1e-3, truth) == pytest.approx(2)
    for wrong in (2.1e-3, math.nan):
        with pytest.raises(Wrong, match="ours: wrong"):
            check("ours", truth + wrong, truth + 1e-3, truth)


def test_tokens_are_told():
    tokens = torch.tensor([[3, 1], [2, 0]])
    told, scores = Told(tokens), torch.randn(2, 4)
    assert torch.equal(torch.stack([told(tokens, scores).argmax(1) for _ in range(2)], 1), tokens)
    assert told.ms_per_token() > 0


@pytest.mark.slow
def test_generate_is_measured_in_both_columns(tmp_path):
    path = tmp_path / "numbers.json"
    assert bench.main([*TINY, "--cases", "generate B=16, 8k$", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["served"]
    assert all(row["figures"][f"x eager's error, {name}"] <= 2 for name in ("inductor", "flashmla"))
    ratio = row["figures"]["ms a token, inductor"] / row["figures"]["ms a token, flashmla"]
    assert row["figures"]["x the static cache"] == pytest.approx(ratio)


def test_appends_and_turns_are_measured(tmp_path, capsys):
    path, trace = tmp_path / "numbers.json", tmp_path / "trace.json"
    assert bench.main([*TINY, "--cases", "append|offload", "--json", str(path), "--trace", str(trace)]) == 0
    append, offload = (row["figures"] for row in json.loads(path.read_text())["served"])
    assert append["% of the step"] == pytest.approx(append["us of appends"] / append["ms a step"] / 10)
    assert min(offload["ms a step"], offload["ms of copies"], offload["ms a step, layers on the host"]) > 0
    assert offload["ms of copies alone"] == offload["ms of copies"] and offload["% of the copy hidden"] == 0  # without a GPU
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("step") == serve_offload.TRACED and names.count("flashmla::pool.bring") >= 2
    assert "% of the copy hidden" in capsys.readouterr().out


@pytest.mark.parametrize("spans, length", [
    ([], 0), ([(1, 3)], 2), ([(4, 6), (1, 3)], 4), ([(1, 5), (2, 3), (4, 7)], 6), ([(1, 2), (1, 2), (2, 3)], 2)])
def test_what_spans_cover(spans, length):
    assert serve_offload.covered(spans) == length


def test_other_numbers_on_the_host_are_found_out():
    case = OFFLOAD.shrunk()
    work = work_of(model_of(case, SETTINGS), case, 1)
    here = serve_offload._cache(work, case, 0)
    work.layers[0].keys.neg_()
    with pytest.raises(Wrong, match="other logits"):
        serve_offload._check(work, here, serve_offload._cache(work, case, 1))
    with pytest.raises(Wrong, match="nothing lies there"):
        serve_offload._check(work, serve_offload._cache(work, case, 0), serve_offload._cache(work, case, 0))


def test_an_append_that_does_not_write_is_found_out(monkeypatch):
    case = APPEND.shrunk()
    work = work_of(model_of(case, SETTINGS), case, case.batch)
    cache = pooled(work, case)
    monkeypatch.setattr(serve_append, "_write", lambda *_: None)
    with pytest.raises(Wrong, match="an append"):
        serve_append._appends(cache, case)


@pytest.mark.gpu
def test_tiny_cases_on_the_gpu():
    assert bench.main(["--device", "cuda", *TINY[2:]]) == 0
