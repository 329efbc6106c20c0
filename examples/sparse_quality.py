"""What leaving work out costs a trained model: policies side by side, each a curve of loss against work left out.

    python examples/sparse_quality.py [TEXT ...] [--model DIR] [--tokens 2048] [--windows 1] [--curves NAME,...]
        [--layers REGEX] [--policy FILE ...] [--passkey 20 --passkey-tokens 1024] [--plot FILE.png]

SmolLM2-135M unless another model is named; without a text it reads the sources of torch's Inductor. Loss is relative
perplexity, ± one standard error; work is q.k and p.v, in FLOPs. One compilation serves every policy.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import _models
import _passkey
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mla_compiler.calibration.search import Measured, compare
from mla_compiler.calibration.subject import Outcome, Subject
from mla_compiler.calibration.texts import load, windows
from mla_compiler.errors import OptionError
from mla_compiler.sparsity import Rules, Sparsity

CURVES = {
    "within rounding": ("error_budget=0.001953125",),
    "error_budget": ("error_budget=0.05", "error_budget=0.2", "error_budget=1"),
    "threshold": ("threshold=0.02", "threshold=0.05", "threshold=0.1", "threshold=0.2"),
    "pages.share": ("pages.share=0.01", "pages.share=0.02", "pages.share=0.035", "pages.share=0.06"),
    "and threshold": ("pages.share=0.012+threshold=0.02", "pages.share=0.02+threshold=0.04", "pages.share=0.05+threshold=0.1"),
    "pages": ("pages=0.5", "pages=0.25", "pages.mass=0.95"),
    "lsh": ("lsh=0.5", "lsh=0.25", "lsh.mass=0.95"),
}
"""The first: what `exact` could leave out if it looked at the numbers, 2^-9 being what bfloat16 rounds by."""
FILE = "policy files"


@dataclass(frozen=True)
class Row:
    """One policy of one curve. keys: pass keys found, of how many; refused: why there is no number."""

    curve: str
    policy: str
    found: Measured | None = None
    keys: str = ""
    refused: str = ""


def main() -> int:
    given = arguments()
    if given.plot and importlib.util.find_spec("matplotlib") is None:
        print("--plot needs matplotlib", file=sys.stderr)
        return 2
    model, tokenizer = _models.smollm2(given.device) if given.model is None else load(given.model, given.device)
    texts = [part.to(given.device) for part in windows(
        tokenizer, given.texts or [sources()], given.tokens, given.windows).held_out]
    subject = Subject(model, Sparsity.parse("threshold=0.1"))
    layers = subject.layers(texts[0], given.layers)
    prompts = _passkey.prompts(tokenizer, [ids[:given.passkey_tokens] for ids in texts], given.passkey)
    console = Console(width=160, highlight=False)
    console.print(f"{given.device}, {len(texts)} windows of {given.tokens} tokens, {len(layers)} layers", markup=False)
    exact = [subject.run(ids) for ids in texts]
    rows = [Row("exact", "exact", compare(exact, exact, texts, given.layers), _passkey.found(subject, prompts, {}))]
    for curve, name, policies in wanted(given, layers):
        rows.append(measure(subject, (curve, name), policies, (exact, texts, prompts), given.layers))
        console.print(f"{name}: {rows[-1].found or rows[-1].refused}", f"keys {rows[-1].keys}" * bool(prompts), markup=False)
    console.print(table(rows))
    if given.plot:
        draw(rows, given.plot)
    return 0


def wanted(given: argparse.Namespace, layers: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Sparsity]]]:
    """(curve, name, policy of each layer): those asked for, and those of a file."""
    for curve in given.curves:
        for text in CURVES.get(curve, (curve,)):
            yield curve, text, dict.fromkeys(layers, Sparsity.parse(text))
    for file in given.policy:
        rules = Rules.read(file)
        yield FILE, Path(file).name, {layer: rules.of(layer) for layer in layers}


def measure(subject: Subject, name: tuple[str, str], policies: dict[str, Sparsity],
            on: tuple[list[Outcome], list[Tensor], list[tuple[Tensor, int]]], layers: str) -> Row:
    """A policy that no kernel serves has a row that says so."""
    exact, texts, prompts = on
    try:
        found = compare(exact, [subject.run(ids, policies) for ids in texts], texts, layers)
        return Row(*name, found, _passkey.found(subject, prompts, policies))
    except OptionError as error:
        return Row(*name, refused=error.what)


def table(rows: Sequence[Row]) -> Table:
    out = Table(box=box.SIMPLE_HEAD)
    columns = ("policy", "perplexity", "loss", "±", "next token the same", "hits, points", "q.k", "p.v", "work left out",
               "keys")
    for at, name in enumerate(columns):
        out.add_column(name, justify="right" if at else "left", no_wrap=at != 4)
    for row in rows:
        found = row.found
        cells = ["no kernel"] if found is None else [
            f"{found.perplexity[1]:.3f}", f"{found.loss:+.2%}", f"{found.upper - found.loss:.2%}", f"{found.agreement:.1%}",
            f"{100 * found.accuracy:+.2f}", f"{found.qk:.1%}", f"{found.pv:.1%}", f"{found.work:.1%}", row.keys]
        out.add_row(row.policy, *cells)
    return out


def draw(rows: Sequence[Row], path: Path) -> None:
    """Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for curve in dict.fromkeys(row.curve for row in rows if row.curve != "exact"):
        points = [(100 * row.found.work, 100 * row.found.loss) for row in rows if row.curve == curve and row.found]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=curve)
    axes.axhline(0.5, linestyle=":", color="grey")
    axes.set_xlabel("work left out, % of FLOPs of q.k and p.v")
    axes.set_ylabel("loss, % of perplexity")
    axes.legend()
    figure.savefig(path, dpi=120)


def sources() -> Path:
    """The sources of torch's Inductor as one text."""
    path = _models.cache_dir() / "inductor.txt"
    folder = Path(torch.__file__).parent / "_inductor"
    path.write_text("\n".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py"))), encoding="utf-8")
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="*", metavar="TEXT")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a folder that transformers reads, or a .gguf file")
    parser.add_argument("--device", default=_models.default_device())
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=1, metavar="N", help="of each text (default: %(default)s)")
    parser.add_argument("--curves", type=lambda text: [name for name in text.split(",") if name], default=list(CURVES),
                        help=f"of {', '.join(CURVES)}, or the texts of policies (default: all)")
    parser.add_argument("--policy", metavar="FILE", action="append", default=[], help="what flashmla calibrate wrote")
    parser.add_argument("--layers", default="", metavar="REGEX", help="only these; the others are exact and not counted")
    parser.add_argument("--passkey", type=int, default=0, metavar="N", help="hide so many pass keys, each in a prompt")
    parser.add_argument("--passkey-tokens", type=int, metavar="N", help="of such a prompt (default: those of a window)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
