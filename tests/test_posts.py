"""The posts: what they take from the chapters, and what `make posts` writes."""

from __future__ import annotations

import ast
import base64
import html
import os
import re
import zlib
from pathlib import Path

import house
import jupytext
import posts
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_show import PAGES, cells, prose, shown

ROOT = Path(__file__).resolve().parent.parent
POSTS = sorted((ROOT / "book" / "posts").glob("*.md"))
STATES = (
    ROOT
    / "_build"
    / ".jupyter_cache"
    / f"{house.package_key(ROOT)}-{house.corpus_key(ROOT)}"
)
PIXEL = b"\x89PNG\r\n\x1a\n not really"
each_post = pytest.mark.parametrize("page", POSTS, ids=lambda page: page.stem)


def recorded(**values: str) -> list:
    """What `record` leaves in a cell's outputs."""
    mime = "application/papermill.record/"
    return [
        new_output(
            "display_data",
            {f"{mime}text/plain": repr(value)},
            metadata=dict(scrapbook=dict(name=name, mime_prefix=mime)),
        )
        for name, value in values.items()
    ]


def cell(*outputs, **metadata):
    return new_code_cell("1 + 1", outputs=list(outputs), metadata=metadata)


def written(tmp_path: Path, *parts, links=()) -> str:
    """A post of these cells as `make posts` writes it."""
    notebook = new_notebook(
        cells=list(parts), metadata=dict(description='What it "is".')
    )
    posts.write_post(notebook, tmp_path / "post.md", dict(links))
    return (tmp_path / "post.md").read_text(encoding="utf-8")


# --- What a post says -----------------------------------------------------------------


def test_there_is_a_post_for_each_stage_and_all_stand_before_the_reference():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    captions = [part["caption"] for part in contents["parts"]]
    (part,) = [part for part in contents["parts"] if part["caption"] == "Posts"]
    assert captions.index("Posts") + 1 == captions.index("Reference") and not part.get(
        "numbered"
    )
    assert [chapter["file"] for chapter in part["chapters"]] == [
        f"book/posts/{name}" for name in ("sft", "rlhf", "dpo", "comparison")
    ]
    assert {path.stem for path in POSTS} == {"sft", "rlhf", "dpo", "comparison"}


@each_post
def test_a_post_shows_only_listings_that_a_chapter_shows(page):
    """So that the code's index, and each link to a listing, leads to the chapter."""
    names = shown(page)
    assert len(names) == 1 and set(names) <= {
        name for chapter in PAGES for name in shown(chapter)
    }


@each_post
def test_a_post_has_its_length_a_description_one_figure_and_no_date(page):
    text = page.read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert 80 <= len(head["description"]) <= 250
    assert len(re.findall(r"^# ", prose(page), re.M)) == 1
    assert 600 <= len(prose(page).split()) <= 900
    assert (
        len(re.findall(r"^ +alt: \S", text, re.M))
        == len(re.findall(r"^ +caption: \|\n +\S", text, re.M))
        == 1
    )
    months = "January|February|March|April|June|July|August|September|October"
    assert not re.search(rf"\b(?:{months}|November|December)\b", prose(page))


