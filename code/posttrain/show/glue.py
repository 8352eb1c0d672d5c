"""Values that a page's prose takes from its cells."""

from __future__ import annotations


def record(**values: object) -> None:
    """Glue values into the page's prose, by name; do nothing where no book is built."""
    try:
        from myst_nb import glue
    except ImportError:
        return
    for name, value in values.items():
        glue(name, value, display=False)
