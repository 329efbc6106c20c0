"""flashmla::attend on the CPU against the formula in float64."""

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_compiler import expr as E
from mla_compiler.errors import OperandError
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import reference

from .cases import CASES, SHAPES, Case, assert_close, operands, problem
from .strategies import TABLES, conditions, integers, reals

attend = torch.ops.flashmla.attend.default


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_answer(case, shape):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        arguments = problem(case, shape, dtype)
        assert_close(attend(*arguments), arguments)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_many_blocks_of_rows(case):
    arguments = problem(case, (1, 2, 1, 600, 600, 16, 16))
    assert_close(attend(*arguments), arguments)


@pytest.mark.parametrize("shape", [SHAPES["prefill"], SHAPES["decode"]], ids=["prefill", "decode"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_kv_splits_gives_the_same_answer(case, shape):
    for kv_splits in (1, 2, 3, 7, 200):
        arguments = problem(case, shape, kv_splits=kv_splits)
        assert_close(attend(*arguments), arguments)


def test_float64():
    for case in CASES.values():
        arguments = problem(case, SHAPES["short"], torch.float64)
        torch.testing.assert_close(attend(*arguments), reference.attend(*arguments), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["nothing", "far", "nothing, by residue"])
def test_a_row_that_sees_nothing_gives_zero(name):
    for shape in SHAPES.values():
        assert (attend(*problem(CASES[name], shape)) == 0).all()


def test_rows_that_see_nothing_among_others():
    for text in ("0.25*s", "5.0*tanh(0.05*s)"):
        for sink in (None, "1.0"):
            case = Case(text, residue="(i % 2 == 0) & (j > 3)", sink=sink)
            arguments = problem(case, SHAPES["prefill"])
            assert (attend(*arguments)[:, :, 1::2] == 0).all()
            assert_close(attend(*arguments), arguments)


@pytest.mark.parametrize(("name", "shape"), [
    ("counter", "decode"), ("counter", "short"), ("window", "decode"), ("window", "short"), ("per sequence", "decode"),
    ("chunk", "short"),
])
@pytest.mark.parametrize("score", ["0.25*s", "5.0*tanh(0.05*s)"])
def test_keys_outside_the_hull_are_not_read(name, shape, score):
    case = CASES[name]
    arguments = problem(Case(score, case.lo, case.hi, tables=case.tables, sizes=case.sizes), SHAPES[shape])
    q, k, v, *rest = arguments
    spec, lengths = AttentionSpec.parse(rest[-1]), (*q.shape[:3], k.shape[2])
    unseen = ~reference.visible(spec, *lengths, *rest[:-1]).any(0).any(0).any(0)
    assert unseen.any()
    poisoned = [x.masked_fill(unseen[:, None], torch.nan) for x in (k, v)]
    assert torch.equal(attend(q, *poisoned, *rest), attend(*arguments))


def test_a_long_window_reads_each_block_of_rows_over_its_own_hull():
    q, k, v, *rest = problem(CASES["window"], (1, 2, 1, 600, 600, 16, 16))
    v[:, :, :200] = torch.nan
    out = attend(q, k, v, *rest)
    assert out[:, :, :200].isnan().all()
    assert not out[:, :, 512:].isnan().any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("score", ["0.25*s", "5.0*tanh(0.05*s)"])
def test_nan_and_inf_propagate_as_in_sdpa(score, value):
    q, k, v, *rest = problem(Case(score), (1, 2, 2, 3, 7, 8, 8))
    q[0, 0, 1, 2] = k[0, 1, 4, 1] = v[0, 1, 6, 3] = value
    if score == "0.25*s":
        want = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.25)
    else:
        want = reference.attend(q, k, v, *rest)
    assert not want.isfinite().all()
    assert torch.equal(attend(q, k, v, *rest).isfinite(), want.isfinite())


def test_one_number_added_to_every_score_changes_nothing():
    for shape in SHAPES.values():
        arguments = problem(Case("0.25*s + x0", scalars=(0.75,)), shape)
        assert_close(attend(*arguments), arguments)
        torch.testing.assert_close(attend(*arguments), attend(*problem(Case(), shape)))


@pytest.mark.parametrize("shape", [(0, 2, 1, 3, 4, 8, 8), (2, 2, 1, 0, 4, 8, 8), (2, 2, 1, 3, 0, 8, 8), (1, 2, 2, 3, 4, 8, 0)])
def test_zero_lengths(shape):
    out = attend(*problem(CASES["causal"], shape))
    assert out.shape == (shape[0], shape[1], shape[3], shape[6])
    assert (out == 0).all()


@pytest.mark.parametrize("head_dim", [16, 40, 64, 80, 96, 128, 192, 256])
def test_head_dims(head_dim):
    for name in ("causal", "pad", "softcap"):
        arguments = problem(CASES[name], (1, 4, 2, 33, 33, head_dim, head_dim), torch.bfloat16)
        assert_close(attend(*arguments), arguments)


def test_any_strides():
    shape = (2, 4, 2, 20, 20, 16, 16)
    q, k, v, *rest = problem(CASES["pad"], shape)
    want = attend(q, k, v, *rest)
    for layout in (lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), lambda x: torch.cat([x, x], -1)[..., :16],
                   lambda x: torch.stack([x, x], -1)[..., 1], lambda x: x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)):
        torch.testing.assert_close(attend(layout(q), layout(k), layout(v), *rest), want)
    one = attend(q, k[:, :1, :1].expand_as(k), v, *rest)
    torch.testing.assert_close(one, attend(q, k[:, :1, :1].expand_as(k).contiguous(), v, *rest))


