"""The list of mutants (mutants.py, run by itself): each can be made, is one line, and
names a test that is there.
"""

import ast
import functools
import re

import mutants
import pytest
from mutants import DETAILS, MUTANTS, PACKAGE, ROOT, SOURCES, faults, legend, markdown

from posttrain.practice.patches import patched_source, places, plain, undocumented

NUMBERED = {
    "SFT": 6,
    "Reward model": 5,
    "Rollouts": 6,
    "PPO": 10,
    "DPO": 6,
    "LoRA": 6,
    "Pairs": 6,
    "Real model": 7,
    "Processes": 5,
    "Tutorials": 12,
}
each = pytest.mark.parametrize(
    "mutant", MUTANTS, ids=lambda mutant: f"{mutant.detail}: {mutant.what}"
)


@functools.cache
def source(module):
    return (ROOT / PACKAGE / module).read_text(encoding="utf-8")


def without_docstrings(text):
    return re.sub(r'''(?s)""".*?"""''', "", text)


@functools.cache
def names_in(file):
    body = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8")).body
    return {
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@each
def test_what_is_replaced_stands_there_once_and_python_can_read_the_result(mutant):
    assert mutant.new != mutant.old and "\n" not in mutant.old + mutant.new
    broken = patched_source(source(mutant.module), mutant.patch)
    # More than a comment or the layout has changed
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(source(mutant.module)))


@each
def test_the_named_test_is_in_the_named_file(mutant):
    file, name = mutant.test.split("::")
    assert name in names_in(file)


def test_every_detail_has_a_mutant_and_sixty_or_more_all_differ():
    assert list(DETAILS) == [
        f"{group} {i + 1}" for group, n in NUMBERED.items() for i in range(n)
    ]
    assert {mutant.detail for mutant in MUTANTS} == {
        *DETAILS,
        "Model",
        "KV cache",
        "Tokenizer",
        "Optimiser",
        "Ring",
        "Estimates",
    }
    assert len(MUTANTS) >= 60
    broken = [patched_source(source(mutant.module), mutant.patch) for mutant in MUTANTS]
    assert len(set(broken)) == len(MUTANTS)
    assert len({(mutant.detail, mutant.what) for mutant in MUTANTS}) == len(MUTANTS)


def test_a_detail_without_a_mutant_and_a_line_that_has_changed_are_named(monkeypatch):
    assert faults() == []
    first, *others = MUTANTS
    gone = mutants.Mutant(
        "PPO 5", "gone", "ppo.py", "no_such_line", "", "test_ppo.py::test_x"
    )
    twice = mutants.Mutant(
        "PPO 5", "twice", "ppo.py", "actions", "", "test_ppo.py::test_x"
    )
    monkeypatch.setattr(mutants, "DETAILS", DETAILS | {"PPO 11": "Another."})
    monkeypatch.setattr(mutants, "MUTANTS", (first, *others, gone, twice))
    plain_source = ast.unparse(ast.parse(source("ppo.py")))
    times = len(re.findall(r"\bactions\b", without_docstrings(plain_source)))
    assert times > 1 and faults() == [
        "PPO 11 has no mutant",
        "ppo has 'no_such_line' 0 times",
        f"ppo has 'actions' {times} times",
    ]


def test_the_books_table_has_a_row_per_mutant_and_is_the_one_shown():
    head, rule, *rows = markdown().splitlines()
    assert (
        head == "| detail | what was broken | in | the test that turns red |"
        and set(rule) == set("|-")
    )
    assert len(rows) == len(MUTANTS)
    for row, mutant in zip(rows, MUTANTS):
        file, name = mutant.test.split("::")
        detail, what, module, test = (
            cell.strip() for cell in row.strip("|").split("|")
        )
        assert (detail, what, module) == (mutant.detail, mutant.what, mutant.module)
        assert (
            test.split(": ")[0] == file
            and f"test_{test.split(': ', 1)[1].replace(' ', '_')}" == name
        )
    assert (ROOT / "docs" / "mutants.md").read_text(
        encoding="utf-8"
    ) == markdown()  # else run with --markdown docs


def test_the_books_list_of_details_is_the_one_that_the_mutants_are_numbered_by():
    entries = re.findall(
        r"^((?:\w+ )+\d+)\. (.*)\n: Source: (.*)\n: Code: (.*)\n((?:: Turns red: "
        r".*\n)+)",
        legend(),
        re.M,
    )
    assert [(detail, what) for detail, what, *_ in entries] == list(DETAILS.items())
    assert re.findall(r"^## (.*)$", legend(), re.M) == list(NUMBERED)
    for detail, _, source, code, tests in entries:
        broken = [mutant for mutant in MUTANTS if mutant.detail == detail]
        assert source == (
            f"{{cite}}`{SOURCES[detail]}`" if detail in SOURCES else "this book"
        )
        named = re.findall(r"`tests/(.*?)`", tests)
        assert (
            named
            and set(named) == {mutant.test for mutant in broken}
            and len(set(named)) == len(named)
        )
        # Each line that a mutant breaks stands in one of the listings that are named
        listings = re.findall(r"\{listing\}`([\w.]+)\.(\w+)`", code)
        assert {module for module, _ in listings} == {
            mutant.module.removesuffix(".py").replace("/", ".") for mutant in broken
        }
        for mutant in broken:
            named = [name for module, name in listings if module == mutant.patch.target]
            assert any(
                places(text_of(mutant.module, name), plain(mutant.old))
                for name in named
            )
    assert (ROOT / "docs" / "details.md").read_text(encoding="utf-8") == legend()


@functools.cache
def text_of(module, name):
    (node,) = (
        node
        for node in ast.parse(source(module)).body
        if getattr(node, "name", "") == name
    )
    return undocumented(node)


def test_sources_are_of_details_and_in_the_list_of_works():
    works = re.findall(
        r"^@\w+\{(\w+),",
        (ROOT / "book" / "references.bib").read_text(encoding="utf-8"),
        re.M,
    )
    assert set(SOURCES) <= set(DETAILS)
    assert {key for keys in SOURCES.values() for key in keys.split(",")} <= set(works)
