"""Tables: every cell stays text, and stages keep their colours."""

import re

from markup import parsed

from posttrain.show import BLUE, Table


def test_a_row_named_after_a_stage_is_marked_with_its_colour_and_no_other_cell():
    rows = [("PPO", "DPO"), ("seed 0", "PPO")]
    cells = [attributes.get("style", "") for tag, attributes in parsed(Table(("", "a"), rows))[0] if tag == "td" and "class" in attributes]
    assert cells == [f"border-left: 4px solid {BLUE}", "", "", ""]


def test_no_line_of_a_table_ends_within_an_interval_or_a_power_of_ten():
    shown = Table(("", "x"), [("80% [77%, 83%]", "<= 1e-06"), ("[a, b, c] <b>", "mute-12, 2.5e-4")])._repr_html_()
    whole = re.findall(r'<span class="whole">(.*?)</span>', shown)
    assert whole == ["[77%, 83%]", "1e-06", "2.5e-4"]
    assert "80% <span" in shown and "[a, b, c] &lt;b&gt;" in shown and "&lt;= <span" in shown


def test_a_note_stands_below_the_rows_with_its_code_marked_and_nothing_else():
    table = Table(("", "x"), [("a", 1)], note="Run `make <all>` & see <b>")
    note = "Run <code>make &lt;all&gt;</code> &amp; see &lt;b&gt;"
    foot = f'<tfoot><tr><td colspan="2">{note}</td></tr></tfoot></table>'
    assert table._repr_html_().endswith(foot)
    assert repr(table) == " | x\na | 1\nRun `make <all>` & see <b>"
    assert "tfoot" not in Table(("", "x"), [("a", 1)])._repr_html_()
