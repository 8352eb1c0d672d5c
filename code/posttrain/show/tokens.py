"""Tokens in a row or a table: what is graded, and a number for each."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence

# Write a view's styles into it: JupyterLab does not load the book's stylesheet
VIEW_STYLE = (
    "font-family: monospace; line-height: 2; white-space: pre-wrap; "
    "overflow-wrap: anywhere; position: relative"
)
GRADED_STYLE = (
    "background: rgba(0, 158, 115, 0.25); color: inherit; font-weight: bold; "
    "border-bottom: 3px solid #009e73; padding: 0.15em 0"
)
UNGRADED_STYLE = "border-bottom: 1px dotted currentColor; padding: 0.15em 0"
SPECIAL_STYLE = (
    "border: 1px solid currentColor; border-radius: 0.3em; "
    "padding: 0 0.2em; margin: 0 0.1em"
)
SPOKEN_STYLE = (
    "position: absolute; width: 1px; height: 1px; overflow: hidden; "
    "clip-path: inset(50%)"
)


class TokenView:
    """Tokens in a row, marked where they are graded: by colour, line, weight and words.

    tokens: their texts; labels: their labels, IGNORE (-100) where nothing is graded.
    """

    def __init__(self, tokens: Sequence[str], labels: Sequence[int]):
        self.tokens, self.labels = list(tokens), [int(label) for label in labels]

    def runs(self) -> list[tuple[bool, list[tuple[str, int]]]]:
        """Neighbours, all graded or all not: (graded, [(token, label), ...])."""
        # PyTorch takes a second to import
        from posttrain.chat import IGNORE

        pairs = zip(self.tokens, self.labels)
        grouped = itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORE)
        return [(graded, list(run)) for graded, run in grouped]

    def _repr_html_(self) -> str:
        parts = []
        for graded, run in self.runs():
            tag, style = ("mark", GRADED_STYLE) if graded else ("span", UNGRADED_STYLE)
            # Say in words, for a screen reader, what the colour says
            spoken = "graded: " if graded else "not graded: "
            shown = "".join(
                f'<span style="{SPECIAL_STYLE if token.startswith("<|") else ""}" '
                f'title="label {label}">{html.escape(token)}</span>'
                for token, label in run
            )
            said = f'<span style="{SPOKEN_STYLE}">{spoken}</span>'
            parts.append(f'<{tag} style="{style}">{said}{shown}</{tag}>')
        return f'<p class="token-view" style="{VIEW_STYLE}">{"".join(parts)}</p>'

    def __repr__(self) -> str:
        texts = ["".join(token for token, _ in run) for _, run in self.runs()]
        graded = [graded for graded, _ in self.runs()]
        return "".join(
            f"[{text}]" if mark else text for mark, text in zip(graded, texts)
        )


def shade(value: float, largest: float) -> str:
    """A number's style: blue and solid above zero, orange and dashed below."""
    if value == 0:
        return "border-bottom: 2px dotted currentColor"
    colour, line = ("0, 114, 178", "solid") if value > 0 else ("213, 94, 0", "dashed")
    return (
        f"background: rgba({colour}, {0.55 * abs(value) / largest:.2f}); "
        f"border-bottom: 2px {line} rgb({colour})"
    )


class ScoreView:
    """A text whose tokens are shaded by a number each: blue above zero, orange below.

    The underline says it without colour: solid above zero, dashed below; a screen
    reader hears the number after each word.
    """

    def __init__(self, tokens: Sequence[str], scores: Sequence[float]):
        self.tokens, self.scores = list(tokens), [float(score) for score in scores]
        if len(self.scores) != len(self.tokens):
            raise ValueError(
                f"{len(self.scores)} scores do not fit {len(self.tokens)} tokens"
            )

    def words(self) -> list[tuple[str, list[tuple[str, float]]]]:
        """Tokens up to and including each space: (text, [(token, score), ...])."""
        words: list[list[tuple[str, float]]] = [[]]
        for pair in zip(self.tokens, self.scores):
            words[-1].append(pair)
            if pair[0] == " ":
                words.append([])
        return [("".join(token for token, _ in word), word) for word in words if word]

    def _repr_html_(self) -> str:
        largest = max(map(abs, self.scores), default=0) or 1.0
        parts = []
        for _, word in self.words():
            for token, score in word:
                style = f"{shade(score, largest)}; padding: 0.15em 0"
                title = f'title="{score:+.2f}"'
                parts.append(
                    f'<span style="{style}" {title}>{html.escape(token)}</span>'
                )
            parts.append(f'<span style="{SPOKEN_STYLE}">({word[-1][1]:+.1f}) </span>')
        return f'<p class="token-view" style="{VIEW_STYLE}">{"".join(parts)}</p>'

    def __repr__(self) -> str:
        return "".join(f"{text}[{word[-1][1]:+.2f}]" for text, word in self.words())


class TokenTable:
    """A row per token, a column per quantity, each shaded by its own largest number.

    columns: name to numbers, one per token. It scrolls within a frame of its own.
    """

    def __init__(
        self, tokens: Sequence[str], columns: dict[str, Sequence[float]], caption: str
    ):
        self.tokens, self.caption = list(tokens), caption
        self.columns = {
            name: [float(value) for value in values] for name, values in columns.items()
        }
        for name, values in self.columns.items():
            if len(values) != len(self.tokens):
                raise ValueError(
                    f"{name} has {len(values)} values, for {len(tokens)} tokens"
                )

    def rows(self) -> list[list[str]]:
        """Position, token (white space spelt out) and numbers, as text."""
        return [
            [str(i), {" ": "(space)", "\n": "(new line)"}.get(token, token)]
            + [f"{values[i]:+.3f}" for values in self.columns.values()]
            for i, token in enumerate(self.tokens)
        ]

    def _repr_html_(self) -> str:
        caption, sticky = html.escape(self.caption), "position: sticky; top: 0"
        names = ["position", "token", *self.columns]
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
        largest = {
            name: max(map(abs, values), default=0) or 1.0
            for name, values in self.columns.items()
        }
        body = ""
        for i, (position, token, *numbers) in enumerate(self.rows()):
            cells = "".join(
                f'<td style="{shade(values[i], largest[name])}">{number}</td>'
                for (name, values), number in zip(self.columns.items(), numbers)
            )
            body += (
                f"<tr><td>{position}</td>"
                f'<th scope="row" class="sample">{html.escape(token)}</th>{cells}</tr>'
            )
        return (
            f'<div role="region" aria-label="{caption}" tabindex="0" '
            'style="max-height: 26em; overflow: auto">'
            f'<table class="table samples token-table"><caption>{caption}</caption>'
            f'<thead style="{sticky}">'
            f"<tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def __repr__(self) -> str:
        header = ["position", "token", *self.columns]
        return "\n".join(" | ".join(row) for row in [header, *self.rows()])
