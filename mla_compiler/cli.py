"""flashmla doctor | kernels | report | bench | calibrate: what works here, what is compiled, what was found, how fast it is,
and how much may be left out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .bench.arguments import add_arguments
from .calibration.arguments import add_arguments as add_calibration
from .errors import FlashMLAError, OptionError

if TYPE_CHECKING:
    from .ir import AttentionSpec

STAGES = ("source", "ttir", "ttgir", "ptx", "amdgcn", "sass")
SPECS = {
    "full": "score: {scale}*s",
    "causal": "score: {scale}*s; hi: i + 1",
    "window": "score: {scale}*s; lo: max(0, i - 1023); hi: i + 1",
    "decode": "score: {scale}*s; hi: T0[b] + 1",
    "padded": "score: {scale}*s; hi: i + 1; residue: M0[b, j]",
    "documents": "score: {scale}*s; hi: i + 1; residue: T0[b, i] == T0[b, j]",
    "softcap": "score: 50.0*tanh({scale}/50.0*s); hi: i + 1",
    "alibi": "score: {scale}*s + F0[h]*(j - i); hi: i + 1",
}
"""Common attentions by name, in the text of AttentionSpec; `scale` becomes 1 / sqrt(head_dim)."""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status: 0 well, 1 something does not work, 2 not understood."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (FlashMLAError, OSError) as error:
        print(f"flashmla: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flashmla", description='torch.compile(model, backend="flashmla")')
    parser.add_argument("--version", action="version", version=f"flashmla {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="what will work on this machine")
    doctor.add_argument("--try", dest="trial", action="store_true", help="also compile a small attention and check it")
    doctor.set_defaults(run=_doctor)

    report = commands.add_parser("report", help="print a report that Report.json() wrote")
    report.add_argument("file", type=Path)
    report.add_argument("--every", action="store_true", help="a row for each attention, not one for like layers")
    report.add_argument("--html", type=Path, metavar="OUT", help="write it as a page instead")
    report.set_defaults(run=_report)

    kernels = commands.add_parser("kernels", help="compile the kernels of an attention, without a GPU")
    kernels.add_argument("--arch", default="sm_90", help="sm_80, sm_89, sm_90, sm_100, gfx942 (default: %(default)s)")
    kernels.add_argument("--spec", default="causal", help=f"{', '.join(SPECS)}, or the text of a spec (default: %(default)s)")
    kernels.add_argument("--head-dim", type=int, default=128, metavar="D")
    kernels.add_argument("--dtype", default="bfloat16", choices=("float16", "bfloat16", "float32"))
    kernels.add_argument("--show", choices=STAGES, help="print this of each kernel, instead of a table")
    kernels.set_defaults(run=_kernels)

    bench = commands.add_parser("bench", help="kernels and models beside their peers, against their bars")
    add_arguments(bench)
    bench.set_defaults(run=_bench)

    calibrate = commands.add_parser("calibrate", help="find how much each layer's attention may leave out within a loss")
    add_calibration(calibrate)
    calibrate.set_defaults(run=_calibrate)
    return parser


def _doctor(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from . import doctor

    console = Console(soft_wrap=True, highlight=False)
    found = doctor.checks() + ([doctor.trial()] if arguments.trial else [])
    for check in found:
        style = {"ok": "green", "warn": "yellow", "bad": "bold red"}[check.state]
        console.print(Text.assemble((f"{check.state:4}", style), f"  {check.name:13} {check.found}"))
        if check.mend:
            console.print(Text(f"{'':21}to mend: {check.mend}", style="dim"))
    return int(any(check.state == "bad" for check in found))


def _report(arguments: argparse.Namespace) -> int:
    from .report import Report

    report = Report.from_json(arguments.file.read_text(encoding="utf-8"))
    if arguments.html:
        arguments.html.write_text(report.html(), encoding="utf-8")
    else:
        print(report.text(every=arguments.every))
    return 0


def _kernels(arguments: argparse.Namespace) -> int:
    import torch

    from .lowering.compile import compile_spec

    spec = named_spec(arguments.spec, arguments.head_dim)
    found = compile_spec(spec, arguments.head_dim, arguments.head_dim, getattr(torch, arguments.dtype), arguments.arch)
    if arguments.show:
        for kernel in found:
            text = getattr(kernel, arguments.show)
            print(f"# {kernel.name}, {kernel.config}, {kernel.arch}", text or f"# no {arguments.show} here", sep="\n")
        return 0
    print(f"{spec}\n{arguments.arch}, head dim {arguments.head_dim}, {arguments.dtype}")
    for kernel in found:
        registers, shared, spills = ("?" if n < 0 else n for n in (kernel.registers, kernel.shared, kernel.spills))
        print(f"  {kernel.config}: {registers} registers and {spills} bytes spilled a thread, {shared} bytes of shared memory")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from .bench.run import run

    return run(arguments)


def _calibrate(arguments: argparse.Namespace) -> int:
    from .calibration.run import run

    return run(arguments)


def named_spec(text: str, head_dim: int) -> AttentionSpec:
    """The spec of that name, or that the text spells. Raises OptionError if it is neither."""
    from .ir import AttentionSpec

    try:
        return AttentionSpec.parse(SPECS.get(text, text).format(scale=f"{head_dim**-0.5!r}"))
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        mend = f"give one of {', '.join(SPECS)}, or a text like {SPECS['window']!r}"
        raise OptionError(f"--spec {text!r} cannot be read: {error}", mend) from error
