"""Runs of one setting, one per seed, and what was noted in all of them."""

from __future__ import annotations

from posttrain.show.seeds import Seeds

Path = str | tuple


class Runs(list):
    """A list of runs as recorded, one per seed: dictionaries and lists in each other.

    A path of keys and places is followed in every run: runs["cards", -1, "score"] are
    Seeds where it leads to numbers, and Runs where it leads to more of a run. A key
    that meets a list is looked up in each of its entries. runs[0] is the first run.
    Raises KeyError, naming what there is, where a path leads nowhere.
    """

    def __getitem__(self, path: Path | int | slice) -> Seeds | Runs | object:
        if isinstance(path, int):
            return list.__getitem__(self, path)
        if isinstance(path, slice):
            return Runs(list.__getitem__(self, path))
        found = [led_to(run, path) for run in self]
        numbers = bool(found) and all(
            isinstance(value, (int, float)) for value in found
        )
        return Seeds(found) if numbers else Runs(found)

    def series(self, *path: str | int, x: Path | None = None) -> list:
        """What a path leads to in each run, a list per run; with x: pairs (xs, ys)."""
        lines = [led_to(run, path) for run in self]
        return (
            lines if x is None else [(led_to(run, x), y) for run, y in zip(self, lines)]
        )


def led_to(found: object, path: Path) -> object:
    """What a path of keys and places leads to, from a recorded dictionary or list."""
    for step in (path,) if isinstance(path, str) else path:
        if isinstance(found, list) and isinstance(step, str):
            found = [led_to(entry, step) for entry in found]
            continue
        try:
            found = found[step]
        except (KeyError, IndexError, TypeError):
            raise KeyError(f"no {step!r} of {path!r}: {contents(found)}") from None
    return found


def contents(found: object) -> str:
    """What can be looked up here, in words."""
    if isinstance(found, dict):
        return f"there are {', '.join(map(str, found))}"
    return f"{len(found)} entries" if isinstance(found, list) else f"here is {found!r}"
