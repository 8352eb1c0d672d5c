"""The token view: what a page shows, what a screen reader says, and that no token becomes markup."""

from html.parser import HTMLParser

import torch

from posttrain.chat import IGNORE, build_labels, render
from posttrain.notebook import (
    GRADED_STYLE,
    SPECIAL_STYLE,
    SPOKEN_STYLE,
    UNGRADED_STYLE,
    TokenView,
)
from posttrain.tokenizer import CharTokenizer

HOSTILE = ["<script>alert(1)</script>", '"', "'", "&amp;", "<", ">", "</mark>", '"><img src=x onerror=y>', "<!--", "é"]


def parsed(view):
    """A view's HTML, read again: (tags, texts), each text as (style, title, text)."""
    tags, texts = [], []

    def start(tag, attributes):
        tags.append((tag, dict(attributes)))

    parser = HTMLParser(convert_charrefs=True)
    parser.handle_starttag = start
    parser.handle_endtag = lambda tag: tags.append((f"/{tag}", {}))
    parser.handle_comment = parser.handle_decl = parser.handle_pi = lambda text: tags.append((text, {}))
    parser.handle_data = lambda text: texts.append((tags[-1][1].get("style"), tags[-1][1].get("title"), text))
    parser.feed(view._repr_html_())
    parser.close()
    return tags, texts


def test_a_view_shows_every_token_with_its_label_and_says_what_is_graded():
    tokens, labels = ["<|user|>", "H", "<|assistant|>", "A", "y", "<|end|>"], [IGNORE] * 3 + [13, 63, 67]
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
    runs = [(tag, attributes["style"]) for tag, attributes in tags if attributes.get("style") in styles]
    assert runs == [("span", UNGRADED_STYLE), ("mark", GRADED_STYLE)]
    assert repr(view) == "<|user|>H<|assistant|>[Ay<|end|>]"
    assert view.runs() == [(False, list(zip(tokens, labels))[:3]), (True, list(zip(tokens, labels))[3:])]


def test_a_hostile_token_stays_text():
    view = TokenView(HOSTILE, [IGNORE, 1] * (len(HOSTILE) // 2))
    tags, texts = parsed(view)
    assert [text for style, title, text in texts if title] == HOSTILE
    assert {tag.removeprefix("/") for tag, _ in tags} == {"p", "span", "mark"}
    assert all(set(attributes) <= {"class", "style", "title"} for _, attributes in tags)


def test_every_tag_is_closed_in_turn():
    opened = []
    for tag, _ in parsed(TokenView(list("Ay, no."), [IGNORE, 1, 1, IGNORE, IGNORE, 2, IGNORE]))[0]:
        if tag.startswith("/"):
            assert opened.pop() == tag[1:]
        else:
            opened.append(tag)
    assert opened == []


def test_runs_alternate_between_graded_and_not_and_lose_nothing():
    labels = [5, 6, IGNORE, 7, IGNORE, IGNORE, 0]
    view = TokenView("abcdefg", labels)
    assert [(graded, "".join(token for token, _ in run)) for graded, run in view.runs()] == [
        (True, "ab"), (False, "c"), (True, "d"), (False, "ef"), (True, "g"),
    ]  # fmt: skip
    assert repr(view) == "[ab]c[d]ef[g]"
    assert [text for _, title, text in parsed(view)[1] if not title] == ["graded: ", "not graded: "] * 2 + ["graded: "]


def test_a_newline_is_kept_where_the_page_keeps_white_space():
    view = TokenView(["a", "\n", " ", "b"], [IGNORE] * 4)
    tags, texts = parsed(view)
    assert "".join(text for _, title, text in texts if title) == "a\n b" == repr(view)
    assert tags[0][0] == "p" and "white-space: pre-wrap" in tags[0][1]["style"]


def test_a_view_without_tokens_is_empty():
    assert repr(TokenView([], [])) == "" and parsed(TokenView([], []))[1] == []


def test_a_conversations_view_grades_what_its_labels_grade():
    tokenizer = CharTokenizer()
    turns = [dict(role="user", content="Hi?"), dict(role="assistant", content="Ay."), dict(role="user", content="So?")]
    ids = render(turns, tokenizer)
    view = TokenView([tokenizer.decode([token]) for token in ids], build_labels(ids, tokenizer))
    assert repr(view) == "<|user|>Hi?<|assistant|>[Ay.<|end|>]<|user|>So?"