@each_post
def test_a_post_stands_alone(page):
    """It defines all that it uses, with nothing of another page."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"\{(?:eq|numref|term|cite|listing|doc|exercise)\b", text)
    body, _, end = text.partition("\n## Where to go on\n")
    assert "{ref}`" not in body and "{ref}`" in end


@each_post
def test_every_number_of_a_post_is_recorded_by_its_own_run_and_none_is_typed(page):
    calls = [
        node
        for tree in cells(page)
        for node in ast.walk(tree)
        if getattr(getattr(node, "func", None), "id", "") == "record"
    ]
    names = {keyword.arg for call in calls for keyword in call.keywords}
    used = set(re.findall(r"\{glue:text\}`([^`:]+)`", page.read_text(encoding="utf-8")))
    # record(**values): not all names are in the source
    assert names - {None} <= used and (None in names or used <= names)
    typed = re.findall(
        r"(?<![\w.])(\d[\d,]*(?:\.\d+|%| percent| nats| points))(?!\w|\.\d)",
        prose(page),
    )
    # A level of confidence, an aim, a setting, no difference
    assert set(typed) <= {
        "95%",
        "90%",
        "0.8",
        "50%",
    }


# --- From page to plain Markdown ------------------------------------------------------


def test_numbers_formulas_code_and_links_are_written_out(tmp_path):
    text = written(
        tmp_path,
        new_markdown_cell(
            "(post-x)=\n# The title: a post\n\nIt is {glue:text}`share`, and "
            "$x_1$.\n\n| a | {glue:text}`other` |\n|---|---|"
        ),
        cell(*recorded(share="56% [50%, 62%]", other="it's"), tags=["remove-cell"]),
        cell(
            new_output(
                "execute_result",
                {"text/markdown": "```python\ndef f(): pass\n```", "text/plain": "x"},
            )
        ),
        cell(new_output("stream", text="said\n  so\n")),
        new_markdown_cell("On to {ref}`the\nchapter <ch-x>` and {ref}`none <ch-y>`."),
        links={"ch-x": "https://example.org/book/x.html#ch-x"},
    )
    assert text == (
        '---\ntitle: "The title: a post"\ndescription: "What it \\"is\\"."\n---\n\n'
        "It is 56% [50%, 62%], and $x_1$.\n\n| a | it's |\n|---|---|\n\n"
        "```python\ndef f(): pass\n```\n\n```text\nsaid\n  so\n```\n\n"
        "On to [the\nchapter](https://example.org/book/x.html#ch-x) and none.\n"
    )
    head = yaml.safe_load(text.split("---\n")[1])
    assert head == dict(title="The title: a post", description='What it "is".')


def test_a_figure_becomes_a_file_with_its_words_beside_it(tmp_path):
    image = new_output(
        "display_data",
        {
            "image/png": base64.b64encode(PIXEL).decode(),
            "image/svg+xml": "<svg/>",
            "text/plain": "Figure",
        },
    )
    about = dict(image=dict(alt="Two lines."), figure=dict(caption="One is longer.\n"))
    text = written(
        tmp_path,
        new_markdown_cell("# T"),
        cell(image, mystnb=about, tags=["remove-input"]),
    )
    assert text.endswith("---\n\n![Two lines.](post.png)\n\n*One is longer.*\n")
    assert (tmp_path / "post.png").read_bytes() == PIXEL


def test_what_a_hidden_cell_prints_is_no_part_of_a_post(tmp_path):
    assert "secret" not in written(
        tmp_path,
        new_markdown_cell("# T\n\nText."),
        cell(new_output("stream", text="secret"), tags=["remove-cell"]),
    )


@pytest.mark.parametrize(
    "left",
    [
        "See {ref}`ch-x`.",
        "```{note}\nSo.\n```",
        ":::{note}\nSo.\n:::",
        "{numref}`fig-x` shows",
        "{eq}`a`",
        "{cite:t}`a`",
    ],
)
def test_what_plain_markdown_cannot_say_is_refused(tmp_path, left):
    with pytest.raises(posts.PostError, match="post: no plain Markdown for"):
        written(tmp_path, new_markdown_cell("# T\n\nText."), new_markdown_cell(left))
    assert not (tmp_path / "post.md").exists()


def test_an_output_without_markdown_is_refused(tmp_path):
    with pytest.raises(
        posts.PostError,
        match="no Markdown for an output of \\['text/html', 'text/plain'\\]",
    ):
        written(
            tmp_path,
            new_markdown_cell("# T"),
            cell(new_output("execute_result", {"text/html": "<b>", "text/plain": "b"})),
        )


def test_labels_have_the_books_address_or_none(tmp_path):
    lines = (
        b"ch-x std:label -1 book/x.html#$ The title\nfig std:label -1 "
        b"book/x.html#fig -\nterm std:term -1 book/g.html#t -\n"
    )
    (tmp_path / "objects.inv").write_bytes(
        b"# Sphinx inventory version 2\n# Project: x\n# Version: \n# Compressed by "
        b"zlib\n" + zlib.compress(lines)
    )
    assert posts.addresses(tmp_path, "https://example.org/a/") == {
        "ch-x": "https://example.org/a/book/x.html#ch-x",
        "fig": "https://example.org/a/book/x.html#fig",
    }
    assert posts.addresses(tmp_path, "") == {}


def test_a_post_that_has_changed_since_the_build_is_refused(tmp_path):
    with pytest.raises(
        posts.PostError,
        match="sft.md is not what the book was built with: run make book",
    ):
        posts.executed(ROOT / "book" / "posts" / "sft.md", tmp_path)


def test_a_description_reaches_search_engines_and_previews():
    context = dict(meta=dict(description='A "post" & more.'), metatags="")
    house.describe(None, "book/posts/x", "page.html", context, None)
    assert context["meta"]["og:description"] == 'A "post" & more.'
    assert (
        context["metatags"]
        == '<meta name="description" content="A &quot;post&quot; &amp; more." />\n'
    )
    for meta in (None, {}):
        context = dict(meta=meta, metatags="")
        house.describe(None, "book/x", "page.html", context, None)
        assert context == dict(meta=meta, metatags="")


# --- The built book -------------------------------------------------------------------

SITE = ROOT / "_build" / "html" / "book" / "posts"
in_the_built_book = pytest.mark.skipif(
    not STATES.exists() or not SITE.exists(),
    reason="the book has not been built as it is (make book)",
)


@pytest.mark.slow
@in_the_built_book
@each_post
def test_a_built_post_says_the_numbers_of_its_page_and_has_its_figure(page, tmp_path):
    links = posts.addresses(SITE.parents[1], "https://example.org")
    notebook = posts.executed(page, STATES)
    posts.write_post(notebook, tmp_path / page.name, links)
    text, built = (
        path.read_text(encoding="utf-8")
        for path in (tmp_path / page.name, SITE / f"{page.stem}.html")
    )
    # No directive, role or label is left; every image is there, every link says where
    # it leads
    assert not re.search(r"\{[\w:-]+\}`|^(`{3,}|:{3,})\{|^\(.*\)=$", text, re.M)
    assert re.findall(r"!\[[^\]]+\]\(([^)]*)\)", text) == [f"{page.stem}.png"]
    assert (tmp_path / f"{page.stem}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    targets = re.findall(r"(?<!!)\[[^\]\d]+\]\(([^)]*)\)", text)
    assert targets and all(target.startswith("https://") for target in targets)
    # Word for word what the page says
    words = html.unescape(re.sub(r"<[^>]*>", "", built))
    values = posts.glued(notebook)
    assert values and all(value in text and value in words for value in values.values())
    description = yaml.safe_load(page.read_text(encoding="utf-8").split("---\n")[1])[
        "description"
    ]
    for name in ('name="description"', 'property="og:description"'):
        (tag,) = re.findall(rf"<meta [^>]*{name}[^>]*>", built)
        assert html.unescape(re.search(r'content="([^"]*)"', tag)[1]) == description


@pytest.fixture(scope="module")
def trained():
    """The stages that each post has added, all run in one kernel, which takes seconds
    to start.
    """
    from nbclient import NotebookClient

    from posttrain.keep import store

    def stored():
        return set(store.stages_folder().glob("*.json"))

    added, before = {}, stored()
    environment = dict(PYTHONPATH=str(ROOT / "code"), BOOK_BUILD="1")
    client = NotebookClient(
        new_notebook(),
        timeout=3600,
        kernel_name="python3",
        resources=dict(metadata=dict(path=str(ROOT / "book" / "posts"))),
    )
    with client.setup_kernel(env={**os.environ, **environment}):
        for page in POSTS:
            client.nb = jupytext.read(page, fmt="md:myst")
            for index, each in enumerate(client.nb.cells):
                client.execute_cell(each, index)
            added[page], before = stored() - before, stored()
    return added


@pytest.mark.slow
@in_the_built_book
@each_post
def test_a_post_trains_nothing_that_the_chapters_have_not(trained, page):
    assert trained[page] == set()
