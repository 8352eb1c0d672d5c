"""How many threads a run on the processor uses, and who else is at work there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

NARROW = 256  # the hidden width below which one thread is enough
BUSY = 1 / 4  # the share of the cores from which on others are worth a word


def chosen_threads(given: int, width: int) -> int:
    """The threads for a model of a hidden width: as many as given, or for 0 by width.

    A narrow model gets one, any other what PyTorch has: a rule of the width alone, so
    that no result depends on what else a machine does. Measured were steps of Llamas of
    two blocks, of widths 64 to 576, on rows of 60 and of 256 tokens, on two cores that
    other programs kept busy, twice: with two threads the median step took 1.2 to 37
    times as long as with one, and at no width less. On idle cores it was not measured
    where a second thread begins to pay: 256 is a guess.
    """
    if given:
        return given
    return 1 if width < NARROW else torch.get_num_threads()


@contextmanager
def threads_set(n: int) -> Iterator[None]:
    """Within it, PyTorch computes with n threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_before() -> float:
    """The cores that were busy in the last minute, on average; 0 where none says so."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has no such number
        return 0.0


def crowded(load: float, threads: int, cores: int) -> str:
    """A line for a run whose threads would have to wait for others, or none: "".

    Kernels in several threads wait for the slowest, so a core that others use holds up
    all.
    """
    if threads == 1 or load < BUSY * cores or load + threads <= cores:
        return ""
    busy, left = min(load, cores), max(1, int(cores - load))
    return (
        f"In the last minute about {busy:.1f} of {cores} cores were busy: if other "
        f"programs keep them so and this is slow, give --threads {left}"
    )
