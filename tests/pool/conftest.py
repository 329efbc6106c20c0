"""Kernels of pages run in Triton's interpreter, in a process of their own."""

from tests.lowering_triton.conftest import interpreted as interpreted
