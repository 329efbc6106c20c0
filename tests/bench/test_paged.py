"""The step over chosen pages that is measured: its bars, its pages, and that who misses a page that matters is found out."""

import dataclasses

import pytest
import torch

from mla_compiler import lowering
from mla_compiler.bench.operands import Operands
from mla_compiler.bench.pool import PAGE
from mla_compiler.bench.sampling import Sample
from mla_compiler.bench.sparse import SPARSE
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering.sparse.config import unserved_in_pages
from mla_compiler.lowering.sparse.paging import kept

CHOSEN = [case for case in SPARSE if case.format]


def test_the_bars_of_what_leaves_out():
    bars = {case.name: [str(bar) for bar in case.bars] for case in SPARSE if case.bars}
    dense = "x ours, dense"
    assert bars == {
        "sparse prefill 32k, exact, 1 of 1 tiles": [f">= 0.99 {dense}"],
        "sparse prefill 32k, threshold=0.001, 1 of 2 tiles": [f">= 1.3 {dense}"],
        "sparse prefill 32k, pages.share=0.001+threshold=0.001, 1 of 2 tiles": [f">= 1.3 {dense}"],
        "sparse prefill 32k, pages=0.25, 1 of 8 tiles": ["<= 5 ms"],
        "sparse prefill 32k, lsh=0.25, 1 of 8 tiles": [f">= 2.5 {dense}"],
        "sparse decode B=1 128k in pages, pages=0.125, 1 of 16 pages": [f">= 4 {dense}"],
        "sparse decode B=16 128k in pages, pages=0.125, 1 of 16 pages": [f">= 4 {dense}"],
    }


@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_fewer_pages_matter_than_are_chosen(case):
    spec, pages = AttentionSpec.parse(case.spec), case.keys // PAGE
    assert not unserved_in_pages(spec, PAGE)
    assert -(-pages // case.every) + 2 <= kept(pages, case.queries, PAGE, spec.sparsity) == pages // 8


def test_who_misses_a_page_is_found_out():
    lowering.register()
    case = dataclasses.replace(CHOSEN[1].shrunk(), keys=64 * PAGE)
    given = Operands.random(case, "cpu", torch.float32)
    sample = Sample.of(given)
    assert sample.error(given.ours()()) <= 2 and sample.error(given.ours(dense=True)()) <= 2
    call = given.ours()
    *arguments, bounds = call.args
    assert (bounds[:, :, 0] >= given.stored.k.amax(2)).all() and (bounds[:, :, 1] >= (-given.stored.k).amax(2)).all()
    mixed = bounds[torch.randperm(len(bounds), generator=torch.Generator().manual_seed(0))]
    assert sample.error(call.func(*arguments, mixed)) > 2
