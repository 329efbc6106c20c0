"""Rows of kernels: ratios, rates, bars, what is shown; and one case run for real, tiny."""

import dataclasses
import functools
import json
import math
import os

import pytest
import torch
from rich.console import Console

import mla_compiler
from mla_compiler.bench import kernels, show_kernels
from mla_compiler.bench.attentions import ATTENTIONS, DECODE, DENSE, PREFILL, Attention
from mla_compiler.bench.bars import BEST, BEST_SDPA, Bar, Limit
from mla_compiler.bench.compare import Settings
from mla_compiler.bench.kernel_rows import KernelRow, Reading, failures
from mla_compiler.bench.kernels import run_kernels
from mla_compiler.bench.measure import Run, per_call
from mla_compiler.bench.operands import Operands
from mla_compiler.bench.peers import PEERS, Peer, Unfit
from mla_compiler.bench.pool import PAGED
from mla_compiler.bench.roofline import Roofline
from mla_compiler.bench.sparse import SPARSE
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering.sparse.config import unserved

SETTINGS = Settings("cpu", torch.float32, repeats=1)
ROOF = Roofline(copy=3.0, matmul=600.0)
BARS = (Bar(BEST, 1.0), Bar(BEST_SDPA, 1.5), Limit("us", 12), Limit("TB/s", 0.5, least=True))
TOY = ATTENTIONS[0].shrunk()


def decode_row(ours: Reading, **peers: Reading) -> KernelRow:
    return KernelRow(Attention("decode", DECODE, 1, 1, 2048, bars=BARS), torch.bfloat16, {"flashmla": ours, **peers})


def test_bars_look_at_the_best_peer_that_is_right():
    row = decode_row(
        Reading(10, compile_s=3), sdpa=Reading(16), flex=Reading(9), fa3=Reading(note="wrong: 3 x the formula's error"))
    assert row.best() == ("flex", 9) and row.best(BEST_SDPA) == ("sdpa", 16)
    assert [ok for _, _, ok in row.bars()] == [False, True, True, True, True]
    assert list(failures([row])) == ["decode: >= 1x the best peer: 0.90x"]
    assert row.rate(10) == pytest.approx(2048 * 8 * 128 * 2 * 2 / 10e-6 / 1e12)
    assert show_kernels.share(row, ROOF) == pytest.approx(row.rate(10) / 3)


def test_without_peers_nothing_is_missed_but_slow_compilation_is():
    row = decode_row(Reading(10, compile_s=11), sdpa=Reading(note="absent"))
    assert [ok for _, _, ok in row.bars()] == [None, None, True, True, False]
    assert list(failures([row])) == ["decode: <= 10 s to compile: 11"]


def test_no_right_answer_of_ours_is_a_failure():
    row = decode_row(Reading(note="wrong: 7 x the formula's error", error=7), sdpa=Reading(9))
    assert list(failures([row])) == ["decode: flashmla: wrong: 7 x the formula's error"]
    assert all(ok is None for _, _, ok in row.bars())


@pytest.mark.parametrize("format", ["plain", "fp8", "int8", "int4", "k8v4", "k6v4"])
def test_steps_over_pages_are_right_and_compared_with_keys_in_one_piece(format):
    case = next(case for case in PAGED if case.format == format).shrunk()
    row = run_kernels(dataclasses.replace(case, queries=2, keys=200, batch=2), [], SETTINGS, print)
    assert 0 < row.ours.error <= 2 and row.figure("x ours, dense") == pytest.approx(row.dense_us / row.ours.us)


def test_documents_are_compared_with_our_dense_causal():
    bars = (Limit("x ours, dense", 6, least=True), Limit("ms", 1), Limit("TFLOP/s", 1, least=True))
    case = Attention("documents", PREFILL, 1, 1024, 1024, documents=16, bars=bars)
    row = KernelRow(case, torch.bfloat16, {"flashmla": Reading(100)}, dense_us=590)
    assert [value for _, value, _ in row.bars()] == pytest.approx([5.9, 0.1, case.flops / 100 * 1e-6, 0.0])
    assert [ok for _, _, ok in row.bars()] == [False, True, True, True]


