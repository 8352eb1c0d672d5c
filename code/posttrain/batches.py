"""Batches, and the loop that learns from them: one for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from posttrain.optim import Descent

# A part of a batch: asked with the model, it gives the loss to descend, and numbers to
# note. Summed over a batch's parts, both are the whole batch's.
Part = Callable[[nn.Module], tuple[Tensor, dict[str, float]]]


def epochs(n: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches of indices below n, for ever: every index once, then all again in a new
    order.
    """
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(n, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


class Alone:
    """The crew of a run in one process. `scale.distributed.Together` is one of
    several.
    """

    rank, size = 0, 1  # which process this is, of how many

    def turn(self, model: nn.Module, last: bool):
        """The context of a backward pass, the step's last or an earlier one."""
        return nullcontext()

    def share(self, model: nn.Module) -> None:
        """Bring the gradients of all processes together, where no turn has."""

    def total(self, numbers: list[float]) -> list[float]:
        """Each number's sum over all processes."""
        return numbers


ALONE = Alone()


def turns(
    rows: Sequence, size: int, crew: Alone = ALONE
) -> list[tuple[Sequence, float]]:
    """A batch's rows, `size` at a time, each time with the share of the batch that they
    are.

    Of several processes each has every N-th row, and all have as many turns: one that
    has no row left reads the first with a share of 0.
    """
    own = rows[crew.rank :: crew.size]
    n = max(1, -(-len(rows) // (crew.size * size)))
    some = [own[i * size : (i + 1) * size] for i in range(n)]
    return [(part or rows[:1], len(part) / len(rows)) for part in some]


def device_of(model: nn.Module) -> torch.device:
    """The device that a model's weights are on."""
    return next(model.parameters()).device


def add_gradients(
    model: nn.Module, parts: Sequence[Part], crew: Alone = ALONE
) -> tuple[float, dict[str, float]]:
    """Add up the gradients of a batch's parts; return its loss, and what the parts
    noted.

    The result is that of one pass over the whole batch.
    """
    lost, noted = 0.0, {}
    for part in parts:
        with crew.turn(model, last=part is parts[-1]):
            loss, numbers = part(model)
            # A crew's gradients are means over its processes, and have to be sums
            (crew.size * loss).backward()
        lost += loss.item()
        for name, number in numbers.items():
            noted[name] = noted.get(name, 0.0) + number
    crew.share(model)
    lost, *numbers = crew.total([lost, *noted.values()])
    return lost, dict(zip(noted, numbers))


def take_step(
    model: nn.Module,
    parts: Sequence[Part],
    descent: Descent,
    step: int,
    crew: Alone = ALONE,
) -> dict[str, float]:
    """Take one step of the descent along a batch's gradient; return what was noted
    before it.

    Raises ValueError, and takes no step, where the loss is not a number.
    """
    loss, noted = add_gradients(model, parts, crew)
    if not math.isfinite(loss):
        raise ValueError(f"the loss of step {step} is {loss}: lower the rate")
    return noted | descent.step(step)


def follow(
    model: nn.Module,
    batches: Iterator[list[Part]],
    descent: Descent,
    crew: Alone = ALONE,
    first: int = 0,
) -> Iterator[dict[str, float]]:
    """Train the model in place, a step per batch; after each, yield what it noted
    before it.

    first: the step to begin with, as if those before it had been taken. Raises
    ValueError as `take_step` does.
    """
    for step, parts in enumerate(batches):
        if step >= first:
            yield take_step(model, parts, descent, step, crew)
