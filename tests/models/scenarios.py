"""What is asked of a model: prefill, padded batch, packed documents, decode steps, generate.

Each scenario is a function (model, forward) -> tensors [*, vocabulary] of live rows only, run with the eager model
in float64, the eager model in the working dtype and the compiled forward. Every input is drawn from a fixed seed, on the
CPU, and moved to torch's default device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, StaticCache

from tests.models.architectures import VOCABULARY, WINDOW, Architecture

Forward = Callable[..., object]
BATCH, PROMPT, STEPS = 2, 11, 5
MAX_LEN = 23
PADDING = (4, 0)
"""Padded tokens at the left of each row of the batch."""
PACKED = (5, 6)
"""Lengths of the documents packed into a row of 11."""


@dataclass(frozen=True)
class Scenario:
    """`settled`: calls of forward after which nothing may be compiled any more. `decode`: with a cache."""

    name: str
    run: Callable[[PreTrainedModel, Forward], list[Tensor]]
    settled: int = 1
    decode: bool = False

    def sites(self, architecture: Architecture) -> int:
        """Attentions in each compiled graph."""
        return architecture.decode_sites if self.decode else architecture.sites


def tokens(length: int = PROMPT, seed: int = 1) -> Tensor:
    """[BATCH, length], never the padding token 0 nor the special 1 and 2."""
    drawn = torch.randint(3, VOCABULARY, (BATCH, length), generator=torch.Generator().manual_seed(seed), device="cpu")
    return drawn.to(torch.get_default_device())


def padding_mask(length: int = PROMPT) -> Tensor:
    """[BATCH, length] 1 where live."""
    return (torch.arange(length) >= torch.tensor(PADDING)[:, None]).long()


def floats(*shape: int) -> Tensor:
    """Normal, in float64: the model's dtype is taken on the way in."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64, device="cpu")
    return drawn.to(torch.get_default_device())


def packed_positions() -> Tensor:
    """[BATCH, PROMPT]: each document counts from 0."""
    return torch.cat([torch.arange(length) for length in PACKED])[None].repeat(BATCH, 1)


def _extra(model: PreTrainedModel) -> dict[str, Tensor]:
    """What an encoder-decoder needs beside the decoder's tokens."""
    if model.config.model_type == "whisper":
        return {"input_features": floats(BATCH, 4, 24).to(model.dtype)}
    return {"input_ids": tokens(9, seed=3)}


# ------------------------------------------------------------------------------------------------------------ one call

