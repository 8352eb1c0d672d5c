"""A view to play with: its values reach the page as text."""

import json

import pytest
from markup import parsed

from posttrain.chat import IGNORE
from posttrain.show import Interactive, TokenView

HOSTILE = ["<b>", '"', "'", "&amp;", "</div>", '"><img src=x onerror=y>', "<!--", "é"]


def test_a_view_to_play_with_carries_its_values_as_text_around_the_still_view():
    still = TokenView(["a", "b"], [IGNORE, 1])
    view = Interactive("mask", still, tokens=HOSTILE, surprise=[None, 0.5])
    (tag, attributes), *_ = parsed(view)[0]
    assert tag == "div" and attributes["class"] == "interactive" and attributes["data-kind"] == "mask"
    assert json.loads(attributes["data-values"]) == dict(tokens=HOSTILE, surprise=[None, 0.5])
    assert still._repr_html_() in view._repr_html_() and repr(view) == repr(still)
    with pytest.raises(ValueError):  # NaN is no JSON: a page could not read it
        Interactive("mask", still, surprise=[float("nan")])._repr_html_()
