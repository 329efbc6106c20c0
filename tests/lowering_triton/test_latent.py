"""Attention over latents under Triton's interpreter: error <= 2 x that of the formula in the working dtype, from float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_compiler.errors import OperandError
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu_latent
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.mla.config import Shape, configure

from .latents import CHOSEN, DENSE, LAYOUTS, Case, errors, operands

CASES = {
    "full": Case("score: 0.25*s"),
    "live length": Case("score: 0.25*s; hi: T0[b] + i + 1", ("lengths",), batch=3, keys=70),
    "window": Case("score: 0.25*s; lo: max(0, i + 10); hi: i + 30", keys=61, queries=4),
    "nothing to see": Case("score: 0.25*s; hi: 9*i", queries=2),
    "padding": Case("score: 0.25*s; residue: M0[b, j]", ("padding",), batch=2),
    "sinks": Case("score: 0.25*s; hi: i + 20; sink: F0[h]", ("sinks",)),
    "softcap": Case("score: 2.0*tanh(0.25*s)"),
    "alibi": Case("score: 0.25*s + F0[h]*(i - j)", ("slopes",), queries=3),
}


def check(interpreted, case: Case) -> None:
    error, formula = interpreted(errors, case)
    assert error <= 2 * formula, f"{error} from the truth, the formula in {case.dtype} is {formula}: {case}"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("splits", [1, 3])
def test_dense(interpreted, name, splits):
    check(interpreted, CASES[name].but(choice=replace(DENSE, kv_splits=splits)))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("splits", [1, 2])
def test_chosen_tokens(interpreted, name, splits):
    check(interpreted, CASES[name].but(chosen=21, choice=replace(CHOSEN, kv_splits=splits)))


@pytest.mark.parametrize("name", ["full", "live length", "window"])
@pytest.mark.parametrize("chosen", [0, 40])
def test_pages(interpreted, name, chosen):
    case = CASES[name].but(paged=True, batch=2, keys=150, choice=CHOSEN if chosen else DENSE, chosen=chosen)
    check(interpreted, case)
    check(interpreted, case.but(choice=replace(case.choice, block_n=64, kv_splits=2)))


@pytest.mark.parametrize("queries", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_few_queries(interpreted, queries, dtype):
    case = CASES["live length"].but(queries=queries, dtype=dtype, heads=9)
    check(interpreted, case)
    check(interpreted, case.but(chosen=20, choice=CHOSEN))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", [(32, 16), (64, 16), (48, 24), (20, 1)], ids=str)
def test_strides_and_dims(interpreted, layout, dims):
    case = CASES["full"].but(layout=layout, rank=dims[0], width=dims[1], batch=2)
    check(interpreted, case)
    check(interpreted, case.but(chosen=20, choice=CHOSEN))


@pytest.mark.parametrize("heads", [16, 128])
def test_the_dims_of_deepseek(interpreted, heads):
    case = Case("score: 0.07*s; hi: T0[b] + i + 1", ("lengths",), heads=heads, queries=1, keys=200, rank=512, width=64,
                batch=2, dtype=torch.bfloat16, choice=Choice("mla", min(heads, 64), 64, 8, 2, 2))
    check(interpreted, case)
    check(interpreted, case.but(paged=True))
    check(interpreted, case.but(chosen=100, choice=replace(case.choice, family="tokens")))


def test_any_number_of_parts(interpreted):
    @settings(max_examples=10, deadline=None)
    @given(st.integers(1, 30), st.integers(1, 90), st.integers(0, 100), st.sampled_from([16, 32]), st.sampled_from([0, 19]))
    def same(parts, keys, live, block_n, chosen):
        family = "tokens" if chosen else "mla"
        check(interpreted, Case("score: 0.25*s; hi: i + n0; sink: F0[h]", ("sinks",), sizes=(live,), queries=4, keys=keys,
                                chosen=min(chosen, keys), choice=Choice(family, 16, block_n, 4, 1, parts)))

    same()


def test_the_op(interpreted):
    """Checked, chosen and launched, with the strides of its fake."""
    case = CASES["live length"].but(keys=90)
    latents, tables = operands(case)
    out = interpreted(gpu_latent.attend_latent, *vars(latents).values(), tables, [], [], case.spec)
    fake = torch.empty(case.batch, case.queries, case.heads, case.rank).transpose(1, 2)
    assert out.shape == fake.shape and out.stride() == fake.stride() and not out.isnan().any()
    empty = replace(latents, latent=latents.latent[:, :0], rope=latents.rope[:, :0])
    assert not interpreted(gpu_latent.attend_latent, *vars(empty).values(), [], [], [], "score: s").any()


@pytest.mark.parametrize("change, found", [
    (lambda x: {"q_rope": x.q_rope[:, :1]}, "q_rope is"), (lambda x: {"rope": x.rope[:, :3]}, "rope"),
    (lambda x: {"latent": x.latent.double()}, "one dtype"), (lambda x: {"latent": x.latent[0]}, "dimensions"),
    (lambda x: {"tokens": torch.zeros(1, 2, 3)}, "tokens is int32 or int64"),
    (lambda x: {"tokens": torch.zeros(1, 3, 3, dtype=torch.int64)}, r"tokens is \[1, 2, K\]"),
    (lambda x: {"pages": torch.zeros(1, 3, dtype=torch.int32)}, "PAGES, 64"),
])
def test_operands_that_disagree_are_named(change, found):
    latents, _ = operands(CASES["full"])
    bad = replace(latents, **change(latents))
    with pytest.raises(OperandError, match=found):
        gpu_latent.attend_latent(*vars(bad).values(), [], [], [], "score: s")


def test_parts_fill_the_machine_and_no_more():
    machine = MACHINES["sm_90"]
    one, many = (configure("mla", Shape(batch, 128, 8192, 512, 64, 2), 0, machine).kv_splits for batch in (1, 128))
    assert 8 <= one <= 66 and many == 1
    assert configure("mla", Shape(1, 128, 8192, 512, 64, 2), 5, machine).kv_splits == 5
    assert configure("mla", Shape(1, 128, 10, 512, 64, 2), 0, machine).kv_splits == 1
    assert AttentionSpec.parse("score: s").kv_splits == 0
