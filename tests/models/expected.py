"""What must become of each attention of each architecture in each scenario: fused, unless it is named here.

A key is (architecture, scenario); the value counts, for every compiled graph, the attentions that are left, by Reason.
"""

from __future__ import annotations

from collections import Counter

LEFT: dict[tuple[str, str], Counter[str]] = {}


def left(architecture: str, scenario: str) -> Counter[str]:
    return LEFT.get((architecture, scenario), Counter())