def decoder_prefill(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    return [forward(input_ids=tokens(), use_cache=False).logits]


def decoder_padded(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    mask = padding_mask()
    return [forward(input_ids=tokens(), attention_mask=mask, use_cache=False).logits[mask.bool()]]


def decoder_packed(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    return [forward(input_ids=tokens(), position_ids=packed_positions(), use_cache=False).logits]


def encoder_prefill(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    return [forward(input_ids=tokens()).last_hidden_state]


def encoder_padded(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    mask = padding_mask()
    return [forward(input_ids=tokens(), attention_mask=mask).last_hidden_state[mask.bool()]]


def encoder_decoder_prefill(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    return [forward(**_extra(model), decoder_input_ids=tokens(), use_cache=False).logits]


def encoder_decoder_padded(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    """Padding in the encoder's text, at the right, as T5 is used."""
    mask = padding_mask(9).flip(-1)
    extra = _extra(model)
    return [forward(**extra, attention_mask=mask, decoder_input_ids=tokens(), use_cache=False).logits]


def vision_prefill(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    return [forward(pixel_values=floats(BATCH, 3, 16, 16).to(model.dtype)).last_hidden_state]


def _two_towers(model: PreTrainedModel, forward: Forward, **text: Tensor) -> list[Tensor]:
    ids = tokens()
    ids[:, -1] = 2
    out = forward(input_ids=ids, pixel_values=floats(BATCH, 3, 16, 16).to(model.dtype), **text)
    return [out.text_embeds, out.image_embeds]


def two_towers_prefill(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    return _two_towers(model, forward)


def two_towers_padded(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    return _two_towers(model, forward, attention_mask=padding_mask())


# -------------------------------------------------------------------------------------------------------------- decode

def _decode(
    forward: Forward, cache: object, steps: int = STEPS, given_positions: bool = False, **extra: object
) -> list[Tensor]:
    """`given_positions`: OPT would else slice by the length of the static cache, which Dynamo cannot trace."""
    name = "decoder_input_ids" if "encoder_outputs" in extra else "input_ids"
    fed, outputs = tokens(steps, seed=4), []
    for at in range(steps):
        positions = {"position_ids": torch.full((BATCH, 1), PROMPT + at)} if given_positions else {}
        outputs.append(forward(**{name: fed[:, [at]]}, past_key_values=cache, **positions, **extra).logits)
    return outputs


def decoder_static(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    """Prefilled by the eager model, then decoded by `forward`: as generate does it."""
    cache = StaticCache(config=model.config, max_cache_len=MAX_LEN)
    model(input_ids=tokens(), past_key_values=cache)
    return _decode(forward, cache, given_positions=model.config.model_type == "opt")


def decoder_dynamic(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    cache = DynamicCache(config=model.config)
    first = forward(input_ids=tokens(), past_key_values=cache).logits
    return [first, *_decode(forward, cache)]


def decoder_sliding_fills(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    """A static cache that is two tokens short of full when decoding begins, so that it fills and then rolls."""
    cache = StaticCache(config=model.config, max_cache_len=MAX_LEN)
    model(input_ids=tokens(WINDOW - 2), past_key_values=cache)
    return _decode(forward, cache, steps=STEPS + 2)


def _encoder_outputs(model: PreTrainedModel) -> object:
    extra = _extra(model)
    return model.get_encoder()(*extra.values())


def encoder_decoder_static(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    encoded = _encoder_outputs(model)
    length = encoded[0].shape[1]
    cache = EncoderDecoderCache(
        StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=MAX_LEN),
        StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length),
    )
    model(encoder_outputs=encoded, decoder_input_ids=tokens(), past_key_values=cache)
    return _decode(forward, cache, encoder_outputs=encoded)


def encoder_decoder_dynamic(model: PreTrainedModel, forward: Forward) -> list[Tensor]:
    encoded = _encoder_outputs(model)
    config = model.config.get_text_config(decoder=True)
    cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    first = forward(encoder_outputs=encoded, decoder_input_ids=tokens(), past_key_values=cache).logits
    return [first, *_decode(forward, cache, encoder_outputs=encoded)]


# ------------------------------------------------------------------------------------------------------------ the list

_ONE_CALL = {
    "decoder": {"prefill": decoder_prefill, "padded": decoder_padded, "packed": decoder_packed},
    "encoder": {"prefill": encoder_prefill, "padded": encoder_padded},
    "vision": {"prefill": vision_prefill},
    "two_towers": {"prefill": two_towers_prefill, "padded": two_towers_padded},
    "encoder_decoder": {"prefill": encoder_decoder_prefill, "padded": encoder_decoder_padded},
}
_WITH_CACHE = {
    "decoder": {"static": decoder_static, "dynamic": decoder_dynamic},
    "encoder_decoder": {"static": encoder_decoder_static, "dynamic": encoder_decoder_dynamic},
}
_SETTLED = {"static": 2, "dynamic": 3}


def scenarios(architecture: Architecture) -> dict[str, Scenario]:
    """Every scenario that this architecture has, `generate` apart."""
    listed = [Scenario(name, run) for name, run in _ONE_CALL[architecture.kind].items() if _has(architecture, name)]
    for cache in architecture.caches:
        listed.append(Scenario(cache, _WITH_CACHE[architecture.kind][cache], _SETTLED[cache], decode=True))
    if architecture.window:
        listed.append(Scenario("sliding_fills", decoder_sliding_fills, settled=5, decode=True))
    return {scenario.name: scenario for scenario in listed}


def _has(architecture: Architecture, scenario: str) -> bool:
    """Audio is never padded with a mask; some models take no position_ids."""
    if scenario == "packed":
        return architecture.positions
    return scenario != "padded" or architecture.name != "whisper"
