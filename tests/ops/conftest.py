"""The operators run on the CPU, in one thread: inputs here are small."""

import pytest
import torch

from mla_compiler import lowering


@pytest.fixture(scope="session", autouse=True)
def kernels():
    lowering.register()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
