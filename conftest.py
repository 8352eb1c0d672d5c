"""`pytest --nbmake` runs the chapters, which are MyST Markdown, too.

Kernels start in the chapter's folder, as they do when the book is built.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
BOOK = ROOT / "book"

# Look in the folder of extensions before pytest has set its path
sys.path.insert(0, str(BOOK / "_ext"))
from book_kernels import prepare_kernels  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    prepare_kernels(ROOT)
    if "PYTEST_XDIST_WORKER" in os.environ:
        share_cores()
    # Keep to the order below: pytest-xdist would begin with the files of most tests
    config.option.loadscopereorder = False
    if not config.getoption("nbmake", default=False):
        return
    if config.getoption("overwrite"):
        raise pytest.UsageError(
            "--overwrite would replace the chapters' Markdown by JSON"
        )
    # Without --nbmake-timeout, allow each cell as long as the book's build does
    given = any(
        str(arg).startswith("--nbmake-timeout") for arg in config.invocation_params.args
    )
    if not given:
        config.option.nbmake_timeout = cell_timeout()
    teach_nbmake_markdown()


def share_cores() -> None:
    """Keep a test process that has others beside it, and its kernels, to one thread.

    Two threads each for two processes on two cores wait for one another, and take
    several times as long.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def cell_timeout() -> int:
    """Seconds per cell, from _config.yml."""
    import yaml

    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))[
        "execute"
    ]["timeout"]


def teach_nbmake_markdown() -> None:
    """Let nbmake's one nbformat.read() call read Markdown as well."""
    import jupytext
    import nbformat
    from nbmake import nb_run

    def read(path: str, version: int):
        return (
            jupytext.read(path, fmt="md:myst")
            if path.endswith(".md")
            else nbformat.read(path, version)
        )

    nb_run.nbformat = types.SimpleNamespace(read=read)


# What takes longest, measured: with it first, no process waits at the end for another
LONGEST = (
    "tests/test_browser.py",
    "tests/test_house.py",
    "book/scale.md",
    "tests/test_determinism.py",
    "tests/parity/test_hand_over_parity.py",
    "tests/scale/test_distributed.py",
    "tests/keep/test_workers.py",
    "tests/scale/test_throughput.py",
    "book/real.md",
    "tests/keep/test_store.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, then the chapters, then all others."""

    def rank(item: pytest.Item) -> int:
        name = item.nodeid.partition("::")[0]
        if name in LONGEST:
            return LONGEST.index(name)
        return len(LONGEST) + (not name.endswith(".md"))

    items.sort(key=rank)


def is_chapter(path: Path) -> bool:
    """Whether this is Markdown below book/ whose front matter names a kernel."""
    if path.suffix != ".md" or BOOK not in path.parents:
        return False
    front_matter, separator, _ = path.read_text(encoding="utf-8").partition("\n---\n")
    return (
        bool(separator)
        and front_matter.startswith("---\n")
        and "\nkernelspec:" in front_matter
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector):
    if parent.config.getoption("nbmake", default=False) and is_chapter(file_path):
        from nbmake.pytest_items import NotebookFile

        return NotebookFile.from_parent(parent, path=file_path)
