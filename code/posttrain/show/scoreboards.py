"""Tables of results: a row per setting, a column per quantity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from posttrain.show.runs import Runs
from posttrain.show.tables import Table

# What a policy's scorecard says: heading, key and format
POLICY_COLUMNS = {
    "reward score": ("score", "+.2f"),
    "rubric score": ("gold_score", "+.2f"),
    "won against SFT": ("win_rate", ".0%"),
    "ties with SFT": ("tied", "mean .0%"),
    "KL (nats/answer)": ("kl", ".1f"),
    "finished": ("finished", "mean .0%"),
    "different answers": ("different", "mean .0%"),
    "recited": ("recited", "mean .0%"),
    "words": ("words", "mean .1f"),
}


def scoreboard(
    rows: Mapping[str, Runs | Sequence[dict] | dict],
    columns: Mapping[str, tuple[str | tuple | Callable, str]] = POLICY_COLUMNS,
    caption: str = "",
    note: str = "",
    corner: str = "",
) -> Table:
    """A row per name, a column per quantity: its mean and interval over the seeds.

    rows: name to runs, to one run, or to a dictionary of Seeds. columns: heading to
    (path, format), the path as `Runs` follows it or a function of the runs; the format
    as `Seeds` knows it. A cell stays empty where a row has no such quantity. note: a
    line below. Raises KeyError where no row has it.
    """
    body = [[name] for name in rows]
    for heading, (path, form) in columns.items():
        found, missing = [], None
        for runs in rows.values():
            try:
                found.append(cell(runs, path, form))
            except KeyError as error:
                found.append("")
                missing = error
        if not any(found) and missing is not None:
            raise KeyError(f"no row has {heading!r}: {missing.args[0]}")
        for row, text in zip(body, found):
            row.append(text)
    return Table((corner, *columns), body, caption, note)


def cell(
    runs: Runs | Sequence[dict] | dict, path: str | tuple | Callable, form: str
) -> str:
    """The text of one quantity of one row."""
    runs = Runs([runs] if isinstance(runs, Mapping) else runs)
    value = path(runs) if callable(path) else runs[path]
    # Unwrap what a single dictionary holds: Seeds, or a text
    if isinstance(value, Runs) and len(value) == 1:
        value = value[0]
    if isinstance(value, (Runs, dict, list, type(None))):
        raise ValueError(f"{path!r} leads to {value!r:.60}, where a number is needed")
    return value if isinstance(value, str) else f"{value:{form}}"


def side_by_side(
    columns: Mapping[str, Sequence[object]], first: int | None = None, caption: str = ""
) -> Table:
    """Lists of equal length as columns, as questions and answers; first: so many rows.

    Raises ValueError for lists of unequal length.
    """
    lengths = {heading: len(values) for heading, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"columns of unequal length do not stand side by side: {lengths}"
        )
    return Table(tuple(columns), list(zip(*columns.values()))[:first], caption)
