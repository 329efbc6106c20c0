"""`make bench`: the cases for this machine, checked, timed, shown against their bars. Exit status 1 if one is missed.

    python -m mla_compiler.bench [--device cpu|cuda] [--cases TEXT] [--columns eager,inductor,flex,flashmla] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import show
from .cases import COLUMNS, CPU_CASES, EAGER, FLASHMLA, GPU_CASES, INDUCTOR, LLAMA_8B, SMOLLM2, TINY
from .compare import Row, Settings, failures, run_case, run_interleaved
from .compiling import compiling
from .work import random_llama


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", default="", help="only the cases with this in their name")
    parser.add_argument("--columns", type=_columns, help=f"from {','.join(COLUMNS)}; eager, the yardstick, always runs")
    parser.add_argument("--mode", default="default", help="torch.compile's mode, for every compiled column")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls a column")
    parser.add_argument("--json", type=Path, help="write the numbers here too, after every case")
    parser.add_argument("--tiny", action="store_true", help="the GPU's cases at a size for any machine, without bars")
    return parser.parse_args(arguments)


def _columns(text: str) -> list[str]:
    """The columns named, in their order, eager first. Raises ArgumentTypeError for an unknown one."""
    unknown = set(text.split(",")) - set(COLUMNS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no column {', '.join(sorted(unknown))}; there are {', '.join(COLUMNS)}")
    return [name for name in COLUMNS if name == EAGER or name in text.split(",")]


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150)
    on_cpu = given.device == "cpu"
    settings = Settings(given.device, torch.float32 if on_cpu else torch.bfloat16, given.mode, given.repeats)
    rows, about, extra = _on_cpu(given, settings, console) if on_cpu and not given.tiny else _cases(given, settings, console)
    missed = [*failures(rows), *extra.pop("missed", [])]
    _save(given.json, show.as_json(rows, about, {**extra, "missed": missed}))
    for line in missed:
        console.print(f"[red]missed[/]  {line}")
    return 1 if missed else 0


def _cases(given: argparse.Namespace, settings: Settings, console: Console) -> tuple[list[Row], dict[str, str], dict[str, Any]]:
    """The GPU's cases, in one process, memory cleared in between."""
    shape, name = (TINY, "a tiny Llama") if given.tiny else (LLAMA_8B, "Llama-8B shape, 8 layers, random weights")
    columns = given.columns or list(COLUMNS)
    about = show.facts(settings, name)
    console.print(*(f"{key} {value}" for key, value in about.items()), sep="; ")
    model, rows = random_llama(shape, settings.device, settings.dtype), []
    for case in GPU_CASES:
        if given.cases not in case.name:
            continue
        rows.append(run_case(model, case.shrunk(64) if given.tiny else case, columns, settings, console.log))
        _save(given.json, show.as_json(rows, about, {}))
        console.print(show.table(rows[-1:], columns))
    console.print(show.table(rows, columns), show.errors(rows, columns), sep="\n")
    return rows, about, {}


def _on_cpu(
    given: argparse.Namespace, settings: Settings, console: Console
) -> tuple[list[Row], dict[str, str], dict[str, Any]]:
    """Decode with a long static cache, and what compilation costs."""
    columns = given.columns or [EAGER, INDUCTOR, FLASHMLA]
    about = show.facts(settings, "SmolLM2-135M shape, random weights")
    console.print(*(f"{key} {value}" for key, value in about.items()), sep="; ")
    cases = [case for case in CPU_CASES if given.cases in case.name]
    rows = []
    if cases:
        model = random_llama(SMOLLM2, settings.device, settings.dtype)
        rows = [run_interleaved(model, case, columns, settings, console.log) for case in cases]
        console.print(show.table(rows, columns), show.errors(rows, columns), sep="\n")
    return rows, about, compiling(console) if given.cases in "compilation" else {}


def _save(path: Path | None, numbers: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    sys.exit(main())
