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


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


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
