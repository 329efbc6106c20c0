"""Reports on disk, beside Inductor's compile cache: where that is hit our passes never run, and the report is read back.

    <Inductor's cache directory>/flashmla/<key>.json          key: what the compile cache was keyed by, hashed by the caller
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from pathlib import Path

from .errors import ReportError
from .report import Report


def directory() -> Path:
    """Where reports are kept; it goes where TORCHINDUCTOR_CACHE_DIR goes."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "flashmla"


def save(key: str, report: Report) -> Path:
    """Write the report under `key` (letters, digits, `_` and `-`); a reader sees all of it or nothing."""
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{key}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(report.json())
    os.replace(scratch, path)
    return path


def load(key: str) -> Report | None:
    """The report saved under `key`, marked `cached`, or None. Raises ReportError, naming the file, if it cannot be read."""
    path = _path(key)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        report = Report.from_json(text)
    except ReportError as error:
        raise ReportError(f"{path}: {error.what}", f"to go on: delete {path}") from error
    return dataclasses.replace(report, meta={**report.meta, "cached": True})


def _path(key: str) -> Path:
    if not re.fullmatch(r"[\w-]+", key):
        raise ValueError(f"key {key!r} is not made of letters, digits, _ and -")
    return directory() / f"{key}.json"
