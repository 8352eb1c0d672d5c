"""The determinism check: execute chapters twice, apart from each other, and compare all
outputs byte by byte.

    python tests/determinism.py [CHAPTER ...] [--keep-stages]

Each of the two runs executes the chapters (all, in the book's order, unless some are
named) in new kernels, with a stages folder of its own, empty at first: everything is
trained twice. --keep-stages starts both from copies of the stages that are there.
Printed text, tables, figures, recorded numbers and the stored stages have to be the
same; the first difference of each cell is printed, and ends in exit code 1.

What a clock says is no chance and no result, so both runs read one that counts the
times it is asked. Python hashes strings differently in the two runs, so that an order
which depends on that shows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import jupytext
import yaml
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
# Python runs this in each process at its start, the chapters' workers included
COUNTING_CLOCK = """
import itertools, time
counter = itertools.count()
time.perf_counter = lambda: float(next(counter))
"""


def chapters() -> list[str]:
    """The names of the pages that run, in the book's order, the front page last."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = [
        chapter["file"] for part in contents["parts"] for chapter in part["chapters"]
    ] + [contents["root"]]
    texts = {page: (ROOT / f"{page}.md").read_text(encoding="utf-8") for page in pages}
    return [
        page.removeprefix("book/")
        for page, text in texts.items()
        if "\nkernelspec:" in text.partition("\n---\n")[0]
    ]


def run_chapter(name: str, stages: Path, seed: int) -> list[list[dict]]:
    """Execute one chapter; each code cell's outputs. seed: of Python's hashes of
    strings.
    """
    notebook = jupytext.read(ROOT / "book" / f"{name}.md", fmt="md:myst")
    timeout = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))[
        "execute"
    ]["timeout"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(COUNTING_CLOCK, encoding="utf-8")
        path = os.pathsep.join([folder, str(ROOT / "code")])
        changes = dict(
            PYTHONPATH=path,
            PYTHONHASHSEED=str(seed),
            POSTTRAIN_STAGES=str(stages),
            BOOK_BUILD="1",
        )
        # Let notebook and kernel meet in the chapter's folder, as in the build
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            resources=dict(metadata=dict(path=str(ROOT / "book"))),
        )
        client.execute(env={**os.environ, **changes})
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def fill(stages: Path, source: Path | None, leave_out: tuple[str, ...] = ()) -> None:
    """Put the files of source into a stages folder, less those that fit one of
    leave_out.
    """
    stages.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()) if source else []:
        if file.suffix != ".lock" and not any(file.match(left) for left in leave_out):
            shutil.copyfile(file, stages / file.name)


def differences(name: str, one: list[list[dict]], other: list[list[dict]]) -> list[str]:
    """A line for each code cell of a chapter whose outputs are not the same in both
    runs.
    """
    if len(one) != len(other):
        return [f"{name}: {len(one)} and {len(other)} code cells"]
    found = []
    for number, (before, after) in enumerate(zip(one, other), start=1):
        texts = [json.dumps(outputs, sort_keys=True) for outputs in (before, after)]
        if texts[0] != texts[1]:
            at = next(
                (i for i, (a, b) in enumerate(zip(*texts)) if a != b),
                min(map(len, texts)),
            )
            found.append(
                f"{name}, code cell {number}: "
                f"...{texts[0][max(0, at - 60) : at + 40]}... "
                f"and then ...{texts[1][max(0, at - 60) : at + 40]}..."
            )
    return found


def stages_apart(one: Path, other: Path) -> list[str]:
    """The names of stored stages that one folder alone has, or that are not the same in
    both.
    """
    files = [
        {
            file.name: file.read_bytes()
            for file in folder.iterdir()
            if file.suffix in (".json", ".safetensors")
        }
        for folder in (one, other)
    ]
    names = sorted({*files[0], *files[1]})
    return [
        f"stage {name}" for name in names if files[0].get(name) != files[1].get(name)
    ]


def compare(
    names: list[str], source: Path | None = None, leave_out: tuple[str, ...] = ()
) -> list[str]:
    """Execute chapters twice; what differs. source: stages to start from, less those
    that fit one of leave_out.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs, places = [], [Path(folder, "one"), Path(folder, "other")]
        for seed, stages in enumerate(places, start=1):
            fill(stages, source, leave_out=leave_out)
            runs.append({name: run_chapter(name, stages, seed) for name in names})
        found = [
            line
            for name in names
            for line in differences(name, runs[0][name], runs[1][name])
        ]
        return found + stages_apart(*places)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chapters", nargs="*", help=f"of {', '.join(chapters())}")
    parser.add_argument(
        "--keep-stages",
        action="store_true",
        help="start from the stages that are there",
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.chapters if name not in chapters()]
    if unknown:
        parser.error(
            f"no chapter is named {unknown[0]!r}: choose from {', '.join(chapters())}"
        )
    sys.path.insert(0, str(ROOT / "code"))
    from posttrain.keep import store

    names = arguments.chapters or chapters()
    found = compare(names, store.stages_folder() if arguments.keep_stages else None)
    print(*found, sep="\n")
    print(f"{', '.join(names)}: {len(found)} differences between two runs")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
