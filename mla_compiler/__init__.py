"""torch.compile(model, backend="flashmla"): attention found by its meaning, run as fused kernels.

Everything here is imported when it is first used: `import mla_compiler` alone brings in neither torch nor Triton.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accounting import accounts
    from .backend import flashmla
    from .errors import FlashMLAError, OptionError, PoolError, PoolExhausted, StrictError
    from .inspection import explain
    from .ir import AttentionSpec, Reason, Site
    from .options import Options
    from .pool import KVPool
    from .pool.cache import PooledCache as PooledCache
    from .report import Report, reports

__version__ = "0.1.0"

# Without PooledCache, which needs transformers: a star import must not.
__all__ = [
    "AttentionSpec", "FlashMLAError", "KVPool", "OptionError", "Options", "PoolError", "PoolExhausted", "Reason", "Report",
    "Site", "StrictError", "__version__", "accounts", "explain", "flashmla", "reports",
]

_HOME = {
    "AttentionSpec": "ir", "FlashMLAError": "errors", "KVPool": "pool", "OptionError": "errors", "Options": "options",
    "PoolError": "errors", "PoolExhausted": "errors", "PooledCache": "pool.cache", "Reason": "ir", "Report": "report",
    "Site": "ir", "StrictError": "errors", "accounts": "accounting", "explain": "inspection", "flashmla": "backend",
    "reports": "report",
}


def __getattr__(name: str) -> Any:
    """The public name, from the module it lives in. Raises AttributeError for any other."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
