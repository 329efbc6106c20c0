"""Which kernel, in which configuration; and what has none."""

import subprocess
import sys

import pytest
import torch

from mla_compiler import lowering
from mla_compiler.ir import AttentionSpec, Reason
from mla_compiler.lowering.choice import padded
from mla_compiler.lowering.compile import shapes_of
from mla_compiler.lowering.decode import config as decode
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.select import choose, choose_paged, supports

from .attentions import CASES

CAUSAL = AttentionSpec.parse("score: 0.125*s; hi: i + 1; group: 4")
H100 = MACHINES["sm_90"]


def chosen(spec=CAUSAL, batch=1, heads=32, queries=8192, keys=8192, dim=128, dtype=torch.bfloat16, machine=H100):
    return choose(spec, batch, heads, queries, keys, dim, dim, dtype, machine)


@pytest.mark.parametrize("queries, family", [(1, "decode_hopper"), (16, "decode_hopper"), (17, "prefill"), (8192, "hopper")])
def test_few_rows_are_packed_and_split(queries, family):
    assert chosen(queries=queries).family == family


def test_programs_fill_the_machine():
    assert chosen(queries=1, keys=32768).programs == 8 * 16                # parts of 8 KV heads; 4 processors have none
    assert chosen(queries=1, keys=128).programs == 8                       # one tile of 128 keys a KV head
    assert chosen(batch=64, queries=1).programs == 512 // 4                # whole items of 64 x 8
    assert chosen(batch=15, queries=1).programs == H100.processors         # 120 items would leave 12 idle
    assert decode.parts(8, 32768, 64, 132) * 8 >= 0.85 * H100.processors
    assert decode.parts(8, 200, 64, 132) == decode.parts(512, 32768, 64, 132) == 1
    assert decode.parts(8, 1 << 20, 64, 132) <= decode.MAX_PARTS


def test_an_asked_for_number_of_parts_is_kept():
    for queries in (1, 8192):
        assert chosen(AttentionSpec.parse("score: s; kv_splits: 7"), queries=queries).kv_splits == 7
    assert chosen(AttentionSpec.parse("score: s; kv_splits: 1"), queries=1, keys=1 << 17).kv_splits == 1


@pytest.mark.parametrize("arch", MACHINES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [16, 64, 80, 128, 192, 256])
@pytest.mark.parametrize("queries", [1, 8, 4096])
@pytest.mark.parametrize("name", ["causal", "documents"])
def test_tiles_fit_in_shared_memory(name, queries, dim, dtype, arch):
    machine = MACHINES[arch]
    choice = chosen(AttentionSpec.parse(CASES[name].spec), queries=queries, dim=dim, dtype=dtype, machine=machine)
    held = choice.stages - (choice.family == "decode" and choice.stages > 1 and machine.backend == "cuda")
    tiles = choice.block_m * padded(dim) + 2 * held * choice.block_n * padded(dim)
    assert tiles * dtype.itemsize <= machine.shared_memory
    assert min(choice.block_m, choice.block_n) >= 16


@pytest.mark.parametrize("changes", [
    {"dtype": torch.float32}, {"machine": MACHINES["sm_100"]}, {"machine": MACHINES["sm_80"]}, {"dim": 100}, {"queries": 64},
    *({"spec": AttentionSpec.parse(CASES[name].spec)} for name in ("documents", "padding", "prefix", "bias")),
], ids=str)
def test_what_the_hopper_kernel_leaves_to_plain_triton(changes):
    assert chosen().family == "hopper" and chosen(**changes).family == "prefill"


@pytest.mark.parametrize("changes", [
    {"dtype": torch.float32}, {"machine": MACHINES["sm_100"]}, {"machine": MACHINES["sm_80"]}, {"dim": 100}, {"batch": 1 << 15},
    {"spec": AttentionSpec.parse("score: s; hi: i + 1; group: 4; kv_splits: 2")},
    {"spec": AttentionSpec.parse("score: s; hi: i + h; group: 4")},
    *({"spec": AttentionSpec.parse(CASES[name].spec)} for name in ("documents", "documents, bounded", "padding", "bias")),
    {"spec": AttentionSpec.parse("score: s; lo: T0[b, h, i, 0]; residue: M1[b, h, i, j]; tile: T2[b, h, 0, j//64]; group: 4")},
], ids=str)
def test_what_the_hopper_decode_kernel_leaves_to_plain_triton(changes):
    assert chosen(queries=1).family == "decode_hopper" and chosen(**{"queries": 1, **changes}).family == "decode"


