"""Each choice of each table, one at a time beside a plain program, and pairs that meet in real models."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.spellings.cases import check, inputs
from tests.spellings.masks import MASKS
from tests.spellings.spelling import APPLIES, EXTRAS, GROUPS, PRODUCTS, SCALES, SOFTMAXES, Spelling

PLAIN = Spelling(mask="causal_arange")
TABLES = {"layout": ("3d", "5d"), "group": GROUPS, "product": PRODUCTS, "scale": SCALES, "extra": EXTRAS,
          "mask": MASKS, "apply": APPLIES, "softmax": SOFTMAXES, "sinks": (True,)}
SINGLE = [dataclasses.replace(PLAIN, **{field: name}) for field, names in TABLES.items() for name in names]
PAIRS = [
    Spelling(layout="3d", product="operator", extra="alibi_keys", mask="padded_causal", apply="fill_least", softmax="float32"),
    Spelling(scale="query", mask="padding", apply="times_least", softmax="module"),
    Spelling(extra="softcap", mask="window", apply="add_least", softmax="float32"),
    Spelling(sinks=True, mask="window", apply="add_least", softmax="spelled"),
    Spelling(sinks=True, extra="softcap", mask="documents_causal", apply="where_inf"),
    Spelling(layout="5d", product="einsum", scale="query", mask="documents_by_cumsum", apply="where_least"),
    Spelling(group="interleave", extra="table", mask="padding", apply="add_inf", softmax="cast"),
    Spelling(layout="3d", scale="both", mask="none", softmax="spelled_amax"),
]


def label(spelling: Spelling) -> str:
    changed = [f"{f.name}={getattr(spelling, f.name)}" for f in dataclasses.fields(spelling)
               if getattr(spelling, f.name) != getattr(PLAIN, f.name)]
    return ",".join(changed) or "plain"


UNIQUE = list(dict.fromkeys([*SINGLE, *PAIRS]))


@pytest.mark.parametrize("spelling", UNIQUE, ids=label)
def test_fused(spelling: Spelling) -> None:
    case = inputs()
    check(spelling, case)


@pytest.mark.parametrize("spelling", PAIRS, ids=label)
def test_fused_where_keys_outnumber_queries(spelling: Spelling) -> None:
    case = inputs(queries=3, keys=9)
    check(spelling, case)


@pytest.mark.parametrize("spelling", [PLAIN, *PAIRS[:4]], ids=label)
def test_fused_in_bfloat16(spelling: Spelling) -> None:
    case = inputs(dtype=torch.bfloat16)
    check(spelling, case)


@pytest.mark.parametrize("spelling", [PLAIN, PAIRS[2]], ids=label)
def test_a_single_query(spelling: Spelling) -> None:
    case = inputs(queries=1, keys=9)
    check(spelling, case)
