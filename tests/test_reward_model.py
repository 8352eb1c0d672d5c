"""Reward models: where a score is read, the losses, the pairs and the loop, against
loops and closed forms.
"""

import copy
import logging
import math
import warnings

import pytest
import torch
from tiny import (
    END,
    LONG,
    PAD,
    TOKENIZER,
    close,
    judge,
    moved,
    normal,
    pair,
    seeded,
    user,
    weights,
)

from posttrain import reward_model as module
from posttrain.batches import epochs
from posttrain.chat import render_prompt
from posttrain.gpt import GPT, GPTConfig
from posttrain.logprobs import pack
from posttrain.preference_pairs import encode_pairs, encode_response, pack_pairs
from posttrain.reward_model import (
    HEAD_STD,
    RewardConfig,
    RewardModel,
    bradley_terry_loss,
    last_of,
    normalise,
    pair_accuracy,
    reward_steps,
    sample_answers,
    score_answer,
    score_pairs,
    token_level_loss,
    train_reward_model,
)
from posttrain.sampling import generate

PROMPTS = [[65, 3, 66], [65, 9, 9, 9, 9, 9, 66], [65, 66], [65, 7, 66]]
RESPONSES = [[1, 2, 3, 4, 67], [67], [5, 6], [8, 20, 30, 67]]
PAIRS = [
    pair("a", "Who?", "I am.", "You"),
    pair("b", "Where is he?", "At sea, my lord.", "At"),
    pair("c", "Why", "No.", "No, no, no"),
    pair("d", "Say", "Ay.", "Aye"),
]


# Detail 1: the last real token


def test_the_score_is_read_at_the_last_real_token_of_prompt_and_response():
    model = judge()
    found = model(*pack(PROMPTS, RESPONSES, PAD))
    assert found.shape == (4,)
    for score, prompt, response in zip(found, PROMPTS, RESPONSES):
        state = model.body.hidden(torch.tensor([prompt + response]))[0, -1]
        raw = (state * model.head.weight[0]).sum() + model.head.bias[0]
        close(score, ((raw - 0.25) / 1.5).detach(), atol=1e-10)
    assert found.std() > 0.1


@pytest.mark.parametrize("pad", [PAD, END, 0])
def test_neither_padding_nor_neighbours_change_a_score(pad):
    model = judge()
    tokens, mask = pack(PROMPTS, RESPONSES, pad)
    wide = (
        torch.cat([tokens, torch.full((4, 9), pad)], 1),
        torch.cat([mask, mask.new_zeros(4, 9)], 1),
    )
    together, wider = model(tokens, mask), model(*wide)
    alone = torch.cat([model(*pack([p], [r], PAD)) for p, r in zip(PROMPTS, RESPONSES)])
    close(together, alone.detach(), atol=1e-10)
    close(wider, alone.detach(), atol=1e-10)


def test_a_tokens_score_is_the_score_of_the_text_that_ends_there():
    model = judge()
    tokens, _ = pack(PROMPTS, RESPONSES, PAD)
    found = model.token_scores(tokens)
    assert found.shape == tokens.shape
    for t in range(1, len(RESPONSES[0]) + 1):
        close(
            found[0, len(PROMPTS[0]) + t - 1],
            model(*pack(PROMPTS[:1], [RESPONSES[0][:t]], PAD))[0].detach(),
            atol=1e-10,
        )


def test_the_last_value_of_each_row_by_hand():
    values = torch.tensor(
        [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0, 10.0, 11.0, 12.0]]
    )
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 1, 1]], dtype=torch.bool)
    assert last_of(values, mask).tolist() == [3, 5, 12]
    mask[1, 0] = False
    with pytest.raises(ValueError, match="False everywhere"):
        last_of(values, mask)


def test_every_answer_is_read_with_its_end_in_training_as_in_use():
    assert encode_response("Ay.", TOKENIZER) == [*TOKENIZER.encode("Ay."), END]
    assert encode_response("", TOKENIZER) == [END]
    for (prompt, chosen, rejected), given in zip(
        encode_pairs(PAIRS, TOKENIZER, 64), PAIRS
    ):
        assert prompt == [
            TOKENIZER.user,
            *TOKENIZER.encode(given["prompt"]),
            TOKENIZER.assistant,
        ]
        assert chosen == encode_response(given["chosen"], TOKENIZER)
        assert rejected == encode_response(given["rejected"], TOKENIZER)
        assert chosen.count(END) == rejected.count(END) == 1


