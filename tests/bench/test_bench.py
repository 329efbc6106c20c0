"""The benchmark: what counts as cleared, missed and wrong, and that the GPU's cases run, tiny, on this machine."""

import json
from importlib import metadata

import pytest
import torch

from mla_compiler.bench import __main__ as bench
from mla_compiler.bench import show
from mla_compiler.bench.cases import CPU_CASES, EAGER, FLASHMLA, FLEX, GPU_CASES, INDUCTOR, LLAMA_8B, TINY, Bar, Case
from mla_compiler.bench.compare import Cell, Row, Settings, failures, run_case, run_interleaved
from mla_compiler.bench.measure import Timing
from mla_compiler.bench.work import Work, random_llama

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
    bars = {case.name: [(bar.peer, bar.ratio, bar.of) for bar in case.bars] for case in (*GPU_CASES, *CPU_CASES)}
    assert bars == {
        "prefill 32k": [(INDUCTOR, 2.1, "time"), (EAGER, 1.1, "time"), (EAGER, 1.0, "memory"), (FLEX, 1.0, "time")],
        "prefill 8k": [(INDUCTOR, 1.3, "time"), (FLEX, 1.0, "time")],
        "decode B=16, 8k of 16k": [(INDUCTOR, 5.0, "time"), (FLEX, 1.0, "time")],
        "decode B=16, 2k of 4k": [(INDUCTOR, 2.5, "time"), (FLEX, 1.0, "time")],
        "decode B=1, 32k": [(INDUCTOR, 2.0, "time"), (FLEX, 1.0, "time")],
        "decode B=1, 256 of 4k": [(INDUCTOR, 1.0, "time")],
    }
    assert (LLAMA_8B["num_hidden_layers"], LLAMA_8B["hidden_size"]) == (8, 4096)


def test_columns_are_checked_and_eager_is_always_among_them():
    assert bench.parse(["--columns", "flashmla"]).columns == [EAGER, FLASHMLA]
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
    arguments = ["--device", "cpu", "--tiny", "--cases", "2k of 4k", "--columns", "eager,flashmla", "--repeats", "1"]
    assert bench.main([*arguments, "--json", str(path)]) == 0
    shown, numbers = capsys.readouterr().out, json.loads(path.read_text())
    assert "decode B=16, 2k of 4k" in shown and "transformers" in shown
    (case,) = numbers["cases"]
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


def test_interleaved_columns_are_checked_too():
    model = random_llama(TINY, "cpu", torch.float32)
    found = run_interleaved(model, Case("decode", 1, 16, 32), [EAGER, FLASHMLA], SETTINGS, print)
    assert found.wrong() == [] and found.ratio(EAGER) is not None


@pytest.mark.gpu
def test_tiny_cases_on_the_gpu():
    assert bench.main(["--device", "cuda", "--tiny", "--columns", "eager,flashmla", "--repeats", "2"]) == 0
