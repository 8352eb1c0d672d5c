"""Mistakes that are made on purpose, to see their signature: each a patch of one
function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from posttrain import sft
from posttrain.batches import Alone
from posttrain.sft import batch_graded


def mean_of_means(examples: list, crew: Alone) -> int:
    """Each of several processes divides its SFT loss by its own graded tokens."""
    own = batch_graded(examples[crew.rank :: crew.size], crew)
    return max(own, 1) * crew.size


# By name: what is replaced, and by what
MISTAKES = {
    "mean of means": (sft, "batch_graded", mean_of_means),
}


@contextmanager
def making(mistake: str) -> Iterator[None]:
    """Within the block the package makes the named mistake; "" makes none.

    Raises ValueError for one that is not known.
    """
    if not mistake:
        yield
        return
    if mistake not in MISTAKES:
        raise ValueError(f"mistake is {mistake!r}: use one of {', '.join(MISTAKES)}")
    with patch.object(*MISTAKES[mistake]):
        yield