# Detail 2: the start, and the loop


def test_the_head_starts_small_with_bias_zero_and_from_the_generator():
    body = GPT(
        GPTConfig(vocab_size=69, context=8, n_layer=1, n_head=1, width=512), seeded()
    )
    model = RewardModel(body, seeded(3))
    assert HEAD_STD == 1e-3
    weight = model.head.weight
    assert weight.shape == (1, 512)
    assert (
        abs(weight.std().item() / HEAD_STD - 1) < 0.15
        and abs(weight.mean().item()) < 0.2 * HEAD_STD
    )
    assert model.head.bias.tolist() == [0] and model.shift == 0 and model.scale == 1
    assert torch.equal(weight, RewardModel(body, seeded(3)).head.weight)
    assert not torch.equal(weight, RewardModel(body, seeded(4)).head.weight)


def test_the_body_is_a_copy_without_the_head_of_logits_in_the_same_precision():
    for dtype in (torch.float32, torch.float64):
        body = moved(dtype=dtype)
        model = RewardModel(body, seeded())
        assert model.body.head is None and body.head is not None
        tokens = torch.tensor([[65, 3, 66, 9]])
        assert torch.equal(model.body.hidden(tokens), body.hidden(tokens))
        assert model.token_scores(tokens).dtype == dtype
        assert not {id(p) for p in model.parameters()} & {
            id(p) for p in body.parameters()
        }


def test_nothing_is_dropped_out():
    model = judge()
    assert not [m for m in model.modules() if "Dropout" in type(m).__name__]
    inputs = pack(PROMPTS, RESPONSES, PAD)
    assert torch.equal(model.train()(*inputs), model.eval()(*inputs))


def spied(monkeypatch, **changes):
    """Run the loop: the rate of each step, and the pairs of each batch."""
    rates, batches, optimizers = [], [], []
    adamw, part = module.adamw, module.comparison_part

    def note_optimizer(*args, **kwargs):
        optimizers.append(adamw(*args, **kwargs))
        return optimizers[-1]

    def note_batch(some, *rest):
        batches.append(some)
        return part(some, *rest)

    monkeypatch.setattr(module, "adamw", note_optimizer)
    monkeypatch.setattr(module, "comparison_part", note_batch)
    model, pairs = judge(), encode_pairs(PAIRS, TOKENIZER, 64)
    for _ in reward_steps(model, pairs, RewardConfig(**changes), PAD):
        rates.append(optimizers[0].param_groups[0]["lr"])
    return rates, batches, optimizers[0]


def test_the_rate_falls_in_a_straight_line_to_zero_without_weight_decay(monkeypatch):
    rates, _, optimizer = spied(monkeypatch, steps=4, batch_size=2, lr=0.08)
    assert rates == pytest.approx([0.08, 0.06, 0.04, 0.02])
    assert optimizer.param_groups[0]["weight_decay"] == 0


def test_every_pair_is_seen_once_before_any_is_seen_again(monkeypatch):
    _, batches, _ = spied(monkeypatch, steps=4, batch_size=2)
    pairs = encode_pairs(PAIRS, TOKENIZER, 64)
    for one, other in (batches[:2], batches[2:]):
        assert sorted(one + other) == sorted(pairs)
    _, batches, _ = spied(monkeypatch, steps=2, batch_size=50)
    assert [len(batch) for batch in batches] == [4, 4]
    _, batches, _ = spied(monkeypatch, steps=1, micro_batch_size=3)
    assert [len(batch) for batch in batches] == [3, 1]


