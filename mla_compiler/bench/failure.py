"""Why a column has no number, in a line: the class and the last line of the deepest cause."""

from __future__ import annotations


def why(failure: BaseException) -> str:
    """torch.compile wraps what went wrong, with its own text first and hints last; what it wraps says it."""
    cause = failure
    seen = {id(cause)}
    while (inner := _cause(cause)) is not None and id(inner) not in seen:
        seen.add(id(inner))
        cause = inner
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1]}" if lines else type(cause).__name__


def _cause(failure: BaseException) -> BaseException | None:
    """Not __context__: what was being handled when it was raised (a miss in some cache, say) need not be why."""
    inner = getattr(failure, "inner_exception", None)  # torch raises its own "from None" and keeps the cause here
    return inner if isinstance(inner, BaseException) else failure.__cause__
