"""The kernel that turns queries and outputs for rotated pages: the product with Hadamard's matrix, by any strides; compiled."""

import pytest
import torch

from mla_compiler.lowering import rotation
from mla_compiler.lowering.compile_beside import compile_rotation
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.pool.hadamard import rotate


def errors(dim, dtype):
    """Of the kernel, and of float32's own product, a rounding of the largest output at least: differences from float64."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, dim).to(dtype).transpose(1, 2)                                    # [B, H, T, D], not contiguous
    out = torch.full((2, 5, 3, dim), torch.nan).transpose(1, 2)
    rotation.turn(x, out)
    truth = rotate(x.double())
    rounding = truth.abs().max().item() * torch.finfo(torch.float32).eps
    return (out - truth).abs().max().item(), max((rotate(x.float()) - truth).abs().max().item(), rounding)


@pytest.mark.parametrize("dim", [2, 20, 64, 96, 128, 256])
def test_as_the_matrix_has_it(interpreted, dim):
    for dtype in (torch.float32, torch.float16):
        ours, plain = interpreted(errors, dim, dtype)
        assert ours <= 2 * plain


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("arch", MACHINES)
def test_every_architecture(arch, dim):
    for dtypes in ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)):
        kernel = compile_rotation(dim, *dtypes, arch)
        assert kernel.shared <= MACHINES[arch].shared_memory and (arch != "sm_90" or kernel.spills == 0)
