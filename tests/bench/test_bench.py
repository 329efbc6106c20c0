"""The models of the benchmark: what counts as cleared, missed and wrong; that the GPU's cases run, tiny, on this machine."""

import io
import json
from importlib import metadata

import pytest
import torch
from rich.console import Console

from mla_compiler.bench import __main__ as bench
from mla_compiler.bench import models, show
from mla_compiler.bench.bars import Bar, Limit
from mla_compiler.bench.cases import (
    CPU_CASES,
    DEEPSEEK_V3,
    EAGER,
    FLASHMLA,
    FLEX,
    GPU_CASES,
    INDUCTOR,
    LLAMA_8B,
    LLAMA_70B,
    NEEDED,
    TINY,
    TINY_LATENT,
    Case,
)
from mla_compiler.bench.compare import Settings, run_case, run_interleaved
from mla_compiler.bench.measure import Timing, enough
from mla_compiler.bench.rows import Cell, Row, failures
from mla_compiler.bench.work import Work, random_llama, random_model

SETTINGS = Settings("cpu", torch.float32, repeats=1)
BARS = (Bar(INDUCTOR, 2.0), Bar(EAGER, 1.0, "memory"), Bar(FLEX, 1.0))


def row(**cells: Cell) -> Row:
    return Row(Case("case", 1, 8, bars=BARS), cells)


def cell(ms: float, peak: int = 0, error: float = 1e-6) -> Cell:
    return Cell(Timing(ms, peak), error=error)


def test_bars_compare_time_and_memory():
    found = row(eager=cell(4, 100), inductor=cell(6, 300), flex=cell(2.5, 100), flashmla=cell(2.5, 101))
    assert [(ratio, cleared) for _, ratio, cleared in found.bars()] == [(2.4, True), (100 / 101, False), (1.0, True)]
    assert list(failures([found])) == ["case: >= 1x eager in memory: 0.99x"]


def test_a_peer_that_fails_clears_and_misses_nothing():
    found = row(eager=cell(4, 100), inductor=cell(6), flex=Cell(failure="InductorError: no"), flashmla=cell(2, 90))
    assert [cleared for _, _, cleared in found.bars()] == [True, True, None]
    assert list(failures([found])) == []


def test_our_own_failure_and_a_wrong_result_are_failures():
    failed = row(eager=cell(4), flashmla=Cell(failure="RuntimeError: no"))
    wrong = row(eager=cell(4), flashmla=cell(1, error=2.1e-6))
    nan = row(eager=cell(4), flashmla=cell(1, error=float("nan")))
    assert list(failures([failed])) == ["case: flashmla: RuntimeError: no"]
    assert list(failures([wrong])) == list(failures([nan])) == ["case: flashmla is wrong"]


def test_the_bars_of_the_project_are_the_ones_measured():
    bars = {case.name: [str(bar) for bar in case.bars] for case in (*GPU_CASES, *CPU_CASES)}
    assert bars == {
        "prefill 32k": [
            ">= 2.1x inductor", ">= 1.1x eager", ">= 1x eager in memory", ">= 1x flex", ">= 1.25x flex", "<= 300 ms",
            "goal: <= 285 ms"],
        "prefill 8k": [">= 1.3x inductor", ">= 1x flex"],
        "decode B=16, 8k of 16k": [">= 5x inductor", ">= 1x flex", ">= 1.2x flex", "<= 3.9 ms"],
        "decode B=16, 2k of 4k": [">= 2.5x inductor", ">= 1x flex", "<= 2.6 ms"],
        "decode B=1, 32k": [">= 2x inductor", ">= 1x flex", "<= 2.45 ms"],
        "70B decode B=16, 2k of 4k": [">= 2.4x inductor", ">= 1x flex", "<= 1.05 x (weights + caches)"],
        "70B decode B=32, 2k of 4k": [">= 2.67x inductor", ">= 1x flex", "<= 1.05 x (weights + caches)"],
        "latent decode B=4, 8k of 16k": [">= 25x inductor", "<= 0.6 ms", "<= 1.05 x (weights + caches)"],
        "latent decode B=1, 32k": [">= 13x inductor", "<= 1.05 x (weights + caches)"],
        "latent prefill 8k": [">= 1.5x inductor"],
        "decode B=1, 256 of 4k": [">= 1x inductor"],
    }
    assert (LLAMA_8B["num_hidden_layers"], LLAMA_8B["hidden_size"]) == (8, 4096)
    assert (LLAMA_70B["num_hidden_layers"], LLAMA_70B["hidden_size"], LLAMA_70B["num_attention_heads"]) == (4, 8192, 64)


