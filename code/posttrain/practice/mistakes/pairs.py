"""Chapter 8: `best_and_worst`."""

import torch
from torch import Tensor

from posttrain.data.synthetic_pairs import best_and_worst
from posttrain.practice.cases import exercise, numbers


def last_of_equals(scores: Tensor, usable: Tensor, leave_out: bool = False):
    """`best_and_worst`, looking from the end."""
    found = best_and_worst(scores.flip(1), usable.flip(1), leave_out)
    return tuple(torch.where(i < 0, -1, scores.size(1) - 1 - i) for i in found)


def marks(*rows: list[int]) -> Tensor:
    """Rows of 0 and 1 as a mask."""
    return torch.tensor(rows) > 0


BEST_AND_WORST = exercise(
    best_and_worst,
    8,
    [
        ("", numbers([0.5, 2.0, -1.0]), marks([1, 1, 1])),
        ("equal scores", numbers([1.0, 2.0, 2.0, 1.0]), marks([1, 1, 1, 1])),
        (
            "a row without a pair",
            numbers([1.0, 1.0], [0.0, 3.0]),
            marks([1, 1], [1, 1]),
        ),
        (
            "an answer that cannot be used",
            numbers([0.5, 2.0, -1.0, 9.0], [0.5, 2.0, -1.0, 1.0]),
            marks([1, 1, 1, 0], [1, 1, 1, 0]),
        ),
        (
            "one left out",
            numbers([0.5, 2.0, -1.0], [0.5, 2.0, 4.0]),
            marks([1, 1, 0], [1, 1, 0]),
            True,
        ),
        ("nothing to use", numbers([0.5, 2.0], [0.5, 2.0]), marks([0, 0], [1, 0])),
        (
            "nothing to use, left out",
            numbers([0.5, 2.0], [0.5, 2.0]),
            marks([0, 0], [1, 0]),
            True,
        ),
    ],
    """
what cannot be used is used: an answer without its end is never the best
  scores.masked_fill(~usable, -torch.inf) -> scores
  scores.masked_fill(~usable, low_end) -> scores
  or
  scores.masked_fill(~usable, -torch.inf) -> scores
its score still counts: an answer that cannot be used is worse than any
  scores.masked_fill(~usable, low_end) -> scores
always left out: without leave_out an unusable answer is the worst
  torch.inf if leave_out else -torch.inf -> torch.inf
never left out: with leave_out an unusable answer is not chosen
  torch.inf if leave_out else -torch.inf -> -torch.inf
best and worst exchanged: the best comes first
  return best.masked_fill(none, -1), worst.masked_fill(none, -1)
    -> return worst.masked_fill(none, -1), best.masked_fill(none, -1)
a pair of equals: where none is better than another, both are -1
  high <= low -> high < low
the last of equals: of equal scores the first is meant
  last_of_equals
""",
    written=(last_of_equals,),
    results=("best", "worst"),
    by_value=("best", "worst"),
)

EXERCISES = (BEST_AND_WORST,)
