"""Claims that are checked while the page is made."""

from __future__ import annotations

from posttrain.show.tables import Table


class CheckFailed(AssertionError):
    """A claim of the chapter did not hold in this run."""


COMPARISONS = {
    "<=": lambda value, bar: value <= bar,
    ">=": lambda value, bar: value >= bar,
    "==": lambda value, bar: value == bar,
    "<": lambda value, bar: value < bar,
    ">": lambda value, bar: value > bar,
}


def verify(*claims: tuple) -> Table:
    """Check claims, and show them: (sentence, measured value, comparison, bar).

    A fifth element is an aim, compared like the bar: the table says whether it was met,
    and a missed aim fails nothing. Raises CheckFailed, naming the claims that fail.
    """
    held = [COMPARISONS[claim[2]](claim[1], claim[3]) for claim in claims]
    header, rows = ["claim", "measured", "bar", "result"], []
    for (sentence, value, comparison, bar, *_), holds in zip(claims, held):
        mark = "✓\u00a0holds" if holds else "✗\u00a0FAILS"
        rows.append([sentence, f"{value:.4g}", f"{comparison}\u00a0{bar:g}", mark])
    # Give aims a column of their own
    if any(len(claim) == 5 for claim in claims):
        header.append("aim")
        for row, claim in zip(rows, claims):
            row.append(aim_text(*claim[1:3], claim[4]) if len(claim) == 5 else "")
    table = Table(header, rows)
    if not all(held):
        message = "a claim of this chapter did not hold in this run:\n"
        raise CheckFailed(message + repr(table))
    return table


def aim_text(value: float, comparison: str, aim: float) -> str:
    """An aim, and whether the value met it."""
    outcome = "met" if COMPARISONS[comparison](value, aim) else "missed"
    return f"{comparison}\u00a0{aim:g}: {outcome}"
