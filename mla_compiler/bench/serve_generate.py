"""model.generate over a pool and over a static cache: milliseconds a decoded token, the prompt left out

    (time of token n - time of token 1) / (n - 1)        the greater of batches of one token each, every one a compiled step

Both caches hold the same context before generate is called, which finds one token of the prompt left to do; that one runs
eagerly, as prompts do, and the others compiled, in CUDA graphs on a GPU. The tokens are told, so that all columns decode the
same ones and their logits can be compared at every step; what is timed is with that. A static cache is masked where it is
empty, but read whole: that of `8k of 16k` is half full; the other has room for what is decoded alone, as when generate makes
it itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList

from ..pool.cache import PooledCache
from .cases import FLASHMLA, INDUCTOR
from .compare import Settings
from .measure import forget
from .one_head import OneHeadAtATime
from .serve_model import check, mode_of, model_of, pooled, work_of
from .serving import STATIC, Serving, Wrong
from .work import TRUTH, Work

if TYPE_CHECKING:
    from .session import Session

CHECKED = 4
"""Tokens whose logits are compared: the one that is left of the prompt, and steps that compile, record and replay."""
RUNS = 3
A_TOKEN = "ms a token"


class Told(LogitsProcessor):  # type: ignore[misc]
    """Says the next of `tokens` [B, N], whatever the scores are, and notes when it was asked."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self.asked: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at = len(self.asked)
        self.asked.append(_now(scores))
        return scores.scatter(1, self.tokens[:, at : at + 1], torch.inf)

    def ms_per_token(self) -> float:
        first, last = self.asked[0], self.asked[-1]
        if isinstance(first, torch.cuda.Event):
            torch.cuda.synchronize()
            return float(first.elapsed_time(last)) / (len(self.asked) - 1)
        return float(1e3 * (last - first)) / (len(self.asked) - 1)


def _now(x: Tensor) -> Any:
    if not x.is_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@dataclass
class Decoding:
    """A model, a prompt [B, context + 1] of which the caches hold all but the last token, and what it is told to say [B, N]."""

    work: Work
    case: Serving
    prompt: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, work: Work, case: Serving, seed: int = 0) -> Decoding:
        torch.manual_seed(seed)
        first = 3                                                       # beyond the ids that begin and end
        shapes = (case.batch, case.context + 1), (case.batch, case.tokens)
        prompt, tokens = (torch.randint(first, work.model.config.vocab_size, x, device=work.model.device) for x in shapes)
        return cls(work, case, prompt, tokens)

    @torch.no_grad()
    def run(self, model: Any, cache: Any, count: int, **how: Any) -> tuple[Tensor, float]:
        """Logits [count, B, vocab] in float32, and milliseconds a token after the first."""
        told = Told(self.tokens[:, :count])
        out = model.generate(
            self.prompt, past_key_values=cache, max_new_tokens=count, do_sample=False, pad_token_id=0, output_logits=True,
            return_dict_in_generate=True, logits_processor=LogitsProcessorList([told]), **how)
        if not torch.equal(out.sequences[:, self.prompt.shape[1] :], told.tokens):
            raise Wrong("generate: other tokens than it was told")
        return torch.stack(out.logits), told.ms_per_token()


def run(case: Serving, names: list[str], session: Session) -> dict[str, float]:
    """Figures of the columns named, of Inductor's and ours."""
    settings, say = session.settings, session.say
    work = work_of(model_of(case, settings), case, case.batch)
    decoding = Decoding.of(work, case)
    say(f"{case.name}: the truth")
    truth, eager = _truth(decoding, settings)
    found: dict[str, float] = {}
    for name in names:
        say(f"{case.name}: {name}")
        forget(settings.device)
        figures = _column(name, decoding, settings, truth, eager)
        found |= {f"{unit}, {name}": value for unit, value in figures.items()}
    if INDUCTOR in names:
        found[STATIC] = found[f"{A_TOKEN}, {INDUCTOR}"] / found[f"{A_TOKEN}, {FLASHMLA}"]
    return found


def _column(name: str, decoding: Decoding, settings: Settings, truth: Tensor, eager: Tensor) -> dict[str, float]:
    work, case = decoding.work, decoding.case
    cache, rewind = _cache(name, work, case)
    config = CompileConfig(backend=name, fullgraph=True, mode=mode_of(settings))
    config._compile_all_devices = True
    how = {"compile_config": config}
    start, skipped = time.perf_counter(), counters["inductor"]["cudagraph_skips"]
    logits, _ = decoding.run(work.model, cache, min(CHECKED, case.tokens), **how)
    seconds, error = time.perf_counter() - start, check(name, logits, eager, truth)
    skipped = counters["inductor"]["cudagraph_skips"] - skipped
    ms = statistics.median(_timed(decoding, cache, rewind, how) for _ in range(RUNS))
    return {"s to compile": seconds, "x eager's error": error, "CUDA graphs skipped": skipped, A_TOKEN: ms}


def _timed(decoding: Decoding, cache: Any, rewind: Callable[[], None], how: dict[str, Any]) -> float:
    rewind()
    return decoding.run(decoding.work.model, cache, decoding.case.tokens, **how)[1]


def _truth(decoding: Decoding, settings: Settings) -> tuple[Tensor, Tensor]:
    """Logits in the more exact dtype, as float64, and eager's in the model's; both over static caches."""
    work, count = decoding.work, min(CHECKED, decoding.case.tokens)
    eager, _ = decoding.run(work.model, work.cache, count, disable_compile=True)
    work.rewind()
    exact = work.converted(TRUTH[settings.dtype])
    with OneHeadAtATime():
        truth, _ = decoding.run(exact.model, exact.cache, count, disable_compile=True)
    return truth.double(), eager


def _cache(name: str, work: Work, case: Serving) -> tuple[Any, Callable[[], None]]:
    """What the column decodes over, and what takes it back to the context."""
    if name != FLASHMLA:
        work.rewind()
        return work.cache, work.rewind
    cache: PooledCache = pooled(work, case)
    return cache, lambda: cache.crop(case.context - cache.get_seq_length())
