"""Fine-tuning: the masked loss and its parts, batches, replay and the loop, against
hand computations.
"""

import copy
import itertools
import types
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain import sft as module
from posttrain.batches import add_gradients, epochs, turns
from posttrain.chat import IGNORE, ask, collate, grow_vocabulary, render
from posttrain.data import datasets
from posttrain.gpt import GPT, GPTConfig
from posttrain.pretrain import (
    PretrainConfig,
    build_optimizers,
    next_token_loss,
    random_batch,
)
from posttrain.sft import (
    SFTConfig,
    conversation_loss,
    conversation_parts,
    count_graded,
    encode_conversations,
    plain_sft,
    sft,
    sft_loss,
    sft_steps,
)
from posttrain.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
SHAPE = GPTConfig(context=64, n_layer=2, n_head=2, width=16)
TINY = SFTConfig(
    steps=6, batch_size=2, micro_batch_size=1, replay=3, replay_length=16, evaluations=2
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def conversation(name, *texts):
    roles = itertools.cycle(["user", "assistant"])
    return dict(
        id=name,
        messages=[dict(role=role, content=text) for role, text in zip(roles, texts)],
    )


# The answers differ a lot in length, so that a mean of means is not the mean
CONVERSATIONS = [
    conversation("a", "Who?", "I."),
    conversation("b", "Where is he?", "Gone to the sea, and he will not come again."),
    conversation("c", "Why?", "Ay", "How?", "By night."),
    conversation("d", "Say", ""),
    conversation("e", "What news, my lord?", "None."),
]
EXAMPLES = encode_conversations(CONVERSATIONS, TOKENIZER, 64)


def text(length=2000, seed=0):
    return torch.randint(65, (length,), generator=seeded(seed))


def base():
    return GPT(SHAPE, seeded())


def chat_model():
    """A chat model in float64 none of whose weights are zero."""
    model, generator = GPT(replace(SHAPE, vocab_size=69), seeded()).double(), seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return model


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def graded_positions(labels):
    """Where a prediction is graded, and by what: (row, position of the prediction,
    target).
    """
    B, T = labels.shape
    return [
        (b, t, int(labels[b, t + 1]))
        for b in range(B)
        for t in range(T - 1)
        if labels[b, t + 1] != IGNORE
    ]


@pytest.fixture(scope="module")
def batch():
    """Random logits (B, T, V) and the labels of conversations of unequal lengths (B,
    T).
    """
    _, labels = collate(EXAMPLES, TOKENIZER.pad)
    return torch.randn(
        *labels.shape, 69, generator=seeded(), dtype=torch.float64
    ), labels


def test_each_position_is_graded_by_the_token_after_it(batch):
    logits, labels = batch
    graded = graded_positions(labels)
    expected = sum(
        logits[b, t].logsumexp(0) - logits[b, t, target] for b, t, target in graded
    ) / len(graded)
    torch.testing.assert_close(sft_loss(logits, labels), expected, rtol=0, atol=1e-12)
    assert (
        count_graded(labels)
        == len(graded)
        == sum(len(answer) + 1 for answer in answers())
    )


def answers():
    turns = [turn for row in CONVERSATIONS for turn in row["messages"]]
    return [turn["content"] for turn in turns if turn["role"] == "assistant"]


def test_logits_that_say_the_next_token_cost_nothing_and_others_much():
    tokens, labels = collate(EXAMPLES, TOKENIZER.pad)
    following = 50 * torch.nn.functional.one_hot(tokens.roll(-1, 1), 69).double()
    repeating = 50 * torch.nn.functional.one_hot(tokens, 69).double()
    assert sft_loss(following, labels) < 1e-9
    assert sft_loss(repeating, labels) > 30


def test_gradient_at_graded_logits_is_softmax_minus_onehot_over_n_else_0(batch):
    logits, labels = batch
    logits = logits.clone().requires_grad_()
    sft_loss(logits, labels).backward()
    graded, expected = graded_positions(labels), torch.zeros_like(logits)
    for b, t, target in graded:
        expected[b, t] = logits[b, t].detach().softmax(0) / len(graded)
        expected[b, t, target] -= 1 / len(graded)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-14)
    positions = {(b, t) for b, t, _ in graded}
    idle = [
        (b, t)
        for b in range(logits.size(0))
        for t in range(logits.size(1))
        if (b, t) not in positions
    ]
    assert len(idle) > 50 and all((logits.grad[b, t] == 0).all() for b, t in idle)


