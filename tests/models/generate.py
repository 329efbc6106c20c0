"""Greedy text by `generate`, eager and compiled, from a left-padded batch: the tokens, and when graphs were compiled."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from tests.harness import BACKEND, FAST, Seen, Steps, compiled, watching
from tests.models.architectures import ARCHITECTURES, model
from tests.models.expected import left
from tests.models.scenarios import BATCH, PROMPT, floats, padding_mask, tokens

NEW_TOKENS = 6


class _Recorder(LogitsProcessor):
    """Changes nothing: generate calls it once after each forward."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.record()
        return scores


def prompt(model: PreTrainedModel) -> dict[str, Tensor]:
    """Left-padded for decoders, right-padded for T5's encoder; audio for Whisper."""
    if model.config.model_type == "whisper":
        return {"input_features": floats(BATCH, 4, 24).to(model.dtype)}
    mask = padding_mask(PROMPT)
    mask = mask.flip(-1) if model.config.is_encoder_decoder else mask
    return {"input_ids": tokens().masked_fill(mask == 0, 0), "attention_mask": mask}


def greedy(model: PreTrainedModel, **changes: object) -> Tensor:
    """[BATCH, length] token ids; always NEW_TOKENS of them are new."""
    arguments = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0, **changes}
    return model.generate(**prompt(model), **arguments)


def generate_static(model: PreTrainedModel) -> tuple[Tensor, Steps]:
    """generate compiles the decode step itself, as its user asks with a CompileConfig."""
    config = CompileConfig(backend=BACKEND, mode=None, fullgraph=True, options=FAST)
    config._compile_all_devices = True
    steps = Steps(model.forward)
    processors = LogitsProcessorList([_Recorder(steps)])
    text = greedy(model, cache_implementation="static", compile_config=config, logits_processor=processors)
    return text, steps


def generate_dynamic(model: PreTrainedModel) -> tuple[Tensor, Steps]:
    """The user compiles the forward of the model; generate grows the cache."""
    steps = Steps(compiled(model.forward))
    eager, model.forward = model.forward, steps
    try:
        return greedy(model, cache_implementation="dynamic"), steps
    finally:
        model.forward = eager


def check(name: str, cache: str) -> Seen:
    """The compiled model's greedy tokens are eager's; all attention is fused; nothing compiles after the third step."""
    subject = model(name)
    with watching() as seen:
        text, steps = (generate_static if cache == "static" else generate_dynamic)(subject)
    assert torch.equal(text, generate_eager(subject, cache))
    seen.assert_each_graph(ARCHITECTURES[name].decode_sites, left(name, f"generate_{cache}"))
    steps.assert_settled(3)
    return seen


def generate_eager(model: PreTrainedModel, cache: str) -> Tensor:
    with torch.no_grad():
        return greedy(model, cache_implementation=cache, disable_compile=True)