@pytest.mark.parametrize(
    ("weight", "centring"), [(0.0, 0.0), (4.0, 0.0), (0.0, 0.5), (2.0, 0.5)]
)
def test_a_steps_loss_and_update_are_those_of_the_whole_batch_written_out(
    weight, centring
):
    model, pairs = judge(), encode_pairs(PAIRS, TOKENIZER, 64)
    by_hand = copy.deepcopy(model)
    last, along = [], []
    for prompt, chosen, rejected in pairs:
        a, b = (
            by_hand.token_scores(torch.tensor([prompt + answer]))[0]
            for answer in (chosen, rejected)
        )
        last.append(
            -((a[-1] - b[-1]).sigmoid().log()) + centring * (a[-1] + b[-1]) ** 2
        )
        n = len(prompt)
        first = next(i for i, (x, y) in enumerate(zip(chosen, rejected)) if x != y)
        along += [
            -(a[n + i] - b[n + i]).sigmoid().log()
            for i in range(first, min(len(chosen), len(rejected)))
        ]
    expected = torch.stack(last).mean() + weight * torch.stack(along).mean()
    expected.backward()
    config = RewardConfig(
        steps=1, batch_size=4, lr=0.01, token_weight=weight, centring=centring
    )
    (noted,) = reward_steps(model, pairs, config, PAD)
    assert noted["loss"] == pytest.approx(expected.item(), abs=1e-9)
    # Adam's first step is the sign of the gradient, times the rate
    for (name, trained), reference in zip(
        model.named_parameters(), by_hand.parameters()
    ):
        sure = reference.grad.abs() > 1e-6
        moved_by = (trained - reference).detach()[sure]
        torch.testing.assert_close(
            moved_by, -0.01 * reference.grad[sure].sign(), rtol=0.02, atol=0, msg=name
        )
    assert model.shift == 0.25 and model.scale == 1.5


def last_index(mask):
    """The column of each row's last True: (B, 1)."""
    return torch.tensor(
        [[max(i for i, kept in enumerate(row) if kept)] for row in mask.tolist()]
    )


@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_a_batch_add_up_to_the_batch(size):
    runs, pairs = [], encode_pairs(PAIRS, TOKENIZER, 64)
    for micro in (4, size):
        model, config = (
            judge(),
            RewardConfig(
                steps=3, batch_size=4, micro_batch_size=micro, lr=0.01, centring=0.5
            ),
        )
        runs.append(
            (
                [noted["loss"] for noted in reward_steps(model, pairs, config, PAD)],
                weights(model),
            )
        )
    assert runs[0][0] == pytest.approx(runs[1][0], abs=1e-10)
    for name, weight in runs[0][1].items():
        close(weight, runs[1][1][name], 1e-9)


def test_every_step_is_one_of_adamws_down_the_gradient_of_its_own_batch_alone():
    model, pairs, config = (
        judge(),
        encode_pairs(PAIRS, TOKENIZER, 64),
        RewardConfig(steps=4, batch_size=2, lr=0.01),
    )
    twin, batches = copy.deepcopy(model), epochs(4, 2, seeded(config.seed))
    optimizer = torch.optim.AdamW(twin.parameters(), weight_decay=0.0)
    for step, found in enumerate(reward_steps(model, pairs, config, PAD)):
        optimizer.param_groups[0]["lr"] = 0.01 * (4 - step) / 4
        tokens, mask = pack_pairs([pairs[i] for i in next(batches)], PAD)
        scores = twin.token_scores(tokens)
        loss = bradley_terry_loss(*last_of(scores, mask).chunk(2), config.centring)
        loss = loss + config.token_weight * token_level_loss(scores, tokens, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert found["loss"] == pytest.approx(loss.item(), abs=1e-9)
        right = scores[:2].gather(1, last_index(mask[:2])) > scores[2:].gather(
            1, last_index(mask[2:])
        )
        assert found["accuracy"] == right.double().mean()
        for (name, one), other in zip(model.named_parameters(), twin.parameters()):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9, msg=name)


def test_the_first_loss_of_a_new_model_is_near_ln_2_per_comparison():
    model, pairs = RewardModel(moved(), seeded()), encode_pairs(PAIRS, TOKENIZER, 64)
    first = next(reward_steps(model, pairs, RewardConfig(token_weight=4.0), PAD))
    assert first["loss"] == pytest.approx(5 * math.log(2), abs=0.05)


def test_training_learns_the_pairs_and_leaves_the_language_model_alone():
    body = moved(dtype=torch.float32)
    before, config = (
        copy.deepcopy(body.state_dict()),
        RewardConfig(steps=25, batch_size=2, lr=0.01),
    )
    model, history = train_reward_model(body, PAIRS, config)
    assert set(history) == {"train", "train_accuracy", "seconds"}
    assert len(history["train"]) == 25 and history["seconds"] > 0
    assert (
        history["train_accuracy"]
        == 1.0
        == pair_accuracy(model, encode_pairs(PAIRS, TOKENIZER, 64), PAD)
    )
    assert sum(history["train"][-2:]) < 0.5 * sum(history["train"][:2])
    assert all(
        torch.equal(before[name], weight) for name, weight in body.state_dict().items()
    )


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    def trained(seed):
        return train_reward_model(
            moved(), PAIRS, RewardConfig(steps=2, batch_size=2, seed=seed)
        )

    torch.manual_seed(1)
    one, first = trained(0)
    torch.manual_seed(2)
    other, second = trained(0)
    assert first["train"] == second["train"] != trained(1)[1]["train"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values())
    )