def accumulate(model, examples, size):
    """The SFT loss of examples, `size` at a time; its gradients are added to the
    model's.
    """
    return add_gradients(model, conversation_parts(examples, size, TOKENIZER.pad))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 99])
def test_gradients_added_up_in_parts_are_those_of_one_pass_over_all(size):
    model, (tokens, labels) = chat_model(), collate(EXAMPLES, TOKENIZER.pad)
    graded = graded_positions(labels)
    logprobs = model(tokens).log_softmax(-1)
    expected = -sum(logprobs[b, t, target] for b, t, target in graded) / len(graded)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss, noted = accumulate(model, EXAMPLES, size)
    assert loss == pytest.approx(expected.item(), rel=1e-6) and noted["graded"] == len(
        graded
    )
    assert noted["loss"] == pytest.approx(loss)
    for parameter, gradient in zip(model.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-12)
    # The mean of the rows' means is something else
    means = [
        sft_loss(model(tokens[i : i + 1]), labels[i : i + 1]).item() for i in range(5)
    ]
    assert abs(sum(means) / 5 - expected.item()) > 1e-3


def test_gradients_are_added_to_those_already_there():
    model = chat_model()
    accumulate(model, EXAMPLES, 2)
    once = [parameter.grad.clone() for parameter in model.parameters()]
    accumulate(model, EXAMPLES, 2)
    for parameter, gradient in zip(model.parameters(), once):
        torch.testing.assert_close(parameter.grad, 2 * gradient, rtol=0, atol=1e-12)


def test_a_part_without_graded_tokens_adds_nothing():
    model, silent = chat_model(), ([TOKENIZER.user, 1, 2], [IGNORE] * 3)
    loss, _ = accumulate(model, [*EXAMPLES, silent], 1)
    assert loss == pytest.approx(
        conversation_loss(model, EXAMPLES, TOKENIZER.pad), rel=1e-6
    )


@pytest.mark.parametrize(
    "first_label", [IGNORE, 5], ids=["no label", "a label with nothing before it"]
)
def test_a_batch_without_graded_tokens_is_refused_and_never_nan(first_label):
    model = chat_model()
    tokens, labels = torch.full((2, 7), 5), torch.full((2, 7), IGNORE)
    labels[:, 0] = first_label
    assert count_graded(labels) == 0
    for attempt in (
        lambda: sft_loss(model(tokens), labels),
        lambda: accumulate(model, list(zip(tokens.tolist(), labels.tolist())), 1),
        lambda: conversation_loss(
            model, [(tokens[0].tolist(), labels[0].tolist())], TOKENIZER.pad
        ),
    ):
        with pytest.raises(
            ValueError, match="no token of this batch is graded.*an assistant's turn"
        ):
            attempt()
    with pytest.raises(ValueError, match="conversation mute has no answer"):
        sft(base(), [conversation("mute", "Who is there?")], text(), TINY)


def test_no_conversations_and_unknown_roles_are_refused():
    with pytest.raises(ValueError, match="there are no conversations"):
        sft(base(), [], text(), TINY)
    with pytest.raises(ValueError, match="'system' is no role"):
        render([dict(role="system", content="Hi")], TOKENIZER)


def test_a_conversation_that_just_fits_is_encoded_and_one_token_more_is_named():
    fits = conversation("fits", "Who?", "x" * (64 - len("Who?") - 3))
    assert len(encode_conversations([fits], TOKENIZER, 64)[0][0]) == 64
    longer = conversation("too-long", "Who?", "x" * (65 - len("Who?") - 3))
    with pytest.raises(
        ValueError,
        match="conversation too-long has 65 tokens and the context 64: shorten",
    ):
        encode_conversations([*CONVERSATIONS, fits, longer], TOKENIZER, 64)
    with pytest.raises(ValueError, match="conversation too-long"):
        sft(base(), [longer], text(), TINY)


