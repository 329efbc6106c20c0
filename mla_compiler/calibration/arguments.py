"""The flags of `flashmla calibrate`. Imports no torch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a folder that transformers reads, or a .gguf file")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT", help="plain text, like what the model will read")
    parser.add_argument("--loss", type=percent, default=0.005, metavar="0.5%",
                        help="how much the perplexity may grow, with one standard error (default: 0.5%%)")
    parser.add_argument("--policy", default="threshold", metavar="NAME",
                        help="whose number is sought: threshold, error_budget, pages.share, pages.share+threshold=0.04, ...; "
                        "pages.share+threshold: both numbers; of several, A,B, each layer has its own (default: %(default)s)")
    parser.add_argument("--layers", type=pattern, default="", metavar="REGEX",
                        help="only the layers in whose name this is found; the others stay exact and are not counted")
    parser.add_argument("--tokens", type=int, default=2048, metavar="N", help="of a window of text (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=1, metavar="N",
                        help="of each text to calibrate on; as many again are held out (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("policy.json"), metavar="FILE", help="default: %(default)s")


def pattern(text: str) -> str:
    """Raises ArgumentTypeError where the text is no regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"no regular expression: {error}") from None
    return text


def percent(text: str) -> float:
    """`0.5%` or `0.005`, as a share. Raises ArgumentTypeError where it is not above 0 and below 1."""
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a share like 0.5%, found {text!r}") from None
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"above 0% and below 100%, found {text!r}")
    return share
