"""Accounts as a table for a person, as JSON, and as a picture of the tiles that were computed."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .errors import OptionError
from .ledger import Account
from .report_table import change

WIDTH = 120
COLUMNS = ("left out by", "policy", "calls", "q.k", "p.v", "FLOPs", "softmax, mean", "worst", "FLOPs", "bytes of K, V")


def text(accounts: Sequence[Account], heads: bool = False, width: int = WIDTH) -> str:
    """A row for each site, with `heads` also one for each of its query heads, and one for all."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for at, name in enumerate(COLUMNS):
        table.add_column(name, overflow="fold", justify="left" if at < 2 else "right", no_wrap=at > 0)
    for account in accounts:
        table.add_row(account.site, account.policy, str(account.calls), *shares(account))
        for head, (tiles, mean, worst) in enumerate(zip(account.tiles, account.dropped, account.worst, strict=True)):
            if heads:
                table.add_row(f"  head {head}", "", "", *_parts(tiles), "", _percent(mean), _percent(worst))
    if len(accounts) > 1:
        flops, moved = ([sum(each) for each in zip(*parts, strict=True)] for parts in (
            [account.flops for account in accounts], [account.bytes for account in accounts]))
        table.add_row("all", "", "", "", "", f"{flops[1] / flops[0]:.1%}" if flops[0] else "", "", "", _saved(flops, "FLOP"),
                      _saved(moved, "B"))
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def shares(account: Account) -> Iterator[str]:
    """The cells of a site, from the share of q.k on."""
    yield from _parts([sum(head[step] for head in account.tiles) for step in range(3)])
    yield f"{account.left_out:.1%}"
    yield _percent(sum(account.dropped) / len(account.dropped))
    yield _percent(max(account.worst))
    yield _saved(account.flops, "FLOP")
    yield _saved(account.bytes, "B")


def _parts(tiles: Sequence[int]) -> Iterator[str]:
    """Of tiles of step 1, 2 and 3, the shares whose q.k and whose p.v were left out."""
    for gone in (tiles[0], tiles[0] + tiles[1]):
        yield f"{gone / max(sum(tiles), 1):.1%}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def _saved(both: Sequence[int], unit: str) -> str:
    return change(both[0], both[0] - both[1], unit)


def to_json(accounts: Sequence[Account]) -> str:
    """All but the steps."""
    fields = ("site", "policy", "calls", "tiles", "flops", "bytes", "dropped", "worst", "left_out")
    return json.dumps([{name: getattr(account, name) for name in fields} for account in accounts], indent=1)


def draw(accounts: Sequence[Account], path: str | Path, heads: bool = False) -> None:
    """A PNG with a panel for each site, with `heads` for each head or KV head of each: rows down, keys to the right; dark
    where a tile was computed by all heads, light where by none, white where nothing is visible.

    Raises OptionError where matplotlib is absent or there is nothing to draw.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("a heat map needs matplotlib, which is not installed", 'pip install "mla-compiler[bench]"')
    if not accounts:
        raise OptionError("there is no account to draw", 'options={"flashmla.account": True}')
    from matplotlib.figure import Figure

    panels = [panel for account in accounts for panel in _panels(account, heads)]
    across = min(len(panels), 6)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(2.6 * across + 1, 2.6 * down + 0.4), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for one in axes.flat:
        one.set_axis_off()
    image = None
    for one, (title, picture) in zip(axes.flat, panels, strict=False):
        image = one.imshow(picture, vmin=0, vmax=1, cmap="viridis_r", interpolation="nearest", aspect="auto")
        one.set_title(title, fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.5, label="share of heads; half for q.k alone")
    figure.savefig(path, format="png", dpi=120)


def _panels(account: Account, heads: bool) -> Iterator[tuple[str, Any]]:
    of = list(account.steps[:, None]) if heads else [account.steps]
    for at, steps in enumerate(of):
        yield f"{account.site}{f', {at}' if heads else ''}\n{account.policy}", computed(steps).numpy()


def computed(steps: Tensor) -> Tensor:
    """steps [H, row tiles, key tiles] -> [row tiles, key tiles]: the mean over heads of 1 computed, 1/2 q.k alone, 0 neither;
    NaN where nothing is visible."""
    worth, seen = (steps.clamp(min=1) - 1).float() / 2, steps > 0
    return torch.where(seen, worth, 0).sum(0) / torch.where(seen.any(0), seen.sum(0), torch.nan)
