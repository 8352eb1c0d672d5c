"""The chapters show the package: every public function of its core in exactly one
place, and none of their own.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "book").glob("*.md"))
SITE = ROOT / "_build" / "html" / "book"
# What the book teaches. Not in it: files and processes, data, drawing, the command line
CORE = [
    "tokenizer",
    "gpt",
    "optim",
    "batches",
    "pretrain",
    "sampling",
    "chat",
    "sft",
    "logprobs",
    "preference_pairs",
    "reward_model",
    "ppo",
    "dpo",
    "preference_losses",
    "online_dpo",
    "best_of_n",
    "evaluate",
    "lab.scorecard",
    "lab.rejection_sampling",
    "lora.adapters",
    "lora.nf4",
    "real.data",
    "real.graded",
    "real.training",
    "real.gpt2_weights",
    "scale.ring",
    "scale.estimate",
    "data.synthetic_pairs",
]


def cells(page: Path) -> list[ast.Module]:
    """The code cells of a page, in order, parsed."""
    return house.cells(page.read_text(encoding="utf-8"))


def shown(page: Path) -> list[str]:
    """module.name of all that the page's `show_source` calls name, in order."""
    return house.shown(page.read_text(encoding="utf-8"))


def test_what_a_page_shows_is_found_by_name_and_by_object():
    cells = (
        "from posttrain.lora import nf4\nfrom posttrain.ppo import check as c",
        ":tags: [remove-input]\nshow_source('dpo.dpo_loss', "
        "c)\nshow_source(nf4.quantize)",
    )
    page = "".join(f"```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells)
    assert house.shown(page) == ["dpo.dpo_loss", "ppo.check", "lora.nf4.quantize"]


@pytest.mark.parametrize("module", CORE)
def test_each_public_function_and_class_of_the_core_is_shown_in_exactly_one_place(
    module,
):
    tree = ast.parse(
        (ROOT / "code" / "posttrain" / f"{module.replace('.', '/')}.py").read_text(
            encoding="utf-8"
        )
    )
    public = [
        f"{module}.{node.name}"
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.endswith("Error")
    ]
    places = [name for page in PAGES for name in shown(page)]
    wrong = {name: places.count(name) for name in public if places.count(name) != 1}
    assert public and not wrong, f"times that these are shown: {wrong}"


def test_what_is_shown_exists():
    for name in (name for page in PAGES for name in shown(page)):
        module, _, function = name.rpartition(".")
        source = (
            ROOT / "code" / "posttrain" / f"{module.replace('.', '/')}.py"
        ).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {function}\b", source, re.M), name


@pytest.mark.slow
@pytest.mark.skipif(
    not (SITE / "code-index.html").exists(),
    reason="the book has not been built yet (make book)",
)
def test_the_index_of_the_code_has_all_that_is_shown_once_and_leads_to_it():
    index = (SITE / "code-index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([\w-]+)\.html#(code-[\w-]+)"', index)
    assert sorted(links) == sorted(
        (page.stem, house.anchor(name)) for page in PAGES for name in shown(page)
    )
    for page, name in links:
        definition = (
            r'<span class="n[cf]" '
            rf'id="{name}">{re.escape(name.rpartition("-")[2])}</span>'
        )
        assert (
            len(
                re.findall(
                    definition, (SITE / f"{page}.html").read_text(encoding="utf-8")
                )
            )
            == 1
        ), name


def test_each_detail_names_listings_that_a_page_shows():
    names = {name for page in PAGES for name in shown(page)}
    details = (ROOT / "docs" / "details.md").read_text(encoding="utf-8")
    entries = re.findall(r"^: Code: (.*)$", details, re.M)
    assert len(entries) == len(re.findall(r"^: Source: ", details, re.M)) >= 40
    for entry in entries:
        listings = re.findall(r"\{listing\}`([\w.]+)`", entry)
        assert listings and set(listings) <= names, entry
    assert "```{include} ../docs/details.md\n" in (
        ROOT / "book" / "details.md"
    ).read_text(encoding="utf-8")


TERM = re.compile(r"\{term\}`(?:[^`<]*<)?([^`<>]+)>?`")


def test_each_word_of_the_glossary_is_linked_from_a_chapter_and_is_in_its_place():
    glossary = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^(\w.*)\n  \S", glossary.split("```{glossary}")[1], re.M)
    # As they are read: k1 is k one
    spoken = [re.sub("[^a-z]", "", word.lower().replace("1", "one")) for word in words]
    assert len(words) >= 50 and spoken == sorted(spoken)
    marked = {
        page.stem: TERM.findall(page.read_text(encoding="utf-8")) for page in PAGES
    }
    lessons = ("pretraining", "sft", "reward", "ppo", "dpo", "comparison")
    chapters = (*lessons, "lora", "pairs", "real", "scale")
    linked = (*chapters, *(f"lab-{name}" for name in lessons))
    assert set(words) == {word for page in linked for word in marked[page]}
    assert all(len(set(marked[page])) == len(marked[page]) for page in linked)
    for chapter in chapters:
        # Once in each chapter: the first time is enough
        assert len(marked[chapter]) >= 6, chapter


def test_words_are_linked_from_prose_alone():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        other = re.findall(
            r"^#[^\n]*$|^\|[^\n]*$|^```+\{(?:code-cell|exercise|solution)\}.*?^```+$",
            text,
            re.M | re.S,
        )
        assert not [part for part in other if "{term}" in part], page.stem


def stubs(page: Path) -> list[ast.FunctionDef]:
    """The functions that a page leaves to its reader: a docstring and three dots."""
    return [
        node
        for cell in cells(page)
        for node in cell.body
        if isinstance(node, ast.FunctionDef)
        and [ast.unparse(line) for line in node.body[1:]] == ["..."]
    ]


def test_chapters_define_nothing_but_what_they_leave_to_the_reader():
    defined = {
        page.stem: [
            node.name
            for cell in cells(page)
            for node in ast.walk(cell)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        ]
        for page in PAGES
    }
    left = {page.stem: [node.name for node in stubs(page)] for page in PAGES}
    assert defined == left


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
        glued = set(
            re.findall(r"\{glue:text\}`([^`:]+)", page.read_text(encoding="utf-8"))
        )
        assert recorded - {None} <= glued, f"{page.name} records what it never shows"
        # record(**values): not all names are in the source
        assert None in recorded or glued <= recorded, page.name


def test_what_the_book_set_out_to_show_is_an_executed_check_of_the_chapter_named():
    page = (ROOT / "book" / "how-we-know.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| \{ref\}`ch-(\w+)` \| ([^|]+) \|$", page, re.M)
    assert len(rows) >= 15 and {chapter for chapter, _ in rows} == {
        "pretraining",
        "sft",
        "reward",
        "ppo",
        "dpo",
        "comparison",
    }
    for chapter, check in rows:
        assert check in checks(ROOT / "book" / f"{chapter}.md"), (
            f"{chapter} has no check {check!r}"
        )


def checks(page: Path) -> list[str]:
    """What the page's `verify` calls say they check."""
    calls = [
        node
        for cell in cells(page)
        for node in ast.walk(cell)
        if isinstance(node, ast.Call)
    ]
    rows = [
        row
        for call in calls
        if getattr(call.func, "id", "") == "verify"
        for row in call.args
    ]
    return [row.elts[0].value for row in rows]


# Figures with decimals or units that stand typed in prose, and why each is not glued.
# What this book measures is never here
TYPED = {
    "index": {"a setting": "0.8"},
    "pretraining": {
        "a setting": "0.8",
        "worked out by hand": "4.17",
        "literature": "1.4697",
        "an aim, or a level of confidence": "95%",
    },
    "sft": {
        "a setting": "0.8",
        "worked out by hand": "2.5",
        "an aim, or a level of confidence": "95%",
    },
    "reward": {
        "literature": "73%",
        "an aim, or a level of confidence": "85% 90% 95%",
    },
    "ppo": {
        "a setting": "10_nats",
        "worked out by hand": "0.1 0.2 0.25 0.3 0.4 0.5 0.6 0.75 0.8 0.9 0.1875 0_nats "
        "7_nats",
        "an aim, or a level of confidence": "80% 95%",
        "a section": "3.5",
    },
    "dpo": {
        "a setting": "0.05",
        "worked out by hand": "3_nats 2_nats 28_nats 50_nats",
        "an aim, or a level of confidence": "70% 75% 95%",
    },
    "comparison": {
        "literature": "2.5 8_points",
        "an aim, or a level of confidence": "95%",
    },
    "lab-pretraining": {
        "a setting": "0.002 0.004 0.008 0.6",
        "literature": "1.88",
        "a trial outside the page, which says so": "0.003",
    },
    "lab-sft": {
        "a setting": "0.1",
        "literature": "0.315 0.355",
        "an aim, or a level of confidence": "95%",
    },
    "lab-reward": {
        "a setting": "0.001 0.8",
        "an aim, or a level of confidence": "85% 90% 95%",
        "worked out by hand": "7_points 100%",
    },
    "lab-ppo": {
        "a setting": "0.95 2.0",
        "worked out by hand": "0.1 0.2 0.5 0.25 20% 6.3 2_nats",
    },
    "lab-dpo": {
        "a setting": "0.1 0.05 0.3 0.5 2.0",
        "literature": "0.2",
        "worked out by hand": "5_nats 0.50",
        "an aim, or a level of confidence": "0.02 75% 80%",
        "a symptom, not a result": "100% 0.000",
    },
    "lab-comparison": {
        "a setting": "0.8 0.02 0.05",
        "literature": "1.2 2.5 8_points",
    },
    "lora": {"worked out by hand": "0.4 0.5 0.25 0.246 4.127"},
    "real": {
        "a setting": "0.7",
        "an aim, or a level of confidence": "0.0001",
        "a symptom, not a result": "0.6931",
    },
    "scale": {
        "a setting, assumed": "2.5 40% 30%",
        "literature": "38% 43%",
        "a version": "3.1",
        "worked out by hand": "0.67 0.89 1.07 1.31 25.0 33.3 41.9 6.30",
    },
    "pairs": {
        "a setting": "0.2 0.4 0.8",
        "worked out by hand": "0.5 40%",
        "a section": "3.2",
    },
    "talk": {"a setting": "1.5"},
    "how-we-know": {"a version": "1.12 5.23", "an earlier record": "63% 72% 79%"},
}


def prose(page: Path) -> str:
    """A page's text without front matter, cells, code, formulas, addresses and
    roles.
    """
    text = re.sub(
        r"\A---\n.*?\n---\n", "", page.read_text(encoding="utf-8"), flags=re.S
    )
    text = re.sub(r"^```\{code-cell\}.*?^```$", "", text, flags=re.M | re.S)
    return re.sub(
        r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)|\{[^}]*\}", "", text, flags=re.S
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_figure_is_typed_in_prose_but_those_listed_here_with_their_reason(page):
    """Glue what is measured; list what is a setting, an aim, a hand calculation or
    somebody else's result.
    """
    figures = re.findall(
        r"(?<![\w.])(\d[\d,]*(?:\.\d+|%| percent| nats| points))(?!\w|\.\d)",
        prose(page),
    )
    listed = {
        figure
        for words in TYPED.get(page.stem, {}).values()
        for figure in words.split()
    }
    assert {figure.replace(" ", "_") for figure in figures} == listed