def test_figures_have_limits():
    bars = (Limit("ms", 2.5), Limit(NEEDED, 1.05), Limit("ms", 2.0))
    found = Row(Case("case", 1, 8, bars=bars), {EAGER: cell(4), FLASHMLA: cell(2.5, 104)}, needed=100)
    assert [(value, ok) for _, value, ok in found.bars()] == [(2.5, True), (1.04, True), (2.5, False)]
    assert list(failures([found])) == ["case: <= 2 ms: 2.5"]
    unknown = Row(Case("case", 1, 8, bars=bars), {EAGER: cell(4), FLASHMLA: cell(1.5)}, needed=100)
    assert [ok for _, _, ok in unknown.bars()] == [True, None, True]


def test_a_goal_that_is_not_reached_is_no_failure():
    bars = (Limit("ms", 2, goal=True), Bar(EAGER, 3, goal=True), Bar(EAGER, 1))
    found = Row(Case("case", 1, 8, bars=bars), {EAGER: cell(4), FLASHMLA: cell(2.5)})
    assert [ok for _, _, ok in found.bars()] == [False, False, True] and list(failures([found])) == []
    text = io.StringIO()
    Console(file=text, width=150).print(show.summary([found]), show.table([found], [EAGER, FLASHMLA]))
    assert show.counts([found]) == "1 of 1 bars cleared, 0 missed, 0 without a number"
    assert "goal: <= 2 ms: not yet 2.5" in text.getvalue() and "MISS" not in text.getvalue()


def test_needed_memory_is_weights_and_caches():
    model = random_llama(TINY, "cpu", torch.float32)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    caches = 2 * TINY["num_hidden_layers"] * 2 * TINY["num_key_value_heads"] * 40 * 16 * 4
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert Work.of(model, Case("decode", 2, 24, 40)).bytes == weights + buffers + caches


def test_a_model_that_caches_latents_has_a_cache_of_latents():
    work = Work.of(random_model("DeepseekV3", TINY_LATENT, "cpu", torch.float32), Case("decode", 2, 24, 40))
    shapes = [(tuple(layer.keys.shape), tuple(layer.values.shape)) for layer in work.layers]
    assert shapes == [((2, 1, 40, 32), (2, 1, 40, 16))] * 2
    assert all(layer.keys[:, :, :24].all() and not layer.keys[:, :, 24:].any() for layer in work.layers)
    sizes = ("hidden_size", "num_attention_heads", "kv_lora_rank", "qk_rope_head_dim")
    assert [DEEPSEEK_V3[name] for name in sizes] == [7168, 128, 512, 64]


def test_columns_are_checked_and_eager_is_always_among_them():
    asked = bench.parse(["--columns", "flashmla,sdpa"]).columns
    assert models.columns(asked, []) == [EAGER, FLASHMLA]
    assert models.columns(None, [EAGER, FLEX]) == [EAGER, FLEX]
    with pytest.raises(SystemExit):
        bench.parse(["--columns", "flashmal"])


@pytest.mark.parametrize("case", [Case("prefill", 1, 24), Case("decode", 2, 24, 40)], ids=lambda case: case.name)
def test_work_repeats_itself(case):
    work = Work.of(random_llama(TINY, "cpu", torch.float32), case)
    with torch.no_grad():
        first = work.step(work.model)
        work.rewind()
        assert torch.equal(work.step(work.model), first)
    assert first.shape == (case.batch, TINY["vocab_size"])


def test_the_truth_is_the_same_numbers_in_another_dtype():
    work = Work.of(random_llama(TINY, "cpu", torch.float32), Case("decode", 2, 24, 40))
    exact = work.converted(torch.float64)
    pairs = [*zip(work.model.parameters(), exact.model.parameters(), strict=True)]
    pairs += [(a.keys, b.keys) for a, b in zip(work.layers, exact.layers, strict=True)]
    pairs += [(a.values, b.values) for a, b in zip(work.layers, exact.layers, strict=True)]
    assert all(b.dtype == torch.float64 and torch.equal(a.double(), b) for a, b in pairs)
    with torch.no_grad():
        assert exact.step(exact.model).dtype == torch.float64


def test_decode_sees_the_context_and_no_more():
    work = Work.of(random_llama(TINY, "cpu", torch.float32), Case("decode", 2, 24, 40))
    with torch.no_grad():
        first = work.step(work.model)
        for layer in work.layers:
            layer.keys[:, :, 25:], layer.values[:, :, 25:] = 7.0, 7.0
        work.rewind()
        assert torch.equal(work.step(work.model), first)
        work.layers[0].values[:, :, 23] = 7.0
        work.rewind()
        assert not torch.equal(work.step(work.model), first)


