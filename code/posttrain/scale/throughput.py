"""Two cores in three ways: one process with one thread or two, and two processes with
one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from posttrain.chat import IGNORE
from posttrain.gpt import GPT, GPTConfig
from posttrain.scale.distributed import distributed_sft, total
from posttrain.scale.launch import launch
from posttrain.sft import SFTConfig, sft_steps
from posttrain.tokenizer import CharTokenizer

WAYS = ("1 process, 1 thread", "1 process, 2 threads", "2 processes, 1 thread each")
# Seconds for a width, after which no round is begun: other work may be running
PATIENCE = 20.0


def timed(work: Callable[[], object], threads: int) -> float:
    """Seconds that work takes with so many threads."""
    torch.set_num_threads(threads)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare_ways(
    width: int, rows: int, length: int, steps: int, rounds: int
) -> list[dict[str, float]]:
    """Seconds per step of the same batch in each of WAYS, round by round, in turn.

    Call it in a group of two; while one process works alone, the other waits. A batch
    has `rows` sequences of `length` tokens. The first round warms up and is left out,
    unless it took longer than PATIENCE: then it is the only one.
    """
    config = SFTConfig(steps=steps, batch_size=rows, micro_batch_size=rows, replay=0)
    shape = GPTConfig(
        width=width, n_head=max(1, width // 64), context=length, vocab_size=69
    )
    model = GPT(shape, torch.Generator().manual_seed(0))
    tokens = torch.randint(
        65, (rows, length), generator=torch.Generator().manual_seed(1)
    )
    examples = [(row, [IGNORE, *row[1:]]) for row in tokens.tolist()]
    given = model, examples, torch.zeros(0), config, CharTokenizer().pad
    noted, began = [], time.perf_counter()
    # Agree on when it has taken too long, or one would wait for the other
    while (
        len(noted) <= rounds and total([time.perf_counter() - began])[0] < 2 * PATIENCE
    ):
        seconds = {}
        for way, threads in zip(WAYS[:2], (1, 2)):
            if dist.get_rank() == 0:
                seconds[way] = timed(lambda: list(sft_steps(*given)), threads) / steps
            dist.barrier()
        seconds[WAYS[2]] = timed(lambda: list(distributed_sft(*given)), 1) / steps
        noted.append(seconds)
    return noted[1:] or noted


def compare_widths(
    widths: Sequence[int], rows: int, length: int, steps: int, rounds: int
) -> dict[int, list[dict[str, float]]]:
    """`compare_ways` by width."""
    return {width: compare_ways(width, rows, length, steps, rounds) for width in widths}


def throughput(
    widths: Sequence[int],
    rows: int = 8,
    length: int = 128,
    steps: int = 2,
    rounds: int = 3,
) -> dict[int, dict[str, float]]:
    """By width: how many times as fast each of WAYS is as the first, the rounds'
    median.
    """
    how = tuple(widths), rows, length, steps, rounds
    noted = launch(compare_widths, 2, *how, seconds=600)[0]
    return {
        width: {
            way: statistics.median(r[WAYS[0]] / r[way] for r in rows) for way in WAYS
        }
        for width, rows in noted.items()
    }
