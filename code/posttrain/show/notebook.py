"""What the chapters use to show things: source, progress, figures, samples, executed checks."""

from __future__ import annotations

import html
import inspect
import itertools
import json
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Iterable, Sequence

from posttrain.chat import IGNORE
from posttrain.evaluate import interval

# PyTorch 2.2 imports tqdm's widget in passing, and warns in the page where there is none
warnings.filterwarnings("ignore", message="IProgress not found")

GREY = "#7f868e"  # reads on white and on black
# Tell lines apart by the colours of Okabe & Ito 2008
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a0d8"
)  # fmt: skip
# Each stage has its colour, in every figure, table and page; what differs from it is grey
STAGE_COLOURS = {
    "base": GREY, "SFT": GREEN, "reward model": YELLOW, "PPO": BLUE, "DPO, own answers": PINK,
    "DPO": ORANGE, "best of": SKY,
}  # fmt: skip


def stage_colour(name: str) -> str | None:
    """The colour of the stage that a row, a box or a line is named after, or None."""
    name = name.lower().removeprefix("after ")
    stages = (stage for stage in STAGE_COLOURS if name.startswith(stage.lower()))
    return next((STAGE_COLOURS[stage] for stage in stages), None)


class Listing:
    """Source code that a page, JupyterLab and a terminal each show in their own way."""

    def __init__(self, code: str):
        self.code = code

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.code}\n```"

    def __repr__(self) -> str:
        return self.code


def show_source(*objects) -> Listing:
    """The source of functions and classes, exactly as the package runs it."""
    return Listing(
        "\n\n\n".join(textwrap.dedent(inspect.getsource(obj)).rstrip() for obj in objects)
    )


def progress(iterable: Iterable, total: int | None = None, desc: str = "training") -> Iterable:
    """A progress bar for the one who waits: in a notebook or terminal, and never in a page.

    ipykernel copies all that is written to standard error into the page, so while the book is
    built the bar goes to the terminal that ipykernel has put aside.
    """
    from tqdm import tqdm

    options = dict(total=total, desc=desc, leave=False, mininterval=1.0)
    if os.environ.get("BOOK_BUILD"):
        terminal = getattr(sys.stderr, "_original_stdstream_copy", None)
        if terminal is None:
            return iterable
        options |= dict(file=os.fdopen(os.dup(terminal), "w"), mininterval=5.0, leave=True)
    return tqdm(iterable, **options)


def setup_figures(*formats: str) -> None:
    """Make figures that read in light and dark and are the same bytes from run to run.

    Transparent, grey text; SVG where no formats are named, as IPython knows them.
    """
    import matplotlib.pyplot as plt
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats(*(formats or ["svg"]), metadata={"Date": None})
    grey = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor",
            "xtick.color", "ytick.color")  # fmt: skip
    clear = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    plt.rcParams.update({name: GREY for name in grey} | {name: "none" for name in clear})
    plt.rcParams.update(
        {
            "savefig.transparent": True,
            "svg.hashsalt": "posttrain",
            "svg.fonttype": "path",
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, PINK, YELLOW, SKY]),
            "figure.figsize": (6.4, 3.4),
            "figure.constrained_layout.use": True,
        }
    )


def record(**values: object) -> None:
    """Glue values into the page's prose, by name; outside the book's build, do nothing."""
    try:
        from myst_nb import glue
    except ImportError:
        return
    for name, value in values.items():
        glue(name, value, display=False)


def unbroken(text: str) -> str:
    """A cell's text, escaped; no line ends within an interval, [0.1, 0.2], or within 1e-6."""
    whole = r"\[[^\[\], ]+, [^\[\], ]+\]|(?<![\w.])\d+(?:\.\d+)?e-\d+"
    return re.sub(whole, r'<span class="whole">\g<0></span>', html.escape(text))


class Table:
    """Rows of text as a table, every cell escaped; line breaks in a cell are kept."""

    def __init__(
        self, header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = ""
    ):
        self.header, self.rows, self.caption = (
            header, [[str(cell) for cell in row] for row in rows], caption
        )  # fmt: skip

    def _repr_html_(self) -> str:
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        # Leave the corner above the rows' names empty, and no heading
        head = "".join(
            f'<th scope="col">{html.escape(name)}</th>' if name else "<td></td>"
            for name in self.header
        )
        body = ""
        for row in self.rows:
            # Mark a row that is named after a stage
            colour = stage_colour(row[0]) if row else None
            mark = f' style="border-left: 4px solid {colour}"' if colour else ""
            cells = "".join(f'<td class="sample">{unbroken(cell)}</td>' for cell in row)
            body += f"<tr>{cells.replace('<td', f'<td{mark}', 1)}</tr>"
        return (
            f'<table class="table samples">{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table>"
        )

    def __repr__(self) -> str:
        return "\n".join(
            " | ".join(cell.replace("\n", " / ") for cell in row)
            for row in [list(self.header), *self.rows]
        )


def nats(values: Sequence[float], form: str = ".2f") -> str:
    """One value per seed as text: the mean, and its 95% confidence interval in brackets."""
    return "{:{f}} [{:{f}}, {:{f}}]".format(*interval(values), f=form)


def shares(values: Sequence[float]) -> str:
    """As `nats`, in percent; the interval is cut off at 0% and 100%."""
    return "{:.0%} [{:.0%}, {:.0%}]".format(*(min(max(end, 0), 1) for end in interval(values)))


def summary(rows: Sequence[dict], key: str, form: str) -> str:
    """One value per seed, each from a dictionary: as `nats`, or as `shares` if form is "%"."""
    values = [row[key] for row in rows]
    return shares(values) if form == "%" else nats(values, form)


# Styles of a token view, written into it because JupyterLab does not load the book's stylesheet
VIEW_STYLE = (
    "font-family: monospace; line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; "
    "position: relative"
)
GRADED_STYLE = (
    "background: rgba(0, 158, 115, 0.25); color: inherit; font-weight: bold; "
    "border-bottom: 3px solid #009e73; padding: 0.15em 0"
)
UNGRADED_STYLE = "border-bottom: 1px dotted currentColor; padding: 0.15em 0"
SPECIAL_STYLE = (
    "border: 1px solid currentColor; border-radius: 0.3em; padding: 0 0.2em; margin: 0 0.1em"
)
SPOKEN_STYLE = (
    "position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%)"
)


class TokenView:
    """Tokens in a row, marked where their label is graded: by colour, line, weight and words.

    tokens: their texts; labels: their labels, IGNORE (-100) where nothing is graded.
    """

    def __init__(self, tokens: Sequence[str], labels: Sequence[int]):
        self.tokens, self.labels = list(tokens), [int(label) for label in labels]

    def runs(self) -> list[tuple[bool, list[tuple[str, int]]]]:
        """Neighbours that are all graded, or all not: (graded, [(token, label), ...])."""
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
        return "".join(f"[{text}]" if mark else text for mark, text in zip(graded, texts))


def shade(value: float, largest: float) -> str:
    """The style of a number's place: blue and solid above zero, orange and dashed below."""
    if value == 0:
        return "border-bottom: 2px dotted currentColor"
    colour, line = ("0, 114, 178", "solid") if value > 0 else ("213, 94, 0", "dashed")
    return (
        f"background: rgba({colour}, {0.55 * abs(value) / largest:.2f}); "
        f"border-bottom: 2px {line} rgb({colour})"
    )


class ScoreView:
    """A text whose tokens are shaded by a number each: blue above zero, orange below.

    The underline says it without colour: solid above zero, dashed below; a screen reader hears
    the number after each word.
    """

    def __init__(self, tokens: Sequence[str], scores: Sequence[float]):
        self.tokens, self.scores = list(tokens), [float(score) for score in scores]
        if len(self.scores) != len(self.tokens):
            raise ValueError(f"{len(self.scores)} scores do not fit {len(self.tokens)} tokens")

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
                parts.append(
                    f'<span style="{style}" title="{score:+.2f}">{html.escape(token)}</span>'
                )
            parts.append(f'<span style="{SPOKEN_STYLE}">({word[-1][1]:+.1f}) </span>')
        return f'<p class="token-view" style="{VIEW_STYLE}">{"".join(parts)}</p>'

    def __repr__(self) -> str:
        return "".join(f"{text}[{word[-1][1]:+.2f}]" for text, word in self.words())


class TokenTable:
    """One row per token, one column per quantity, each column shaded by its own largest number.

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
                raise ValueError(f"{name} has {len(values)} values, for {len(tokens)} tokens")

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


class Interactive:
    """A view to play with: in the book's pages its script takes the still view's place.

    kind: "mask", "rollout" or "beta", as book/_static/views.js knows them; values: what it
    shows, as JSON; still: what stands there without that script, as in JupyterLab.
    """

    def __init__(self, kind: str, still: object, **values: object):
        self.kind, self.still, self.values = kind, still, values

    def _repr_html_(self) -> str:
        values = html.escape(json.dumps(self.values, allow_nan=False))
        opening = f'<div class="interactive" data-kind="{self.kind}" data-values="{values}">'
        return f"{opening}{self.still._repr_html_()}</div>"

    def __repr__(self) -> str:
        return repr(self.still)


class CheckFailed(AssertionError):
    """A claim of the chapter did not hold in this run."""


COMPARISONS = {
    "<=": lambda value, bar: value <= bar,
    ">=": lambda value, bar: value >= bar,
    "==": lambda value, bar: value == bar,
    "<": lambda value, bar: value < bar,
    ">": lambda value, bar: value > bar,
}


def verify(*claims: tuple[str, float, str, float]) -> Table:
    """Check claims (sentence, measured value, comparison, bar), and show them.

    Raises CheckFailed, naming those that fail.
    """
    held = [COMPARISONS[comparison](value, bar) for _, value, comparison, bar in claims]
    marks = {True: "✓\u00a0holds", False: "✗\u00a0FAILS"}
    rows = [
        (sentence, f"{value:.4g}", f"{comparison}\u00a0{bar:g}", marks[holds])
        for (sentence, value, comparison, bar), holds in zip(claims, held)
    ]
    table = Table(("claim", "measured", "bar", "result"), rows)
    if not all(held):
        raise CheckFailed("a claim of this chapter did not hold in this run:\n" + repr(table))
    return table
