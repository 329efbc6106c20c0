"""The kernels as bars: a panel for each group and unit (TFLOP/s, TB/s), ours beside each peer, roofline dashed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import OptionError

ROOF = {"TFLOP/s": "matmul", "TB/s": "copy"}
KERNELS = ("prefill", "decode", "latent")


def require(groups: Iterable[str]) -> None:
    """Raises OptionError, before anything is measured, where there will be no kernel to draw or matplotlib is absent."""
    if not set(groups) & set(KERNELS):
        raise OptionError("--plot draws kernels, and none is measured", "give --group prefill, decode, latent or all")
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("--plot needs matplotlib, which is not installed", 'pip install "mla-compiler[bench]"')


def draw(numbers: dict[str, Any], path: Path) -> None:
    """numbers: what --json writes, of at least one kernel."""
    from matplotlib.figure import Figure

    rows = numbers["kernels"]
    panels = list(dict.fromkeys((row["group"], row["unit"]) for row in rows))
    figure = Figure(figsize=(13, 4.5 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _panel(axes, [row for row in rows if (row["group"], row["unit"]) == panel], numbers["roofline"][ROOF[panel[1]]])
    about = numbers["about"]
    figure.suptitle(f"{about['device']}, {about['dtype']}, torch {about['torch']}, triton {about['triton']}")
    figure.savefig(path, format="png", dpi=120)


def _panel(axes: Any, rows: list[dict[str, Any]], roof: float) -> None:
    """A cluster of bars for each case; what has no number has no bar."""
    names = list(dict.fromkeys(name for row in rows for name, found in row["readings"].items() if found["rate"] is not None))
    width = 0.8 / max(1, len(names))
    for at, name in enumerate(names):
        points = [(x, row["readings"].get(name, {}).get("rate")) for x, row in enumerate(rows)]
        there = [(x + (at - (len(names) - 1) / 2) * width, rate) for x, rate in points if rate is not None]
        axes.bar([x for x, _ in there], [rate for _, rate in there], width, label=name)
    axes.axhline(roof, linestyle="--", color="black", linewidth=0.8, label="measured roofline")
    axes.set_xticks(range(len(rows)), [row["case"].replace(" ", "\n", 1) for row in rows], fontsize=8, rotation=20)
    axes.set_ylabel(rows[0]["unit"])
    axes.legend(ncols=4, fontsize=8)
