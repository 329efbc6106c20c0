"""The operators keep their schemas, and their fakes say exactly what comes out."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from mla_compiler.errors import OperandError
from mla_compiler.ir import TILE

from .cases import CASES, SHAPES, operands, problem

OPS = torch.ops.flashmla


def like(x):
    return x.shape, x.stride(), x.dtype, x.device


def assert_fake_is_exact(op, *arguments):
    with FakeTensorMode() as mode:
        fakes = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments)
        promised = op(*fakes)
    found = op(*arguments)
    many = isinstance(found, tuple)
    assert [like(x) for x in (promised if many else [promised])] == [like(x) for x in (found if many else [found])]


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES.values(), (1, 1, 1, 1, 1, 8, 8), (0, 2, 1, 3, 4, 8, 8), (2, 2, 1, 0, 4, 8, 8)])
def test_attend_fake(shape, heads_first):
    for name in ("causal", "counter", "softcap", "nothing"):
        for dtype in (torch.float32, torch.bfloat16):
            assert_fake_is_exact(OPS.attend.default, *problem(CASES[name], shape, dtype, heads_first=heads_first))


@pytest.mark.parametrize("name", ["full", "causal", "pad", "summarized", "alibi", "run-time scale", "softcap", "sinks"])
@pytest.mark.parametrize("shape", ["prefill", "decode"])
def test_attend_opcheck(name, shape):
    torch.library.opcheck(OPS.attend.default, problem(CASES[name], SHAPES[shape]))
    torch.library.opcheck(OPS.attend.default, problem(CASES[name], SHAPES[shape], torch.bfloat16, heads_first=True))


@pytest.mark.parametrize("shape", [(2, 3, 70, 130), (1, 1, 1, 64), (2, 1, 64, 1), (1, 2, 0, 5), (1, 2, 5, 0)])
def test_summarize(shape):
    mask = torch.rand(shape) < 0.3
    assert_fake_is_exact(OPS.summarize.default, mask)
    torch.library.opcheck(OPS.summarize.default, (mask,))


MASKS = [None, torch.ones(7, dtype=torch.bool).expand(5, 7), torch.zeros(2, 1, 5, 7)]


@pytest.mark.parametrize("mask", MASKS, ids=["none", "bool", "float"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("value_dim", [16, 8])
def test_sdpa(mask, kv_heads, value_dim):
    q, k, v = operands((2, 4, kv_heads, 5, 7, 16, value_dim), torch.float32)
    arguments = (q, k, v, mask, 0.0, mask is None, 0.3, kv_heads != 4)
    assert_fake_is_exact(OPS.sdpa.default, *arguments)
    torch.library.opcheck(OPS.sdpa.default, arguments)
    want = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=0.3, enable_gqa=kv_heads != 4)
    assert torch.equal(OPS.sdpa.default(*arguments), want)


@pytest.mark.parametrize("shapes", [
    ((5, 16), (7, 16), (7, 8)), ((4, 5, 16), (4, 7, 16), (4, 7, 16)), ((2, 4, 5, 16), (1, 4, 7, 16), (1, 4, 7, 16)),
    ((1, 4, 5, 16), (3, 4, 7, 16), (3, 4, 7, 16)), ((2, 3, 4, 5, 16), (2, 3, 4, 7, 16), (2, 3, 4, 7, 16)),
])
def test_sdpa_of_any_rank(shapes):
    q, k, v = map(torch.randn, shapes)
    assert_fake_is_exact(OPS.sdpa.default, q, k, v, None, 0.0, False, None, False)
    assert torch.equal(OPS.sdpa.default(q, k, v, None, 0.0, False, None, False), F.scaled_dot_product_attention(q, k, v))


def test_sdpa_of_a_mask_of_the_wrong_shape_is_torchs_own_error():
    q, k, v = operands((2, 4, 4, 5, 7, 16, 16), torch.float32)
    with pytest.raises(RuntimeError) as torchs:
        F.scaled_dot_product_attention(q, k, v, torch.zeros(3, 7))
    with pytest.raises(RuntimeError) as ours:
        OPS.sdpa.default(q, k, v, torch.zeros(3, 7), 0.0, False, None, False)
    assert str(ours.value) == str(torchs.value)


def test_lengths_may_be_symbolic():
    def step(q, k, v):
        return OPS.attend.default(q, k, v, [], [k.shape[2] - q.shape[2]], [], "score: 0.25*s; hi: n0 + i + 1; group: 2")

    traced = make_fx(step, tracing_mode="symbolic")(*operands(SHAPES["decode"], torch.float32))
    for S in (90, 91, 300):
        q, k, v = operands((2, 6, 3, 1, S, 16, 16), torch.float32)
        want = F.scaled_dot_product_attention(q, k, v, scale=0.25, enable_gqa=True)
        torch.testing.assert_close(traced(q, k, v), want)


@pytest.mark.parametrize("mask", [torch.zeros(1, 1, 3, 4), torch.zeros(3, 4, dtype=torch.bool)])
def test_summarize_wants_a_bool_mask_of_four_dimensions(mask):
    with pytest.raises(OperandError, match="the mask is bool"):
        OPS.summarize.default(mask)


def test_hull_and_classes():
    torch.manual_seed(0)
    mask = torch.rand(2, 1, 100, 150) < 0.02
    mask[0, 0, 64:, 64:128] = True
    mask[1, 0, :64] = False
    hull, classes = OPS.summarize.default(mask)
    for b in range(2):
        for i in range(100):
            seen = mask[b, 0, i].nonzero().flatten().tolist()
            assert hull[b, 0, i].tolist() == ([seen[0], seen[-1] + 1] if seen else [0, 0])
        for row in range(2):
            for column in range(3):
                tile = mask[b, 0, row * TILE:(row + 1) * TILE, column * TILE:(column + 1) * TILE]
                assert classes[b, 0, row, column] == int(tile.any()) + int(tile.all())
