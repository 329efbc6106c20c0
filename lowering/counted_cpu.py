"""flashmla::attend on the CPU: `cpu.attend`, and an account of it where the site keeps one"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ir import AttentionSpec
from ..ledger import Call
from ..ops import output_like
from ..sparsity import EXACTLY
from . import counted, cpu
from .checks import check_operands
from .cpu_plan import plan_of
from .cpu_rows import FEW_ROWS
from .sparse import cpu as sparse
from .sparse.config import of_few_queries


def attend(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str
) -> Tensor:
    """out [B, H, T, Dv] in the memory order of output_like. Raises OperandError where operands and spec disagree."""
    meaning = AttentionSpec.parse(spec)
    if not meaning.site:
        return cpu.attend(q, k, v, tables, sizes, scalars, spec)
    check_operands(q, k, v, tables, sizes, scalars, spec)
    return counted.attend(partial(_counted, q, k, v, (tables, sizes, scalars)), meaning)


def _counted(q: Tensor, k: Tensor, v: Tensor, env: tuple[Any, ...], spec: AttentionSpec) -> tuple[Tensor, Call]:
    spec = replace(of_few_queries(spec) if q.shape[2] <= FEW_ROWS else spec, site="")
    plan = plan_of(str(spec), torch.promote_types(q.dtype, torch.float32))
    call = sparse.new_call(q, k, v)
    if spec.sparsity == EXACTLY or 0 in (k.shape[2], q.numel()):
        sparse.count_all(q, k, v, plan, env, call)
        tables, sizes, scalars = env
        return cpu.attend(q, k, v, tables, sizes, scalars, str(spec)), call
    return sparse.attend(q, k, v, plan, env, output_like(q, v, spec.heads_first), call), call
