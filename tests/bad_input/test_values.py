"""Inputs at the edge: dead rows, NaN, infinities, nothing at all, odd dtypes, masks that do not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.harness import compiled, reasons, watching

FUSED: Counter[str] = Counter()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def qkv(batch: int = 2, queries: int = 6, keys: int = 9, width: int = 8) -> list[Tensor]:
    return [normal(batch, 4, n, width, seed=s) for s, n in enumerate((queries, keys, keys))]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def spelled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.mT * k.shape[-1] ** -0.5
    return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1) @ v


def run(fn: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, Counter[str]]:
    with watching() as seen:
        found = compiled(fn)(*args)
    assert len(seen.sites) == 1, seen.sites
    return found, reasons(seen.sites)


def dead_rows() -> Tensor:
    """[2, 1, 6, 9]: in the first batch, rows 2 and 5 see nothing."""
    mask = torch.ones(2, 1, 6, 9, dtype=torch.bool).tril(3)
    mask[0, :, [2, 5]] = False
    return mask


def test_a_row_that_sees_nothing_gives_zero_as_sdpa_does() -> None:
    q, k, v = qkv()
    found, left = run(sdpa, q, k, v, dead_rows())
    assert left == FUSED
    torch.testing.assert_close(found, sdpa(q, k, v, dead_rows()))
    assert (found[0, :, [2, 5]] == 0).all()


def test_a_dead_row_of_a_spelled_softmax_gives_zero_and_live_rows_are_eagers() -> None:
    """Eager gives NaN there (-inf minus -inf): documented, padding is the one place where we differ."""
    q, k, v = qkv()
    found, left = run(spelled, q, k, v, dead_rows())
    live = dead_rows().any(-1)[:, 0]
    expected = spelled(q, k, v, dead_rows())
    assert left == FUSED
    assert expected[0, :, [2, 5]].isnan().all()
    assert (found[0, :, [2, 5]] == 0).all()
    torch.testing.assert_close(found.transpose(1, 2)[live], expected.transpose(1, 2)[live])


BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


@pytest.mark.parametrize("fn", [sdpa, spelled])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("operand", [0, 1, 2])
def test_what_is_not_finite_spreads_as_in_sdpa(operand: int, bad: str, fn: Callable[..., Tensor]) -> None:
    """Of a query that is NaN, torch's SDPA on CPU makes a zero; a softmax written by hand is run as SDPA is."""
    inputs = qkv()
    inputs[operand][0, 1, 2, 3] = BAD[bad]
    found, left = run(fn, *inputs)
    assert left == FUSED
    torch.testing.assert_close(found, sdpa(*inputs), equal_nan=True)


@pytest.mark.parametrize("operand", [1, 2])
def test_nan_behind_a_mask_never_becomes_a_wrong_number(operand: int) -> None:
    """Rows that see the NaN are NaN; of the others each number is the number of the clean inputs, or NaN as in SDPA."""
    clean = qkv(keys=6)
    inputs = [x.clone() for x in clean]
    inputs[operand][:, :, 4, :] = float("nan")
    found, left = run(causal, *inputs)
    assert left == FUSED
    assert found[:, :, 4:].isnan().all()
    finite = ~found.isnan()
    torch.testing.assert_close(found[finite], causal(*clean)[finite])


@pytest.mark.parametrize("fn", [sdpa, causal, spelled])
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}, {"keys": 0}], ids=str)
def test_nothing_at_all(sizes: dict[str, int], fn: Callable[..., Tensor]) -> None:
    inputs = qkv(**sizes)
    found, left = run(fn, *inputs)
    torch.testing.assert_close(found, fn(*inputs))
    assert left == Counter(EMPTY=1)


def test_lengths_that_become_zero_later() -> None:
    """Compiled for symbolic lengths, then called with none."""
    fn = torch.compile(sdpa, backend="flashmla", dynamic=True, options={"fallback_by_default": True})
    with watching():
        for queries, keys in ((5, 7), (6, 9), (1, 8), (0, 8), (4, 1)):
            inputs = qkv(queries=queries, keys=keys)
            torch.testing.assert_close(fn(*inputs), sdpa(*inputs))


def test_float64_is_left_or_exact() -> None:
    inputs = [x.double() for x in qkv()]
    found, left = run(sdpa, *inputs)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, sdpa(*inputs))
    assert left in (FUSED, Counter(DTYPE=1))


def assert_torchs_own_error(fn: Callable[..., Tensor], *args: Tensor) -> None:
    """Eager refuses; compiled, the message is the one that torch.compile gives without us, word for word."""
    with pytest.raises(Exception):  # noqa: B017
        fn(*args)
    with watching(), pytest.raises(Exception) as theirs:
        torch.compile(fn, backend="eager", fullgraph=True)(*args)
    with watching(), pytest.raises(Exception) as ours:
        compiled(fn)(*args)
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)


REFUSED_DTYPES = [(torch.complex64,) * 3, (torch.int64,) * 3, (torch.float32, torch.float16, torch.float32)]


@pytest.mark.parametrize("dtypes", REFUSED_DTYPES, ids=str)
def test_dtypes_that_sdpa_refuses(dtypes: tuple[torch.dtype, ...]) -> None:
    assert_torchs_own_error(sdpa, *(x.to(dtype) for x, dtype in zip(qkv(), dtypes, strict=True)))


@pytest.mark.parametrize("shape", [(5, 9), (2, 4, 6, 8), (3, 1, 6, 9)])
def test_masks_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    assert_torchs_own_error(sdpa, *qkv(), torch.ones(shape, dtype=torch.bool))


def test_a_mask_of_integers() -> None:
    assert_torchs_own_error(sdpa, *qkv(), torch.ones(6, 9, dtype=torch.int64))


def test_operands_that_do_not_agree() -> None:
    q, k, v = qkv()
    assert_torchs_own_error(sdpa, q, k[..., :5], v)


def test_nested_tensors_are_left() -> None:
    """Dynamo itself keeps SDPA over nested tensors out of the graph."""
    parts = [normal(n, 4, 8, seed=n) for n in (3, 5)]

    def fn(x: Tensor) -> Tensor:
        y = x.transpose(1, 2)
        return F.scaled_dot_product_attention(y, y, y).transpose(1, 2)

    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    with watching() as seen:
        found = torch.compile(fn, backend="flashmla", options={"fallback_by_default": True})(nested)
    for one, part in zip(found.unbind(), parts, strict=True):
        alone = part.transpose(0, 1)[None]
        torch.testing.assert_close(one, sdpa(alone, alone, alone)[0].transpose(0, 1))
    assert [site for site in seen.sites if site.status == "fused"] == []


def test_a_large_head_is_right_whatever_becomes_of_it() -> None:
    inputs = qkv(width=600)
    found, left = run(sdpa, *inputs)
    torch.testing.assert_close(found, sdpa(*inputs))
    assert left in (FUSED, Counter(HEAD_DIM=1))
