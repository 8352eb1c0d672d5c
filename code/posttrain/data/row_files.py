"""A reader's data files: all that is wrong with one is said at once, row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from posttrain.data.datasets import KINDS, SHOWN_PROBLEMS, DatasetError, clip, example
from posttrain.data.formats import as_object, conversation_of, pair_of, prompt_of
from posttrain.data.json_rows import RowProblem, read_objects

FORMS = dict(conversations=conversation_of, preferences=pair_of, prompts=prompt_of)
# What only one of two kinds of files has
MARKS = dict(
    conversations=("messages", "conversations", "completion", "output"),
    preferences=("chosen", "preferred_output"),
)


class RowFile:
    """The rows of a file: those that can be used so far, and why the others cannot.

    kind: "conversations", "preferences" or "prompts". Rows are dictionaries as
    `data.formats` has them, with an `id`. Raises DatasetError for a file that cannot be
    read, is empty, or is of the other kind.
    """

    def __init__(self, path: str | Path, kind: str):
        self.path, self.kind = path, kind
        found = read_objects(path)
        if not found:
            raise DatasetError(
                f"{path} holds no lines: it needs at least one {kind[:-1]}"
            )
        self.places = [place for place, _ in found]
        self.rows = [value for _, value in found]
        self.names = [name_of(value, place) for place, value in found]
        self.problems: dict[int, str] = {}  # by the row's number, from 0
        # Show a good row beside the problems, where the form is one
        self.each(lambda value: FORMS[kind](as_object(value)))
        self.example = f"\nA line looks like this: {example(kind)}"
        self.example *= bool(self.problems)
        if len(self.problems) == len(found):
            refuse_mixed_up(path, kind, [value for _, value in found])
        self.give_ids()

    def each(self, change: Callable) -> RowFile:
        """Change each good row; a ValueError that this raises is why it cannot be used.

        Raises that error where several rows, and all, have the same: it is not theirs.
        """
        errors = {}
        good = [i for i in range(len(self.rows)) if i not in self.problems]
        for i in good:
            try:
                self.rows[i] = change(self.rows[i])
            except ValueError as error:
                errors[i] = error
        same = len({str(error) for error in errors.values()}) == 1
        if (
            same
            and 1 < len(errors) == len(good)
            and not isinstance(errors[good[0]], RowProblem)
        ):
            raise errors[good[0]]
        self.problems |= {i: str(error) for i, error in errors.items()}
        return self

    def give_ids(self) -> None:
        """Put an `id` before each good row's fields; no two may have the same."""
        first: dict[str, int] = {}
        for i, name in enumerate(self.names):
            before = first.setdefault(name or self.places[i], i)
            if i in self.problems:
                continue
            self.rows[i] = dict(id=name or self.places[i]) | self.rows[i]
            if name and before != i:
                self.problems[i] = f"the id {name!r} is that of {self.places[before]}"

    def kept(self, skip_bad: bool = False) -> list:
        """The rows, where all can be used; with skip_bad those that can.

        Prints how many are left out. Raises DatasetError, naming the first ten.
        """
        n, bad = len(self.rows), sorted(self.problems)
        if bad and (not skip_bad or len(bad) == n):
            raise DatasetError(self.refusal(bad))
        if bad:
            where = ", ".join(self.places[i] for i in bad[:SHOWN_PROBLEMS])
            more = ", ..." * (len(bad) > SHOWN_PROBLEMS)
            print(f"{self.path}: {len(bad)} of {n} rows are left out ({where}{more}).")
        return [row for i, row in enumerate(self.rows) if i not in self.problems]

    def refusal(self, bad: list[int]) -> str:
        """What is wrong with the rows of these numbers, and what to do about it."""
        n, lines = len(self.rows), []
        for i in bad[:SHOWN_PROBLEMS]:
            name = f" (id {self.names[i]})" if self.names[i] else ""
            lines += [f"\n  {clip(f'{self.places[i]}{name}: {self.problems[i]}')}"]
        more = len(bad) - SHOWN_PROBLEMS
        lines += [f"\n  and {more} more"] * (more > 0)
        rest = f"\nLeave them out with --skip-bad: {n - len(bad)} of {n} rows are good."
        rest *= len(bad) < n
        return (
            f"{self.path}: {len(bad)} of {n} rows cannot be used:{''.join(lines)}"
            + (self.example + rest)
        )


def name_of(value: object, place: str) -> str:
    """The id that a row gives itself, "" where it is none: a number says no more than
    the place.
    """
    name = value.get("id") if isinstance(value, dict) else None
    return name if isinstance(name, str) and name.strip() else ""


def refuse_mixed_up(path: str | Path, kind: str, values: list) -> None:
    """Raise DatasetError where pairs are given as conversations, or the reverse."""
    fields = {key for value in values if isinstance(value, dict) for key in value}
    for other, marks in MARKS.items():
        if kind not in MARKS or fields & {*MARKS[kind]} or not fields & {*marks}:
            continue
        (_, name, use), (_, expected, _) = KINDS[other], KINDS[kind]
        raise DatasetError(
            f"{path}: this looks like {name}, and {expected} are expected. "
            f"{name.capitalize()} are for {use}.\n"
            f"A line of {expected} looks like this: {example(kind)}"
        )
