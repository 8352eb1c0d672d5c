"""What the PPO chapter draws: its diagram, pay against KL, an answer's numbers."""

from dataclasses import replace

import pytest
import torch
from tiny import LONG, judge, moved, seeded

from posttrain.chat import render_question
from posttrain.ppo import PPOConfig, assemble, collect_rollout
from posttrain.show import BLUE, GREY, Runs
from posttrain.show.figures_ppo import (
    ARROWS,
    BOXES,
    four_models,
    paid_and_meant,
    rollout_view,
)
from posttrain.tokenizer import CharTokenizer


def test_four_models_of_which_the_trained_two_are_heavy():
    (axis,) = four_models().axes
    frames = {text.get_text(): text.get_bbox_patch() for text in axis.texts}
    heavy = {name for name in BOXES if frames[name].get_linewidth() > 2}
    assert heavy == {name for name in BOXES if name.endswith("(trained)")}
    assert len(axis.texts) == len(BOXES) + len(ARROWS)


def test_pay_and_meaning_against_kl_end_in_a_ring():
    cards = [
        dict(kl=0.0, score=0.0, gold_score=0.1),
        dict(kl=4.0, score=1.5, gold_score=-0.5),
    ]
    run = Runs([dict(cards=cards)])
    axes = paid_and_meant({"with": run, "without": run}).axes
    assert len(axes) == 2
    for axis, end in zip(axes, (1.5, -0.5)):
        lines, rings = axis.lines[:2], axis.lines[2:]
        assert [line.get_color() for line in lines] == [BLUE, GREY]
        assert [[*ring.get_xydata()[0]] for ring in rings] == [[4.0, end]] * 2


def test_an_answers_rewards_sum_to_its_score_less_the_penalty():
    config = PPOConfig(batch_size=2, max_new_tokens=6)
    sft, other = moved(0, torch.float32, LONG), moved(2, torch.float32, LONG)
    models = assemble(sft, judge(1, torch.float32, LONG))
    # Let the policy differ from its reference, so that there is a KL to pay for
    models = replace(models, policy=other)
    asked = [render_question("Who goes there?", CharTokenizer())] * 2
    rollout = collect_rollout(models, asked, config, seeded())
    view = rollout_view({"first": (rollout, 1, 0.05)}, config)
    (answer,) = view.values["answers"]
    n = int(rollout.actions[1].sum())
    assert {len(values) for values in answer.values() if isinstance(values, list)} == {
        n
    }
    kl = sum(answer["log-probability"]) - sum(answer["reference"])
    paid = answer["score"] - 0.05 * kl
    assert sum(answer["reward"]) == pytest.approx(paid, abs=1e-4)
    assert answer["name"] == "first" and view.still.tokens == answer["tokens"]
