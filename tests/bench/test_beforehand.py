"""Columns compiled in other processes before anything is measured: which, in how many, what comes back, what fails."""

import json

import pytest
import torch

from mla_compiler.bench import __main__ as bench
from mla_compiler.bench import beforehand
from mla_compiler.bench.beforehand import Job, first_call, first_calls, jobs_of_kernels, jobs_of_models, processes
from mla_compiler.bench.cases import GPU_CASES, Case
from mla_compiler.bench.compare import Settings
from mla_compiler.bench.latents import LATENTS
from mla_compiler.bench.peers import PEERS
from mla_compiler.bench.sampling import CASES
from mla_compiler.bench.sparse import SPARSE

SETTINGS = Settings("cpu", torch.float32, repeats=1)
BY_NAME = {case.name: case for case in GPU_CASES}


def columns(jobs: list[Job]) -> list[str]:
    return [job.column for job in jobs]


def test_jobs_are_the_columns_that_compile(monkeypatch):
    models = [BY_NAME["decode B=1, 32k"], BY_NAME["latent prefill 8k"]]
    assert columns(jobs_of_models(models, None, SETTINGS, False)) == ["inductor", "flex", "flashmla", "inductor", "flashmla"]
    assert columns(jobs_of_models(models, ["eager", "flashmla"], SETTINGS, True)) == ["flashmla"] * 2
    one = CASES["prefill"][:1]
    assert columns(jobs_of_kernels("prefill", one, None, SETTINGS, False)) == ["flashmla"]  # FlexAttention is absent on a CPU
    monkeypatch.setattr(type(PEERS["flex"]), "absent", lambda *_: False)
    assert columns(jobs_of_kernels("prefill", one, None, SETTINGS, False)) == ["flex", "flashmla"]
    assert columns(jobs_of_kernels("prefill", one, ["fa3"], SETTINGS, False)) == ["flashmla"]
    for group, cases in (("latent", LATENTS[:1]), ("sparse", SPARSE[:1])):
        jobs = jobs_of_kernels(group, cases, None, SETTINGS, False)
        assert columns(jobs) == ["flashmla"] and [job.group for job in jobs] == [group]


def test_how_many_processes(monkeypatch):
    assert processes(3, "cpu") == 3 and processes(0, "cuda") == processes(None, "cpu") == 0
    monkeypatch.setattr(beforehand.os, "cpu_count", lambda: 16)
    assert processes(None, "cuda") == 12 and processes(None, "cuda", tiny=True) == 0


def test_as_many_run_as_memory_has_room_for():
    large, small = (Job(case.name, case, "flashmla", SETTINGS) for case in (
        BY_NAME["decode B=16, 8k of 16k"], BY_NAME["latent prefill 8k"]))
    assert (large.gib, small.gib) == (20, 8)
    assert beforehand._next([large, small], [], 4, 1.0) is large  # alone, whatever it takes
    assert beforehand._next([large, small], [large], 4, 41.0) is large
    assert beforehand._next([large, small], [large], 4, 39.0) is small
    assert beforehand._next([large, small], [large], 4, 27.0) is None
    assert beforehand._next([large, small], [large, small], 2, 100.0) is beforehand._next([], [], 2, 100.0) is None
    kernel = CASES["decode"][7]
    assert kernel.name == "decode B=64 8k"
    assert Job(kernel.name, kernel, "flex", Settings("cuda", torch.bfloat16)).gib == pytest.approx(2 + 4, abs=0.01)


def test_the_first_call_of_a_model_is_timed():
    case = BY_NAME["latent decode B=1, 32k"].shrunk(512)
    assert first_call(Job(case.name, case, "eager", SETTINGS, tiny=True)) > 0
    with pytest.raises(RuntimeError, match="KeyError"):
        first_call(Job("broken", Case("broken", 1, 8, shape="no such model"), "eager", SETTINGS))


@pytest.mark.slow
def test_what_was_compiled_beforehand_is_what_is_shown(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    asked = ["--device", "cpu", "--tiny", "--group", "latent", "--cases", "128 heads, B=1 8k", "--columns", "deepseek"]
    assert bench.main([*asked, "--jobs", "1", "--repeats", "1", "--json", str(path)]) == 0
    reading = json.loads(path.read_text())["kernels"][0]["readings"]["flashmla"]
    assert reading["compile_s"] > 0 and reading["note"] == ""
    assert "1 columns are compiled in 1 processes" in capsys.readouterr().out


@pytest.mark.slow
def test_a_job_that_fails_is_told_and_the_others_go_on():
    said = []
    toys = jobs_of_kernels("latent", [case.shrunk() for case in LATENTS[:1]], [], SETTINGS, False)
    broken = Job("broken", Case("broken", 1, 8, shape="no such model"), "flashmla", SETTINGS)
    found = first_calls([broken, *toys], 1, said.append)
    assert list(found) == [("latent", LATENTS[0].name, "flashmla")] and min(found.values()) > 0
    assert any(text.startswith("broken: flashmla: not compiled beforehand: KeyError") for text in said)
