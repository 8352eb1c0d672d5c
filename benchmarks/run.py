"""Speed, side by side: `make bench` prints these tables; benchmarks/README.md keeps them.

Each comparison runs both sides in one process, in turn, and reports the median ratio over pairs, since a machine's speed
drifts while a ratio of neighbours does not. Close other programs first.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import replace

import torch

from posttrain.data import corpus
from posttrain.gpt import GPT, GPTConfig, count_parameters
from posttrain.pretrain import (
    PretrainConfig,
    encode_split,
    nanogpt_recipe,
    pretrain,
    sprint,
    training_steps,
)
from posttrain.sampling import generate

TARGET = 1.88  # nats per character, from nanoGPT's README


def seconds(work) -> float:
    """How long work() takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(ours, theirs, pairs: int) -> tuple[list[float], list[float]]:
    """Time two pieces of work in turn, after one warm-up each."""
    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    return [a for a, _ in times], [b for _, b in times]


def report(title: str, ours: list[float], theirs: list[float], peer: str) -> None:
    """Print one comparison as a table row: medians, and the ratio's median, least and greatest over the pairs."""
    ratios = sorted(b / a for a, b in zip(ours, theirs))
    print(f"| {title} | {statistics.median(ours):.2f} s | {peer} {statistics.median(theirs):.2f} s | "
          f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) |", flush=True)  # fmt: skip


def time_to_loss(pairs: int) -> None:
    """Seconds of training until the validation loss is 1.88: this book's recipe against nanoGPT's for a CPU.

    nanoGPT's 2,000 steps end a little above 1.88 on this split, so its schedule is given 2,400.
    """
    training, validation = encode_split(corpus.load())
    measured: dict[str, list[float]] = {"ours": [], "nanogpt": []}
    for seed in range(pairs):
        for name, config in (("ours", sprint()), ("nanogpt", replace(nanogpt_recipe(), steps=2400, evaluations=48))):
            _, history = pretrain(replace(config, seed=seed), training, validation, stop_at=TARGET)
            if history["validation"][-1] > TARGET:
                print(f"(seed {seed}: {name} ends at {history['validation'][-1]:.3f}, not counted as reached)")
            measured[name].append(history["seconds"][-1])
    report(f"training to {TARGET} nats/char", measured["ours"], measured["nanogpt"], "nanoGPT's CPU recipe")


def sampling_speed(pairs: int) -> None:
    """64 sequences of 96 new tokens after prompts of 32: our sampler against transformers' with a GPT-2 of the same size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPTConfig()
    model, prompts = GPT(config), torch.randint(65, (64, 32))
    sizes = dict(n_embd=config.width, n_layer=config.n_layer, n_head=config.n_head, n_positions=config.context)
    peer = GPT2LMHeadModel(GPT2Config(vocab_size=65, eos_token_id=None, bos_token_id=None, **sizes)).eval()
    options = dict(do_sample=True, top_k=0, max_new_tokens=96, min_new_tokens=96, pad_token_id=0)
    mask, lists = torch.ones_like(prompts), prompts.tolist()
    ours, theirs = in_turn(
        lambda: generate(model, lists, 96),
        lambda: peer.generate(prompts, attention_mask=mask, **options),
        pairs,
    )
    report("sampling 64 x 96 tokens", ours, theirs, "transformers generate")


def share_of_peak(pairs: int) -> None:
    """Training arithmetic (6 x parameters x tokens) per second, as a share of one large matrix product's."""
    training, _ = encode_split(corpus.load())
    config = PretrainConfig(steps=60)
    model, (a, b) = GPT(config.model), torch.randn(2, 2048, 2048)
    work = 6 * count_parameters(model) * config.tokens
    rates, peaks = [], []
    for pair in range(pairs + 1):
        trained = work / seconds(lambda: list(training_steps(model, training, config)))
        peak = 20 * 2 * 2048**3 / seconds(lambda: [a @ b for _ in range(20)])
        if pair:
            rates.append(trained), peaks.append(peak)
    shares = sorted(rate / peak for rate, peak in zip(rates, peaks))
    print(f"| training arithmetic | {statistics.median(rates) / 1e9:.0f} GFLOP/s | 2048 x 2048 product "
          f"{statistics.median(peaks) / 1e9:.0f} GFLOP/s | {statistics.median(shares):.0%} "
          f"({shares[0]:.0%} to {shares[-1]:.0%}) |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="how often each pair is run (default 5)")
    parser.add_argument("only", nargs="*", choices=[*BENCHMARKS, []], help="which to run (default: all)")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, Python {platform.python_version()}, "
          f"{platform.system()} {platform.machine()}\n")  # fmt: skip
    print("| what | this book | peer | ratio: median (least to greatest) |\n|---|---|---|---|", flush=True)
    for name in arguments.only or BENCHMARKS:
        BENCHMARKS[name](arguments.pairs)


BENCHMARKS = {"sampling": sampling_speed, "peak": share_of_peak, "time-to-loss": time_to_loss}

if __name__ == "__main__":
    main()
