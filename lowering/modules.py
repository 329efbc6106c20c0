"""Source text  =>  an imported module, through a file that a user can read and a debugger can step.

Files are named by the hash of their content and written atomically: two processes that want the same kernel agree.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from types import ModuleType


def directory() -> Path:
    """Beside Inductor's own cache, so that one variable (TORCHINDUCTOR_CACHE_DIR) moves both."""
    from torch._inductor.runtime.runtime_utils import cache_dir

    return Path(cache_dir()) / "flashmla"


@lru_cache(maxsize=1024)
def load(text: str, stem: str) -> ModuleType:
    """The module of this text. OSError if the cache directory cannot be written."""
    name = f"{stem}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = directory() / f"{name}.py"
    if not path.exists() or path.read_text() != text:
        _write(path, text)
    spec = importlib.util.spec_from_file_location(f"flashmla_kernels.{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, path)