def test_the_books_conversations_fit_the_books_model():
    rows = datasets.conversations() + datasets.heldout_conversations()
    examples = encode_conversations(rows, TOKENIZER, PretrainConfig().model.context)
    assert len(examples) == 60 and all(
        count_graded(collate([e], TOKENIZER.pad)[1]) > 1 for e in examples
    )


def test_without_the_mask_every_token_is_a_label_and_padding_still_is_none():
    unmasked = encode_conversations(CONVERSATIONS, TOKENIZER, 64, mask=False)
    assert all(labels == tokens for tokens, labels in unmasked)
    assert [tokens for tokens, _ in unmasked] == [tokens for tokens, _ in EXAMPLES]
    tokens, labels = collate(unmasked, TOKENIZER.pad)
    assert torch.equal(labels == IGNORE, tokens == TOKENIZER.pad)
    assert count_graded(labels) == sum(len(tokens) - 1 for tokens, _ in unmasked)
    assert all(IGNORE in labels for _, labels in EXAMPLES)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 1000))
def test_every_pass_uses_every_index_once_whatever_the_batch_size(n, batch_size, seed):
    batches = list(itertools.islice(epochs(n, batch_size, seeded(seed)), 20))
    assert all(len(batch) == batch_size for batch in batches)
    stream = [i for batch in batches for i in batch]
    passes = [stream[i : i + n] for i in range(0, len(stream) - n + 1, n)]
    assert passes and all(sorted(one) == list(range(n)) for one in passes)


def test_passes_are_shuffled_anew_by_the_generator_alone():
    first, second, third = itertools.islice(epochs(30, 30, seeded()), 3)
    assert len({tuple(order) for order in (first, second, third, range(30))}) == 4
    torch.manual_seed(99)
    assert next(epochs(30, 30, seeded())) == first
    assert next(epochs(30, 30, seeded(1))) != first


def watch(monkeypatch, config, mask=True):
    """Run sft_steps; return what each step's optimisers were given, and its loss.

    Per step: a copy of the model before it, its gradients by name, every group's rate,
    the examples and the excerpts of text that were drawn.
    """
    drawn, steps, model = dict(conversations=[], excerpts=[]), [], chat_model()

    def record(name, function):
        def recorded(*arguments):
            found = function(*arguments)
            drawn[name].append(arguments[0] if name == "conversations" else found)
            return found

        return recorded

    def watched(model, rates):
        optimizers = build_optimizers(model, rates)
        optimizers[0].register_step_pre_hook(lambda *_: note(optimizers))
        return optimizers

    def note(optimizers):
        gradients = {
            name: parameter.grad.clone() for name, parameter in model.named_parameters()
        }
        rates = [
            group["lr"] for optimizer in optimizers for group in optimizer.param_groups
        ]
        steps.append(
            types.SimpleNamespace(
                before=copy.deepcopy(model),
                gradients=gradients,
                rates=rates,
                conversations=collate(drawn["conversations"][-1], TOKENIZER.pad),
                excerpt=(drawn["excerpts"] or [None])[-1],
            )
        )

    monkeypatch.setattr(
        module, "conversation_parts", record("conversations", conversation_parts)
    )
    monkeypatch.setattr(module, "random_batch", record("excerpts", random_batch))
    monkeypatch.setattr(module, "build_optimizers", watched)
    examples = encode_conversations(CONVERSATIONS, TOKENIZER, 64, mask)
    losses = list(sft_steps(model, examples, text(), config, TOKENIZER.pad))
    assert len(steps) == len(losses) == config.steps
    assert len(drawn["excerpts"]) == (config.steps if config.replay else 0)
    return steps, losses


