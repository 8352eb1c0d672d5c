"""The judge that counts words: its scores by hand, its unit, and the run it pays."""

import pytest
import torch
from tiny import LONG, PAD, TOKENIZER, empty_shelf, moved, pair, same, seeded, weights

from posttrain.chat import render_question
from posttrain.lab import count_judge as module
from posttrain.lab.count_judge import CountJudge, paid_by_count
from posttrain.logprobs import pack
from posttrain.ppo import PPOConfig, collect_rollout
from posttrain.preference_pairs import encode_response

PAIRS = [
    pair("a", "Who?", "Kind sir, I.", "You, fool."),
    pair("b", "Why?", "So, kind sir.", "So, fool, fool."),
]


def scored(judge, *texts):
    asked = [render_question("Who?", TOKENIZER)] * len(texts)
    answers = [encode_response(text, TOKENIZER) for text in texts]
    return judge(*pack(asked, answers, PAD)).tolist()


def test_each_word_votes_every_time_it_occurs_and_the_prompt_does_not():
    # kind +2, sir +2, I +1, you -1, fool -2, so 0
    texts = ("Kind sir.", "Kind kind sir.", "Fool, you.", "So.", "Who? Nobody.")
    assert scored(CountJudge(PAIRS), *texts) == [4, 6, -3, 0, 0]


def test_its_zero_and_unit_are_the_sft_models_answers(monkeypatch, tmp_path):
    empty_shelf(monkeypatch, tmp_path)
    sft = moved(dtype=torch.float32, config=LONG)
    texts = ["Kind sir.", "Fool.", "So."]
    answers = (
        [render_question("Who?", TOKENIZER)] * 3,
        [encode_response(text, TOKENIZER) for text in texts],
    )
    asked = []

    def sample(*arguments):
        asked.append(arguments)
        return answers

    monkeypatch.setattr(module, "sample_answers", sample)
    monkeypatch.setattr(module.datasets, "preferences", lambda: PAIRS)
    monkeypatch.setattr(module.datasets, "training_prompts", lambda: ["Why?"])
    models = paid_by_count(sft, 3)
    assert asked == [(sft, ["Why?"], 3)]
    raw = torch.tensor([4.0, -2.0, 0.0])
    expected = ((raw - raw.mean()) / raw.std()).tolist()
    assert scored(models.reward_model, *texts) == pytest.approx(expected, abs=1e-6)
    # Four models: a copy, values of 0, and the SFT model as the reference
    assert models.reference is sft and models.policy is not sft
    assert same(weights(sft), models.policy)
    rollout = collect_rollout(models, answers[0], PPOConfig(max_new_tokens=6), seeded())
    assert (rollout.values == 0).all() and models.value_model.body is not sft
