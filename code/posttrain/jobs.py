"""Jobs of several kinds in one queue: each names its own function, and a worker calls it."""

from __future__ import annotations

from collections.abc import Callable


def call(function: Callable, *arguments):
    """function(*arguments): with it, `workers.run_groups` takes jobs of different methods."""
    return function(*arguments)
