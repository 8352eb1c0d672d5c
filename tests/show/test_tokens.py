"""The views: what a page shows, what is read aloud, and that no token is markup."""

import pytest
import torch
from markup import cells_of, parsed

from posttrain.chat import IGNORE, build_labels, render
from posttrain.show import ScoreView, TokenTable, TokenView, shade
from posttrain.show.tokens import (
    GRADED_STYLE,
    SPECIAL_STYLE,
    SPOKEN_STYLE,
    UNGRADED_STYLE,
)
from posttrain.tokenizer import CharTokenizer

HOSTILE = [
    "<script>alert(1)</script>",
    '"',
    "'",
    "&amp;",
    "<",
    ">",
    "</mark>",
    '"><img src=x onerror=y>',
    "<!--",
    "é",
]


def test_a_view_shows_every_token_with_its_label_and_says_what_is_graded():
    tokens, labels = (
        ["<|user|>", "H", "<|assistant|>", "A", "y", "<|end|>"],
        [IGNORE] * 3 + [13, 63, 67],
    )
    view = TokenView(tokens, torch.tensor(labels))
    tags, texts = parsed(view)
    assert texts == [
        (SPOKEN_STYLE, None, "not graded: "),
        (SPECIAL_STYLE, "label -100", "<|user|>"),
        ("", "label -100", "H"),
        (SPECIAL_STYLE, "label -100", "<|assistant|>"),
        (SPOKEN_STYLE, None, "graded: "),
        ("", "label 13", "A"),
        ("", "label 63", "y"),
        (SPECIAL_STYLE, "label 67", "<|end|>"),
    ]
    styles = (GRADED_STYLE, UNGRADED_STYLE)
    runs = [
        (tag, attributes["style"])
        for tag, attributes in tags
        if attributes.get("style") in styles
    ]
    assert runs == [("span", UNGRADED_STYLE), ("mark", GRADED_STYLE)]
    assert repr(view) == "<|user|>H<|assistant|>[Ay<|end|>]"
    assert view.runs() == [
        (False, list(zip(tokens, labels))[:3]),
        (True, list(zip(tokens, labels))[3:]),
    ]


