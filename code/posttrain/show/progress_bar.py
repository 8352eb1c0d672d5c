"""A bar for the one who waits, and never in a page."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable

# PyTorch 2.2 imports tqdm's widget in passing, which warns where there is none
warnings.filterwarnings("ignore", message="IProgress not found")


def progress(iterable: Iterable, total: int | None = None, desc: str = "") -> Iterable:
    """A progress bar for the one who waits: in JupyterLab or a terminal, not in a page.

    It bears the name of the stage that is being trained, unless desc is another.

    ipykernel copies all that is written to standard error into the page, so while the
    book is built the bar goes to the terminal that ipykernel has put aside.
    """
    from tqdm import tqdm

    from posttrain.keep.store import TRAINING

    desc = desc or f"training {TRAINING.get()}".rstrip()
    options = dict(total=total, desc=desc, leave=False, mininterval=1.0)
    if os.environ.get("BOOK_BUILD"):
        terminal = getattr(sys.stderr, "_original_stdstream_copy", None)
        if terminal is None:
            return iterable
        options |= dict(
            file=os.fdopen(os.dup(terminal), "w"), mininterval=5.0, leave=True
        )
    return tqdm(iterable, **options)
