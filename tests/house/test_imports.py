"""What an import costs and brings in, in fresh processes; and which way imports run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mla_compiler

ROOT = Path(__file__).parents[2]


def fresh(code: str, **variables: str) -> str:
    """What the code prints in a new interpreter that sees this checkout."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_import_brings_in_no_triton_and_costs_under_50_ms_over_torch():
    code = """
import sys, time
import torch
before, best = set(sys.modules), float("inf")
for attempt in range(5):
    for name in set(sys.modules) - before:
        del sys.modules[name]
    start = time.perf_counter()
    import mla_compiler
    best = min(best, time.perf_counter() - start)
added = {name.partition(".")[0] for name in set(sys.modules) - before}
print(best, *sorted(added & {"triton", "sympy", "rich", "transformers"}))
"""
    seconds, *heavy = fresh(code).split()
    assert heavy == []
    assert float(seconds) < 0.050


def test_every_public_name_is_there():
    for name in mla_compiler.__all__:
        if name == "flashmla":
            continue
        assert getattr(mla_compiler, name) is not None
    assert set(mla_compiler.__all__) <= set(dir(mla_compiler))
    with pytest.raises(AttributeError, match="no attribute 'flash'"):
        _ = mla_compiler.flash


def test_submodules_do_not_hide_public_names():
    """`import mla_compiler.x` binds x on the package: no module may have the name of a function we export."""
    modules = {path.stem for path in (ROOT / "mla_compiler").iterdir()}
    assert modules.isdisjoint(mla_compiler.__all__)


def test_no_triton_before_a_kernel_is_needed():
    modules = ("ir", "ops", "options", "report", "report_table", "cli", "passes", "lowering", "logs", "costs")
    code = f"""
import importlib, sys, torch
before = set(sys.modules)
for name in {modules}:
    importlib.import_module("mla_compiler." + name)
print(*set(sys.modules) - before)
"""
    assert "triton" not in fresh(code).split()


def test_short_names_are_refused():
    code = """
import importlib
for short in ("passes", "lowering"):
    try:
        importlib.import_module(short)
    except ImportError as error:
        print(error)
"""
    told = fresh(code)
    assert "import this package as mla_compiler.passes" in told
    assert "import this package as mla_compiler.lowering" in told


def test_imports_run_one_way():
    pytest.importorskip("importlinter")
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
