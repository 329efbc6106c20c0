"""Any composition of the choices, at any small size: the meaning is kept, and the attention is fused."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.spellings.cases import check, inputs
from tests.spellings.masks import MASKS
from tests.spellings.spelling import APPLIES, EXTRAS, GROUPS, PRODUCTS, SCALES, SOFTMAXES, Spelling

SPELLINGS = st.builds(
    Spelling, layout=st.sampled_from(["4d", "3d", "5d"]), group=st.sampled_from(sorted(GROUPS)),
    product=st.sampled_from(sorted(PRODUCTS)), scale=st.sampled_from(sorted(SCALES)), extra=st.sampled_from(sorted(EXTRAS)),
    mask=st.sampled_from(sorted(MASKS)), apply=st.sampled_from(sorted(APPLIES)), softmax=st.sampled_from(sorted(SOFTMAXES)),
    sinks=st.booleans(),
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    spelling=SPELLINGS, batch=st.integers(1, 3), keys=st.integers(2, 12), fewer=st.integers(0, 11),
    kv_heads=st.integers(1, 3), group=st.integers(1, 3), width=st.sampled_from([4, 8, 12]), seed=st.integers(0, 99),
)
def test_any_spelling(
    spelling: Spelling, batch: int, keys: int, fewer: int, kv_heads: int, group: int, width: int, seed: int
) -> None:
    queries = max(1, keys - fewer)
    shape = (batch, queries, keys, kv_heads * group, kv_heads, width)
    draws = [inputs(*shape, seed=seed + extra) for extra in range(8)]
    check(spelling, *draws)
