"""Which value each layer gets, and how far the search goes: on curves that are made up."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_compiler.calibration.allocation import NOTHING, allocate
from mla_compiler.calibration.arguments import percent
from mla_compiler.calibration.curves import VALUES, Curve, Point, family, probe, weighed
from mla_compiler.calibration.search import Measured, search
from mla_compiler.errors import OptionError
from mla_compiler.sparsity import EXACTLY, Sparsity

POLICIES = [Sparsity("threshold", "", value) for value in (0.01, 0.1, 0.5)]
SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted)
FOUND = Measured((10.0, 10.0), 0.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.25)


def curve(name, gone, errors, weight=1.0):
    points = zip(POLICIES, gone, errors, strict=True)
    return Curve(name, tuple(Point(policy, (100.0, 100 * left), error) for policy, left, error in points), weight)


@st.composite
def several(draw):
    return [curve(f"layer {at}", draw(SHARES), draw(SHARES), draw(st.floats(0.01, 10))) for at in range(3)]


def value(curves, chosen):
    """(cost, left out) of a point for each curve."""
    return (sum(one.weight * point.error for one, point in zip(curves, chosen, strict=True)),
            sum(point.flops[1] for point in chosen))


@given(several(), st.floats(1e-3, 10))
def test_an_allocation_keeps_to_its_budget_and_is_one_step_from_the_best(curves, budget):
    """Against all there are. A step is at most all that one layer has."""
    policies = allocate(curves, budget)
    options = [{point.policy: point for point in (NOTHING, *one.points)} for one in curves]
    cost, left = value(curves, [option[policies[one.layer]] for one, option in zip(curves, options, strict=True)])
    assert cost <= budget
    every = [value(curves, chosen) for chosen in itertools.product(*(option.values() for option in options))]
    assert left >= max(other for spent, other in every if spent <= budget) - 100


def test_a_dear_layer_is_spared():
    gone, errors = (0.2, 0.5, 0.8), (0.01, 0.1, 0.5)
    policies = allocate([curve("dear", gone, errors, 100.0), curve("cheap", gone, errors, 0.1)], 0.2)
    assert policies == {"dear": EXACTLY, "cheap": POLICIES[2]}


def test_a_layer_that_was_not_weighed_is_as_dear_as_the_dearest():
    curves = [curve(name, (0, 0, 0.5), (0, 0, 0.1)) for name in "abc"]
    assert [one.weight for one in weighed(curves, [2.0, None, 5.0])] == [2, 5, 5]
    assert probe(curves[0]).policy == POLICIES[2]
    assert probe(curve("none", (0, 0, 0), (0, 0, 0))) is None


def measuring(slope, tried):
    """The loss is `slope` times what the layer leaves out."""
    def measure(policies):
        tried.append(policies["layer"])
        return replace(FOUND, mean=math.log1p(slope * policies["layer"].value))
    return measure


@pytest.mark.parametrize("slope", [0.01, 0.1, 1.0])
def test_the_search_ends_near_the_bound_and_within(slope):
    tried, fine = [], [Sparsity("threshold", "", at / 1000) for at in range(1, 1000)]
    curves = [Curve("layer", tuple(Point(policy, (1.0, policy.value), policy.value) for policy in fine), 0.05)]
    policies, found = search(curves, 0.005, measuring(slope, tried))
    assert found.upper <= 0.005 and policies["layer"] in tried
    assert found.upper >= 0.7 * 0.005 or policies["layer"] == fine[-1]


def test_nothing_is_found_where_nothing_holds():
    curves = [curve("layer", (0.2, 0.5, 0.8), (0.01, 0.1, 0.5), 0.01)]
    assert search(curves, 0.005, lambda policies: replace(FOUND, mean=0.1)) is None


def test_the_standard_error_counts():
    assert search([curve("layer", (0.2, 0.5, 0.8), (0.01, 0.1, 0.5))], 0.005, lambda _: replace(FOUND, error=0.006)) is None


def test_a_family_is_a_policy_without_its_number():
    assert family("threshold") == tuple(Sparsity("threshold", "", value) for value in VALUES)
    assert family("pages.share+threshold=0.04") == tuple(Sparsity("pages", "share", value, 0.04) for value in VALUES)
    both = family("pages.share + threshold")
    assert len(set(both)) == len(VALUES) * (len(VALUES) + 1) // 2 and all(policy.then >= policy.value for policy in both)
    assert family("threshold, pages.share+threshold") == family("threshold") + both
    for text in ("exact", "treshold", "threshold=0.1", "threshold+threshold=0.1", "threshold+threshold", "threshold,"):
        with pytest.raises(OptionError, match="no number to seek"):
            family(text)


@pytest.mark.parametrize(("text", "share"), [("0.5%", 0.005), ("0.02", 0.02)])
def test_a_loss_is_a_share(text, share):
    assert percent(text) == share
