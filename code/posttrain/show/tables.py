"""Tables of text, each cell escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from posttrain.show.figures import stage_colour


def unbroken(text: str) -> str:
    """A cell's text, escaped; no line ends within [0.1, 0.2], or within 1e-6."""
    whole = r"\[[^\[\], ]+, [^\[\], ]+\]|(?<![\w.])\d+(?:\.\d+)?e-\d+"
    return re.sub(whole, r'<span class="whole">\g<0></span>', html.escape(text))


class Table:
    """Rows of text as a table, every cell escaped; line breaks in a cell are kept.

    note: a line below the rows.
    """

    def __init__(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[object]],
        caption: str = "",
        note: str = "",
    ):
        self.header, self.caption, self.note = header, caption, note
        self.rows = [[str(cell) for cell in row] for row in rows]

    def _repr_html_(self) -> str:
        caption = (
            f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        )
        # Leave the corner above the rows' names empty, and no heading
        head = "".join(
            f'<th scope="col">{html.escape(name)}</th>' if name else "<td></td>"
            for name in self.header
        )
        body = "".join(map(self.row_html, self.rows))
        foot = ""
        if self.note:
            note = f'<td colspan="{len(self.header)}">{marked_up(self.note)}</td>'
            foot = f"<tfoot><tr>{note}</tr></tfoot>"
        return (
            f'<table class="table samples">{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody>{foot}</table>"
        )

    @staticmethod
    def row_html(row: Sequence[str]) -> str:
        """A row's tags; one that is named after a stage is marked with its colour."""
        colour = stage_colour(row[0]) if row else None
        mark = f' style="border-left: 4px solid {colour}"' if colour else ""
        cells = "".join(f'<td class="sample">{unbroken(cell)}</td>' for cell in row)
        return f"<tr>{cells.replace('<td', f'<td{mark}', 1)}</tr>"

    def __repr__(self) -> str:
        lines = [list(self.header), *self.rows, *([[self.note]] if self.note else [])]
        return "\n".join(
            " | ".join(cell.replace("\n", " / ") for cell in line) for line in lines
        )


def marked_up(text: str) -> str:
    """A text, escaped, with its `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
