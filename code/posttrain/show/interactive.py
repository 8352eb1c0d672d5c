"""Views to play with: a still view that a page's script brings to life."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path

# The views' style and script, where the package is used within the book's checkout
STATIC = Path(__file__).resolve().parents[3] / "book" / "_static"


class Interactive:
    """A view to play with: in the book's pages its script takes the still view's place.

    kind: "mask", "rollout" or "beta", as book/_static/views.js knows them; values: what
    it shows, as JSON; still: what stands there without that script. A notebook gets the
    script with it.
    """

    def __init__(self, kind: str, still: object, **values: object):
        self.kind, self.still, self.values = kind, still, values

    def _repr_html_(self) -> str:
        values = html.escape(json.dumps(self.values, allow_nan=False))
        opening = (
            f'<div class="interactive" data-kind="{self.kind}" data-values="{values}">'
        )
        return f"{opening}{self.still._repr_html_()}</div>{self.brought_along()}"

    def brought_along(self) -> str:
        """The style and the script, where no page of the book loads them; else ""."""
        if os.environ.get("BOOK_BUILD") or not STATIC.exists():
            return ""
        style, script = (
            (STATIC / name).read_text(encoding="utf-8")
            for name in ("views.css", "views.js")
        )
        return f"<style>{style}</style><script>{script}</script>"

    def __repr__(self) -> str:
        return repr(self.still)