def test_a_hostile_token_stays_text():
    view = TokenView(HOSTILE, [IGNORE, 1] * (len(HOSTILE) // 2))
    tags, texts = parsed(view)
    assert [text for style, title, text in texts if title] == HOSTILE
    assert {tag.removeprefix("/") for tag, _ in tags} == {"p", "span", "mark"}
    assert all(set(attributes) <= {"class", "style", "title"} for _, attributes in tags)


def test_every_tag_is_closed_in_turn():
    opened = []
    for tag, _ in parsed(
        TokenView(list("Ay, no."), [IGNORE, 1, 1, IGNORE, IGNORE, 2, IGNORE])
    )[0]:
        if tag.startswith("/"):
            assert opened.pop() == tag[1:]
        else:
            opened.append(tag)
    assert opened == []


def test_runs_alternate_between_graded_and_not_and_lose_nothing():
    labels = [5, 6, IGNORE, 7, IGNORE, IGNORE, 0]
    view = TokenView("abcdefg", labels)
    texts = [
        (graded, "".join(token for token, _ in run)) for graded, run in view.runs()
    ]
    assert texts == [
        (True, "ab"),
        (False, "c"),
        (True, "d"),
        (False, "ef"),
        (True, "g"),
    ]
    assert repr(view) == "[ab]c[d]ef[g]"
    assert [text for _, title, text in parsed(view)[1] if not title] == [
        "graded: ",
        "not graded: ",
    ] * 2 + ["graded: "]


def test_a_newline_is_kept_where_the_page_keeps_white_space():
    view = TokenView(["a", "\n", " ", "b"], [IGNORE] * 4)
    tags, texts = parsed(view)
    assert "".join(text for _, title, text in texts if title) == "a\n b" == repr(view)
    assert tags[0][0] == "p" and "white-space: pre-wrap" in tags[0][1]["style"]


def test_a_view_without_tokens_is_empty():
    assert repr(TokenView([], [])) == "" and parsed(TokenView([], []))[1] == []


def test_a_conversations_view_grades_what_its_labels_grade():
    tokenizer = CharTokenizer()
    turns = [
        dict(role="user", content="Hi?"),
        dict(role="assistant", content="Ay."),
        dict(role="user", content="So?"),
    ]
    ids = render(turns, tokenizer)
    view = TokenView(
        [tokenizer.decode([token]) for token in ids], build_labels(ids, tokenizer)
    )
    assert repr(view) == "<|user|>Hi?<|assistant|>[Ay.<|end|>]<|user|>So?"


# A number per token


def declared(style):
    """A style's declarations, by property."""
    return dict(
        declaration.strip().split(": ", 1)
        for declaration in style.split(";")
        if declaration.strip()
    )


def test_the_sign_of_a_number_is_told_by_colour_and_by_line_and_its_size_by_strength():
    above, below = declared(shade(0.5, 2.0)), declared(shade(-0.5, 2.0))
    assert above == {
        "background": "rgba(0, 114, 178, 0.14)",
        "border-bottom": "2px solid rgb(0, 114, 178)",
    }
    assert below == {
        "background": "rgba(213, 94, 0, 0.14)",
        "border-bottom": "2px dashed rgb(213, 94, 0)",
    }
    assert declared(shade(2.0, 2.0))["background"].endswith(" 0.55)")


def test_a_score_view_shows_every_token_with_its_number_and_says_each_words_last():
    tokens, scores = (
        ["A", "y", ",", " ", "n", "o", "."],
        [1.0, -4.0, 0.25, 0.5, -1.0, 2.0, -0.04],
    )
    view = ScoreView(tokens, torch.tensor(scores))
    tags, texts = parsed(view)
    titles = ["+1.00", "-4.00", "+0.25", "+0.50", "-1.00", "+2.00", "-0.04"]
    shown = [
        (f"{shade(x, 4.0)}; padding: 0.15em 0", title, token)
        for x, title, token in zip(view.scores, titles, tokens)
    ]
    assert texts == [
        *shown[:4],
        (SPOKEN_STYLE, None, "(+0.5) "),
        *shown[4:],
        (SPOKEN_STYLE, None, "(-0.0) "),
    ]
    lines = [declared(style)["border-bottom"].split()[1] for style, _, _ in shown]
    assert lines == ["solid", "dashed", "solid", "solid", "dashed", "solid", "dashed"]
    assert repr(view) == "Ay, [+0.50]no.[-0.04]"
    assert tags[0][0] == "p" and "white-space: pre-wrap" in tags[0][1]["style"]


def test_a_word_ends_with_each_space_and_with_the_text():
    view = ScoreView("ab c  d ", range(8))
    assert [(text, [score for _, score in word]) for text, word in view.words()] == [
        ("ab ", [0, 1, 2]),
        ("c ", [3, 4]),
        (" ", [5]),
        ("d ", [6, 7]),
    ]
    assert "".join(text for text, _ in view.words()) == "ab c  d "


@pytest.mark.parametrize("scores", [[], [0.0, 0.0]], ids=["no tokens", "zeros"])
def test_views_and_tables_without_a_largest_number_divide_by_no_zero(scores):
    tokens = "ab"[: len(scores)]
    assert [
        text for _, title, text in parsed(ScoreView(tokens, scores))[1] if title
    ] == list(tokens)
    assert len(cells_of(TokenTable(tokens, dict(x=scores), "c"))) == 1 + len(scores)


TABLE = TokenTable(
    ["A", " ", "<|end|>"],
    {"reward": [0.5, -1.0, 0.0], "A & B": [-20.0, 5.0, 10.0]},
    'says "<b>"',
)


def test_a_table_has_a_row_per_token_with_its_position_its_text_and_every_number():
    header, *body = cells_of(TABLE)
    assert [(tag, attributes["scope"], text) for tag, attributes, text in header] == [
        ("th", "col", name) for name in ("position", "token", "reward", "A & B")
    ]
    assert (
        [[text for _, _, text in row] for row in body]
        == TABLE.rows()
        == [
            ["0", "A", "+0.500", "-20.000"],
            ["1", "(space)", "-1.000", "+5.000"],
            ["2", "<|end|>", "+0.000", "+10.000"],
        ]
    )
    for row in body:
        tags = [(tag, attributes.get("scope")) for tag, attributes, _ in row]
        assert tags == [("td", None), ("th", "row"), ("td", None), ("td", None)]


def test_each_column_is_shaded_by_its_own_largest_number():
    _, *body = cells_of(TABLE)
    assert [[attributes["style"] for _, attributes, _ in row[2:]] for row in body] == [
        [shade(0.5, 1.0), shade(-20.0, 20.0)],
        [shade(-1.0, 1.0), shade(5.0, 20.0)],
        [shade(0.0, 1.0), shade(10.0, 20.0)],
    ]


def test_a_tables_caption_is_its_name_and_it_can_be_scrolled_by_keyboard():
    tags, texts = parsed(TABLE)
    tag, attributes = tags[0]
    assert (tag, attributes["role"], attributes["tabindex"]) == ("div", "region", "0")
    assert (
        attributes["aria-label"] == 'says "<b>"'
        and "overflow: auto" in attributes["style"]
    )
    assert (None, None, 'says "<b>"') in texts and ("caption", {}) in tags


def test_a_table_in_plain_text():
    assert repr(TABLE).splitlines() == [
        "position | token | reward | A & B",
        "0 | A | +0.500 | -20.000",
        "1 | (space) | -1.000 | +5.000",
        "2 | <|end|> | +0.000 | +10.000",
    ]


@pytest.mark.parametrize("n", [0, 2, 4])
def test_a_column_of_another_length_is_refused_by_name(n):
    with pytest.raises(ValueError, match=f"^kl has {n} values, for 3 tokens$"):
        TokenTable("abc", dict(reward=[1, 2, 3], kl=range(n)), "")


def test_hostile_tokens_names_and_captions_stay_text_in_views_and_tables():
    view = ScoreView(HOSTILE, range(len(HOSTILE)))
    tags, texts = parsed(view)
    assert [text for _, title, text in texts if title] == HOSTILE
    assert {tag.removeprefix("/") for tag, _ in tags} == {"p", "span"}
    table = TokenTable(
        HOSTILE, {name: range(len(HOSTILE)) for name in HOSTILE}, "".join(HOSTILE)
    )
    header, *body = cells_of(table)
    assert [text for _, _, text in header[2:]] == HOSTILE == [row[1][2] for row in body]
    tags, texts = parsed(table)
    assert {tag.removeprefix("/") for tag, _ in tags} == {
        "div",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "td",
        "th",
    }
    assert (None, None, "".join(HOSTILE)) in texts and tags[0][1][
        "aria-label"
    ] == "".join(HOSTILE)
    for _, attributes in tags:
        assert set(attributes) <= {
            "class",
            "style",
            "scope",
            "role",
            "aria-label",
            "tabindex",
        }


def test_zero_is_shaded_neither_way():
    style = shade(0.0, 1.0)
    assert "background" not in style and "solid" not in style and "dashed" not in style


def test_a_score_view_refuses_another_number_of_scores_than_tokens():
    with pytest.raises(ValueError, match="2 scores do not fit 3 tokens"):
        ScoreView(["a", "b", "c"], [0.1, 0.2])