def test_progress_sees_every_step():
    totals = []

    def progress(steps, total):
        totals.append(total)
        return steps

    train_reward_model(moved(), PAIRS, RewardConfig(steps=2, batch_size=2), progress)
    assert totals == [2]


# Detail 3: pairs


def test_pairs_that_are_the_same_after_the_cut_are_left_out_with_a_warning(caplog):
    long = "Where is the duke, my lord"
    pairs = [pair("x", "Who?", long + ".", long + "?"), pair("y", "Who?", "I.", "No.")]
    prompt = 6  # <|user|>Who?<|assistant|>
    assert len(encode_pairs(pairs, TOKENIZER, 64)) == 2 and not caplog.records
    with caplog.at_level(logging.WARNING, "posttrain"):
        (kept,) = encode_pairs(pairs, TOKENIZER, prompt + 10)
    assert kept == encode_pairs(pairs[1:], TOKENIZER, 64)[0]
    assert "pair x is left out" in caplog.text and "pair y" not in caplog.text


def test_answers_are_cut_to_the_context_and_no_shorter():
    ((prompt, chosen, rejected),) = encode_pairs(
        [pair("x", "Who?", "abcdef", "abcdeg")], TOKENIZER, 12
    )
    assert (
        len(prompt) == 6
        and chosen == TOKENIZER.encode("abcdef")
        and rejected == TOKENIZER.encode("abcdeg")
    )
    ((_, chosen, _),) = encode_pairs(
        [pair("x", "Who?", "abcdef", "abcdeg")], TOKENIZER, 13
    )
    assert chosen == encode_response("abcdef", TOKENIZER)
    assert judge()(*pack_pairs([(prompt, chosen, rejected)], PAD)).shape == (2,)


def test_pairs_that_cannot_be_compared_are_refused():
    same = pair("x", "Who?", "I.", "I.")
    for pairs in ([], [same], [same, pair("y", "Who?", "Ay, ay", "Ay, no")]):
        with pytest.raises(ValueError, match="no pairs to compare"):
            encode_pairs(pairs, TOKENIZER, 6 + 3)
    with pytest.raises(
        ValueError, match="the prompt of pair a has 6 tokens and the context 6"
    ):
        encode_pairs(PAIRS, TOKENIZER, 6)
    assert len(encode_pairs(PAIRS[:1], TOKENIZER, 7)) == 1


def test_chosen_answers_stand_above_the_rejected_ones_and_both_follow_their_prompt():
    pairs = encode_pairs(PAIRS, TOKENIZER, 64)
    tokens, mask = pack_pairs(pairs, PAD)
    texts = [TOKENIZER.decode(row[row != PAD]) for row in tokens]
    for i, given in enumerate(PAIRS):
        assert (
            texts[i]
            == f"<|user|>{given['prompt']}<|assistant|>{given['chosen']}<|end|>"
        )
        assert (
            texts[i + 4]
            == f"<|user|>{given['prompt']}<|assistant|>{given['rejected']}<|end|>"
        )
    assert [row[kept].tolist() for row, kept in zip(tokens, mask)] == [
        c for _, c, _ in pairs
    ] + [r for _, _, r in pairs]


def test_one_pass_scores_pairs_as_one_pass_each_would():
    model, pairs = judge(), encode_pairs(PAIRS, TOKENIZER, 64)
    chosen, rejected = score_pairs(model, pairs, PAD)
    for i, (prompt, a, b) in enumerate(pairs):
        close(chosen[i], model(*pack([prompt], [a], PAD))[0].detach(), atol=1e-10)
        close(rejected[i], model(*pack([prompt], [b], PAD))[0].detach(), atol=1e-10)
    right = sum(a > b for a, b in zip(chosen.tolist(), rejected.tolist())) / 4
    assert pair_accuracy(model, pairs, PAD) == right
    swapped = [(prompt, b, a) for prompt, a, b in pairs]
    assert pair_accuracy(model, swapped, PAD) == 1 - right
    with torch.no_grad():
        model.head.weight.zero_()
    assert pair_accuracy(model, pairs, PAD) == 0  # a tie is no win


