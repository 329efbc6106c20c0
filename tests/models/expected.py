"""What must become of each attention of each architecture in each scenario: fused, unless it is named here.

A key is (architecture, scenario); the value counts, for every compiled graph, the attentions that are left, by Reason.
"""

from __future__ import annotations

from collections import Counter

import transformers
from packaging.version import Version

LEFT: dict[tuple[str, str], Counter[str]] = {}


def left(architecture: str, scenario: str) -> Counter[str]:
    return LEFT.get((architecture, scenario), Counter())


# What transformers itself cannot do in older versions, seen in 5.17: eager Bloom adds an ALiBi of the prompt's length to the
# scores of a whole static cache, and Dynamo must know how long the padding of OPT's mask is.
_NEWER = {("bloom", "static"): "5.23", ("opt", "static"): "5.23"}


def needs_newer(architecture: str, cache: str) -> str:
    """Why transformers is too old for this architecture with this cache; empty if it is not."""
    needed = _NEWER.get((architecture, cache))
    old = needed is not None and Version(transformers.__version__) < Version(needed)
    return f"{architecture} with a {cache} cache needs transformers {needed}" if old else ""
