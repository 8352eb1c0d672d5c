"""What the kernels of the chapters inherit, in a build of the book and in pytest."""

from __future__ import annotations

import os
from pathlib import Path


def prepare_kernels(root: Path) -> None:
    """Set the package's folder, and that no reader is watching a progress bar."""
    inherited = os.environ.get("PYTHONPATH")
    folders = filter(None, [str(root / "code"), inherited])
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    os.environ["BOOK_BUILD"] = "1"
    # Make a relative path absolute: kernels start in book/
    corpus = os.environ.get("POSTTRAIN_CORPUS")
    if corpus and Path(corpus).expanduser().is_file():
        os.environ["POSTTRAIN_CORPUS"] = str(Path(corpus).expanduser().resolve())
