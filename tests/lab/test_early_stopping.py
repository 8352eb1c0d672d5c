"""Moments of a run, on a history written by hand."""

import pytest

from posttrain.lab.early_stopping import (
    at_step,
    entry,
    stop_at_least_loss,
    stop_in_format,
)

HISTORY = dict(
    step=[10, 20, 30, 40],
    conversation_loss=[2.5, 2.0, 2.0, 3.0],
    in_format=[0.1, 0.5, 0.95, 0.9],
    base_loss=1.5,
)


def test_an_entry_is_what_was_noted_at_one_time():
    first = dict(step=10, conversation_loss=2.5, in_format=0.1, base_loss=1.5)
    assert entry(HISTORY, 0) == first and entry(HISTORY)["step"] == 40
    assert at_step(HISTORY, 10) == first


def test_a_step_at_which_nothing_was_measured_is_refused():
    with pytest.raises(ValueError, match=r"no step 15: measured was at \[10, 20"):
        at_step(HISTORY, 15)


def test_the_least_loss_stops_at_the_first_of_equals():
    assert stop_at_least_loss(HISTORY)["step"] == 20


def test_a_share_in_format_stops_when_it_is_first_reached_and_else_at_the_end():
    assert stop_in_format(HISTORY)["step"] == 30
    assert stop_in_format(HISTORY, 0.5)["step"] == 20
    assert stop_in_format(HISTORY, 0.99)["step"] == 40
