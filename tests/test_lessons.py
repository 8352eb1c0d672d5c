"""The lessons keep to their budget: words, code that is shown, intervals."""

import re
from pathlib import Path

import house
import pytest
from test_show import prose, shown

from posttrain.show import show_source

ROOT = Path(__file__).resolve().parent.parent
LESSONS = ("pretraining", "sft", "reward", "ppo", "dpo", "comparison")
WORDS, LINES, INTERVALS = 2500, 150, 12
SITE = ROOT / "_build" / "html" / "book"
INTERVAL = re.compile(r"\[[-+\u2212]?\d[\d.,]*%?, [-+\u2212]?\d[\d.,]*%?\]")
each_lesson = pytest.mark.parametrize("name", LESSONS)


def page(name):
    return ROOT / "book" / f"{name}.md"


def code_shown(path):
    """The lines of code that a reader sees or can open: cells, and listings."""
    lines = []
    for cell in house.CELL.findall(path.read_text(encoding="utf-8")):
        options = house.CELL_OPTIONS.match(cell)
        hidden = options and re.search("remove-(?:cell|input)", options[0])
        if not hidden:
            lines += house.CELL_OPTIONS.sub("", cell).splitlines()
    for listing in shown(path):
        lines += show_source(listing).code.splitlines()
    return [line for line in lines if line.strip()]


@each_lesson
def test_a_lesson_is_read_in_half_an_hour(name):
    assert len(prose(page(name)).split()) <= WORDS
    assert len(code_shown(page(name))) <= LINES


@each_lesson
@pytest.mark.skipif(not SITE.exists(), reason="the book has not been built (make book)")
def test_a_lesson_shows_few_intervals(name):
    html = (SITE / f"{name}.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]*>", "", html.split("<article", 1)[1])
    assert len(INTERVAL.findall(text)) <= INTERVALS


@each_lesson
def test_a_lesson_opens_with_its_story_and_ends_with_what_comes_next(name):
    text = page(name).read_text(encoding="utf-8")
    for heading in ("Key concepts", "Can you explain it?", "Verification"):
        assert f"\n## {heading}\n" in text
    assert "**Your turn.**" in text and "Change one thing" in text
    assert "\n**Next:**" in text and f"{{ref}}`lab-{name}`" in text.replace(
        "its laboratory <lab-", "lab-"
    ).replace(">`", "`").replace("`lab-", "{ref}`lab-").replace("{ref}{ref}", "{ref}")


def test_an_interval_is_known_when_it_is_seen():
    text = "75% [68%, 81%], +0.03 [-0.01, +0.07], [1, 2] and [Ouyang et al., 2022]"
    assert INTERVAL.findall(text) == ["[68%, 81%]", "[-0.01, +0.07]", "[1, 2]"]
