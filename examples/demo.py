"""SmolLM2-135M-Instruct, as transformers ships it, generating with a static cache: eager, Inductor and flashmla.

    python examples/demo.py [--device cpu|cuda] [--tokens 96] [--cache 4096] [--backends eager,inductor,flashmla]

Prints the text, the speed of each, whether the greedy tokens are the same (exit status 1 if not), and what was fused.
On a CPU the model runs in float32 and every token must be equal. On a GPU it runs in bfloat16, where two tokens can have
the same logit up to rounding: there a difference is accepted only at a proven tie.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field

import _models
import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import CompileConfig, PreTrainedModel, StaticCache
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

import mla_compiler

QUESTION = "In simple words, what is attention in a neural network, and why does a long text make it slow?"
WARMUP_TOKENS = 4


@dataclass
class Clock(BaseStreamer):
    """Times of arrival of the tokens of one `generate`, in seconds from its start; the first ends the prefill."""

    progress: Progress
    task: int
    start: float = field(default_factory=time.perf_counter)
    arrivals: list[float] = field(default_factory=list)
    prompt_seen: bool = False

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.arrivals.append(time.perf_counter() - self.start)
        self.progress.advance(self.task)

    def end(self) -> None:
        """Nothing is held back."""


@dataclass(frozen=True)
class Run:
    """One way of generating: its tokens, seconds to the first of them, tokens/s after it, seconds of compilation."""

    backend: str
    tokens: list[int]
    prefill: float
    speed: float
    compile: float


class Demo:
    """The model, its prompt and one static cache, which every run shares and empties."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.model, self.tokenizer = _models.smollm2(arguments.device, arguments.dtype)
        self.cache = StaticCache(config=self.model.config, max_cache_len=arguments.cache)
        chat = [{"role": "user", "content": arguments.prompt}]
        prompt = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        self.prompt = prompt.to(arguments.device)

    def generate(self, backend: str, tokens: int, clock: Clock) -> list[int]:
        """The greedy tokens, by transformers' own `generate`."""
        self.cache.reset()
        how = {"disable_compile": True} if backend == "eager" else {"compile_config": self.compile_config(backend)}
        out = self.model.generate(
            **self.prompt, past_key_values=self.cache, max_new_tokens=tokens, do_sample=False, streamer=clock, **how
        )
        return out[0, self.prompt["input_ids"].shape[1] :].tolist()

    def compile_config(self, backend: str) -> CompileConfig:
        on_cpu = self.arguments.device == "cpu"
        config = CompileConfig(backend=backend, mode="default" if on_cpu else "reduce-overhead")
        config._compile_all_devices = True  # generate compiles on accelerators only, unless told
        return config

    def run(self, backend: str, progress: Progress) -> Run:
        """Once with a few tokens, to compile and warm up, and once for the clock."""
        task = progress.add_task(f"{backend}: warm-up and compilation", total=WARMUP_TOKENS)
        cold = Clock(progress, task)
        self.generate(backend, WARMUP_TOKENS, cold)
        progress.reset(task, total=self.arguments.tokens, description=backend)
        warm = Clock(progress, task)
        tokens = self.generate(backend, self.arguments.tokens, warm)
        progress.update(task, total=len(tokens))
        first, last = warm.arrivals[0], warm.arrivals[-1]
        compiled = cold.arrivals[-1] - warm.arrivals[len(cold.arrivals) - 1]
        return Run(backend, tokens, first, (len(tokens) - 1) / (last - first), 0.0 if backend == "eager" else compiled)


def is_tie(demo: Demo, ours: list[int], theirs: list[int]) -> bool:
    """Whether the first tokens that differ have the same logit, within twice the error of the working dtype."""
    at = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    prefix = torch.tensor([theirs[:at]], dtype=torch.long, device=demo.arguments.device)
    ids = torch.cat([demo.prompt["input_ids"], prefix], dim=1)

    def logits(model: PreTrainedModel) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=ids, use_cache=False).logits[0, -1, [ours[at], theirs[at]]].float()

    working = logits(demo.model)
    exact = logits(_models.smollm2(demo.arguments.device, torch.float32)[0])
    return bool((exact[0] - exact[1]).abs() <= 2 * (working - exact).abs().max())


def verdict(demo: Demo, run: Run, reference: Run) -> str:
    """How its tokens compare with the reference's: "the same", "a tie" or "DIFFERENT"."""
    if run.tokens == reference.tokens:
        return "the same"
    if demo.arguments.dtype == torch.float32:
        return "DIFFERENT"
    return "a tie" if is_tie(demo, run.tokens, reference.tokens) else "DIFFERENT"


def table(runs: list[Run], verdicts: list[str], title: str) -> Table:
    caption = "generate compiles the decode steps only: the prefill is the model's own code in every row"
    shown = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    ratios = [f"/ {run.backend}" for run in runs[:-1]]
    for name in ("", "decode, tokens/s", *ratios, "prefill, ms", "compile, s", "greedy tokens"):
        shown.add_column(name, justify="left" if not name or "greedy" in name else "right")
    for run, same in zip(runs, verdicts, strict=True):
        faster = [f"{run.speed / peer.speed:.2f}x" for peer in runs[:-1]]
        compiled = f"{run.compile:.0f}" if run.compile else "-"
        shown.add_row(run.backend, f"{run.speed:.1f}", *faster, f"{1e3 * run.prefill:.0f}", compiled, same)
    return shown


def main(arguments: argparse.Namespace) -> int:
    console = Console(width=None if sys.stdout.isatty() else 120)
    transformers_logging.set_verbosity_error()
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    console.print(f"SmolLM2-135M-Instruct, {str(arguments.dtype)[6:]}, static cache of {arguments.cache} tokens, {where}")
    demo = Demo(arguments)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        runs = [demo.run(backend, progress) for backend in arguments.backends]
    verdicts = [verdict(demo, run, runs[0]) for run in runs]
    console.print(Panel(demo.tokenizer.decode(runs[-1].tokens), title=arguments.prompt))
    console.print(table(runs, verdicts, f"{len(runs[0].tokens)} tokens after a prompt of {demo.prompt['input_ids'].shape[1]}"))
    for report in mla_compiler.reports():
        console.print(report)
    return 1 if "DIFFERENT" in verdicts else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=_models.default_device())
    parser.add_argument("--dtype", help="float32 on a CPU, bfloat16 on a GPU, unless given")
    parser.add_argument("--tokens", type=int, default=96, help="tokens to generate")
    parser.add_argument("--cache", type=int, default=4096, help="length of the static cache, in tokens")
    parser.add_argument("--prompt", default=QUESTION)
    parser.add_argument("--backends", type=lambda text: text.split(","), default=["eager", "inductor", "flashmla"])
    arguments = parser.parse_args()
    arguments.dtype = getattr(torch, arguments.dtype or ("float32" if arguments.device == "cpu" else "bfloat16"))
    return arguments


if __name__ == "__main__":
    sys.exit(main(parse()))
