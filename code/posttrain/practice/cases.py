"""What an exercise is made of: inputs to grade on, mistakes as patches of the
answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from posttrain.practice.patches import Patch, patched


@dataclass(frozen=True)
class Case:
    """One input. kind: in a few words, what is special; "" for the plain case."""

    kind: str
    arguments: dict[str, object]  # by the parameters' names, in their order
    rounding: bool = False  # whether it tells a formula that keeps its digits


@dataclass(frozen=True)
class Mistake:
    """One way to get a function wrong, by name, and what is wrong in a sentence."""

    name: str
    why: str
    right: Callable  # the book's own
    ways: tuple[Patch | Callable, ...]  # to make it; a function where no patch does

    @cached_property
    def functions(self) -> tuple[Callable, ...]:
        """The wrong functions, one for each way; made when they are first asked for."""
        return tuple(
            patched(self.right, *way.changes) if isinstance(way, Patch) else way
            for way in self.ways
        )

    @property
    def function(self) -> Callable:
        """The wrong function, made in the first way."""
        return self.functions[0]


@dataclass(frozen=True)
class Exercise:
    """A function of the book, the inputs it is graded on, and how it is got wrong."""

    function: Callable  # the book's own, which is right
    chapter: int
    cases: tuple[Case, ...]
    mistakes: tuple[Mistake, ...]
    gradients: tuple[str, ...] = ()  # the arguments whose gradient is compared
    tolerance: float = 1e-9
    results: tuple[str, ...] = ("",)  # what it returns, by name where several values
    by_value: tuple[str, ...] = ()  # those of which type and precision do not count


def exercise(
    function: Callable,
    chapter: int,
    cases: list[tuple],
    mistakes: str,
    *,
    written: tuple[Callable, ...] = (),
    rounding: tuple[str, ...] = (),
    **options,
) -> Exercise:
    """An exercise; cases: (kind, argument, ...); mistakes: a text, as `parse` reads it.

    written: the wrong functions that the text names. rounding: the kinds of cases that
    ask for a formula which keeps its digits.
    """
    names = list(inspect.signature(function).parameters)
    inputs = [Case(kind, dict(zip(names, a)), kind in rounding) for kind, *a in cases]
    found = tuple(parse(mistakes, function, {each.__name__: each for each in written}))
    return Exercise(function, chapter, tuple(inputs), found, **options)


def parse(
    text: str, right: Callable, written: dict[str, Callable]
) -> Iterator[Mistake]:
    """The mistakes of a text.

    At the margin stands a mistake's "name: why", indented its changes, "old -> new"
    each; a line "or" before another way to make it. What several replace may stand at
    the margin before them, as "@ old"; "-> new" is then enough. A function that is
    written out stands there by its name. Four spaces continue the line before.
    """
    target = f"{right.__module__}.{right.__name__}".removeprefix("posttrain.")
    lines = text.strip().replace("\n    ", " ").splitlines()
    shared = ""
    while lines:
        if lines[0].startswith("@ "):
            shared = lines.pop(0)[2:]
        name, _, why = lines.pop(0).partition(": ")
        ways: list[list[str]] = [[]]
        while lines and lines[0].startswith("  "):
            line = lines.pop(0).strip()
            if line == "or":
                ways.append([])
            else:
                ways[-1].append(f"{shared} {line}" if line.startswith("-> ") else line)
        made = tuple(way_of(each, name, target, written) for each in ways)
        yield Mistake(name, why, right, made)


def way_of(
    lines: list[str], name: str, target: str, written: dict[str, Callable]
) -> Patch | Callable:
    """One way to make a mistake, from its lines."""
    if lines[0] in written:
        return written[lines[0]]
    changes = (line.partition(" -> ") for line in lines)
    return Patch(name, target, tuple((old, new) for old, _, new in changes))


# Inputs


def numbers(*rows) -> Tensor:
    """Rows of numbers as float64, so that nothing but a mistake makes a difference."""
    return torch.tensor(rows, dtype=torch.float64)


def normal(seed: int, *shape: int) -> Tensor:
    """Random numbers, always the same for a seed; float64, one digit to read."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn.round(decimals=1)


def spans(T: int, *ends: tuple[int, int]) -> Tensor:
    """A mask (B, T), True in each row from its first end up to, without, its second."""
    columns = torch.arange(T)
    return torch.stack([(first <= columns) & (columns < last) for first, last in ends])


class Bigram(nn.Module):
    """The smallest language model: a row of logits for each token that may be last."""

    def __init__(self, seed: int, vocab_size: int = 3):
        super().__init__()
        self.table = nn.Parameter(normal(seed, vocab_size, vocab_size))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]  # (B, T, V)
