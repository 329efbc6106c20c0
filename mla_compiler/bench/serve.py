"""The group that is served from a pool: each case built, checked, timed, and dropped before the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import show_serving
from .cases import FLASHMLA
from .failure import why
from .measure import forget
from .serving import APPEND, COLUMNS, GENERATE, OFFLOAD, SERVING, Served, Serving

if TYPE_CHECKING:
    from .session import Session

Runner = Callable[[Serving, list[str], "Session"], dict[str, float]]


def runners() -> dict[str, Runner]:
    """They import transformers, which kernels are measured without."""
    from . import serve_append, serve_generate, serve_offload

    return {GENERATE: serve_generate.run, APPEND: serve_append.run, OFFLOAD: serve_offload.run}


def run(session: Session) -> None:
    """Adds to session.results, prints. What fails is a row that says so, and the next case runs."""
    asked, rows = session.given.columns, session.results.served
    names = [name for name in COLUMNS if asked is None or name in asked or name == FLASHMLA]
    before = len(rows)
    for case in session.chosen(SERVING):
        rows.append(_one(case.shrunk() if session.given.tiny else case, names, session))
        forget(session.settings.device)
        session.save()
        session.say(f"{case.name}: done")
    if rows[before:]:
        session.console.print(show_serving.table(rows[before:]))


def _one(case: Serving, names: list[str], session: Session) -> Served:
    try:
        return Served(case, runners()[case.kind](case, names, session))
    except Exception as failure:
        return Served(case, failure=why(failure))