# Detail 4: zero and unit


def test_normalise_refuses_a_score_that_is_not_a_number_and_changes_nothing():
    model = judge()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        normalise(model, *pack(PROMPTS, RESPONSES, PAD))
    assert (model.shift.item(), model.scale.item()) == (0.25, 1.5)


def test_normalised_scores_have_mean_0_and_deviation_1_however_often():
    model, inputs = judge(dtype=torch.float32).double(), pack(PROMPTS, RESPONSES, PAD)
    before = model(*inputs).detach()
    parameters = [parameter.clone() for parameter in model.parameters()]
    other = pack([[65, 8, 66], [65, 66]], [[3, 67], [60, 67]], PAD)
    other_before = model(*other).detach()
    for _ in range(3):
        normalise(model, *inputs)
        scores = model(*inputs).detach()
        assert scores.mean().item() == pytest.approx(0, abs=1e-6)
        assert scores.std().item() == pytest.approx(1, abs=1e-6)
        close(scores, (before - before.mean()) / before.std(), atol=1e-6)
        # Other responses are measured by the same rod
        close(
            model(*other).detach(),
            (other_before - before.mean()) / before.std(),
            atol=1e-6,
        )
    assert all(torch.equal(a, b) for a, b in zip(parameters, model.parameters()))
    assert not model.shift.requires_grad and {"shift", "scale"} <= set(
        model.state_dict()
    )


def test_the_same_score_for_all_has_no_unit():
    model = judge()
    with pytest.raises(ValueError, match="same score"):
        normalise(model, *pack([[65, 66]] * 3, [[4, 67]] * 3, PAD))
    assert model.shift == 0.25 and model.scale == 1.5


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(steps=0), "steps is 0: use at least 1"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(micro_batch_size=0), "micro_batch_size is 0"),
        (dict(lr=float("nan")), "lr is nan"),
        (dict(centring=-1.0), "centring is -1.0: use at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(**changes)


def test_one_response_alone_has_no_unit_and_no_warning_says_so():
    model = judge()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="there is no unit to set"):
            normalise(model, *pack([[65, 66]], [[4, 67]], PAD))
    assert model.shift == 0.25 and model.scale == 1.5


# The losses (detail 5: centring)


def test_equal_scores_cost_ln_2_and_other_differences_what_the_formula_says():
    scores = normal(5)
    close(bradley_terry_loss(scores, scores), math.log(2))
    close(bradley_terry_loss(scores + 1.5, scores), math.log(1 + math.exp(-1.5)))
    close(bradley_terry_loss(scores, scores + 1.5), math.log(1 + math.exp(1.5)))
    a, b = normal(5, seed=1), normal(5, seed=2)
    by_hand = [math.log(1 + math.exp(-(x - y))) for x, y in zip(a.tolist(), b.tolist())]
    close(bradley_terry_loss(a, b), sum(by_hand) / 5)
    close(bradley_terry_loss(a + 7, b + 7), sum(by_hand) / 5)


def test_huge_differences_stay_finite():
    for chosen, expected in ((-500.0, 1000.0), (500.0, 0.0)):
        a = torch.tensor([chosen], requires_grad=True)
        loss = bradley_terry_loss(a, -a.detach())
        loss.backward()
        assert loss.item() == expected and torch.isfinite(a.grad).all()


@pytest.mark.parametrize("c", [0.0, 0.3])
def test_the_gradient_is_the_closed_form(c):
    a, b = normal(6, seed=1).requires_grad_(), normal(6, seed=2).requires_grad_()
    bradley_terry_loss(a, b, c).backward()
    push, centre = (1 - (a - b).sigmoid()).detach() / 6, 2 * c * (a + b).detach() / 6
    close(a.grad, -push + centre)
    close(b.grad, push + centre)


