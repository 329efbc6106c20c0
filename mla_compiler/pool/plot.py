"""The arena as a picture: a square for each page, by number, in the colour of its state and filled as far as it is read."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import PoolError
from .eviction import movable
from .geometry import Geometry
from .ledger import Ledger
from .stats import read_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final = {"free": "#eeeeee", "pending": "#c9b458", "idle": "#86b6d9", "shared": "#7b5ea7", "held": "#2f7d4f"}


def states(ledger: Ledger) -> list[str]:
    """Of each page: free, pending, idle (what eviction can give), shared or held."""
    found = ["free" if refs == 0 else "shared" if refs > 1 else "held" for refs in ledger.pages.refs]
    for _, page in ledger.pages.pending:
        found[page] = "pending"
    for page in movable(ledger, list(ledger.idle)):
        found[page] = "idle"
    return found


def draw(geometry: Geometry, ledger: Ledger, path: Path, title: str) -> None:
    """A PNG. Raises PoolError where matplotlib is absent."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PoolError("a plot needs matplotlib, which is not installed", 'pip install "mla-compiler[bench]"')
    from matplotlib.figure import Figure

    kinds, read = states(ledger), read_tokens(geometry, ledger)
    columns = max(16, round((2 * len(kinds)) ** 0.5))
    figure = Figure(figsize=(10, 1.2 + 9 * -(-len(kinds) // columns) / columns), layout="constrained")
    axes = figure.subplots()
    for page, (kind, tokens) in enumerate(zip(kinds, read, strict=True)):
        filled = 1.0 if kind in ("free", "pending") else tokens / geometry.page
        _square(axes, page % columns, page // columns, COLOURS[kind], filled)
    axes.set(xlim=(0, columns), ylim=(-(-len(kinds) // columns), 0), aspect="equal", xticks=[], yticks=[])
    _legend(figure, kinds)
    figure.suptitle(textwrap.fill(title, 110), fontsize=9)
    figure.savefig(path, format="png", dpi=120)


def _square(axes: Any, x: int, y: int, colour: str, filled: float) -> None:
    """Hollow, and full from the left as far as its tokens are read."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x + 0.08, y + 0.08), 0.84 * filled, 0.84, color=colour, linewidth=0))
    axes.add_patch(Rectangle((x + 0.08, y + 0.08), 0.84, 0.84, fill=False, edgecolor=colour, linewidth=0.6))


def _legend(figure: Figure, kinds: list[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=f"{kind}: {kinds.count(kind)} pages") for kind, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8)
