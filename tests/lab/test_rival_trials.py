"""Dull ways to win: what each says, by what it chooses or learns, and against whom it
is judged.
"""

import copy
import math
import types
from dataclasses import replace

import pytest
import torch
from tiny import (
    CORPUS,
    END,
    LONG,
    PAD,
    TOKENIZER,
    empty_shelf,
    judge,
    moved,
    pair,
    same,
    seeded,
    user,
    weights,
)

from posttrain.chat import ask
from posttrain.data import datasets
from posttrain.evaluate import gold_score, win_rate
from posttrain.keep.store import UNKEPT, Stage
from posttrain.lab import policy_trials
from posttrain.lab import rival_trials as module
from posttrain.lab import scorecard as scorecards
from posttrain.lab.rival_trials import (
    CONSTANT,
    WAYS,
    RivalTrial,
    best_by_count,
    constant,
    courteous_only,
    rival_trial,
)
from posttrain.lab.scorecard import judge_answers, lexicon, scorecard, start_scorecard
from posttrain.reward_model import RewardConfig, score_answer
from posttrain.sft import SFTConfig, encode_conversations, sft_steps
from posttrain.stages import encode_split

PROMPTS = ["Who?", "Where is the duke?", "Say", "Why so?", "Ay"]
# Letters stand for words: an untrained model says some of them alone
WRITTEN = [
    pair("a", "Who?", "a b c d e f g h", "n o p q"),
    pair("b", "Say", "a i u x y z, A!", "n r s t v w"),
]


def talk(manner, question, answer):
    messages = [user(question), dict(role="assistant", content=answer)]
    return dict(id=question, manner=manner, messages=messages)


TALKS = [
    talk("blunt", "Who?", "I, churl."),
    talk("courteous", "What", "My sir, ay."),
    talk("courteous", "Now", "So be it, sir."),
    talk("blunt", "Where", "No, no, no."),
    talk("courteous", "Why", "To be, my sir."),
]
CONFIG = SFTConfig(
    steps=4,
    batch_size=2,
    muon_lr=0.02,
    adamw_lr=0.01,
    replay_length=32,
    evaluations=1,
    seed=9,  # a run's seed is not this one
)
TRIAL = RivalTrial(n=3, config=CONFIG)
START = dict(gold=[0.0, 1.0, 2.0, 3.0, -1.0])


@pytest.fixture(autouse=True)
def small_data(monkeypatch, tmp_path):
    empty_shelf(monkeypatch, tmp_path)
    rows = dict(heldout_prompts=PROMPTS, preferences=WRITTEN, conversations=TALKS)
    rows["elsewhere_preferences"] = WRITTEN
    for name, some in rows.items():
        monkeypatch.setattr(datasets, name, lambda some=some: some)


@pytest.fixture
def tried(monkeypatch):
    """Tiny models of two seeds, given out themselves and not as copies."""
    float32 = torch.float32
    tried = types.SimpleNamespace(
        sft={seed: moved(seed, float32, LONG) for seed in (0, 3)},
        judge={seed: judge(seed + 5, float32, LONG) for seed in (0, 3)},
    )

    def finds(models, kind):
        def find(corpus, config):
            assert corpus is CORPUS and config == kind(seed=config.seed)
            return models[config.seed], {}

        return find

    monkeypatch.setattr(policy_trials, "sft_model", finds(tried.sft, SFTConfig))
    monkeypatch.setattr(policy_trials, "reward_model", finds(tried.judge, RewardConfig))
    return tried


# Settings


def test_a_way_that_is_not_known_is_refused_by_its_name():
    problem = r"way is 'ppo': use one of \('constant', 'count', 'courteous'\)"
    with pytest.raises(ValueError, match=f"^{problem}$"):
        RivalTrial(way="ppo")
    assert [RivalTrial(way=way).way for way in WAYS] == list(WAYS)
    with pytest.raises(ValueError, match="^n is 0: use at least 1"):
        RivalTrial("count", n=0)


# One sentence


def test_the_constant_rival_says_one_sentence_to_all(tried):
    card = constant(CORPUS, RivalTrial("constant"), 3, START)
    assert card["answers"] == ["Gladly, my kind sir.<|end|>"] * 5
    assert (card["finished"], card["different"]) == (1, 1 / 5)
    # Three different pairs of neighbours, in each of five answers
    assert card["distinct"] == 3 / 15
    # "my" and "sir" stand in the conversations, "gladly" and "kind" nowhere
    assert card["non_words"] == 1 / 2
    # Full courtesy, for three words, less twice the share of what is no word
    assert card["gold"] == [0.0] * 5 and card["gold_score"] == 0
    assert not {"kl", "entropy"} & card.keys()


@pytest.mark.parametrize("seed", [0, 3])
def test_the_constant_rival_is_scored_after_each_prompt_by_the_judge_of_the_seed(
    tried, seed
):
    card = constant(CORPUS, RivalTrial("constant"), seed, START)
    alone = [score_answer(tried.judge[seed], prompt, CONSTANT) for prompt in PROMPTS]
    assert card["scores"] == pytest.approx(alone, abs=1e-5)
    assert card["score"] == pytest.approx(sum(alone) / 5, abs=1e-5)
    assert len({round(score, 3) for score in alone}) > 1