@pytest.mark.parametrize("replay, weight", [(0, 0.5), (3, 0.5), (1, 2.0)])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_every_step_follows_the_gradient_of_sft_loss_plus_weighted_replay(
    monkeypatch, replay, weight, micro_batch_size
):
    config = replace(
        TINY, replay=replay, replay_weight=weight, micro_batch_size=micro_batch_size
    )
    steps, losses = watch(monkeypatch, config)
    for step, loss in zip(steps, losses):
        tokens, labels = step.conversations
        graded = sft_loss(step.before(tokens), labels)
        assert loss["loss"] == pytest.approx(graded.item(), rel=1e-6)
        assert loss["graded"] == count_graded(labels) and ("replay" in loss) == bool(
            replay
        )
        if replay:
            assert step.excerpt[0].shape == (replay, 16)
            rehearsed = next_token_loss(step.before, *step.excerpt)
            assert loss["replay"] == pytest.approx(rehearsed.item(), rel=1e-6)
            graded = graded + weight * rehearsed
        expected = torch.autograd.grad(graded, list(step.before.parameters()))
        for gradient, other in zip(step.gradients.values(), expected):
            torch.testing.assert_close(gradient, other, rtol=0, atol=1e-10)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 4))
def test_turns_deal_every_row_to_one_process_once_and_all_take_as_many(
    n, size, processes
):
    crews = [
        types.SimpleNamespace(rank=rank, size=processes) for rank in range(processes)
    ]
    dealt = [turns(list(range(n)), size, crew) for crew in crews]
    assert len({len(own) for own in dealt}) == 1 and all(
        1 <= len(some) <= size for own in dealt for some, _ in own
    )
    kept = [row for own in dealt for some, share in own if share for row in some]
    assert sorted(kept) == list(range(n))
    assert sum(share for own in dealt for _, share in own) == pytest.approx(1)
    assert all(some == [0] for own in dealt for some, share in own if not share)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(steps=0), "steps is 0: use at least 1"),
        (dict(micro_batch_size=0), "micro_batch_size is 0"),
        (dict(replay=-1), "replay is -1: use at least 0"),
        (dict(muon_lr=float("nan")), "muon_lr is nan"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        SFTConfig(**changes)


def test_a_loss_that_is_no_number_stops_the_run_before_it_spoils_the_weights():
    model = chat_model()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        before["head.weight"][0] = model.head.weight[0] = float("nan")
    with pytest.raises(ValueError, match="the loss of step 0 is nan: lower the rate"):
        next(sft_steps(model, EXAMPLES, text(), TINY, TOKENIZER.pad))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_every_step_changes_the_weights_and_sees_a_batch_of_conversations(monkeypatch):
    steps, _ = watch(monkeypatch, replace(TINY, batch_size=3))
    for one, other in itertools.pairwise(steps):
        assert all(
            not torch.equal(a, b)
            for a, b in zip(one.before.parameters(), other.before.parameters())
        )
    rows = [row for step in steps for row in step.conversations[0].tolist()]
    seen = [[t for t in row if t != TOKENIZER.pad] for row in rows]
    assert len(seen) == 18
    # 15 rows are three passes over the five conversations
    assert all(seen[:15].count(tokens) == 3 for tokens, _ in EXAMPLES)


def test_a_forward_pass_reads_no_more_conversations_than_a_micro_batch():
    model, sizes = chat_model(), []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    config = replace(TINY, steps=2, batch_size=5, micro_batch_size=2, replay=0)
    list(sft_steps(model, EXAMPLES, text(), config, TOKENIZER.pad))
    assert sizes == [2, 2, 1] * 2


def test_excerpts_are_consecutive_text_and_differ_from_step_to_step(monkeypatch):
    steps, _ = watch(monkeypatch, TINY)
    assert (
        len({tuple(step.excerpt[0].flatten().tolist()) for step in steps}) == TINY.steps
    )
    windows = {tuple(window) for window in text().unfold(0, 17, 1).tolist()}
    for inputs, targets in (step.excerpt for step in steps):
        assert {
            (*row, int(last)) for row, last in zip(inputs.tolist(), targets[:, -1])
        } <= windows


def test_rates_fall_from_their_peaks_in_a_straight_line_to_0(monkeypatch):
    steps, _ = watch(monkeypatch, replace(TINY, steps=8, muon_lr=0.02, adamw_lr=0.004))
    for i, step in enumerate(steps):
        peaks = torch.tensor(
            [0.02, 0.004, 0.012]
        )  # Muon's, the head's, the embedding's
        torch.testing.assert_close(torch.tensor(step.rates), peaks * (8 - i) / 8)


def test_batches_of_sft_hold_the_padding_token_and_no_label_after_the_end(monkeypatch):
    batches = []

    def recorded(examples, pad):
        batches.append(collate(examples, pad))
        return batches[-1]

    monkeypatch.setattr(module, "collate", recorded)
    sft(base(), CONVERSATIONS, text(), replace(TINY, micro_batch_size=2))
    assert len(batches) == TINY.steps
    rows = [
        pair
        for tokens, labels in batches
        for pair in zip(tokens.tolist(), labels.tolist())
    ]
    assert any(row.count(TOKENIZER.pad) for row, _ in rows)
    for row, labels in rows:
        length = len(row) - row[::-1].index(TOKENIZER.end)
        assert (
            row[length:] == [TOKENIZER.pad] * (len(row) - length)
            and TOKENIZER.pad not in row[:length]
        )
        assert labels[length - 1] == TOKENIZER.end and set(labels[length:]) <= {IGNORE}


@pytest.mark.parametrize("mask", [True, False])
def test_sft_grades_what_the_mask_says(monkeypatch, mask):
    seen = []
    monkeypatch.setattr(
        module,
        "collate",
        lambda examples, pad: seen.extend(examples) or collate(examples, pad),
    )
    sft(base(), CONVERSATIONS, text(), replace(TINY, mask=mask))
    expected = encode_conversations(CONVERSATIONS, TOKENIZER, 64, mask)
    assert all(example in expected for example in seen) and all(
        example in seen for example in expected
    )


def test_the_base_model_stays_as_it_was_and_the_copy_is_grown_and_changed():
    model = base()
    before = flat(model)
    tuned, _ = sft(model, CONVERSATIONS, text(), TINY)
    assert model.config == SHAPE and torch.equal(flat(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert tuned.config == replace(SHAPE, vocab_size=69)
    assert not torch.equal(tuned.head.weight[:65], model.head.weight)


@pytest.mark.parametrize("replay", [0, 3])
def test_tuning_twice_gives_the_same_bits_and_another_seed_others(replay):
    config = replace(TINY, replay=replay)
    runs = []
    for noise, seed in enumerate([0, 0, 1]):
        torch.manual_seed(noise)
        runs.append(sft(base(), CONVERSATIONS, text(), replace(config, seed=seed)))
    weights = [flat(model) for model, _ in runs]
    assert (
        torch.equal(weights[0], weights[1])
        and runs[0][1]["train"] == runs[1][1]["train"]
    )
    assert (weights[0] - weights[2]).abs().max() > 1e-3
    assert runs[0][1]["train"] != runs[2][1]["train"]


def test_without_replay_the_text_does_not_matter_at_all_and_with_it_does():
    def tuned(text, replay):
        return flat(sft(base(), CONVERSATIONS, text, replace(TINY, replay=replay))[0])

    nothing = torch.empty(0, dtype=torch.int64)
    assert torch.equal(tuned(nothing, 0), tuned(text(), 0))
    assert not torch.equal(tuned(text(seed=1), 3), tuned(text(), 3))
    assert not torch.equal(tuned(text(), 0), tuned(text(), 3))


FAST = plain_sft(batch_size=5, micro_batch_size=5, muon_lr=0.05, adamw_lr=0.02)


@pytest.fixture(scope="module")
def memorised():
    """A model fine-tuned on five conversations for long enough to know them by
    heart.
    """
    return sft(base(), CONVERSATIONS, text(), FAST)


def test_fine_tuning_learns_conversations_by_heart(memorised):
    model, history = memorised
    before = conversation_loss(grow_vocabulary(base(), 69), EXAMPLES, TOKENIZER.pad)
    assert before == pytest.approx(torch.tensor(69.0).log().item(), rel=1e-5)
    assert conversation_loss(model, EXAMPLES, TOKENIZER.pad) < 0.1
    assert history["train"] == sorted(history["train"], reverse=True)


def test_what_was_learnt_by_heart_is_answered_up_to_its_end(memorised):
    rows = [CONVERSATIONS[i]["messages"] for i in (0, 1, 3, 4)]
    answers = ask(
        memorised[0],
        [row[0]["content"] for row in rows],
        temperature=0,
        max_new_tokens=44,
    )
    assert [answer[:44] for answer in answers] == [
        (row[1]["content"] + "<|end|>")[:44] for row in rows
    ]


def test_replay_keeps_the_text_in_mind():
    cycle, losses = torch.arange(2000) % 13, []
    for replay in (0, 3):
        model, _ = sft(
            base(),
            CONVERSATIONS,
            cycle,
            replace(FAST, steps=40, replay=replay, replay_length=16),
        )
        losses.append(
            next_token_loss(model, cycle[None, :60], cycle[None, 1:61]).item()
        )
    assert losses[1] < 1 and losses[0] > 4


ENTRIES = [(7, 3, [2, 5, 7]), (6, 2, [3, 6]), (5, 1, [5]), (3, 3, [1, 2, 3])]


@pytest.mark.parametrize("steps, evaluations, expected", ENTRIES)
def test_history_has_its_lists_and_train_is_the_mean_since_the_entry_before(
    steps, evaluations, expected
):
    config, seen = replace(TINY, steps=steps, evaluations=evaluations), []

    def measure(model):
        seen.append(flat(model))
        return dict(mean=flat(model).mean().item(), n=len(seen))

    model, history = sft(base(), CONVERSATIONS, text(), config, measure)
    assert list(history) == ["step", "seconds", "train", "mean", "n"]
    assert history["step"] == expected and history["n"] == list(
        range(1, evaluations + 1)
    )
    assert history["mean"] == [weights.mean().item() for weights in seen]
    assert torch.equal(seen[-1], flat(model))
    again = grow_vocabulary(base(), 69)
    losses, weights = [], []
    for loss in sft_steps(again, EXAMPLES, text(), config, TOKENIZER.pad):
        losses.append(loss["loss"])
        weights.append(flat(again))
    for start, end, train, there in zip(
        [0, *expected], expected, history["train"], seen
    ):
        assert train == pytest.approx(sum(losses[start:end]) / (end - start), rel=1e-5)
        assert torch.equal(there, weights[end - 1])


def test_seconds_are_of_training_alone_and_progress_is_told_the_total(monkeypatch):
    clock, totals = [0.0], []

    def pass_time(seconds):
        clock[0] += seconds
        return {}

    def progress(steps, total):
        totals.append(total)
        for step in steps:
            pass_time(1)
            yield step

    monkeypatch.setattr(
        module, "time", types.SimpleNamespace(perf_counter=lambda: clock[0])
    )
    config = replace(TINY, steps=7, evaluations=3)
    _, history = sft(
        base(), CONVERSATIONS, text(), config, lambda model: pass_time(100), progress
    )
    assert history["seconds"] == [2, 5, 7] and totals == [7]
    assert list(history) == ["step", "seconds", "train"]


def test_conversation_loss_is_the_sft_loss_over_all_examples():
    model, (tokens, labels) = chat_model(), collate(EXAMPLES, TOKENIZER.pad)
    loss = conversation_loss(model, EXAMPLES, TOKENIZER.pad)
    assert isinstance(loss, float) and loss == pytest.approx(
        sft_loss(model(tokens), labels).item(), rel=1e-12
    )
    shares = [count_graded(labels[i : i + 1]) / count_graded(labels) for i in range(5)]
    alone = [conversation_loss(model, [example], TOKENIZER.pad) for example in EXAMPLES]
    assert loss == pytest.approx(
        sum(share * one for share, one in zip(shares, alone)), rel=1e-10
    )


def test_plain_sft_is_the_same_run_without_replay_and_shorter():
    assert plain_sft() == replace(SFTConfig(), steps=100, replay=0)
    assert plain_sft(steps=7, seed=3, mask=False) == replace(
        SFTConfig(), steps=7, replay=0, seed=3, mask=False
    )
