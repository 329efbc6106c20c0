"""What compilation costs: the share of our passes, and whether a second process finds the compiled code.

    passes_s / compile_s <= 0.1   for a Llama of 32 layers          second process: no miss
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from rich.console import Console

SHARE = 0.10
"""The most our passes may take of the time to compile."""


def probe_in_fresh_process(cache_dir: str, *arguments: str) -> dict[str, Any]:
    """What `mla_compiler.bench.probe` prints, run with the given compile cache. Raises CalledProcessError if it fails."""
    command = [sys.executable, "-m", "mla_compiler.bench.probe", *arguments]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache_dir}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compiling(console: Console) -> dict[str, Any]:
    """Both figures, for a Llama of 32 narrow layers, with the bars that are missed."""
    with tempfile.TemporaryDirectory() as cache_dir:
        first, second = (probe_in_fresh_process(cache_dir, "--layers", "32") for _ in range(2))
    share, hit = first["passes_s"] / first["compile_s"], second["fx_hits"] > 0 and not second["fx_misses"]
    console.print(
        f"compiling a Llama of 32 layers: {first['compile_s']:.1f} s, our passes {first['passes_s']:.2f} s"
        f" = {100 * share:.1f}% (at most {100 * SHARE:.0f}%); a second process: {second['compile_s']:.1f} s,"
        f" {second['fx_hits']} hits, {second['fx_misses']} misses"
    )
    missed = [] if share <= SHARE else [f"our passes take {100 * share:.1f}% of the time to compile"]
    missed += [] if hit else ["a second process compiles again"]
    return {"compiling": {"first": first, "second": second, "share": share}, "missed": missed}
