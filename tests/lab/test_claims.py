"""The claims: computed from a record by hand, seed by seed."""

import pytest

from posttrain.lab import claims as module
from posttrain.lab.claims import HEADER, Claim, claims, table
from posttrain.lab.evidence import Recorded


def card(*gold, finished=1.0, kl=2.0):
    return dict(
        gold=list(gold), gold_score=sum(gold) / len(gold), finished=finished, kl=kl
    )


def policy(*cards, **more):
    return dict(cards=list(cards), **more)


def fine_tuned(in_format, loss):
    return dict(in_format=in_format, shakespeare_loss=loss, base_loss=1.5)


SFT = card(0.0, 1.0)
DPO = [
    dict(accuracy=0.5, chosen_logprob=-10.0),
    dict(accuracy=0.8, chosen_logprob=-12.0),
]
RECORDS = dict(
    sft=dict(
        replay=[fine_tuned([0.9], [1.6]), fine_tuned([1.0], [1.7])],
        plain=[
            fine_tuned([0.0] * 4 + [0.5] + [1.0] * 5, [3.0]),
            fine_tuned([0.0] * 4 + [0.25] + [1.0] * 5, [1.6]),
        ],
        **{
            "no mask": [fine_tuned([0.25, 1.0], [3.0]), fine_tuned([0.5, 1.0], [3.0])],
            "gentle": [fine_tuned([1.0], [1.0])],
        },
    ),
    reward={
        "18 pairs": [
            dict(heldout_accuracy=0.7, elsewhere_accuracy=0.5, train_accuracy=1.0),
            dict(heldout_accuracy=0.95, elsewhere_accuracy=1.0, train_accuracy=0.9),
        ],
        "last token alone": [dict(elsewhere_accuracy=0.25), dict(elsewhere_accuracy=1)],
        "3 labels flipped": [dict(heldout_accuracy=0.8), dict(heldout_accuracy=0.9)],
    },
    ppo={
        "PPO": [
            policy(SFT, card(9.0), card(2.0, 3.0, kl=13.0)),
            policy(SFT, card(1.0, 0.0, finished=0.9)),
        ],
        "no penalty": [
            policy(SFT, card(4.0), card(1.0, 1.0)),
            policy(SFT, card(0.25, 0.0), card(3.0, 3.0)),
        ],
    },
    dpo={
        "DPO": [
            policy(SFT, card(0.0, 2.0), heldout=DPO),
            policy(SFT, card(0.0, 0.0, finished=0.9), heldout=DPO[::-1]),
        ],
        "on-policy DPO": [policy(SFT, card(1.0, 1.0)), policy(SFT, card(1.0, 2.0))],
        "elsewhere": [policy(SFT, dict(win_rate=0.5)), policy(SFT, dict(win_rate=0.5))],
        "neither": [policy(SFT, dict(kl=5.0)), policy(SFT, dict(kl=1.0))],
        "chosen answers alone": [dict(heldout=[dict(accuracy=0.7)])] * 2,
    },
    best_of_n={
        "best of n": [
            policy(card(0.0, 0.0), card(2.0, 2.0)),
            policy(card(1.0, 1.0), card(0.0, 0.0)),
        ]
    },
    base=dict(base=[policy(card(-1.0, -1.0)), policy(card(0.0, 1.0))]),
    rivals={
        "constant": [policy(SFT, dict(win_rate=0.875))],
        "courteous": [policy(SFT, dict(win_rate=0.625))],
        "count": [policy(SFT, dict(win_rate=0.1))],
    },
    small_world={
        "PPO": [dict(history=[dict(tv=0.5), dict(tv=0.01)])],
        "k1": [dict(history=[dict(tv=9.0)])],
        "DPO": [dict(history=[dict(tv=0.03)])],
    },
)
EXPECTED = {
    "plain SFT: held-out questions in format": [1.0, 1.0],
    "SFT with replay: held-out questions in format": [0.9, 1.0],
    "plain SFT forgets: rise of Shakespeare's loss (nats)": [1.5, 0.1],
    "replay cures it: rise of Shakespeare's loss (nats)": [0.1, 0.2],
    "after 50 steps the mask has brought more into format (share)": [0.25, -0.25],
    "its own 18 pairs ranked right": [1.0, 0.9],
    "held-out pairs ranked right": [0.7, 0.95],
    "pairs from elsewhere are ranked worse (share)": [0.2, -0.05],
    "comparing at every token helps on those (share)": [0.25, 0.0],
    "three wrong labels of eighteen cost something (share)": [-0.1, 0.05],
    "PPO: gold score rises": [2.0, 0.0],
    "PPO: won against SFT": [1.0, 0.5],
    "PPO: answers finished": [1.0, 0.9],
    "PPO: KL to the SFT model (nats per answer)": [13.0, 2.0],
    "without the KL penalty the gold score ends below its peak": [3.0, 0.0],
    "without the KL penalty the gold score ends below PPO's with it": [1.5, -2.5],
    "DPO: won against SFT": [0.75, 0.25],
    "DPO: answers finished": [1.0, 0.9],
    "DPO: KL to the SFT model (nats)": [2.0, 2.0],
    "DPO: held-out pairs ranked right": [0.8, 0.5],
    "DPO ranks more than imitation": [0.1, -0.2],
    "own answers' pairs win more than others": [0.25, -0.25],
    "DPO without brakes goes farther (nats)": [3.0, -1.0],
    "on-policy DPO: won against SFT": [0.75, 1.0],
    "on-policy DPO: answers finished": [1.0, 1.0],
    "on-policy DPO beats DPO on pairs": [0.5, 1.0],
    "64 words: PPO's total variation to the optimum": [0.01],
    "64 words: DPO's total variation to the optimum": [0.03],
    "SFT wins against the base model": [1.0, 0.5],
    "best of 16 has more gold than best of 1": [2.0, -1.0],
    "best of 16 wins against SFT": [1.0, 0.25],
    "PPO wins against best of 16": [0.75, 0.75],
    "PPO wins against DPO on pairs": [1.0, 0.75],
    "PPO wins against on-policy DPO": [1.0, 0.25],
    "a dull rival, one sentence for all: won against SFT": [0.875],
    "a dull rival, courteous conversations alone: won against SFT": [0.625],
}


@pytest.fixture
def record(monkeypatch):
    monkeypatch.setattr(module, "read", lambda name: Recorded(name, RECORDS[name]))


def test_every_claim_has_the_numbers_that_its_seeds_gave(record):
    found = claims()
    assert {claim.what: claim.values for claim in found} == {
        what: pytest.approx(values) for what, values in EXPECTED.items()
    }
    chapters = [claim.chapter for claim in found]
    assert chapters == sorted(chapters) and len(found) == len(EXPECTED) == 36


def test_a_row_says_bar_aim_and_in_how_many_seeds_each_holds():
    with_aim = Claim(3, "so", ">=", 0.65, [0.6, 0.7, 0.95], aim=0.9)
    strict = Claim(4, "no", "<", 0.5, [0.5, 0.25])
    assert table([with_aim, strict]) == [
        (3, "so", ">= 0.65", "2 of 3", ">= 0.9: 1 of 3", "0.6", "0.7", "0.95"),
        (4, "no", "< 0.5", "1 of 2", "", "0.25", "0.375", "0.5"),
    ]
    assert len(HEADER) == len(table([strict])[0])


def test_differences_are_those_of_the_seeds_that_both_have():
    assert module.less([3.0, 2.0, 1.0], [1.0, 1.0]) == [2.0, 1.0]
