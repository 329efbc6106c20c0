"""Models end to end: the GPU's cases on models of their shapes, or a CPU's, in every column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import _dynamo

from ..errors import OptionError
from . import show
from .cases import COLUMNS, CPU_CASES, EAGER, FLASHMLA, GPU_CASES, INDUCTOR, SHAPES, SMOLLM2, TINY_SHAPES, Case
from .compare import Settings, run_case, run_interleaved
from .compiling import compiling
from .measure import forget
from .rows import Row
from .work import random_llama, random_model

if TYPE_CHECKING:
    from .session import Session


def columns(asked: list[str] | None, default: list[str]) -> list[str]:
    """The columns asked for that models have, in their order, eager first."""
    return default if asked is None else [name for name in COLUMNS if name == EAGER or name in asked]


def require() -> None:
    """OptionError where torch does not know our backend: the package was found in a folder and is not installed."""
    if FLASHMLA not in _dynamo.list_backends(exclude_tags=None):
        raise OptionError(f"torch knows no backend {FLASHMLA!r}: mla_compiler is not installed here", "run pip install -e .")


def run(session: Session) -> None:
    """Adds to session.results, prints."""
    full_cpu = session.full_cpu
    names = columns(session.given.columns, [EAGER, INDUCTOR, FLASHMLA] if full_cpu else list(COLUMNS))
    rows = _on_cpu(session, names) if full_cpu else _by_shape(session, names)
    if rows:
        session.console.print(show.table(rows, names), show.errors(rows, names), sep="\n")
        for line in show.notes(rows):
            session.console.print(line, markup=False)
    if full_cpu and session.given.cases.search("compilation"):
        extra = compiling(session.console)
        session.results.also_missed += extra.pop("missed")
        session.results.extra.update(extra)


def _by_shape(session: Session, names: list[str]) -> list[Row]:
    """A model is built when its first case starts, and dropped before the next model's."""
    rows: list[Row] = []
    model, built, settings, tiny = None, "", session.settings, session.given.tiny
    for case in session.chosen(GPU_CASES):
        if case.shape != built:
            model = None
            forget(settings.device)
            session.say(f"{case.shape}, random weights")
            model, built = model_of(case, settings, tiny), case.shape
        rows.append(_one(model, case.shrunk(64) if tiny else case, [name for name in names if name in case.columns], session))
    return rows


def model_of(case: Case, settings: Settings, tiny: bool) -> Any:
    """The model of a case, with random weights."""
    architecture, shape = SHAPES[case.shape]
    return random_model(architecture, TINY_SHAPES[architecture] if tiny else shape, settings.device, settings.dtype)


def _one(model: object, case: Case, names: list[str], session: Session) -> Row:
    row = run_case(model, case, names, session.settings, session.say, session.compiled_of("model", case.name))
    session.results.models.append(row)
    session.save()
    session.console.print(show.table([row], names))
    return row


def _on_cpu(session: Session, names: list[str]) -> list[Row]:
    """Decode with a long static cache; the columns take turns."""
    rows, model, settings = session.results.models, None, session.settings
    for case in session.chosen(CPU_CASES):
        model = model or random_llama(SMOLLM2, settings.device, settings.dtype)
        rows.append(run_interleaved(model, case, names, settings, session.say))
        session.save()
    return rows