def test_centring_adds_the_mean_square_of_the_sums():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, -4.0])
    assert (
        bradley_terry_loss(a, b, 0.5) - bradley_terry_loss(a, b)
    ).item() == pytest.approx(0.5 * (9 + 4) / 2)
    assert bradley_terry_loss(a, -a, 10.0).item() == pytest.approx(
        bradley_terry_loss(a, -a).item()
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_is_refused(bad):
    good, broken = torch.tensor([1.0, 2.0]), torch.tensor([1.0, bad])
    for pair_ in ((good, broken), (broken, good)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            bradley_terry_loss(*pair_)


def test_the_token_level_loss_equals_a_double_loop_from_where_the_answers_part():
    pairs = encode_pairs(PAIRS, TOKENIZER, 64)
    tokens, mask = pack_pairs(pairs, PAD)
    scores = normal(*tokens.shape).requires_grad_()
    loss = token_level_loss(scores, tokens, mask)
    terms, used = [], torch.zeros_like(mask)
    for row, (prompt, chosen, rejected) in enumerate(pairs):
        parted = False
        for i in range(min(len(chosen), len(rejected))):
            parted = parted or chosen[i] != rejected[i]
            if parted:
                t = len(prompt) + i
                used[row, t] = used[row + 4, t] = True
                terms.append(
                    math.log(1 + math.exp((scores[row + 4, t] - scores[row, t]).item()))
                )
    close(loss.detach(), sum(terms) / len(terms))
    loss.backward()
    assert torch.equal(scores.grad != 0, used)
    assert (scores.grad[:4] <= 0).all() and (
        scores.grad[4:] >= 0
    ).all()  # chosen up, rejected down


def test_tokens_that_agree_again_after_the_answers_have_parted_still_count():
    pairs = [([65, 66], [5, 6, 7, END], [5, 8, 7, END])]
    tokens, mask = pack_pairs(pairs, PAD)
    scores = torch.tensor([[9.0, 9, 9, 1, 2, 3], [0.0, 0, 0, 0, 0, 0]])
    expected = sum(math.log(1 + math.exp(-d)) for d in (1, 2, 3)) / 3
    assert token_level_loss(scores, tokens, mask).item() == pytest.approx(expected)


# The score of one answer


def test_the_score_of_an_answer_is_that_of_its_tokens_with_their_end():
    model = judge()
    for prompt, response in (("Who?", "I am."), ("", "Ay"), ("Where is he?", " ")):
        tokens = (
            [TOKENIZER.user, *TOKENIZER.encode(prompt), TOKENIZER.assistant],
            [*TOKENIZER.encode(response), END],
        )
        score = score_answer(model, prompt, response)
        assert (
            isinstance(score, float)
            and score == model(*pack(*([row] for row in tokens), PAD)).item()
        )


def test_an_empty_answer_has_no_score():
    with pytest.raises(
        ValueError, match="the response is empty: give at least one character"
    ):
        score_answer(judge(), "Who?", "")


def test_what_fills_the_context_is_scored_and_one_token_more_is_refused():
    model = judge()
    fits = 64 - 6 - 1  # <|user|>Who?<|assistant|> and <|end|>
    assert math.isfinite(score_answer(model, "Who?", "x" * fits))
    with pytest.raises(
        ValueError, match=r"have 65 tokens together and the context 64: shorten them"
    ):
        score_answer(model, "Who?", "x" * (fits + 1))
    with pytest.raises(
        ValueError, match=r"have 104 tokens together and the context 64"
    ):
        score_answer(model, "x" * 100, "I")


# What a reward model starts from, and the answers that set its unit


def test_answers_are_drawn_in_chat_format_to_their_end_or_96_tokens_by_seed():
    model, questions = (
        moved(config=LONG),
        ["Who?", "Where is the duke?", "Say", "Why so?"] * 4,
    )
    torch.manual_seed(1)
    asked, answers = sample_answers(model, questions, seed=3, temperature=1.5)
    assert asked == [render_prompt([user(text)], TOKENIZER) for text in questions]
    expected = generate(
        model, asked, 96, generator=seeded(3), temperature=1.5, stop=END
    )
    assert answers == expected.responses()
    assert any(len(answer) < 96 for answer in answers) and all(
        END not in answer[:-1] for answer in answers
    )
    torch.manual_seed(2)
    assert (
        sample_answers(model, questions, 3, 1.5)[1]
        == answers
        != sample_answers(model, questions, 4, 1.5)[1]
    )
    assert (
        sample_answers(model, questions, 3)
        == sample_answers(model, questions, 3, 0.8)
        != (asked, answers)
    )


def test_an_answer_that_does_not_end_is_96_tokens_long():
    model = moved(config=LONG)
    model.register_forward_hook(
        lambda module, inputs, logits: logits - 1e9 * (torch.arange(69) == END)
    )
    assert [len(answer) for answer in sample_answers(model, ["Who?", "Say"], 0)[1]] == [
        96,
        96,
    ]