# A count of words


def test_the_best_by_count_keeps_the_reward_models_score_of_the_pick(
    monkeypatch, tried
):
    drawn = [
        ["a.", "a b.", "n."],  # the second, which is scored lowest
        ["q", "p", "n"],  # the first of two that are equal, below 0
        ["z?", "a", "a a a"],  # the second of three: "a" has two votes
        ["hm", "hm.", "oh"],  # nothing to count: the first
        ["n", "o", "a x"],  # the last
    ]
    scores = [
        [2.0, -1.5, 3.0],
        [0.25, 5.0, 1.0],
        [1.0, 0.5, 4.0],
        [-2.0, 0.0, 1.0],
        [3.0, 2.0, -4.0],
    ]
    asked = []

    def draw(*given):
        asked.append(given)
        answers = [[TOKENIZER.encode(text) for text in row] for row in drawn]
        return answers, torch.tensor(scores)

    monkeypatch.setattr(module, "draw_answers", draw)
    card = best_by_count(CORPUS, replace(TRIAL, way="count"), 3, START)
    assert card["answers"] == ["a b.", "q", "a", "hm", "a x"]
    assert card["scores"] == [-1.5, 0.25, 0.5, -2.0, -4.0]
    assert card["score"] == pytest.approx(-6.75 / 5)
    assert card["gold"] == [gold_score(a, lexicon(CORPUS)) for a in card["answers"]]
    assert asked == [(tried.sft[3], tried.judge[3], PROMPTS, 3, 3)]


@pytest.mark.parametrize(("seed", "n"), [(3, 3), (0, 6)])
def test_the_best_by_count_is_the_best_of_n_answers_when_all_are_asked_for(
    tried, seed, n
):
    card = best_by_count(CORPUS, replace(TRIAL, way="count", n=n), seed, START)
    questions = [prompt for prompt in PROMPTS for _ in range(n)]
    texts = ask(
        tried.sft[seed], questions, generator=seeded(seed), max_new_tokens=96
    )  # as long as a scorecard's
    votes = dict.fromkeys("bcdefghiuxyz", 1) | dict.fromkeys("opqrstvw", -1)
    votes |= dict(a=2, n=-2)
    picked, counted = [], []
    for first in range(0, len(texts), n):
        some = texts[first : first + n]
        counts = [
            sum(votes[letter] for letter in votes if letter in alone(text))
            for text in some
        ]
        picked.append(some[counts.index(max(counts))])
        counted.append(counts)
    assert card["answers"] == picked
    assert any(row.index(max(row)) > 0 for row in counted)
    by_hand = [
        scored(tried.judge[seed], *both) for both in zip(PROMPTS, picked, strict=True)
    ]
    assert card["scores"] == pytest.approx(by_hand, abs=1e-4)
    assert not {"kl", "entropy"} & card.keys()


def alone(text):
    """The letters that stand in a text by themselves, without its special tokens."""
    for token in TOKENIZER.tokens[-4:]:
        text = text.replace(token, " ")
    plain = "".join(c if c.isalpha() or c == "'" else " " for c in text.lower())
    return {word for word in plain.split() if len(word) == 1}


def scored(model, prompt, answer):
    """The reward model's score of a text in which special tokens are spelt out."""
    ids = [TOKENIZER.user, *TOKENIZER.encode(prompt), TOKENIZER.assistant]
    while answer:
        token = next(
            (each for each in TOKENIZER.tokens[-4:] if answer.startswith(each)),
            answer[0],
        )
        ids.append(TOKENIZER.ids[token])
        answer = answer.removeprefix(token)
    with torch.no_grad():
        return model.token_scores(torch.tensor([ids]))[0, -1].item()


# Courteous conversations alone


@pytest.fixture
def cards(monkeypatch):
    """What the cards were about; each holds gold scores alone."""
    cards = []

    def card(policy, *rest):
        cards.append((weights(policy), *rest))
        return dict(gold=[1.0, 1.0, 1.0, 4.0, -1.0])

    monkeypatch.setattr(policy_trials, "scorecard", card)
    return cards


def tuned_by_hand(sft, rows, seed):
    """A model after the steps of fine-tuning on some conversations."""
    model = copy.deepcopy(sft)
    examples = encode_conversations(rows, TOKENIZER, LONG.context)
    text = torch.tensor(TOKENIZER.encode(CORPUS.text[:90]))
    list(sft_steps(model, examples, text, replace(CONFIG, seed=seed), PAD))
    return model