@pytest.mark.parametrize("name", ["mask, summarised", "mask of a step"])
def test_on_hopper_a_step_with_a_mask_in_memory(name):
    spec = AttentionSpec.parse(CASES[name].spec)
    assert chosen(spec=spec, queries=1).family == chosen(spec=spec, queries=16).family == "decode_hopper"


def paged(queries=1, dim=128, dtype=torch.bfloat16, machine=H100, format="plain", page=64, chosen=False):
    return choose_paged(CAUSAL, 1, 32, queries, 8192, dim, dim, dtype, machine, format, page, chosen)


@pytest.mark.parametrize("page, dim", [(64, 64), (32, 128), (64, 128), (192, 128), (48, 256), (64, 256)])
def test_on_hopper_a_tile_of_a_step_lies_in_one_page(page, dim):
    choice = paged(page=page, dim=dim)
    assert choice.family == "decode_hopper" and page % choice.block_n == 0


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize(
    "changes", [{}, {"page": 128}, {"dim": 64}, {"queries": 4}, {"dtype": torch.float16}, {"chosen": True}], ids=str)
def test_on_hopper_quantised_tiles_of_16_rows_become_numbers_in_registers(changes, format):
    choice = paged(format=format, **changes)
    assert choice.family == "decode_hopper" and choice.block_n == 64 and choice.block_m == 16


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("changes", [{"queries": 5}, {"queries": 16}, {"dim": 16}], ids=str)
def test_on_hopper_other_quantised_tiles_are_unpacked_in_shared_memory(changes, format):
    choice = paged(format=format, **changes)
    assert choice.family == "decode_hopper" and choice.block_n == 64 and choice.block_m == 64


@pytest.mark.parametrize("changes", [
    {"format": "int8", "dim": 256}, {"format": "fp8", "page": 32},
    {"page": 1}, {"page": 24}, {"format": "int4"}, {"dtype": torch.float32}, {"machine": MACHINES["sm_100"]},
], ids=str)
def test_pages_left_to_plain_triton(changes):
    assert paged().family == "decode_hopper" and paged(**changes).family == "decode"


def test_every_attention_of_the_tests_has_a_kernel():
    for case in CASES.values():
        assert supports(AttentionSpec.parse(case.spec), 128, 128, torch.bfloat16, "cuda") is None


@pytest.mark.parametrize("changes, reason", [
    ({"dtype": torch.float64}, Reason.DTYPE), ({"dtype": torch.complex64}, Reason.DTYPE), ({"head_dim": 512}, Reason.HEAD_DIM),
    ({"value_dim": 257}, Reason.HEAD_DIM), ({"device_type": "mps"}, Reason.DEVICE),
    ({"spec": AttentionSpec.parse("score: s**i")}, Reason.SCORE),
    ({"spec": AttentionSpec.parse("score: s; hi: x0 // 2")}, Reason.MASK),
], ids=str)
def test_what_has_no_kernel_says_why(changes, reason):
    asked = {"spec": CAUSAL, "head_dim": 128, "value_dim": 128, "dtype": torch.bfloat16, "device_type": "cuda", **changes}
    found, text = lowering.supports(**asked)
    assert found is reason and text


@pytest.mark.parametrize("rank, rope, reason", [(512, 64, None), (1024, 64, Reason.HEAD_DIM), (512, 256, Reason.HEAD_DIM)])
def test_latents_on_a_gpu(rank, rope, reason):
    found = lowering.supports_latent(AttentionSpec.parse("score: s; hi: i"), rank, rope, torch.bfloat16, "cuda", False)
    assert (found and found[0]) is reason


def test_words_for_the_report():
    shape = ((1, 32, 8192, 128), (1, 8, 8192, 128), (1, 8, 8192, 128))
    assert lowering.choose(CAUSAL, *shape, torch.float32, torch.device("cpu"), ("plain", 64)) == ("cpu", "hull")
    assert lowering.choose(CAUSAL, *shape, torch.float32, torch.device("cpu")) == ("cpu", "hull")
    assert str(chosen()) == "hopper 128x128, 4 warps, 2 stages"
    assert str(chosen(dtype=torch.float32)).startswith("prefill")


def test_a_symbolic_size_counts_as_4096():
    assert shapes_of("q [1, 9, s0, 64], k [1, 3, 64, 64], v [1, 3, 64, 32]")[0] == (1, 9, 4096, 64)


def test_choosing_imports_no_triton():
    code = ("import sys, torch; from mla_compiler import lowering; from mla_compiler.ir import AttentionSpec as A; "
            "lowering.register(); found = lowering.supports(A.parse('score: s; hi: i'), 64, 64, torch.float16, 'cuda'); "
            "assert found is None and 'triton' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
