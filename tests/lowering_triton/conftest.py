"""A process in which Triton interprets its kernels: the choice is made when Triton is imported, once for a process."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest


def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def interpreted():
    """interpreted(function, *args): its result, from a process with TRITON_INTERPRET=1."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        pool.submit(_one_thread).result()
        os.environ.pop("TRITON_INTERPRET") if before is None else None
        yield lambda function, *args: pool.submit(function, *args).result(timeout=300)
