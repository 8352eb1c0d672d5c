"""The chapters show the package: every public function of its core in exactly one place, and none of their own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "book").glob("*.md"))
# What the book teaches. Not in it: files and processes, data, drawing, the command line
CORE = [
    "tokenizer", "gpt", "optim", "pretrain", "sampling", "chat", "sft", "logprobs", "reward_model", "ppo", "dpo",
    "preference_losses", "online_dpo", "best_of_n", "evaluate", "scorecard", "sft_trials", "reward_trials",
    "ppo_trials", "dpo_trials",
]  # fmt: skip


def cells(page: Path) -> list[ast.Module]:
    """The code cells of a page, in order, parsed."""
    text = page.read_text(encoding="utf-8")
    sources = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", text, re.M | re.S)
    options = r"\A(?:---\n.*?\n---\n|(?::[^\n]*\n)+)"
    return [ast.parse(re.sub(options, "", source, flags=re.S)) for source in sources]


def shown(page: Path) -> list[str]:
    """module.name of all that the page's `show_source` calls name, in order."""
    home, found = {}, []
    for node in (node for cell in cells(page) for node in ast.walk(cell)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                home[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in (node for cell in cells(page) for node in ast.walk(cell)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "show_source":
            for argument in map(ast.unparse, node.args):
                first, *rest = argument.split(".")
                found.append(".".join([home.get(first, first), *rest]).removeprefix("posttrain."))
    return found


@pytest.mark.parametrize("module", CORE)
def test_each_public_function_and_class_of_the_core_is_shown_in_exactly_one_place(module):
    tree = ast.parse((ROOT / "code" / "posttrain" / f"{module}.py").read_text(encoding="utf-8"))
    public = [
        f"{module}.{node.name}"
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.endswith("Error")
    ]
    places = [name for page in PAGES for name in shown(page)]
    wrong = {name: places.count(name) for name in public if places.count(name) != 1}
    assert public and not wrong, f"times that these are shown: {wrong}"


def test_what_is_shown_exists():
    for name in (name for page in PAGES for name in shown(page)):
        module, _, function = name.rpartition(".")
        source = (ROOT / "code" / "posttrain" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {function}\b", source, re.M), name


def test_chapters_define_no_functions_and_no_classes():
    defined = [
        f"{page.name}: {node.name}"
        for page in PAGES
        for cell in cells(page)
        for node in ast.walk(cell)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    ]
    assert not defined


def test_every_number_that_prose_shows_is_recorded_by_its_own_page():
    """A glued value of another page, or of none, would be an old one or a hole."""
    for page in PAGES:
        recorded = {
            keyword.arg
            for cell in cells(page)
            for node in ast.walk(cell)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "record"
            for keyword in node.keywords
        }
        glued = set(re.findall(r"\{glue:text\}`([^`:]+)", page.read_text(encoding="utf-8")))
        assert recorded - {None} <= glued, f"{page.name} records what it never shows"
        # record(**values): not all names are in the source
        assert None in recorded or glued <= recorded, page.name