def random_tables(B, H, T, S):
    lengths = {"b": B, "h": H, "i": T, "j": S}
    torch.manual_seed(5)
    made = []
    for name, axes in TABLES.items():
        shape = [lengths[axis] for axis in axes]
        draw = {"M": lambda n: torch.rand(n) < 0.6, "T": lambda n: torch.randint(-3, 9, n), "F": torch.randn}[name[0]]
        made.append(draw(shape))
    return made


def of_a_row(e):
    """The same expression without j and s: a bound or a sink belongs to a row."""
    return e.xreplace({E.j: E.i, E.s: sympy.Integer(1)})


@given(st.data())
@settings(max_examples=1000, deadline=None)
def test_random_specs(data):
    spec = AttentionSpec(
        score=data.draw(reals(1)),
        lo=of_a_row(data.draw(integers(1))),
        hi=of_a_row(data.draw(integers(1))),
        residue=data.draw(conditions(1)),
        sink=data.draw(st.none() | reals(1).map(of_a_row)),
        group=(group := data.draw(st.sampled_from([1, 2]))),
        kv_splits=data.draw(st.integers(0, 3)),
        heads_first=data.draw(st.booleans()),
    )
    shape = (2, 2 * group, 2, data.draw(st.sampled_from([1, 3, 20])), data.draw(st.sampled_from([1, 7, 40])), 8, 8)
    arguments = (*operands(shape, torch.float32), random_tables(*shape[:2], *shape[3:5]), [3, 11], [0.75, -1.5], str(spec))
    assert_close(attend(*arguments), arguments)


def changed(**values):
    """The arguments of a small causal attention, some replaced."""
    names = ("q", "k", "v", "tables", "sizes", "scalars", "spec")
    arguments = dict(zip(names, problem(CASES["causal"], (2, 4, 2, 5, 7, 8, 8)), strict=True))
    return tuple({**arguments, **values}.values())


@pytest.mark.parametrize(("values", "named"), [
    ({"q": torch.zeros(4, 5, 8)}, "4 dimensions; found 3, 4, 4"),
    ({"k": torch.zeros(2, 2, 7, 9)}, r"k is \[2, 2, S, 8\]; found \[2, 2, 7, 9\]"),
    ({"k": torch.zeros(2, 4, 7, 8)}, r"k is \[2, 2, S, 8\]; found \[2, 4, 7, 8\]"),
    ({"k": torch.zeros(1, 2, 7, 8)}, r"k is \[2, 2, S, 8\]; found \[1, 2, 7, 8\]"),
    ({"v": torch.zeros(2, 2, 6, 8)}, r"v is \[2, 2, 7, Dv\]; found \[2, 2, 6, 8\]"),
    ({"v": torch.zeros(2, 2, 7, 8).double()}, "one dtype.*float64"),
    ({name: torch.zeros(2, 2, 7, 8).to(torch.complex64) for name in "qkv"} | {"spec": "score: s"}, "one dtype.*complex64"),
    ({"spec": "score: s; group: 3"}, r"group 3, k is \[2, 4/3, S, 8\]"),
    ({"spec": "score: n1*s; group: 2"}, "2 sizes and 0 scalars; found 0 and 0"),
    ({"spec": "score: x0*s; group: 2"}, "0 sizes and 1 scalars"),
    ({"spec": "score: s; hi: T0[b]; group: 2"}, "table T0 has 1 dimensions; found only 0 tables"),
    ({"spec": "score: s; hi: T0[b]; group: 2", "tables": [torch.zeros(2, 2)]}, "table T0 has 1 dimensions; found 2"),
])
def test_operands_that_do_not_agree_are_named(values, named):
    with pytest.raises(OperandError, match=named):
        attend(*changed(**values))
