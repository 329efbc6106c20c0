"""K and V of some heads at a time: the attention of all heads at once, in the memory of a few."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mla_compiler.errors import OperandError
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import by_heads, head_groups, projected
from mla_compiler.lowering.head_groups import chosen, even_groups

from .cases import CASES
from .test_attend_projected import HEADS, problem, written

CPU = torch.device("cpu")


def parts(given):
    """What `by_heads.expanded` takes, but for the number of heads."""
    *operands, _, tables, sizes, scalars, spec = given
    return projected.Projected(*operands), (tables, sizes, scalars), spec


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CASES))
def test_groups_of_heads_are_all_heads(name, dtype, heads_first):
    found = problem(CASES[name], 0, dtype=dtype, heads_first=heads_first)
    truth, formula = written(found, "expanded", torch.float64), written(found, "expanded", dtype)
    allowed = torch.maximum((formula.double() - truth).square().mean().sqrt(), torch.finfo(dtype).eps * truth.abs().max())
    for most in range(1, HEADS + 2):
        out = by_heads.expanded(*parts(found), most)
        assert (out.double() - truth).square().mean().sqrt() <= 2 * allowed, most
        assert out.is_contiguous() == heads_first and out.transpose(1, 2).is_contiguous() != heads_first


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(("full", "offset", "pad", "odd", "alibi", "sinks", "softcap", "capped sinks")), st.integers(1, HEADS),
       st.integers(0, 5), st.integers(0, 40))
def test_of_any_lengths(name, most, queries, keys):
    found = problem(CASES[name], 0, queries, keys)
    torch.testing.assert_close(by_heads.expanded(*parts(found), most), by_heads.expanded(*parts(found), HEADS))


def test_a_spec_that_names_the_head_is_asked_at_the_head_itself():
    assert by_heads.of_group("score: s*F0[h]", 2) == str(AttentionSpec.parse("score: s*F0[h + n2]"))
    assert by_heads.of_group("score: s; hi: i + n0", 1) == "score: s; hi: i + n0"


class Made(TorchDispatchMode):
    """`elements`: of each tensor that was given memory inside, in order."""

    def __init__(self):
        super().__init__()
        self.elements = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        new = [x.untyped_storage() for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        self.elements += [storage.nbytes() // 4 for storage in new if storage.data_ptr() not in given]
        return made


@pytest.mark.parametrize("most", [1, 2, 3, HEADS])
@pytest.mark.parametrize("name", ["full", "offset", "pad", "sinks"])
def test_one_memory_serves_every_group(monkeypatch, name, most):
    """Nothing is ever made that is larger than K of one group, and all groups lie where the first one lay."""
    places, attend = [], by_heads._attend
    monkeypatch.setattr(by_heads, "_attend", lambda q, k, v, *rest: places.append((k.data_ptr(), v.data_ptr()))
                        or attend(q, k, v, *rest))
    found = problem(CASES[name], 0, queries=1, keys=300)
    with Made() as made:
        by_heads.expanded(*parts(found), most)
    assert max(made.elements) == most * 2 * 300 * 16
    assert len(places) == -(-HEADS // most) and len(set(places)) == 1


def test_what_does_not_fit_is_made_in_groups(monkeypatch):
    """For a buffer that holds one head and a half; many processors stand idle, so the test takes one."""
    taken, expanded = [], by_heads.expanded
    monkeypatch.setattr(by_heads, "expanded", lambda *given: taken.append(given[-1]) or expanded(*given))
    monkeypatch.setattr(head_groups, "processors", lambda device: 1)
    found = problem(CASES["pad"], 0)
    for buffer, most in ((head_groups.BUFFER, HEADS), (3 * 2 * 20 * 24 * 4 // 2, 1), (1, 1)):
        monkeypatch.setattr(head_groups, "BUFFER", buffer)
        torch.testing.assert_close(torch.ops.flashmla.attend_projected(*found), expanded(*parts(found), HEADS))
        assert taken[-1] == most


@given(st.integers(1, 200), st.integers(1, 300), st.integers(1, 300), st.integers(1, 200))
def test_groups_cost_little_time(heads, tiles, processors, most):
    """The largest group that fits and costs at most an eighth; else the smallest that does."""

    def waves(n):
        return math.ceil(heads / n) * math.ceil(n * tiles / processors)

    n = chosen(heads, tiles, processors, most)
    assert n in even_groups(heads) and waves(n) <= 1.125 * waves(heads)
    better = range(n + 1, most + 1) if n <= most else range(1, n)
    assert not any(m in even_groups(heads) and waves(m) <= 1.125 * waves(heads) for m in better)


@given(st.integers(1, 500))
def test_the_last_group_lacks_little(heads):
    sizes = even_groups(heads)
    assert sizes[0] == heads and sizes[-1] == 1 and list(sizes) == sorted(set(sizes), reverse=True)
    assert all(math.ceil(heads / n) * n - heads < math.ceil(heads / n) for n in sizes)


@pytest.mark.parametrize(("queries", "keys", "most"), [
    (512, 512, 128), (2048, 2048, 128), (8192, 8192, 43), (32768, 32768, 12), (320, 32768, 43), (1, 65536, 128),
])
def test_heads_of_deepseek_v3_on_an_h100(monkeypatch, queries, keys, most):
    """192 + 128 channels in 16 bits. 320 queries are 3 tiles of rows of a head, 43 heads one wave of 132."""
    monkeypatch.setattr(head_groups, "processors", lambda device: 132)
    assert head_groups.heads_at_once(1, 128, queries, keys, 320, 2, CPU) == most


def test_an_account_is_not_kept():
    found = problem(CASES["full"], 0)
    with pytest.raises(OperandError, match="no account"):
        torch.ops.flashmla.attend_projected(*found[:-1], found[-1] + "; site: layer")
