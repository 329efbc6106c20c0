"""The peers compute the same attention: SDPA and FlexAttention themselves, FA3 and FlashInfer by stand-ins of their layout."""

import functools
import sys

import pytest
import torch

from mla_compiler.bench.attentions import ATTENTIONS, DECODE
from mla_compiler.bench.operands import Operands
from mla_compiler.bench.peers import PEERS, live, mask
from mla_compiler.bench.sampling import Sample
from mla_compiler.bench.ways import Unfit

from . import peer_modules

CASES = {case.name: case.shrunk() for case in ATTENTIONS if case.keys <= 8192 or case.live or case.documents > 1}


@pytest.fixture(params=CASES, scope="module")
def measured(request):
    given = Operands.random(CASES[request.param], "cpu", torch.float32)
    return given, Sample.of(given)


def test_sdpa_in_every_way_it_is_called(measured):
    given, sample = measured
    ways = PEERS["sdpa"].bind([given, given])
    assert all(len(way) == 2 for way in ways)
    assert len(ways) == 1 + (given.case.sharing > 1) + (given.case.group == DECODE and mask(given) is None)
    assert all(sample.error(way[0]()) <= 2 for way in ways)


def test_flex(measured, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    given, sample = measured
    ((call,),) = PEERS["flex"].bind([given])
    assert sample.error(call()) <= 2


def test_fa3(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn_interface", peer_modules.fa3())
    given, sample = measured
    ways = PEERS["fa3"].bind([given])
    assert len(ways) == (1 if given.case.group != DECODE else 3 if given.case.keys % 64 == 0 else 2)
    assert all(sample.error(call()) <= 2 for (call,) in ways for _ in range(2))


def test_flashinfer(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", peer_modules.flashinfer())
    given, sample = measured
    if given.case.group == DECODE and (given.case.queries > 1 or any(length % 16 for length in given.case.lengths)):
        with pytest.raises(Unfit):
            PEERS["flashinfer"].bind([given])
        return
    ((call,),) = PEERS["flashinfer"].bind([given])
    assert sample.error(call()) <= 2


def test_a_longer_cache_is_sliced_where_lengths_are_equal_and_masked_where_not():
    equal = Operands.random(CASES["decode B=16, 8k of 16k"], "cpu", torch.float32)
    assert mask(equal) is None and live(equal)[0].shape[2] == equal.case.lengths[0] < equal.case.keys
    unequal = Operands.random(CASES["decode B=16, 1 of 32k, 15 of 1k"], "cpu", torch.float32)
    hidden = mask(unequal)
    assert hidden is not None and hidden.sum(-1).flatten().tolist() == list(unequal.case.lengths)


def test_what_a_peer_cannot_do_it_says():
    window = Operands.random(CASES["prefill window 1024, 2k"], "cpu", torch.float32)
    with pytest.raises(Unfit, match="takes no mask"):
        PEERS["sdpa-fa2"].bind([window])


def test_absent_is_what_cannot_be_imported_or_needs_a_gpu():
    here = {name: peer.absent("cpu") for name, peer in PEERS.items()}
    assert here == {name: name != "sdpa" for name in PEERS}
    assert not PEERS["flex"].absent("cuda")
    absent = functools.partial(PEERS["sdpa"].__class__, "none", PEERS["sdpa"].bind, "no_such_module_here")
    assert absent().absent("cuda")
