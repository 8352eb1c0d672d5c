"""Views to play with: a still view that a page's script brings to life."""

from __future__ import annotations

import html
import json


class Interactive:
    """A view to play with: in the book's pages its script takes the still view's place.

    kind: "mask", "rollout" or "beta", as book/_static/views.js knows them; values: what
    it shows, as JSON; still: what stands there without that script, as in JupyterLab.
    """

    def __init__(self, kind: str, still: object, **values: object):
        self.kind, self.still, self.values = kind, still, values

    def _repr_html_(self) -> str:
        values = html.escape(json.dumps(self.values, allow_nan=False))
        opening = (
            f'<div class="interactive" data-kind="{self.kind}" data-values="{values}">'
        )
        return f"{opening}{self.still._repr_html_()}</div>"

    def __repr__(self) -> str:
        return repr(self.still)
