"""The house's rules that a machine can see: widths, cells, the formatter, who may
import whom.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "code" / "posttrain"
WIDTH, LONGEST_CELL = 88, 12
PYTHON = sorted(
    path
    for place in ("code", "tests", "benchmarks", "examples", "book/_ext", "conftest.py")
    for path in (
        [ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py")
    )
)
CORE = ["pretraining", "sft", "reward", "ppo", "dpo", "comparison"]
PAGES = sorted((ROOT / "book").rglob("*.md"))
# What shows and computes nothing
REPORTS = {
    "print",
    "Table",
    "scoreboard",
    "curves",
    "bars",
    "scatter",
    "verify",
    "record",
    "TokenView",
    "ScoreView",
    "TokenTable",
    "Interactive",
}


def wide(lines):
    return [line for line in lines if len(line) > WIDTH]


def sources(page):
    """The code of a page's cells, without their options."""
    text = page.read_text(encoding="utf-8")
    return [house.CELL_OPTIONS.sub("", cell) for cell in house.CELL.findall(text)]


@pytest.mark.parametrize(
    "path", PYTHON, ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_no_line_of_code_is_wider_than_88_columns(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not wide(lines)
    assert not [line for line in lines if "fmt: " + "skip" in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_cell_has_at_most_12_lines_of_at_most_88_columns(page):
    for source in sources(page):
        lines = [line for line in source.splitlines() if line.strip()]
        assert len(lines) <= LONGEST_CELL and not wide(lines), source


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_figures_texts_are_no_wider_than_its_code(page):
    for cell in house.CELL.findall(page.read_text(encoding="utf-8")):
        assert not wide(cell.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_cell_holds_no_lambda(page):
    for source in sources(page):
        kinds = {type(node) for node in ast.walk(ast.parse(source))}
        assert not kinds & {ast.ClassDef, ast.Lambda}, source


@pytest.mark.slow
def test_cells_are_formatted(tmp_path):
    for page in PAGES:
        for number, source in enumerate(sources(page)):
            cell = tmp_path / f"{page.parent.name}-{page.stem}-{number}.py"
            cell.write_text(source.strip() + "\n", encoding="utf-8")
    options = ["--line-length", str(WIDTH), "--quiet", str(tmp_path)]
    for command in (["format", "--diff"], ["check", "--select", "I"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", ["format --check", "check"])
def test_python_is_formatted_and_free_of_lint(command):
    command = [sys.executable, "-m", "ruff", *command.split(), "--quiet", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", CORE)
def test_at_most_a_fifth_of_a_core_chapters_statements_report(name):
    trees = [ast.parse(source) for source in sources(ROOT / "book" / f"{name}.md")]
    every = [node for tree in trees for node in tree.body]
    imports = (ast.Import, ast.ImportFrom)
    statements = [node for node in every if not isinstance(node, imports)]
    reports = [node for node in statements if calls(node) & REPORTS]
    assert len(reports) <= 0.2 * len(statements)


def calls(node):
    """The names of all that a statement calls."""
    functions = (part.func for part in ast.walk(node) if isinstance(part, ast.Call))
    return {getattr(each, "id", getattr(each, "attr", "")) for each in functions}


def test_the_folder_shows_the_subject():
    modules = [path for path in PACKAGE.glob("*.py") if path.stem != "__init__"]
    assert len(modules) <= 20


@pytest.mark.parametrize(
    "path",
    sorted(p for p in PACKAGE.glob("*.py") if p.stem not in ("stages", "__main__")),
    ids=lambda path: path.stem,
)
def test_the_subject_knows_neither_store_nor_corpus_nor_data_sets(path):
    text = path.read_text(encoding="utf-8")
    folders = "data|keep|show|cli|lab|real|scale|practice"
    assert not re.findall(
        rf"from posttrain(?:\.(?:{folders})| import .*\b(?:{folders})\b)", text
    )


def public_names(paths):
    """The functions and classes of some files, each with the files that define it."""
    found = {}
    for path in paths:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.setdefault(node.name, []).append(
                    path.relative_to(PACKAGE).as_posix()
                )
    return found


def test_a_name_of_the_subject_stands_in_no_other_module():
    subject = public_names(PACKAGE.glob("*.py"))
    twice = {
        n: where
        for n, where in public_names(PACKAGE.rglob("*.py")).items()
        if len(where) > 1
    }
    assert not {name: where for name, where in twice.items() if name in subject}
