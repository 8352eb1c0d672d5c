"""Batches: every example once, then all again in a new order."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def epochs(n: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches of indices below n, for ever: every index once, then all again in a new order."""
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(n, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
