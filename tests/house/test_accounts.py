"""Accounts: what running attentions say they left out, in numbers, as a table, as JSON and as a picture."""

import importlib.util
import json

import pytest
import torch
import torch.nn.functional as F

import mla_compiler
from mla_compiler.accounts_table import computed
from mla_compiler.errors import OptionError
from mla_compiler.ledger import Call, trying
from mla_compiler.sparsity import EXACTLY, Sparsity


class Attention(torch.nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Two(torch.nn.Module):
    """Two attentions over q [1, 4, T, 16], k and v [1, 2, T, 16]."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Attention(), Attention()

    def forward(self, q, k, v):
        return self.first(q, k, v), self.second(1.5 * q, k, v)


def operands(length=300):
    """Weights that fall with the distance."""
    angle = torch.arange(length) * 0.02
    turn = torch.stack([angle.cos(), angle.sin()], -1).repeat(1, 8)
    torch.manual_seed(0)
    noise = 0.05 * torch.randn(4, length, 16)
    return (2 * turn + noise)[None], (2 * turn + noise[:2])[None], torch.randn(1, 2, length, 16)


@pytest.fixture
def ran():
    """(the model, what it made, its accounts) after one call under threshold=0.05."""
    torch._dynamo.reset()
    mla_compiler.accounts(forget=True)
    options = {"flashmla.sparsity": "threshold=0.05", "flashmla.account": True}
    model = torch.compile(Two(), backend="flashmla", options=options)
    with torch.no_grad():
        made = model(*operands())
    yield model, made, mla_compiler.accounts()
    mla_compiler.accounts(forget=True)


def test_the_numbers_belong_together(ran):
    _, made, accounts = ran
    first, second = accounts
    assert (first.site, second.site, first.policy, first.calls) == ("first", "second", "threshold=0.05", 1)
    for account, out, scale in ((first, made[0], 1), (second, made[1], 1.5)):
        q, k, v = operands()
        error = (out - Attention()(scale * q, k, v)).abs().max().item()
        assert 0 < error <= (2 * max(account.worst) + 4 * torch.finfo(torch.float32).eps) * v.abs().max().item()
        assert sum(map(sum, account.tiles)) == 4 * (2 + 4 + 5)          # causal tiles 128 x 64 of 300 x 300, of 4 heads
        assert account.flops[0] == 2 * 128 * 64 * (16 + 16) * 44
        assert account.flops[1] == 2 * 128 * 64 * 16 * sum(head[1] for head in account.tiles) > 0
        assert account.bytes[1] == 64 * 16 * 4 * sum(head[1] for head in account.tiles)
        assert account.share(1) == 0 and account.share(1, 2, 3) == 1 and 0 < account.left_out < 0.5
        assert all(0 <= mean <= worst < 1 for mean, worst in zip(account.dropped, account.worst, strict=True))
    assert max(first.worst) > max(second.worst) > 1e-7
    assert accounts.left_out == pytest.approx((first.left_out + second.left_out) / 2)


def test_calls_add_up(ran):
    model, _, before = ran
    with torch.no_grad():
        model(*operands())
    after = mla_compiler.accounts()
    assert [account.calls for account in after] == [2, 2]
    assert [account.flops[1] for account in after] == [2 * account.flops[1] for account in before]
    assert [account.dropped for account in after] == [account.dropped for account in before]


def test_another_policy_can_be_tried(ran):
    """Without compiling anew; what is tried has an account of its own."""
    model, made, _ = ran
    known, q_k_v = len(mla_compiler.reports()), operands()
    with torch.no_grad(), trying(lambda site, own: EXACTLY if site == "first" else own):
        exact, same = model(*q_k_v)
    assert torch.equal(same, made[1]) and len(mla_compiler.reports()) == known
    torch.testing.assert_close(exact, Attention()(*q_k_v))
    policies = {(account.site, account.policy): account for account in mla_compiler.accounts()}
    assert len(policies) == 3 and policies["first", "exact"].left_out == 0 == max(policies["first", "exact"].worst)
    with torch.no_grad(), pytest.raises(OptionError, match=r"first: no kernel for pages\.budget"), trying(
            lambda site, own: Sparsity.parse("pages.budget=0.1")):
        model(*q_k_v)
    with torch.no_grad():
        assert torch.equal(model(*q_k_v)[0], made[0])


def test_an_observer_may_ask_for_any_policy(ran):
    model, made, _ = ran
    asked = {}

    def observe(site, under):
        asked[site] = [under(Sparsity.parse(text)) for text in ("exact", "threshold=0.5")]

    with torch.no_grad(), trying(observer=observe):
        out = model(*operands())
    assert torch.equal(out[0], made[0]) and list(asked) == ["first", "second"]
    for (exact, all_of_it), (less, call) in asked.values():
        assert not torch.equal(exact, less) and isinstance(call, Call)
        assert (all_of_it.steps != call.steps).any() and call.dropped.max() > 0 == all_of_it.dropped.max()


def test_the_table_says_it_all(ran):
    *_, accounts = ran
    text = accounts.text(heads=True)
    assert all(word in text for word in ("first", "second", "threshold=0.05", "head 3", "left out by", "all", "FLOP"))
    assert f"{accounts.left_out:.1%}" in text
    assert max(map(len, text.splitlines())) <= 120
    assert len(str(accounts).splitlines()) < len(text.splitlines())


def test_json_is_read_back(ran):
    *_, accounts = ran
    found = json.loads(accounts.json())
    assert [one["site"] for one in found] == ["first", "second"]
    assert found[1]["left_out"] == list(accounts)[1].left_out


def test_the_report_has_them(ran):
    *_, accounts = ran
    report = mla_compiler.reports()[-1]
    assert str(report.accounts) == str(accounts) and str(accounts) in report.text()
    mla_compiler.accounts(forget=True)
    assert "left out" not in report.text() and len(mla_compiler.accounts()) == 0


def test_a_picture_of_the_tiles(ran, tmp_path):
    *_, accounts = ran
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(OptionError, match="matplotlib"):
            accounts.draw(tmp_path / "tiles.png")
        return
    for heads in (False, True):
        accounts.draw(tmp_path / "tiles.png", heads=heads)
        assert (tmp_path / "tiles.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OptionError, match="no account"):
        mla_compiler.accounting.Accounts(()).draw(tmp_path / "none.png")


def test_what_a_pixel_is():
    steps = torch.tensor([[[3, 0], [1, 3]], [[2, 0], [1, 0]]], dtype=torch.uint8)
    torch.testing.assert_close(computed(steps), torch.tensor([[0.75, torch.nan], [0, 1]]), equal_nan=True)


def test_nothing_is_counted_unless_it_is_asked_for():
    torch._dynamo.reset()
    mla_compiler.accounts(forget=True)
    with torch.no_grad():
        torch.compile(Two(), backend="flashmla", options={"flashmla.sparsity": "threshold=0.05"})(*operands())
    assert len(mla_compiler.accounts()) == 0
    assert all("site" not in site.spec for site in mla_compiler.reports()[-1])