def test_tables_show_what_there_is(capsys):
    row = decode_row(
        Reading(10, 1.0, 3.21, "graph"), sdpa=Reading(16, 1.1, how="events: no capture"), flex=Reading(note="ValueError: [no]"),
        fa3=Reading(note="absent"), deepseek=Reading(note="no kernel: none"), flashinfer=Reading(note="wrong: 3"))
    peers = ["sdpa", "flex", "fa3", "flashinfer", "deepseek"]
    console = Console(width=200)
    console.print(show_kernels.table([row], peers, ROOF), show_kernels.checks([row], peers))
    shown = capsys.readouterr().out
    for text in ("10.0", "0.839 TB/s", "28%", "1.60x SDPA", "failed", "absent", "no kernel", "wrong", "1.00, 3.2", "1.10, 0.0*",
                 ">= 1.5x the best SDPA: pass 1.60x"):
        assert text in shown
    assert show_kernels.notes([row]) == [
        "decode: flex: ValueError: [no]", "decode: deepseek: no kernel: none", "decode: flashinfer: wrong: 3"]
    assert show_kernels.line(row, ROOF) == "decode: 10.0 us, 0.839 TB/s, 28% of the roofline, 1.60x SDPA, first call 3.2 s"
    numbers = json.loads(json.dumps(show_kernels.as_json(row, ROOF)))
    assert (numbers["best_peer"], numbers["ratio"], numbers["readings"]["fa3"]["rate"]) == ("sdpa", 1.6, None)


def test_a_case_is_checked_and_timed():
    row = run_kernels(TOY, ["sdpa", "fa3"], SETTINGS, lambda text: None)
    assert row.ours.us > 0 and 0 < row.ours.error <= 2 and row.ours.how == "clock"
    assert row.readings["sdpa"].us > 0 and row.readings["fa3"].note == "absent"
    assert row.bars() == [] and list(failures([row])) == []
    documents = next(case for case in ATTENTIONS if case.documents > 1).shrunk()
    assert run_kernels(documents, [], SETTINGS, lambda text: None).dense_us > 0


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    monkeypatch.setattr(Operands, "ours", lambda given: lambda: given.q * math.nan)
    row = run_kernels(TOY, [], SETTINGS, lambda text: None)
    assert row.ours.us is None and row.ours.note.startswith("wrong: nan")
    assert len(list(failures([row]))) == 1


def test_a_peer_may_refuse_or_fail_in_one_way_of_two(monkeypatch):
    def no(*_):
        raise Unfit("not this one")

    def broken():
        raise RuntimeError("words\nlast words")

    def half(given):
        return [[broken], *PEERS["sdpa"].bind(given)]

    for name, bind in {"fa3": no, "flex": half, "flashinfer": lambda given: [[broken]]}.items():
        monkeypatch.setitem(kernels.PEERS, name, Peer(name, bind, gpu=False))
    found = run_kernels(TOY, ["fa3", "flex", "flashinfer"], SETTINGS, lambda text: None).readings
    assert found["fa3"].note == "no kernel: not this one"
    assert found["flex"].us > 0
    assert found["flashinfer"].note == "RuntimeError: last words"


def test_our_first_call_finds_no_kernel_on_disk(monkeypatch):
    seen = []
    monkeypatch.setattr(kernels, "_attempt", lambda *_: seen.append(os.environ["TRITON_ALWAYS_COMPILE"]) or Reading(1.0))
    for before in (None, "0"):
        monkeypatch.delenv("TRITON_ALWAYS_COMPILE", raising=False)
        if before is not None:
            monkeypatch.setenv("TRITON_ALWAYS_COMPILE", before)
        run_kernels(TOY, [], SETTINGS, lambda text: None)
        assert os.environ.get("TRITON_ALWAYS_COMPILE") == before
    assert seen == ["1", "1"]


def test_operands_that_do_not_fit_make_a_row_of_failures(monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernels, "copies", no_memory)
    row = run_kernels(TOY, ["sdpa"], SETTINGS, lambda text: None)
    assert {reading.note for reading in row.readings.values()} == {"OutOfMemoryError: CUDA out of memory"}
    assert list(row.readings) == ["flashmla", "sdpa"] and len(list(failures([row]))) == 1


def test_a_first_call_made_beforehand_is_the_one_that_is_shown():
    row = run_kernels(TOY, ["sdpa"], SETTINGS, lambda text: None, {"flashmla": 7.0})
    assert row.ours.compile_s == 7.0 and row.ours.us > 0 and row.readings["sdpa"].compile_s < 7