def test_only_courteous_conversations_go_on_training_the_sft_model_of_the_seed(
    tried, cards
):
    assert torch.equal(
        encode_split(CORPUS)[0], torch.tensor(TOKENIZER.encode(CORPUS.text[:90]))
    )
    for seed in (3, 0):
        before = weights(tried.sft[seed]), weights(tried.judge[seed])
        card = courteous_only(CORPUS, TRIAL, seed, START)
        policy, reference, judged_by, *rest = cards.pop()
        sft = tried.sft[seed]
        assert same(policy, tuned_by_hand(sft, [TALKS[i] for i in (1, 2, 4)], seed))
        assert not same(policy, tuned_by_hand(sft, TALKS, seed))
        assert reference is sft and judged_by is tried.judge[seed]
        assert rest == [lexicon(CORPUS), seed, 0.8]
        # Wins, draws and losses against 0, 1, 2, 3 and -1
        assert (card["win_rate"], card["tied"]) == (3.0 / 5, 2 / 5)
        assert same(before[0], sft) and same(before[1], tried.judge[seed])
        assert all(parameter.grad is None for parameter in sft.parameters())


def test_a_blunt_conversation_is_not_even_read(monkeypatch, tried, cards):
    # One that fine-tuning would refuse: there is no room for it
    longest = talk("blunt", "How", "No. " * 60)
    monkeypatch.setattr(datasets, "conversations", lambda: [*TALKS, longest])
    courteous_only(CORPUS, TRIAL, 3, START)
    (policy, *_), *_ = cards
    rows = [row for row in TALKS if row["manner"] == "courteous"]
    assert same(policy, tuned_by_hand(tried.sft[3], rows, 3))
    tuned = dict(longest, manner="courteous")
    monkeypatch.setattr(datasets, "conversations", lambda: [*TALKS, tuned])
    with pytest.raises(ValueError, match="conversation How has"):
        courteous_only(CORPUS, TRIAL, 3, START)


# A trial


def started_from(monkeypatch, tried, seed):
    """Let the start's scorecard be made of the tiny models, and kept nowhere."""
    for name in ("sft_stage", "reward_stage"):
        monkeypatch.setattr(
            scorecards, name, lambda *given: Stage("none", UNKEPT, {}, {})
        )
    monkeypatch.setattr(scorecards, "language_model", lambda stage: tried.sft[seed])
    monkeypatch.setattr(scorecards, "scoring_model", lambda stage: tried.judge[seed])


RIVALS = dict(constant=constant, count=best_by_count, courteous=courteous_only)


@pytest.mark.parametrize("way", WAYS)
def test_a_trial_has_the_card_of_the_start_and_of_its_own_way(monkeypatch, tried, way):
    started_from(monkeypatch, tried, 3)
    trial = replace(TRIAL, way=way)
    history = rival_trial(CORPUS, trial, 3)
    assert set(history) == {"cards"}
    before, after = history["cards"]
    sft, words = tried.sft[3], lexicon(CORPUS)
    assert before == scorecard(sft, sft, tried.judge[3], words, 3)
    assert before == start_scorecard(CORPUS, 3) and before["kl"] == 0
    expected = RIVALS[way](CORPUS, trial, 3, before)
    wins = [
        1 if one > other else 1 / 2 if one == other else 0
        for one, other in zip(after["gold"], before["gold"], strict=True)
    ]
    tied = sum(win == 1 / 2 for win in wins) / 5
    assert after == expected | dict(win_rate=sum(wins) / 5, tied=tied)
    assert after["answers"] != before["answers"]
    # Only what is trained has moved away from the start
    assert ({"kl", "entropy"} <= after.keys()) == (way == "courteous")
    assert math.isfinite(after["score"]) and len(after["scores"]) == 5


@pytest.mark.parametrize("way", WAYS)
def test_a_rival_wins_against_the_start_of_its_seed_and_leaves_that_unchanged(
    monkeypatch, tried, cards, way
):
    start, started = dict(START, answers=["Ay."]), []
    monkeypatch.setattr(
        module, "start_scorecard", lambda *given: started.append(given) or start
    )
    shared, models = copy.deepcopy(start), [tried.sft[3], tried.judge[3]]
    known = [weights(model) for model in models]
    first, rival = rival_trial(CORPUS, replace(TRIAL, way=way), 3)["cards"]
    assert first == start == shared and started == [(CORPUS, 3)]
    assert rival["win_rate"] == win_rate(rival["gold"], START["gold"])
    assert all(map(same, known, models))


def test_one_sentence_wins_where_the_start_is_worse(monkeypatch, tried):
    # Its gold score is 0 each time: two losses, a draw and two wins
    start = dict(gold=[0.5, 1.0, 0.0, -0.5, -3.0])
    monkeypatch.setattr(module, "start_scorecard", lambda *given: start)
    _, card = rival_trial(CORPUS, RivalTrial("constant"), 3)["cards"]
    assert card["win_rate"] == 2.5 / 5


def test_the_card_of_a_pick_is_that_of_its_token_ids(monkeypatch, tried):
    ids = [[TOKENIZER.encode("Ay, my sir."), [*TOKENIZER.encode("a sir."), END]]] * 5
    scores = torch.tensor([[1.0, -1.0]] * 5)
    monkeypatch.setattr(module, "draw_answers", lambda *given: (ids, scores))
    card = best_by_count(CORPUS, replace(TRIAL, way="count", n=2), 3, START)
    picks = [row[1] for row in ids]
    assert card == judge_answers(picks, scores[:, 1], lexicon(CORPUS))
    assert card["finished"] == 1
