"""What can go wrong, each with what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ir import Site


class FlashMLAError(Exception):
    """An error of this package: `what` happened, and on a second line how to `mend` it."""

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(f"{what}\n  {mend}" if mend else what)
        self.what = what
        self.mend = mend

    def __reduce__(self) -> tuple[type[FlashMLAError], tuple[str, str]]:
        return type(self), (self.what, self.mend)


class OptionError(FlashMLAError, ValueError):
    """An option, a mode or a FLASHMLA_* variable that is unknown or ill-typed."""


class StrictError(FlashMLAError, RuntimeError):
    """`flashmla.strict` was asked for and an attention was left as it was."""

    @classmethod
    def of(cls, left: Sequence[Site]) -> StrictError:
        """The error that names every site in `left`, one a line."""
        lines = [f"  {site.layer or site.name}{f', {site.source}' if site.source else ''}: {site.reason}" for site in left]
        what = f"flashmla.strict: {len(left)} attention(s) left as they were\n" + "\n".join(lines)
        return cls(what, 'to leave them: options={"flashmla.strict": False}, or name the layers in "flashmla.exclude"')


class VerifyError(FlashMLAError, RuntimeError):
    """A pass left a graph that does not hold together; the message ends with the graph at the node."""


class ReportError(FlashMLAError, ValueError):
    """A saved report that cannot be read."""


class OperandError(FlashMLAError, ValueError):
    """q, k, v, a table, a size or a scalar that does not agree with the spec of its attention."""


class PoolError(FlashMLAError, ValueError):
    """A pool of no size, a sequence that is released or another pool's, keys and values of another geometry."""


class PoolExhausted(FlashMLAError, MemoryError):
    """A pool has fewer pages than were asked for; nothing has changed. `need` and `supply` in pages."""

    def __init__(self, what: str, mend: str = "", need: int = 0, supply: int = 0) -> None:
        super().__init__(what, mend)
        self.need = need
        self.supply = supply

    def __reduce__(self) -> tuple[type[PoolExhausted], tuple[str, str, int, int]]:  # type: ignore[override]
        return type(self), (self.what, self.mend, self.need, self.supply)

    @classmethod
    def of(cls, need: int, supply: int, count: int) -> PoolExhausted:
        """The error for `need` pages where `supply` are to be had of `count`."""
        what = f"the KV pool has no room: {need} pages needed, {supply} of its {count} to be had"
        return cls(what, "release or truncate sequences, give the pool a larger size, or let it: grow=True", need, supply)

    @classmethod
    def on_host(cls, need: int, supply: int, count: int) -> PoolExhausted:
        """The same for pages that are to wait in host memory."""
        what = f"the KV pool has no room on the host: {need} pages to evict, {supply} of its {count} slots to be had"
        return cls(what, "give the pool a larger host_tokens", need, supply)
