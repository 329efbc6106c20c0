"""What of a policy there is a kernel for."""

from __future__ import annotations

from ...ir import AttentionSpec


def unserved(spec: AttentionSpec) -> str:
    """Why no kernel keeps to the spec's policy, in words; nothing if one does."""
    if spec.sparsity.selects:
        return f"{spec.sparsity}: tiles are not chosen beforehand yet"
    return ""
