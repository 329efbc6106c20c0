"""Each example runs, in its own process, and says what it is there to show."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mla_compiler.sparsity import FILE_FORMAT
from tests.calibration.tiny import save

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    """What the example prints. The test fails if its exit status is not 0."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_run_here():
    tested = {
        "demo.py", "handwritten.py", "packed_documents.py", "long_prefill.py", "inspect_kernel.py", "pool_replay.py",
        "pool_accuracy.py", "sparse_quality.py",
    }
    assert {path.name for path in EXAMPLES.glob("*.py") if not path.name.startswith("_")} == tested


def test_handwritten():
    shown = run("handwritten.py", "--device", "cpu", "--length", "320")
    assert "3 of 3 attentions fused" in shown
    assert "speaker[b, i] == speaker[b, j]" in shown


def test_packed_documents():
    shown = run("packed_documents.py", "--device", "cpu", "--random")
    assert "2 of 2 attentions fused" in shown
    pairs = re.findall(r"loss alone ([\d.]+), packed ([\d.]+)", shown)
    assert len(pairs) == 4
    assert all(alone == packed for alone, packed in pairs)


def test_long_prefill():
    shown = run("long_prefill.py", "--device", "cpu", "--length", "200", "--layers", "2", "--backends", "eager,flashmla")
    assert "2 of 2 attentions fused" in shown
    assert "sees j <= i" in shown


def test_inspect_kernel(tmp_path):
    pytest.importorskip("triton")
    ptx = tmp_path / "kernel.ptx"
    shown = run("inspect_kernel.py", "--arch", "sm_90", "--length", "2048", "--ptx", str(ptx))
    assert re.search(r"wgmma [1-9]", shown)
    assert "registers" in shown
    assert ".target sm_90a" in ptx.read_text()


def test_pool_replay(tmp_path):
    chance = random.Random(3)
    times = [f"2023-11-16 18:{i // 60:02}:{i % 60:02}.0000000" for i in range(150)]
    rows = [f"{time},{chance.randint(200, 3000)},{chance.randint(1, 400)}" for time in times]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    shown = run("pool_replay.py", str(path), "--memory", "16384")
    found = dict(re.findall(r"^(\w+) +live/reserved +([\d.]+)%", shown, re.MULTILINE))
    assert float(found["pool"]) >= 96 > float(found["dynamic"]) > float(found["static"])
    assert "150 requests; bar 96%: met" in shown
    rows = dict(re.findall(r"^(\w+) .* ([\d.]+) requests at once", shown, re.MULTILINE))
    assert float(rows["pool"]) > float(rows["dynamic"]) >= float(rows["static"])


def test_sparse_quality(tmp_path):
    home = save(tmp_path / "tiny")
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"format": FILE_FORMAT, "layers": {"layers.1.self_attn": "threshold=1.0"}}))
    shown = run("sparse_quality.py", str(home / "text.txt"), "--model", str(home), "--device", "cpu", "--tokens", "400",
                "--curves", "within rounding,threshold", "--policy", str(policy), "--passkey", "1")
    rows = dict(re.findall(r"^ +(\S+) .* ([\d.]+)% +[01]/1 *$", shown, re.MULTILINE))
    curve = [f"threshold={at}" for at in (0.02, 0.05, 0.1, 0.2)]
    assert list(rows) == ["exact", "error_budget=0.001953125", *curve, "policy.json"]
    work = [float(work) for work in rows.values()]
    assert work[0] == 0 < work[-1] < 50 and work[1:-1] == sorted(work[1:-1])


def test_a_difference_is_an_exit_status():
    """The examples' own judge, on which these tests rely."""
    code = (
        "import torch, _models\n"
        "truth, eager = torch.zeros(2, dtype=torch.float64), torch.full((2,), 1e-6)\n"
        "print(_models.judge(eager * 1.9, eager, truth), _models.judge(eager * 2.1, eager, truth),"
        " _models.judge(eager * float('nan'), eager, truth))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{EXAMPLES.parent}"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True).stdout
    assert shown.splitlines()[-1] == "0 1 1"
