"""How a peer is called: what `bind` of a peer gives, or why it gives nothing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Call = Callable[[], Tensor]
Ways = list[list[Call]]
"""Each way is a list of calls, one for each copy of the operands."""


class Unfit(Exception):
    """The peer has no kernel for that attention."""
