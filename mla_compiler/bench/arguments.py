"""The flags of the benchmark, read by `flashmla bench` and by `python -m mla_compiler.bench`. Imports no torch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from .cases import COLUMNS

KERNEL_COLUMNS = ("sdpa", "sdpa-fa2", "sdpa-cudnn", "flex", "fa3", "flashinfer", "deepseek")
GROUPS = ("prefill", "decode", "latent", "sparse", "pool", "model", "serve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(dict.fromkeys((*COLUMNS, *KERNEL_COLUMNS)))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    parser.add_argument("--group", choices=(*GROUPS, "all"), default="all",
                        help="kernels of prefill, decode, latents, of pages, or that leave tiles out; models; a pool at work")
    parser.add_argument("--cases", type=pattern, default="", metavar="REGEX", help="only the cases in whose name this is found")
    parser.add_argument("--columns", type=columns, metavar="A,B", help=f"only these, of {known}; eager, the models' yardstick, "
                        "and of the kernels flashmla always run")
    parser.add_argument("--mode", default="", help="torch.compile's mode, for every compiled column of the models; "
                        "without it decode on a GPU runs in CUDA graphs (reduce-overhead)")
    parser.add_argument("--repeats", type=positive, default=20, help="timed runs a column, fewer where they are long")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes that compile before anything is measured; 0: each "
                        "column compiles when its turn comes; default: by the cores of a machine with a GPU, else 0")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="start no further case once this is spent")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too, after every case")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the kernels (needs matplotlib)")
    parser.add_argument("--trace", type=Path, metavar="FILE.json", help="of serve: four steps with layers on the host, for chrome://tracing")
    parser.add_argument("--tiny", action="store_true", help="the GPU's cases at a size for any machine, without bars")


def columns(text: str) -> list[str]:
    """The columns named. Raises ArgumentTypeError for an unknown one."""
    known, given = (*COLUMNS, *KERNEL_COLUMNS), text.split(",")
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise argparse.ArgumentTypeError(f"no column {', '.join(unknown)}; there are {', '.join(dict.fromkeys(known))}")
    return given


def pattern(text: str) -> re.Pattern[str]:
    """Raises ArgumentTypeError where the text is no regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"no regular expression: {error}") from None


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"at least 1, found {text}")
    return number