def test_calls_take_turns():
    seen = []
    run = per_call([lambda: seen.append(0), lambda: seen.append(1)], "cpu", 3)
    assert seen == [0, 1] * 4 and run.us > 0 and run.how == "clock"


class Recorded:
    """Stands for torch.cuda's events, graph and capture: every span takes 0.5 ms."""

    replays, broken = 0, False

    def __init__(self, *_, **__):
        pass

    def record(self):
        pass

    def elapsed_time(self, _):
        return 0.5

    def replay(self):
        Recorded.replays += 1

    def __enter__(self):
        if self.broken:
            raise RuntimeError("words\noperation not permitted when stream is capturing")

    def __exit__(self, *_):
        pass


def test_on_a_gpu_a_graph_of_about_two_milliseconds_is_replayed_else_events_are_put_around_a_loop(monkeypatch):
    for name in ("Event", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, Recorded)
    for name in ("synchronize", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    monkeypatch.setattr(Recorded, "replays", 0)
    seen = []
    calls = [lambda: seen.append(0), lambda: seen.append(1)]
    run = per_call(calls, "cuda", 5)
    assert (run.us, run.how, run.count) == (1e3 * 0.5 / 8, "graph", 8)  # 0.5 ms for two calls: four rounds of two
    assert run.held is calls                                    # a graph reads their operands and keeps none alive
    assert seen[-8:] == [0, 1] * 4 and Recorded.replays == 3 + 5
    monkeypatch.setattr(Recorded, "broken", True)
    reason = "events: RuntimeError: operation not permitted when stream is capturing"
    run = per_call(calls, "cuda", 5)
    assert (run.us, run.how, Recorded.replays) == (1e3 * 0.5 / 8, reason, 3 + 5)


def test_kernels_are_timed_in_turns(monkeypatch):
    """Each reading gets the time of its own run, the dense one the last; a run that is done gives its graph's memory back."""
    monkeypatch.setattr(torch.cuda, "Event", Recorded)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: 0)
    seen = []
    runs = [Run(9.0, "graph", functools.partial(seen.append, at), count) for at, count in enumerate((1, 2, 4))]
    row = KernelRow(TOY, torch.bfloat16, {"flashmla": Reading(9.0, how="graph", run=runs[0]), "sdpa": Reading(note="absent"),
                                          "fa3": Reading(9.0, how="graph", run=runs[1])}, dense_us=9.0)
    kernels._again_in_turns(row, runs[2], dataclasses.replace(SETTINGS, device="cuda", repeats=3))
    assert seen == [0, 1, 2] * 3
    assert [row.readings[name].us for name in row.readings] == [500.0, None, 250.0] and row.dense_us == 125.0
    assert all(reading.run is None for reading in row.readings.values())


@pytest.mark.gpu
@pytest.mark.parametrize("case", [case.shrunk() for case in ATTENTIONS], ids=lambda case: case.name)
def test_every_kernel_is_right_on_the_gpu(case):
    row = run_kernels(case, [], Settings("cuda", torch.bfloat16, repeats=2), lambda text: None)
    assert row.ours.note == "" and row.ours.how == "graph"


@pytest.mark.parametrize("case", [case.shrunk() for case in SPARSE], ids=lambda case: case.name)
def test_what_leaves_tiles_out_is_right_and_compared_with_dense(case):
    """A toy has few tiles: the keys are longer here, so that some are left out."""
    case = dataclasses.replace(case, keys=1024, queries=1 if case.group == DECODE else 1024)
    if unserved(AttentionSpec.parse(case.spec)):
        pytest.skip("no kernel here")
    row = run_kernels(case, [], SETTINGS, lambda text: None)
    assert row.ours.error <= 2 and row.dense_us > 0 and row.figure(DENSE) == pytest.approx(row.dense_us / row.ours.us)
    if case.format or case.sparsity == "exact":
        return  # pages keep no account, and nothing is left out
    given = Operands.random(case, "cpu", torch.float32)
    mla_compiler.accounts(forget=True)
    torch.ops.flashmla.attend(given.q, given.k, given.v, list(given.tables), [], [], f"{case.spec}; site: one")
    assert 0.05 < mla_compiler.accounts(forget=True).left_out < 1
