"""What was compiled: an attention's meaning, its kernel's source, and the machine code, without a GPU.

    python examples/inspect_kernel.py [--arch sm_90] [--lines 40] [--ptx FILE]

`explain` runs a function once and says what became of each attention in it. `report.kernels(arch)` compiles the kernels
behind it for a named GPU and gives their source, intermediate forms, registers, shared memory and spills. Needs Triton.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import mla_compiler

NOTABLE = ("wgmma", "mma.sync", "cp.async.bulk", "cp.async", "ld.global", "st.global", "ex2", "bar.sync")


def attention(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
    """A sliding window of 1024 over a left-padded batch: q [B, H, T, D], k, v [B, Hkv, T, D], padding [B, T]."""
    at = torch.arange(q.shape[2], device=q.device)
    visible = (at[None, :] <= at[:, None]) & (at[None, :] > at[:, None] - 1024) & padding[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)


def instructions(ptx: str) -> str:
    """How often the instructions that matter stand in the PTX."""
    written = re.findall(r"^\s+(?:@\S+ )?([a-z0-9_.]+)", ptx, re.M)
    counts = Counter(next((n for n in NOTABLE if op.startswith(n)), "") for op in written)
    return ", ".join(f"{name} {counts[name]}" for name in NOTABLE if counts[name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_90", help="sm_80, sm_89, sm_90, sm_100 or gfx942")
    parser.add_argument("--length", type=int, default=2048, help="tokens")
    parser.add_argument("--lines", type=int, default=40, help="lines of source to print")
    parser.add_argument("--ptx", type=Path, help="write the whole PTX here")
    given = parser.parse_args()
    q = torch.randn(2, 8, given.length, 64, dtype=torch.bfloat16)
    k, v = torch.randn(2, 2, 2, given.length, 64, dtype=torch.bfloat16)
    padding = torch.arange(given.length) >= torch.tensor([[0], [given.length // 4]])
    with torch.inference_mode():
        report = mla_compiler.explain(attention, q, k, v, padding)
    print(report)
    (site,) = report.fused
    print(f"\nin the compiled graph this attention is\n  {site.spec}\n")
    for kernel in report.kernels(given.arch):
        print(f"{kernel.name} for {given.arch}: {kernel.registers} registers, {kernel.shared} bytes of shared memory, "
              f"{kernel.spills} spills")
        print(f"  instructions: {instructions(kernel.ptx or '')}")
        print(*kernel.source.splitlines()[: given.lines], "    ...", sep="\n")
        if given.ptx:
            given.ptx.write_text(kernel.ptx)
    return 0


if __name__ == "__main__":
    sys.exit(main())