def test_tiny_gpu_case_runs_checked_and_reaches_the_json(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    arguments = [
        "--device", "cpu", "--tiny", "--group", "model", "--cases", "2k of 4k", "--columns", "eager,flashmla", "--repeats", "1"]
    assert bench.main([*arguments, "--json", str(path)]) == 0
    shown, numbers = capsys.readouterr().out, json.loads(path.read_text())
    assert "decode B=16, 2k of 4k" in shown and "transformers" in shown
    case, *seventies = numbers["cases"]
    assert [case["model"], *(each["model"] for each in seventies)] == ["Llama-8B, 8 layers", *["Llama-70B, 4 layers"] * 2]
    assert set(case["columns"]) == {EAGER, FLASHMLA}
    assert all(column["timing"]["ms"] > 0 and column["failure"] == "" for column in case["columns"].values())
    assert case["columns"][FLASHMLA]["error"] <= 2 * case["columns"][EAGER]["error"]
    assert numbers["missed"] == []
    assert numbers["about"]["torch"] == metadata.version("torch")


def test_a_column_that_cannot_run_is_shown_as_a_failure(monkeypatch):
    from mla_compiler.bench import compare

    monkeypatch.setitem(compare.BACKEND, FLEX, "no_such_backend")
    found = run_case(random_llama(TINY, "cpu", torch.float32), Case("prefill", 1, 16), [EAGER, FLEX], SETTINGS, print)
    assert found.cells[FLEX].timing is None and "no_such_backend" in found.cells[FLEX].failure
    assert found.cells[EAGER].timing is not None
    assert show.table([found], [EAGER, FLEX]).row_count == 1


def test_a_truth_that_does_not_fit_is_shown_and_the_next_case_can_run(monkeypatch):
    from mla_compiler.bench import compare

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compare, "truth_of", no_memory)
    found = run_case(random_llama(TINY, "cpu", torch.float32), Case("prefill", 1, 16), [EAGER, FLASHMLA], SETTINGS, print)
    reason = "nothing to check against: OutOfMemoryError: CUDA out of memory"
    assert list(failures([found])) == [f"prefill: flashmla: {reason}"]
    assert show.notes([found]) == [f"prefill: eager: {reason}", f"prefill: flashmla: {reason}"]


def test_a_case_that_fails_is_shown_and_the_next_one_runs(monkeypatch, tmp_path, capsys):
    from mla_compiler.bench.work import Work as Bound

    plain = Bound.of

    def short_of_memory(model, case, seed=0):
        if case.name == "decode B=16, 2k of 4k":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, case, seed)

    monkeypatch.setattr(Bound, "of", short_of_memory)
    path = tmp_path / "numbers.json"
    asked = ["--device", "cpu", "--tiny", "--group", "model", "--columns", "eager", "--repeats", "1", "--json", str(path)]
    assert bench.main([*asked, "--cases", "^decode B=16, 2k|^latent decode B=4"]) == 0
    first, second = json.loads(path.read_text())["cases"]
    assert "CUDA out of memory" in first["columns"]["eager"]["failure"]
    assert second["case"] == "latent decode B=4, 8k of 16k" and second["columns"]["eager"]["timing"]["ms"] > 0
    assert "nothing to check against" in capsys.readouterr().out


def test_long_calls_are_timed_fewer_times():
    assert [enough(ms, 20) for ms in (0.01, 90, 150, 700)] == [20, 20, 13, 5] and enough(700, 2) == 2


def test_interleaved_columns_are_checked_too():
    model = random_llama(TINY, "cpu", torch.float32)
    found = run_interleaved(model, Case("decode", 1, 16, 32), [EAGER, FLASHMLA], SETTINGS, print)
    assert found.wrong() == [] and found.ratio(EAGER) is not None


@pytest.mark.gpu
def test_tiny_cases_on_the_gpu():
    assert bench.main(["--device", "cuda", "--tiny", "--repeats", "2", "--group", "model",
                       "--columns", "eager,flashmla"]) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("group", ["prefill", "decode"])
def test_tiny_kernels_on_the_gpu(group, tmp_path):
    path = tmp_path / "numbers.json"
    chosen = ["--group", group, "--cases", "2k", "--columns", "sdpa,sdpa-fa2,sdpa-cudnn,flex"]
    assert bench.main(["--device", "cuda", "--tiny", "--repeats", "2", *chosen, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["kernels"]
    assert rows and all(row["readings"]["sdpa"]["how"] == "graph" for row in rows)
