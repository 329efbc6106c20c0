"""best = argmin over candidates of the measured time, on the first call; remembered in this process and in a file

    options={"flashmla.autotune": True}

Key: spec, shape (keys to the next power of two: a growing sequence is not timed at every step), dtype, GPU, torch, Triton and
the text of the kernels. The file is JSON beside the generated kernels, written atomically; of two processes that tune at
once one's findings are found again later. One that cannot be read is as none, and the log says so. Nothing is timed
under CUDA-graph capture: a graph's warm-up, which runs before, has timed it. What the first call cost is logged (TORCH_LOGS).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter as time_now
from typing import Any

from . import modules
from .choice import Choice

log = logging.getLogger(__name__)
FILE = "tuned.json"
_known: dict[str, Choice] = {}


def key_of(*facts: object) -> str:
    """A key of everything that the speed depends on, and of what a Choice says."""
    fields = [field.name for field in dataclasses.fields(Choice)]
    return hashlib.sha256("\n".join(map(str, (*fields, *facts))).encode()).hexdigest()[:32]


def known(key: str) -> Choice | None:
    """What was found for this key by this process or an earlier one."""
    if key not in _known:
        found = _read().get(key)
        if found is None:
            return None
        _known[key] = Choice(**found["choice"])
    return _known[key]


def best(key: str, candidates: Sequence[Choice], time: Callable[[Choice], float]) -> Choice:
    """The fastest candidate; `time` gives ms. One that cannot run is passed over, and the log says why; if none can, the first
    one's error is raised."""
    found = known(key)
    if found is not None:
        return found
    timed: dict[Choice, float] = {}
    errors: list[Exception] = []
    began = time_now()
    for candidate in candidates:
        try:
            timed[candidate] = time(candidate)
        except Exception as error:  # out of registers or shared memory: another candidate serves
            log.info("%s does not run: %s", candidate, error)
            errors.append(error)
    if not timed:
        raise errors[0]
    fastest = min(timed, key=timed.__getitem__)
    log.info("fastest of %d, compiled and timed in %.1f s: %s", len(timed), time_now() - began, ", ".join(
        f"{c} {1e3 * ms:.1f} us" for c, ms in sorted(timed.items(), key=lambda item: item[1])))
    _known[key] = fastest
    _write(key, {"choice": dataclasses.asdict(fastest), "ms": {str(c): ms for c, ms in timed.items()}})
    return fastest


def path() -> Path:
    return modules.directory() / FILE


def _read() -> dict[str, Any]:
    try:
        found = json.loads(path().read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, and is begun anew: %s", path(), error)
        return {}
    return found if isinstance(found, dict) else {}


def _write(key: str, finding: dict[str, Any]) -> None:
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as file:
        json.dump({**_read(), key: finding}, file, indent=1)
    os.replace(temporary, target)
