"""Options that are wrong are an error that names the right one, before anything is compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mla_compiler
from tests.harness import BACKEND, FAST, watching
from tests.models.architectures import model
from tests.models.generate import greedy

X = torch.ones(1, 2, 3, 4)


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def compile_with(**arguments: Any) -> Tensor:
    with watching():
        return torch.compile(attend, backend=BACKEND, **arguments)(X)


@pytest.mark.parametrize(("options", "said"), [
    ({"flashmla.kv_split": 2}, "did you mean 'flashmla.kv_splits'"),
    ({"kv_splits": 2}, "did you mean 'flashmla.kv_splits'"),
    ({"fallback_by_defualt": True}, "did you mean 'fallback_by_default'"),
    ({"flashmla.kv_splits": "2"}, "expected an int"),
    ({"flashmla.kv_splits": True}, "expected an int"),
    ({"flashmla.kv_splits": -1}, "out of range"),
    ({"flashmla.strict": 1}, "expected a bool"),
    ({"flashmla.exclude": "layer("}, "not a regular expression"),
    ({"max_autotune": "yes"}, "expected a bool"),
])
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        compile_with(options=options)


def test_unknown_mode() -> None:
    with pytest.raises(Exception, match="reduce-overhead"):
        compile_with(mode="reduce-overhaed")


def test_a_wrong_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHMLA_KV_SPLIT", "2")
    with pytest.raises(Exception, match="FLASHMLA_KV_SPLITS"):
        compile_with(options=FAST)


def test_a_wrong_option_in_generate() -> None:
    from transformers import CompileConfig

    config = CompileConfig(backend=BACKEND, mode=None, options={"flashmla.kv_split": 2})
    config._compile_all_devices = True
    with watching(), pytest.raises(Exception, match=r"flashmla\.kv_splits"):
        greedy(model("llama"), cache_implementation="static", compile_config=config)


def test_strict_names_what_is_left() -> None:
    def fn(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    with watching(), pytest.raises(Exception, match="dropout is active"):
        torch.compile(fn, backend=BACKEND, options={**FAST, "flashmla.strict": True})(X)


def test_disabled_and_excluded_sites_say_so() -> None:
    for option in ({"flashmla.enable": False}, {"flashmla.exclude": ""}):
        with watching() as seen:
            found = torch.compile(attend, backend=BACKEND, options={**FAST, **option})(X)
        assert torch.allclose(found, attend(X))
        reason = mla_compiler.Reason.DISABLED.value if "flashmla.enable" in option else ""
        assert [site.reason.startswith(reason) for site in seen.sites] == [True]
        assert [site.status for site in seen.sites] == (["left"] if reason else ["fused"])
