"""Columns compiled in other processes before anything is measured: which, in how many, what comes back, what fails."""

import json

import pytest
import torch

from mla_compiler.bench import __main__ as bench
from mla_compiler.bench import beforehand
from mla_compiler.bench.beforehand import Job, first_calls, jobs_of_kernels, jobs_of_models, processes
from mla_compiler.bench.cases import GPU_CASES, Case
from mla_compiler.bench.compare import Settings
from mla_compiler.bench.latents import LATENTS
from mla_compiler.bench.peers import PEERS
from mla_compiler.bench.sampling import CASES

SETTINGS = Settings("cpu", torch.float32, repeats=1)
BY_NAME = {case.name: case for case in GPU_CASES}


def columns(jobs: list[Job]) -> list[str]:
    return [job.column for job in jobs]


def test_jobs_are_the_columns_that_compile(monkeypatch):
    models = [BY_NAME["decode B=1, 32k"], BY_NAME["latent prefill 8k"]]
    assert columns(jobs_of_models(models, None, SETTINGS, False)) == ["inductor", "flex", "flashmla", "inductor", "flashmla"]
    assert columns(jobs_of_models(models, ["eager", "flashmla"], SETTINGS, True)) == ["flashmla"] * 2
    one = CASES["prefill"][:1]
    assert columns(jobs_of_kernels(one, None, SETTINGS, False)) == ["flashmla"]  # FlexAttention is absent on a CPU
    monkeypatch.setattr(type(PEERS["flex"]), "absent", lambda *_: False)
    assert columns(jobs_of_kernels(one, None, SETTINGS, False)) == ["flex", "flashmla"]
    assert columns(jobs_of_kernels(one, ["fa3"], SETTINGS, False)) == ["flashmla"]
    assert columns(jobs_of_kernels(LATENTS[:1], None, SETTINGS, False)) == ["flashmla"]


def test_how_many_processes(monkeypatch):
    assert processes(3, "cpu") == 3 and processes(0, "cuda") == processes(None, "cpu") == 0
    monkeypatch.setattr(beforehand.os, "cpu_count", lambda: 16)
    assert processes(None, "cuda") == 12
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (79 << 30, 80 << 30))
    assert (beforehand._room("cuda", 20), beforehand._room("cuda", 5), beforehand._room("cuda", 100)) == (3, 15, 1)


@pytest.mark.slow
def test_what_was_compiled_beforehand_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "numbers.json"
    asked = ["--device", "cpu", "--tiny", "--group", "model", "--cases", "^decode B=1, 32k", "--columns", "eager,flashmla"]
    assert bench.main([*asked, "--jobs", "1", "--repeats", "1", "--json", str(path)]) == 0
    cell = json.loads(path.read_text())["cases"][0]["columns"]["flashmla"]
    assert cell["compile_s"] > 1 and not cell["failure"]
    assert "1 columns are compiled in 1 processes" in capsys.readouterr().out


@pytest.mark.slow
def test_a_job_that_fails_is_told_and_the_others_go_on():
    said = []
    toys = jobs_of_kernels([case.shrunk() for case in LATENTS[:1]], [], SETTINGS, False)
    broken = Job("broken", Case("broken", 1, 8, shape="no such model"), "flashmla", SETTINGS)
    found = first_calls([broken, *toys], 1, said.append)
    assert list(found) == [("latent", LATENTS[0].name, "flashmla")] and min(found.values()) > 0
    assert any(text.startswith("broken: flashmla: not compiled beforehand: KeyError") for text in said)
