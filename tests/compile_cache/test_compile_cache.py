"""A second process finds what the first compiled; our passes are a small part of a compilation. Fresh processes throughout."""

import pytest

from mla_compiler.bench.compiling import SHARE, probe_in_fresh_process

LAYERS = 32
STEP = ("--layers", "2", "--context", "16", "--cache", "32")


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """(first, second) process that compiles a Llama of 32 layers with one cache directory."""
    cache = str(tmp_path_factory.mktemp("deep"))
    return tuple(probe_in_fresh_process(cache, "--layers", str(LAYERS)) for _ in range(2))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("step"))


@pytest.fixture(scope="module")
def step(cache):
    """What the first process says of a decode step of two layers."""
    return probe_in_fresh_process(cache, *STEP)


@pytest.mark.slow
def test_passes_are_a_small_part_of_a_compilation(deep):
    first, _ = deep
    assert first["fused"] == LAYERS
    assert 0 < first["passes_s"] <= SHARE * first["compile_s"]


@pytest.mark.slow
def test_second_process_hits_the_cache_of_a_deep_model(deep):
    first, second = deep
    assert (first["fx_hits"], first["fx_misses"]) == (0, 1)
    assert (second["fx_misses"], second["aot_misses"]) == (0, 0)
    assert second["fx_hits"] + second["aot_hits"] > 0
    assert second["compile_s"] < first["compile_s"]


def test_second_process_hits_the_cache_of_a_decode_step(step, cache):
    again = probe_in_fresh_process(cache, *STEP)
    assert (step["fused"], step["fx_misses"]) == (2, 1)
    assert (again["fx_misses"], again["aot_misses"]) == (0, 0)
    assert again["fx_hits"] + again["aot_hits"] > 0
    assert (again["fused"], again["left"], again["greedy"]) == (2, 0, step["greedy"])


def test_inductor_and_other_options_do_not_share_what_we_compiled(step, cache, monkeypatch):
    assert probe_in_fresh_process(cache, *STEP, "--backend", "inductor")["fx_misses"] == 1
    monkeypatch.setenv("FLASHMLA_ENABLE", "0")
    off = probe_in_fresh_process(cache, *STEP)
    assert (off["fused"], off["left"], off["fx_hits"], off["greedy"]) == (0, 2, 0, step["greedy"])
