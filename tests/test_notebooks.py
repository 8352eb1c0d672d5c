"""The chapters as notebooks: what their text becomes, what is folded, and that a copy
is never written over.
"""

import json
import re
from pathlib import Path

import nbformat
import notebooks
import pytest
from nbformat.v4 import new_code_cell, new_output
from notebooks import (
    Names,
    blocks,
    caption_of,
    chapters,
    enliven,
    find_names,
    fold,
    plain_notebook,
    plain_text,
    write_copies,
)

ROOT = Path(__file__).resolve().parent.parent
NAMES = Names(
    titles={"ch-ppo": "PPO", "sec-x": "A section"},
    pages={"ch-ppo": "book/ppo", "sec-x": "book/sft", "glossary": "book/glossary"},
    numbers={"fig-a": "2.1", "eq-b": "2.3"},
    works={"schulman2017ppo": "Schulman et al., 2017", "wei": "Wei, 2022"},
)


def plain(text, **values):
    return plain_text(text, "book/sft", NAMES, values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(sec-x)=\n## Title", "## Title"),
        ("{glue:text}`share` and {glue:text}`n:.1f`", "56% and 2.5"),
        ("{glue:text}`lost`", "[lost]"),
        ("{term}`tokens <Token>`, {term}`Nat`", "tokens, Nat"),
        ("PPO {cite}`schulman2017ppo,wei`", "PPO (Schulman et al., 2017; Wei, 2022)"),
        (
            "{ref}`ch-ppo` and {ref}`there <ch-ppo>`",
            "[PPO](ppo.ipynb) and [there](ppo.ipynb)",
        ),
        ("{ref}`here <sec-x>`, {ref}`words <glossary>`", "here, words"),
        ("{numref}`fig-a`, {eq}`eq-b`", "Figure 2.1, (2.3)"),
        ("$$\nx\n$$ (eq-b)", "$$\nx\n\\tag{2.3}\n$$"),
        ("`code {ref}` stays", "`code {ref}` stays"),
    ],
)
def test_text_becomes_plain_markdown(text, expected):
    assert plain(text, share="56%", n="2.46") == expected


def test_an_admonition_is_a_quotation_and_what_is_folded_in_it_stands_after_it():
    text = (
        "````{admonition} Why?\n:class: tip\nThink.\n```{dropdown} An answer\nSo, "
        "{term}`nat`.\n```\n````"
    )
    assert plain(text) == (
        "> **Why?**\n>\n> Think.\n\n<details><summary>An answer</summary>\n\n"
        "So, nat.\n\n</details>"
    )


def test_an_exercise_keeps_its_title_and_a_solution_is_folded():
    text = (
        "````{exercise} Build it\n:label: ex-a\nWrite it.\n```python\ndef f():\n```\n"
        "````\n"
        "```{solution} ex-a\n:label: sol-a\n:class: dropdown\nSo.\n```"
    )
    found = plain(text)
    assert found.startswith(
        "**Exercise: Build it.**\n\nWrite it.\n```python\ndef f():\n```"
    )
    assert found.endswith("<details><summary>Solution</summary>\n\nSo.\n\n</details>")


def test_fences_of_code_are_left_alone():
    lines = ["```sh", "make book", "```", "", "```python", "x = {ref}", "```"]
    assert blocks(lines) == lines


def test_what_a_page_hides_is_folded_and_said_to_be():
    cell = new_code_cell("show()", metadata=dict(tags=["remove-input", "hide-output"]))
    cell.metadata["mystnb"] = dict(code_prompt_show="Show ours")
    fold(cell)
    assert cell.metadata["jupyter"] == dict(source_hidden=True, outputs_hidden=True)
    assert cell.source.startswith("# Show ours")
    plain_cell = new_code_cell("x")
    fold(plain_cell)
    assert "jupyter" not in plain_cell.metadata and plain_cell.source == "x"


def test_a_figure_has_its_caption_and_its_number():
    cell = new_code_cell("draw()")
    cell.metadata["mystnb"] = dict(
        figure=dict(caption="Two\nlines, {term}`x`.", name="fig-a")
    )
    assert caption_of(cell, "book/sft", NAMES, {}) == "*Figure 2.1. Two lines, x.*"
    assert caption_of(new_code_cell("x"), "book/sft", NAMES, {}) == ""


def test_a_view_brings_its_script():
    html = '<div class="interactive" data-kind="mask"></div>'
    cell = new_code_cell(
        "v", outputs=[new_output("execute_result", {"text/html": html})]
    )
    enliven(cell)
    assert cell.outputs[0]["data"]["text/html"].count("<script>") == 1


@pytest.mark.parametrize("page", chapters())
def test_nothing_of_myst_is_left_in_any_chapters_notebook(page):
    notebook = plain_notebook(ROOT / f"{page}.md", None, find_names())
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    code = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    assert not re.findall(r"\{[\w:]+\}`|^:{3,}|^`{3,}\{|^\([\w-]+\)=$", code, re.M)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    json.dumps(notebook)


def test_every_reference_of_a_chapter_has_a_number_or_a_title():
    names = find_names()
    for page in chapters():
        text = (ROOT / f"{page}.md").read_text(encoding="utf-8")
        for role, label in re.findall(r"\{(numref|eq)\}`([\w-]+)`", text):
            assert label in names.numbers, (page, role, label)
        for label in re.findall(r"\{ref\}`([\w-]+)`", text):
            assert label in names.titles, (page, label)
        for keys in re.findall(r"\{cite\}`([^`]+)`", text):
            assert not set(keys.split(",")) - names.works.keys(), (page, keys)


def test_a_copy_is_the_readers_and_is_never_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "executed_states", lambda: None)
    monkeypatch.setattr(notebooks, "chapters", lambda: ["book/sft", "book/dpo"])
    monkeypatch.setattr(notebooks, "vouch_for", lambda path: None)
    assert write_copies(tmp_path) == [
        "The copies have no outputs yet: make book fills those that are new."
    ]
    mine = tmp_path / "sft.ipynb"
    edited = nbformat.read(mine, 4)
    edited.cells[1].source = "my own words"
    nbformat.write(edited, mine)
    before = mine.read_bytes()
    assert len(write_copies(tmp_path)) == 1 and mine.read_bytes() == before
    # Where the chapter has changed since, it is said, and still not written over
    monkeypatch.setattr(notebooks, "source_key", lambda path: "another")
    told = write_copies(tmp_path)
    assert told[0].startswith("sft.ipynb in ") and "older chapter" in told[0]
    assert mine.read_bytes() == before
    mine.unlink()
    write_copies(tmp_path)
    assert b"my own words" not in mine.read_bytes()
