"""A second process finds what the first compiled; our passes are a small part of a compilation. Fresh processes throughout."""

import pytest

from mla_compiler.bench.compiling import SHARE, probe_in_fresh_process

LAYERS = 32
STEP = ("--layers", "2", "--context", "16", "--cache", "32")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("step"))


@pytest.fixture(scope="module")
def step(cache):
    """What the first process says of a decode step of two layers."""
    return probe_in_fresh_process(cache, *STEP)


@pytest.mark.slow
def test_passes_are_a_small_part_of_a_compilation(tmp_path):
    found = probe_in_fresh_process(str(tmp_path), "--layers", str(LAYERS))
    assert (found["fused"], found["fx_misses"]) == (LAYERS, 1)
    assert 0 < found["passes_s"] <= SHARE * found["compile_s"]


def test_second_process_hits_the_cache_and_has_the_report(step, cache):
    again = probe_in_fresh_process(cache, *STEP)
    assert (step["fused"], step["fx_misses"]) == (2, 1)
    assert (again["fx_misses"], again["aot_misses"]) == (0, 0)
    assert again["fx_hits"] + again["aot_hits"] > 0
    assert (again["fused"], again["left"], again["greedy"]) == (2, 0, step["greedy"])


def test_other_options_do_not_share_what_was_compiled(step, cache, monkeypatch):
    monkeypatch.setenv("FLASHMLA_ENABLE", "0")
    off = probe_in_fresh_process(cache, *STEP)
    assert (off["fused"], off["left"], off["fx_hits"], off["greedy"]) == (0, 2, 0, step["greedy"])
