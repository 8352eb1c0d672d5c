"""Short runs on trial: what is read off a history."""

import pytest

from posttrain.lab.pretraining_trials import seconds_until

HISTORY = dict(seconds=[1.0, 2.0, 3.0, 4.0], validation=[2.5, 1.9, 1.8, 2.0])


@pytest.mark.parametrize("loss, seconds", [(2.0, 2.0), (1.9, 2.0), (1.8, 3.0)])
def test_the_time_to_a_loss_is_that_of_the_first_entry_at_or_below_it(loss, seconds):
    assert seconds_until(HISTORY, loss) == seconds


def test_a_loss_that_was_never_reached_has_no_time():
    with pytest.raises(ValueError, match="never came down to 1.7: it was 1.8"):
        seconds_until(HISTORY, 1.7)
