"""Claims: a bar fails the build, an aim is only shown."""

import pytest

from posttrain.show import CheckFailed, verify


def test_claims_are_shown_with_their_bars():
    table = verify(("loss (nats)", 0.6931471, "<=", 1e-6 + 0.7), ("won", 2, "==", 2))
    assert repr(table).replace("\xa0", " ").splitlines() == [
        "claim | measured | bar | result",
        "loss (nats) | 0.6931 | <= 0.700001 | ✓ holds",
        "won | 2 | == 2 | ✓ holds",
    ]


def test_an_aim_has_a_column_of_its_own_and_fails_nothing():
    claims = [("a", 0.78, ">=", 0.75, 0.8), ("b", 0.9, ">=", 0.75, 0.8), ("c", 1, ">", 0)]
    assert repr(verify(*claims)).replace("\xa0", " ").splitlines() == [
        "claim | measured | bar | result | aim",
        "a | 0.78 | >= 0.75 | ✓ holds | >= 0.8: missed",
        "b | 0.9 | >= 0.75 | ✓ holds | >= 0.8: met",
        "c | 1 | > 0 | ✓ holds | ",
    ]


@pytest.mark.parametrize("value", [0.7, float("nan")])
def test_a_claim_below_its_bar_fails_and_is_named(value):
    with pytest.raises(CheckFailed, match="did not hold(.|\n)*lost .*FAILS .*missed"):
        verify(("kept FAILS", 1, ">", 0), ("lost", value, ">=", 0.75, 0.8))


def test_a_claim_may_be_named_fails():
    assert "FAILS | 1" in repr(verify(("FAILS", 1, ">", 0)))
