"""Properties that hold for every text, batch and number: Hypothesis looks for a
counterexample, the same way at every run.
"""

import copy
import itertools
import math
import random
import re
import tempfile
import unicodedata
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny import END, PAD, TOKENIZER, close, judge, moved, normal, pair, seeded

from posttrain.batches import add_gradients, epochs
from posttrain.best_of_n import best_of_n, best_of_n_kl
from posttrain.chat import IGNORE, build_labels, collate, render, render_prompt
from posttrain.data.corpus import ALPHABET
from posttrain.dpo import dpo_loss, implicit_rewards, pair_logprobs, pair_report
from posttrain.evaluate import (
    BLUNT,
    COURTEOUS,
    answered,
    distinct_n,
    finished,
    gold_parts,
    gold_score,
    interval,
    manner,
    win_rate,
    words_of,
)
from posttrain.gpt import GPTConfig, KVCache, attention_maps, rotate, rotation_table
from posttrain.keep import store
from posttrain.lab import enumerable
from posttrain.lab.enumerable import (
    TabularPolicy,
    World,
    all_responses,
    distribution,
    exact_kl,
)
from posttrain.lab.ppo_variants import group_relative, leave_one_out
from posttrain.logprobs import (
    entropy,
    get_response_log_probs,
    kl_estimate,
    masked_mean,
    pack,
    sequence_kl,
    token_logprobs,
)
from posttrain.optim import POLAR_EXPRESS, Muon, orthogonalise
from posttrain.ppo import (
    Models,
    PPOConfig,
    ValueModel,
    collect_rollout,
    gae,
    next_beta,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from posttrain.preference_losses import (
    ipo_loss,
    kto_loss,
    log_odds,
    orpo_loss,
    simpo_loss,
)
from posttrain.preference_pairs import encode_pairs, pack_pairs
from posttrain.reward_model import (
    bradley_terry_loss,
    last_of,
    normalise,
    token_level_loss,
)
from posttrain.sampling import generate, left_pad, visible
from posttrain.sft import (
    conversation_parts,
    count_graded,
    encode_conversations,
    sft_loss,
)
from posttrain.tokenizer import (
    SPECIAL_TOKENS,
    SUBSTITUTES,
    CharTokenizer,
    UnknownCharacterError,
)


def search(n):
    """Look at n examples: the same at every run, however slow the machine, and without
    keeping notes on disk.
    """
    return settings(
        max_examples=n,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


SHAPE = dict(vocab_size=69, context=64, n_layer=2, n_head=2, width=16)
MODELS = {
    "rope": moved(config=GPTConfig(**SHAPE)),
    "gpt2": moved(config=GPTConfig.gpt2(**SHAPE)),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
POLICY, REFERENCE, JUDGE = moved(3), moved(4), judge(5)
VALUES = ValueModel.from_reward_model(JUDGE)

seeds = st.integers(0, 10_000)
temperatures = st.sampled_from([1.0, 0.5, 0.8, 2.0])


def numbers(low, high):
    return st.floats(low, high, allow_subnormal=False)


def tensors(draw, low, high, *shape):
    """A tensor of floats between low and high, each drawn by itself."""
    size = math.prod(shape)
    drawn = draw(st.lists(numbers(low, high), min_size=size, max_size=size))
    return torch.tensor(drawn, dtype=torch.float64).view(shape)


def batches_of(count, low, high, most=5):
    """Tensors (B,), as many as count, with B up to most."""
    rows = st.lists(st.tuples(*[numbers(low, high)] * count), min_size=1, max_size=most)
    return rows.map(lambda rows: torch.tensor(rows, dtype=torch.float64).unbind(1))


# Text

texts = st.text(ALPHABET, max_size=12)
# Strangers: all of Unicode, lone surrogates too, and what looks like a special token or
# a part of one
pieces = st.one_of(
    texts,
    st.text(st.characters(), max_size=4),
    st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "<|end|", *SUBSTITUTES]),
)
anything = st.lists(pieces, max_size=5).map("".join)


@search(40)
@given(texts, st.lists(st.integers(0, len(ALPHABET) - 1), max_size=20))
def test_text_to_ids_and_back_and_ids_to_text_and_back(text, ids):
    encoded = TOKENIZER.encode(text)
    assert (
        TOKENIZER.decode(encoded)
        == TOKENIZER.decode(torch.tensor(encoded, dtype=torch.long))
        == text
    )
    assert len(encoded) == len(text) and set(encoded) <= set(range(65))
    assert TOKENIZER.encode(TOKENIZER.decode(ids)) == ids


@search(80)
@given(anything)
def test_any_text_is_encoded_or_refused_with_its_first_strangers_place(text):
    strangers = [i for i, character in enumerate(text) if character not in ALPHABET]
    if not strangers:
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
        return
    with pytest.raises(UnknownCharacterError) as caught:
        TOKENIZER.encode(text)
    first = text[strangers[0]]
    assert str(caught.value).startswith(
        f"{first!r} (U+{ord(first):04X}, at position {strangers[0]})"
    )


@search(40)
@given(anything, anything)
def test_cleaning_keeps_good_characters_and_makes_the_others_encodable(text, other):
    cleaned = TOKENIZER.clean(text)
    assert (
        TOKENIZER.decode(TOKENIZER.encode(cleaned))
        == cleaned
        == TOKENIZER.clean(cleaned)
    )
    assert cleaned == "".join(map(TOKENIZER.clean, text))
    assert TOKENIZER.clean(text + other) == cleaned + TOKENIZER.clean(other)
    for character in text:
        if character in ALPHABET:
            assert TOKENIZER.clean(character) == character
        elif character not in SUBSTITUTES:
            # An accent alone is dropped, and all else becomes something
            bare = [
                part
                for part in unicodedata.normalize("NFKD", character)
                if not unicodedata.combining(part)
            ]
            assert bool(TOKENIZER.clean(character)) == bool(bare)


@search(45)
@given(
    st.sampled_from(ALPHABET),
    st.text(st.characters(min_codepoint=0x300, max_codepoint=0x345), max_size=3),
)
def test_a_character_loses_its_accents_however_they_are_typed(character, accents):
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert (
            TOKENIZER.clean(unicodedata.normalize(form, character + accents))
            == character
        )


# Conversations


def turns_of(contents):
    return st.builds(
        dict, role=st.sampled_from(["user", "assistant"]), content=contents
    )


conversations = st.lists(turns_of(texts), max_size=6)
# At least one turn is the assistant's, wherever it stands
answered_conversations = st.tuples(conversations, texts, conversations).map(
    lambda parts: [*parts[0], dict(role="assistant", content=parts[1]), *parts[2]]
)


def graded(turns):
    """For each token of a conversation whether the assistant has to write it."""
    marks = []
    for turn in turns:
        written = turn["role"] == "assistant"
        marks += [False, *[written] * len(turn["content"]), *[True] * written]
    return marks


@search(45)
@given(conversations)
def test_a_conversation_can_be_read_back_from_its_tokens(turns):
    text = TOKENIZER.decode(render(turns, TOKENIZER))
    found = re.findall(r"(<\|(user|assistant)\|>([^<]*)(<\|end\|>)?)", text)
    assert "".join(whole for whole, *_ in found) == text
    assert [dict(role=role, content=content) for _, role, content, _ in found] == turns
    assert [bool(end) for *_, end in found] == [
        role == "assistant" for _, role, _, _ in found
    ]


@search(40)
@given(st.lists(turns_of(anything), max_size=4))
def test_no_text_can_spell_a_special_token(turns):
    clean = [turn | dict(content=TOKENIZER.clean(turn["content"])) for turn in turns]
    if turns != clean:
        with pytest.raises(UnknownCharacterError):
            render(turns, TOKENIZER)
    found = Counter(
        token for token in render(clean, TOKENIZER) if token >= len(ALPHABET)
    )
    roles = Counter(turn["role"] for turn in turns)
    answers = roles["assistant"]
    assert found == +Counter(
        {TOKENIZER.user: roles["user"], TOKENIZER.assistant: answers, END: answers}
    )


@search(45)
@given(conversations, st.data())
def test_labels_grade_the_assistants_text_and_its_end_never_the_prompt(turns, data):
    tokens = render(turns, TOKENIZER)
    labels = build_labels(tokens, TOKENIZER)
    assert labels == [
        token if mark else IGNORE for token, mark in zip(tokens, graded(turns))
    ]
    # What comes later changes no label
    length = data.draw(st.integers(0, len(tokens)))
    assert build_labels(tokens[:length], TOKENIZER) == labels[:length]
    # As the next prompt, nothing new is graded
    prompt = render_prompt(turns, TOKENIZER)
    assert prompt == [*tokens, TOKENIZER.assistant]
    assert build_labels(prompt, TOKENIZER) == [*labels, IGNORE]


@search(20)
@given(
    st.lists(answered_conversations, min_size=1, max_size=4),
    seeds,
    st.sampled_from([1.0, 50.0]),
)
def test_the_loss_pulls_where_an_assistants_token_comes_next_alone(batch, seed, scale):
    rows = [dict(id=f"row {i}", messages=turns) for i, turns in enumerate(batch)]
    tokens, labels = collate(encode_conversations(rows, TOKENIZER, context=1000), PAD)
    expected = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, turns in enumerate(batch):
        marks = graded(turns)
        expected[row, : len(marks)] = torch.tensor(marks)
    logits = (scale * normal(*tokens.shape, 69, seed=seed)).requires_grad_()
    loss = sft_loss(logits, labels)
    loss.backward()
    pulled = (logits.grad != 0).any(-1)
    assert torch.equal(pulled[:, :-1], expected[:, 1:]) and not pulled[:, -1].any()
    surprise = -token_logprobs(logits, tokens)
    close(loss, surprise[expected[:, 1:]].mean(), 1e-9)
    assert count_graded(labels) == expected.sum()


@search(40)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 67), min_size=1, max_size=8), seeds),
        min_size=1,
        max_size=5,
    )
)
def test_collated_rows_can_be_taken_apart_again(rows):
    examples = []
    for tokens, seed in rows:
        coins = random.Random(seed)
        examples.append(
            (tokens, [token if coins.random() < 0.5 else IGNORE for token in tokens])
        )
    tokens, labels = collate(examples, PAD)
    assert (
        tokens.shape
        == labels.shape
        == (len(rows), max(len(ids) for ids, _ in examples))
    )
    for row, (ids, marks) in enumerate(examples):
        n = len(ids)
        assert tokens[row, :n].tolist() == ids and labels[row, :n].tolist() == marks
        assert (tokens[row, n:] == PAD).all() and (labels[row, n:] == IGNORE).all()


@search(20)
@given(
    st.lists(answered_conversations, min_size=2, max_size=4),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_a_batchs_gradient_does_not_depend_on_its_parts_or_their_order(
    batch, size, coins
):
    rows = [
        (ids, build_labels(ids, TOKENIZER))
        for ids in (render(turns, TOKENIZER)[:40] for turns in batch)
    ]
    assume(any(label != IGNORE for _, labels in rows for label in labels))
    gradients, losses = [], []
    for some, part in ((rows, len(rows)), (coins.sample(rows, len(rows)), size)):
        model = copy.deepcopy(POLICY)
        losses.append(add_gradients(model, conversation_parts(some, part, PAD))[0])
        gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        )
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)
    close(gradients[0], gradients[1], 1e-10)
    assert gradients[0].abs().max() > 1e-4


@search(45)
@given(st.integers(1, 9), st.integers(1, 14), st.integers(1, 40), seeds)
def test_epochs_are_fair_however_many_batches_were_taken(n, batch_size, batches, seed):
    taken = list(itertools.islice(epochs(n, batch_size, seeded(seed)), batches))
    assert {len(batch) for batch in taken} == {batch_size}
    visits = Counter(i for batch in taken for i in batch)
    assert set(visits) <= set(range(n))
    assert max(visits.values()) - min(visits[i] for i in range(n)) <= 1


# Prompts and responses as rows of a batch

ids = st.integers(0, 68)
prompts = st.lists(ids, min_size=1, max_size=6)
responses = st.lists(ids, min_size=1, max_size=5)
ragged = st.lists(st.tuples(prompts, responses), min_size=1, max_size=4)
pads = st.sampled_from([PAD, END, 0])


def padded_with_anything(rows, pad, extra, seed):
    """Rows as from `pack`, some columns wider, with any tokens at all in the
    padding.
    """
    tokens, mask = pack(*map(list, zip(*rows)), pad)
    tokens, mask = F.pad(tokens, (0, extra), value=pad), F.pad(mask, (0, extra))
    lengths = torch.tensor([[len(prompt) + len(response)] for prompt, response in rows])
    real = torch.arange(tokens.size(1)) < lengths
    return torch.where(
        real, tokens, torch.randint(69, tokens.shape, generator=seeded(seed))
    ), mask


@search(45)
@given(ragged, pads)
def test_packed_rows_can_be_taken_apart_again(rows, pad):
    tokens, mask = pack(*map(list, zip(*rows)), pad)
    assert (
        tokens.shape == mask.shape == (len(rows), max(len(p) + len(r) for p, r in rows))
    )
    for row, (prompt, response) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(response)
        assert mask[row].nonzero().flatten().tolist() == list(range(start, end))
        assert (
            tokens[row, :start].tolist() == prompt
            and tokens[row][mask[row]].tolist() == response
        )
        assert (tokens[row, end:] == pad).all()


@each_model
@search(30)
@given(
    rows=ragged, pad=pads, extra=st.integers(0, 6), seed=seeds, temperature=temperatures
)
def test_a_rows_log_prob_does_not_depend_on_its_neighbours_or_on_its_padding(
    model, rows, pad, extra, seed, temperature
):
    tokens, mask = padded_with_anything(rows, pad, extra, seed)
    together = get_response_log_probs(model, tokens, mask, temperature)
    alone = [
        get_response_log_probs(model, *pack([p], [r], PAD), temperature)
        for p, r in rows
    ]
    close(together, torch.cat(alone), 1e-10)
    # Nor does its KL, or its log-prob in another place of the batch
    close(
        get_response_log_probs(model, tokens.flip(0), mask.flip(0), temperature),
        together.flip(0),
        1e-10,
    )
    divergences = [
        sequence_kl(POLICY, model, *pack([p], [r], PAD), temperature) for p, r in rows
    ]
    close(
        sequence_kl(POLICY, model, tokens, mask, temperature),
        torch.cat(divergences),
        1e-9,
    )


@each_model
@search(30)
@given(prompt=prompts, one=responses, other=responses, temperature=temperatures)
def test_log_probs_of_a_response_and_of_its_continuation_add_up(
    model, prompt, one, other, temperature
):
    asked, answers = [prompt, [*prompt, *one], prompt], [one, other, [*one, *other]]
    first, second, both = get_response_log_probs(
        model, *pack(asked, answers, PAD), temperature
    )
    close(first + second, both, 1e-10)
    # One token: what the model says after the prompt
    (single,) = get_response_log_probs(
        model, *pack([prompt], [one[:1]], PAD), temperature
    )
    close(
        single,
        (model(torch.tensor([prompt]))[0, -1] / temperature).log_softmax(-1)[one[0]],
        1e-10,
    )


@search(40)
@given(ragged, pads, st.sampled_from([1.0, 100.0, 1e4]), seeds)
def test_log_probs_are_finite_and_at_most_0_for_logits_of_any_size(
    rows, pad, scale, seed
):
    tokens, mask = pack(*map(list, zip(*rows)), pad)
    logits = scale * normal(*tokens.shape, 70, seed=seed)
    # Hold whatever comes after a response impossible
    after = tokens[:, 1:].masked_fill(mask[:, 1:], 69)
    logits[:, :-1].scatter_(-1, after[..., None], -torch.inf)
    logits.requires_grad_()
    found = get_response_log_probs(lambda _: logits, tokens, mask)
    found.sum().backward()
    assert (
        torch.isfinite(found).all()
        and (found <= 0).all()
        and torch.isfinite(logits.grad).all()
    )


@search(30)
@given(ragged, pads, st.integers(0, 6), seeds)
def test_a_score_is_read_at_the_last_token_whatever_the_padding(rows, pad, extra, seed):
    tokens, mask = padded_with_anything(rows, pad, extra, seed)
    alone = [
        JUDGE.token_scores(torch.tensor([prompt + response]))[0, -1]
        for prompt, response in rows
    ]
    close(JUDGE(tokens, mask), torch.stack(alone), 1e-10)


@search(40)
@given(
    st.lists(
        st.lists(st.booleans(), min_size=6, max_size=6).filter(any),
        min_size=1,
        max_size=5,
    )
)
def test_the_last_value_is_read_under_any_mask(rows):
    values, mask = normal(len(rows), 6), torch.tensor(rows)
    expected = [
        values[row, max(t for t in range(6) if kept[t])]
        for row, kept in enumerate(rows)
    ]
    assert last_of(values, mask).tolist() == [value.item() for value in expected]


@search(25)
@given(
    st.lists(st.tuples(prompts, responses), min_size=2, max_size=5),
    numbers(-50, 50),
    numbers(0.01, 50),
)
def test_normalised_scores_have_mean_0_and_deviation_1_and_keep_their_order(
    rows, shift, scale
):
    model = copy.deepcopy(JUDGE)
    model.shift.fill_(shift)
    model.scale.fill_(scale)
    tokens, mask = pack(*map(list, zip(*rows)), PAD)
    before = model(tokens, mask).detach()
    assume(before.std() > 1e-6)
    for _ in range(2):  # once done, it changes nothing
        normalise(model, tokens, mask)
        after = model(tokens, mask).detach()
        close(after, (before - before.mean()) / before.std(), 1e-6)


# Causality

READERS = {**MODELS, "scores": JUDGE.token_scores, "values": VALUES}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@search(30)
@given(tokens=st.lists(ids, min_size=2, max_size=12), data=st.data())
def test_what_is_said_at_a_token_depends_on_it_and_on_no_later_one(
    reader, tokens, data
):
    t = data.draw(st.integers(1, len(tokens) - 1), label="first token that changes")
    changed = [
        *tokens[:t],
        (tokens[t] + data.draw(st.integers(1, 68))) % 69,
        *data.draw(st.lists(ids, max_size=6)),
    ]
    one, other = reader(torch.tensor([tokens])), reader(torch.tensor([changed]))
    close(one[:, :t], other[:, :t], 1e-11)
    assert (one[:, t] - other[:, t]).abs().max() > 1e-9
    # The last word hears of it, too
    changed = torch.tensor([[*changed[: t + 1], *tokens[t + 1 :]]])
    assert (one[:, -1] - reader(changed)[:, -1]).abs().max() > 1e-9


@each_model
@search(20)
@given(tokens=st.lists(ids, min_size=1, max_size=10))
def test_no_gradient_comes_from_a_later_token_and_some_from_every_earlier_one(
    model, tokens
):
    embedded = []
    hook = model.embedding.register_forward_hook(lambda *call: embedded.append(call[2]))
    logits = model(torch.tensor([tokens]))
    hook.remove()
    for t in range(len(tokens)):
        (gradient,) = torch.autograd.grad(
            logits[0, t].square().sum(), embedded[0], retain_graph=True
        )
        reached = gradient[0].abs().amax(-1)
        assert (reached[: t + 1] > 0).all() and (reached[t + 1 :] == 0).all()


@each_model
@search(20)
@given(
    rows=st.integers(1, 9).flatmap(
        lambda n: st.lists(
            st.lists(ids, min_size=n, max_size=n), min_size=1, max_size=3
        )
    )
)
def test_attention_is_shared_out_among_the_tokens_so_far(model, rows):
    maps = attention_maps(model, torch.tensor(rows))
    close(maps.sum(-1), torch.ones_like(maps[..., 0]))
    assert (maps >= 0).all() and (maps.triu(1) == 0).all()


@search(40)
@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 23),
    st.sampled_from([2, 4, 8]),
    seeds,
)
def test_rotations_keep_lengths_and_show_distances_and_not_places(
    one, other, further, size, seed
):
    table = rotation_table(64, size)
    q, k = normal(2, 1, 1, size, seed=seed)

    def product(s, t):
        return (rotate(q, table[[s]]) * rotate(k, table[[t]])).sum()

    close(product(one, other), product(one + further, other + further), 1e-4)
    close(rotate(q, table[[one]]).norm(), q.norm(), 1e-5)
    close(product(one, one), (q * k).sum(), 1e-5)


@search(20)
@given(st.lists(ids, min_size=1, max_size=8), st.integers(0, 50))
def test_to_a_rotary_model_a_text_reads_the_same_wherever_it_stands(tokens, start):
    model, tokens = MODELS["rope"], torch.tensor([tokens])
    positions = start + torch.arange(tokens.size(1))
    close(model(tokens, positions), model(tokens), 1e-3)


# Sampling and its cache


@search(40)
@given(st.lists(prompts, min_size=1, max_size=5))
def test_left_padded_prompts_end_together_and_see_their_own_past_alone(rows):
    tokens, mask = left_pad(rows)
    assert tokens.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [row[kept].tolist() for row, kept in zip(tokens, mask)] == rows
    assert (mask.int().diff() >= 0).all() and mask[:, -1].all()
    for row, seen in enumerate(visible(mask)[:, 0]):
        for i, j in itertools.product(range(mask.size(1)), repeat=2):
            assert seen[i, j] == (i == j or (j < i and mask[row, j]))


@each_model
@search(25)
@given(rows=st.lists(prompts, min_size=1, max_size=4), seed=seeds)
def test_padding_on_the_left_changes_no_logits_whatever_it_holds(model, rows, seed):
    tokens, mask = left_pad(rows)
    tokens = torch.where(
        mask, tokens, torch.randint(69, tokens.shape, generator=seeded(seed))
    )
    logits = model(tokens, (mask.cumsum(1) - 1).clamp_min(0), visible(mask))
    for row, prompt in enumerate(rows):
        close(logits[row][mask[row]], model(torch.tensor([prompt]))[0], 1e-10)


@each_model
@search(25)
@given(data=st.data(), seed=seeds)
@torch.no_grad()
def test_a_cache_filled_in_pieces_and_thinned_gives_the_logits_of_one_pass(
    model, data, seed
):
    B, T = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    first, dropped_at = data.draw(st.integers(1, T)), data.draw(st.integers(1, T))
    stay = torch.tensor(data.draw(st.lists(st.booleans(), min_size=B, max_size=B)))
    tokens, rows = torch.randint(69, (B, T), generator=seeded(seed)), torch.arange(B)
    whole, cache = model(tokens), KVCache(model.config, B, T, torch.float64)
    close(model(tokens[:, :first], cache=cache), whole[:, :first], 1e-10)
    for t in range(first, T):
        if t == dropped_at and stay.any():
            rows = rows[stay]
            cache.keep(stay)
        close(
            model(tokens[rows, t : t + 1], cache=cache), whole[rows, t : t + 1], 1e-10
        )
        assert cache.length == t + 1


def read_afresh(model, prompts, new, generator, temperature, stop):
    """Responses and their log-probs, each text read alone and whole for every token,
    with no cache or padding.
    """
    answers, logprobs = [[] for _ in prompts], [[] for _ in prompts]
    ended = [False] * len(prompts)
    for _ in range(new):
        if all(ended):
            break
        # Clocks ring for every row, also for those that have ended
        clocks = torch.zeros(len(prompts), 69, dtype=torch.float64)
        if temperature:
            clocks = clocks.exponential_(generator=generator).log()
        for row, (prompt, answer) in enumerate(zip(prompts, answers)):
            if ended[row]:
                continue
            odds = (
                model(torch.tensor([prompt + answer]))[0, -1] / (temperature or 1.0)
            ).log_softmax(-1)
            token = int((odds - clocks[row]).argmax())
            answer.append(token)
            logprobs[row].append(odds[token].item())
            ended[row] = token == stop
    return answers, logprobs


@each_model
@search(20)
@given(
    rows=st.lists(prompts, min_size=1, max_size=6),
    new=st.integers(1, 8),
    temperature=st.sampled_from([1.0, 0.7, 0, 1.5]),
    stop=st.sampled_from([END, END, None, 3]),
    seed=seeds,
)
@torch.no_grad()
def test_cached_sampling_is_uncached_sampling_token_by_token_and_nat_by_nat(
    model, rows, new, temperature, stop, seed
):
    one, other = seeded(seed), seeded(seed)
    expected, logprobs = read_afresh(model, rows, new, one, temperature, stop)
    samples = generate(
        model, rows, new, generator=other, temperature=temperature, stop=stop
    )
    assert samples.responses() == expected
    assert torch.equal(one.get_state(), other.get_state())
    for row, kept, own in zip(samples.logprobs, samples.mask, logprobs):
        close(row[kept], own, 1e-10)
        assert (row[~kept] == 0).all() and (kept.int().diff() <= 0).all()
    # A row alone, without chance, is answered as it is in the batch
    if temperature == 0:
        assert (
            generate(model, rows[:1], new, temperature=0, stop=stop).responses()
            == expected[:1]
        )


@search(15)
@given(st.lists(texts, min_size=1, max_size=4), temperatures, st.integers(1, 8), seeds)
def test_a_rollouts_numbers_are_those_that_each_model_gives_when_asked_again(
    questions, temperature, new, seed
):
    config = PPOConfig(temperature=temperature, max_new_tokens=new)
    asked = [
        render_prompt([dict(role="user", content=text)], TOKENIZER)
        for text in questions
    ]
    rollout = collect_rollout(
        Models(POLICY, VALUES, REFERENCE, JUDGE), asked, config, seeded(seed)
    )
    mask = F.pad(rollout.actions, (1, 0))
    for model, noted in (
        (POLICY, rollout.logprobs),
        (REFERENCE, rollout.reference_logprobs),
    ):
        close(
            noted.sum(-1),
            get_response_log_probs(model, rollout.tokens, mask, temperature),
            1e-10,
        )
        assert (noted[~rollout.actions] == 0).all()
    # A value is what was foreseen before its token, and the score what was said after
    # the last
    close(
        rollout.values,
        JUDGE.token_scores(rollout.tokens)[:, :-1] * rollout.actions,
        1e-10,
    )
    expected = torch.where(
        last_of(rollout.tokens, mask) == END,
        JUDGE(rollout.tokens, mask),
        config.no_end_score,
    )
    close(rollout.scores, expected, 1e-10)


# How far two distributions are apart


@st.composite
def two_distributions(draw, extreme=30):
    """Log-probabilities (n,) of two distributions over up to 7 outcomes, some of them
    all but impossible.
    """
    n = draw(st.integers(1, 7))
    return tuple(tensors(draw, -extreme, extreme, n).log_softmax(-1) for _ in range(2))


def mean_estimate(p, q, kind):
    """The mean of an estimator over all outcomes of p."""
    return (p.exp() * kl_estimate(p, q, kind)).sum()


@search(40)
@given(two_distributions())
def test_the_mean_of_k1_and_of_k3_over_all_outcomes_is_the_exact_kl(both):
    p, q = both
    exact = math.fsum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist()))
    close(mean_estimate(p, q, "k1"), exact, 1e-9)
    close(mean_estimate(p, q, "k3"), exact, 1e-9)
    close(exact_kl(p.exp(), q.exp()), exact, 1e-9)


@search(40)
@given(two_distributions())
def test_the_mean_of_k2_misses_the_kl_by_the_cubed_log_ratio_at_most(both):
    p, q = both
    r = q - p
    exact, k2 = mean_estimate(p, q, "k1"), mean_estimate(p, q, "k2")
    close(
        k2,
        math.fsum(
            math.exp(a) * (b - a) ** 2 / 2 for a, b in zip(p.tolist(), q.tolist())
        ),
        1e-9,
    )
    # Taylor's remainder of e^r - 1 - r after r^2 / 2
    remainder = (p.exp() * r.abs() ** 3 * r.clamp_min(0).exp() / 6).sum()
    assert abs(k2 - exact) <= remainder + 1e-9


@search(40)
@given(two_distributions())
def test_k2_and_k3_are_never_negative_and_k2_is_half_of_k1_squared(both):
    p, q = both
    k1, k2, k3 = (kl_estimate(p, q, kind) for kind in ("k1", "k2", "k3"))
    assert (k2 >= 0).all() and (k3 >= 0).all()
    close(k2, k1.square() / 2)
    close(kl_estimate(q, p, "k1"), -k1)
    assert all(kl_estimate(p, p, kind).abs().max() == 0 for kind in ("k1", "k2", "k3"))


@search(45)
@given(two_distributions(extreme=8))
def test_mean_gradients_of_k1_k2_and_k3_are_zero_the_kls_and_the_reverse_kls(both):
    logits, q = both[0].clone().requires_grad_(), both[1]
    p = logits.log_softmax(-1)

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    # The outcomes are drawn from the policy, and no gradient goes through the drawing
    drawn = p.exp().detach()
    means = {
        kind: gradient((drawn * kl_estimate(p, q, kind)).sum())
        for kind in ("k1", "k2", "k3")
    }
    close(means["k1"], torch.zeros_like(q), 1e-9)
    close(means["k2"], gradient((p.exp() * (p - q)).sum()), 1e-9)
    close(means["k3"], gradient((q.exp() * (q - p)).sum()), 1e-9)


tables = st.builds(
    lambda seed, scale: TabularPolicy(
        scale * normal(enumerable.PREFIXES, enumerable.V, seed=seed)
    ),
    seeds,
    st.sampled_from([0.0, 0.5, 2.0, 8.0]),
)


@search(30)
@given(tables, tables, temperatures)
@torch.no_grad()
def test_over_all_64_words_the_mean_kl_of_the_letters_is_the_exact_kl_of_the_words(
    policy, reference, temperature
):
    tokens, mask = all_responses()
    p, q = (
        get_response_log_probs(model, tokens, mask, temperature)
        for model in (policy, reference)
    )
    close(p.exp().sum(), 1.0)
    exact = exact_kl(p.exp(), q.exp())
    close(
        (p.exp() * sequence_kl(policy, reference, tokens, mask, temperature)).sum(),
        exact,
        1e-9,
    )
    letters = [
        token_logprobs(model(tokens), tokens, temperature)
        for model in (policy, reference)
    ]
    for kind in ("k1", "k3"):
        close((p.exp() * kl_estimate(*letters, kind).sum(-1)).sum(), exact, 1e-9)


@search(30)
@given(tables, tables, numbers(0.1, 5), seeds)
@torch.no_grad()
def test_any_policy_falls_short_of_the_optimum_by_beta_times_its_kl_to_it(
    policy, reference, beta, seed
):
    world = World(reference, 3 * normal(64, seed=seed))
    best, found = enumerable.optimum(world, beta), distribution(policy)
    short = enumerable.objective(world, best, beta) - enumerable.objective(
        world, found, beta
    )
    close(short, beta * exact_kl(found, best), 1e-8)
    assert short > -1e-9
    close(
        distribution(TabularPolicy.of(found)), found
    )  # and a table holds any distribution


@search(45)
@given(two_distributions(), numbers(-1e3, 1e3), temperatures)
def test_entropy_lies_between_0_and_equal_odds_and_no_code_is_shorter(
    both, shift, temperature
):
    p, q = both
    found = entropy(p)
    assert -1e-12 <= found <= math.log(len(p)) + 1e-12
    assert found <= -(p.exp() * q).sum() + 1e-9
    close(entropy(p + shift), found, 1e-9)
    close(entropy(p.flip(0)), found, 1e-9)
    # Heat spreads, and is told to the function or to the logits alike
    close(entropy(p, temperature), entropy(p / temperature), 1e-9)
    assert (entropy(p, temperature) - found) * (temperature - 1) >= -1e-9


# Rewards and advantages


@st.composite
def episodes(draw, size=10.0):
    """Rewards, values and actions (B, T-1): one response in each row, and any numbers
    before and after it.
    """
    B, A = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    actions = torch.zeros(B, A, dtype=torch.bool)
    for row in range(B):
        start = draw(st.integers(0, A - 1))
        actions[row, start : draw(st.integers(start + 1, A))] = True
    return tensors(draw, -size, size, B, A), tensors(draw, -size, size, B, A), actions


def discounted(numbers, rate):
    """The sum of numbers, each further one worth less."""
    return sum(rate**k * number for k, number in enumerate(numbers))


@search(45)
@given(episodes(), numbers(0, 1), numbers(0, 1))
def test_gae_is_the_discounted_sum_of_all_later_surprises(episode, gamma, lam):
    rewards, values, actions = episode
    advantages, returns = gae(*episode, gamma, lam)
    expected = torch.zeros_like(values)
    for row, kept in enumerate(actions):
        r, v = rewards[row][kept].tolist(), [*values[row][kept].tolist(), 0.0]
        surprises = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        sums = [discounted(surprises[t:], gamma * lam) for t in range(len(r))]
        expected[row, kept] = torch.tensor(sums, dtype=torch.float64)
    close(advantages, expected, 1e-9)
    close(returns, expected + values * actions, 1e-9)


@search(45)
@given(episodes(), numbers(0, 1))
def test_gae_at_lambda_1_is_returns_less_values_and_at_0_one_surprise(episode, gamma):
    rewards, values, actions = episode
    inside = values * actions
    advantages, returns = gae(*episode, gamma, 1.0)
    to_go = torch.zeros_like(values)
    for row, kept in enumerate(actions):
        r = rewards[row][kept].tolist()
        to_go[row, kept] = torch.tensor(
            [discounted(r[t:], gamma) for t in range(len(r))], dtype=torch.float64
        )
    close(returns, to_go, 1e-9)  # whatever the values
    close(advantages, to_go - inside, 1e-9)
    one_step, _ = gae(*episode, gamma, 0.0)
    close(
        one_step,
        (rewards + gamma * F.pad(inside, (0, 1))[:, 1:] - inside) * actions,
        1e-9,
    )


@search(40)
@given(episodes(), numbers(-20, 20), numbers(0, 2), seeds)
def test_a_responses_rewards_add_up_to_its_score_less_its_kl(
    episode, score, beta, seed
):
    kl, noise, actions = episode
    scores = score + normal(len(actions), seed=seed)
    rewards = token_rewards(scores, kl, actions, beta)
    close(rewards.sum(-1), scores - beta * (kl * actions).sum(-1), 1e-9)
    assert (rewards[~actions] == 0).all()
    assert torch.equal(
        token_rewards(scores, torch.where(actions, kl, noise), actions, beta), rewards
    )
    # The score comes with the last token, and the others pay for their KL
    close(last_of(rewards, actions), scores - beta * last_of(kl, actions), 1e-9)


@st.composite
def masked(draw, size=100.0):
    """Values (B, T-1) and any mask that is True somewhere."""
    B, A = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    marks = draw(st.lists(st.booleans(), min_size=B * A, max_size=B * A).filter(any))
    return tensors(draw, -size, size, B, A), torch.tensor(marks).view(B, A)


@search(45)
@given(masked(), numbers(0.5, 20), numbers(-50, 50))
def test_whitened_values_have_mean_0_and_variance_1(both, unit, zero):
    values, mask = both
    kept = values[mask]
    variance = (kept - kept.mean()).square().mean()
    white = whiten(values, mask)
    close(masked_mean(white, mask), 0.0, 1e-9)
    close(white[mask].square().mean(), variance / (variance + 1e-8), 1e-6)
    assert (white[~mask] == 0).all()
    if variance > 0.1:
        close(whiten(unit * values + zero, mask), white, 1e-5)
    # What stands outside does not count, and one value alone is 0
    assert torch.equal(whiten(torch.where(mask, values, 1e3), mask), white)
    if len(kept) == 1:
        assert white.abs().max() == 0


@search(45)
@given(st.integers(2, 4), st.integers(1, 3), st.data())
def test_comparisons_within_a_group_add_up_to_0_and_ignore_what_all_share(
    group, prompts, data
):
    returns = tensors(data.draw, -10, 10, prompts * group)
    shared = tensors(data.draw, -10, 10, prompts).repeat_interleave(group)
    groups = returns.view(prompts, group)
    for compare, atol in ((leave_one_out, 1e-9), (group_relative, 1e-6)):
        found = compare(returns, group)
        close(found.view(prompts, group).sum(-1), torch.zeros(prompts), atol)
        close(compare(returns + shared, group), found, atol)
    others = [[sum(row) - one for one in row] for row in groups.tolist()]
    close(
        leave_one_out(returns, group).view(prompts, group),
        groups - torch.tensor(others) / (group - 1),
        1e-5,
    )
    deviations = group_relative(returns, group).view(prompts, group).std(-1)
    close(deviations, groups.std(-1) / (groups.std(-1) + 1e-4), 1e-9)


# PPO's losses


@search(40)
@given(masked(10.0), seeds, numbers(0.05, 0.5), st.data())
def test_inside_its_range_the_clipped_loss_is_the_unclipped_one_with_its_gradient(
    both, seed, clip_eps, data
):
    advantages, mask = both
    old = normal(*mask.shape, seed=seed) - 3
    ratio = 1 + 0.999 * clip_eps * tensors(data.draw, -1, 1, *mask.shape)
    logprobs = (old + ratio.log()).requires_grad_()
    loss, clip_fraction = policy_loss(logprobs, old, advantages, mask, clip_eps)
    loss.backward()
    close(loss, -(ratio * advantages)[mask].mean(), 1e-9)
    close(logprobs.grad, -ratio * advantages * mask / mask.sum(), 1e-9)
    assert clip_fraction == 0


@search(40)
@given(masked(10.0), masked(10.0), seeds, numbers(0.05, 0.5), st.data())
def test_the_clipped_loss_is_never_below_the_unclipped_and_lets_go(
    both, others, seed, clip_eps, data
):
    advantages, mask = both
    old = normal(*mask.shape, seed=seed) - 3
    logprobs = (old + tensors(data.draw, -12, 12, *mask.shape)).requires_grad_()
    ratio = (logprobs - old).exp().detach()
    assume(
        (ratio - 1 - clip_eps).abs().min() > 1e-9
        and (ratio - 1 + clip_eps).abs().min() > 1e-9
    )
    loss, clip_fraction = policy_loss(logprobs, old, advantages, mask, clip_eps)
    loss.backward()
    unclipped = -(ratio * advantages)[mask].mean()
    assert loss >= unclipped - 1e-9 * (1 + unclipped.abs())
    gone = ((advantages > 0) & (ratio > 1 + clip_eps)) | (
        (advantages < 0) & (ratio < 1 - clip_eps)
    )
    expected = -ratio * advantages * mask * ~gone / mask.sum()
    torch.testing.assert_close(logprobs.grad, expected, rtol=1e-9, atol=1e-12)
    # The share of actions held, but for products too small to tell apart
    if (advantages.abs() > 1e-6).all():
        close(clip_fraction, gone[mask].double().mean())
    # What stands outside the mask does not count
    spoilt = (
        torch.where(mask, number, 7.0)
        for number in (logprobs.detach(), old, advantages)
    )
    assert policy_loss(*spoilt, mask, clip_eps)[0] == loss


@search(40)
@given(masked(10.0), numbers(0.01, 5), st.data())
def test_the_clipped_value_loss_is_the_plain_one_in_its_room_never_below(
    both, clip, data
):
    returns, mask = both
    old = tensors(data.draw, -10, 10, *mask.shape)
    near = old + 0.999 * clip * tensors(data.draw, -1, 1, *mask.shape)
    far = tensors(data.draw, -10, 10, *mask.shape)
    for values in (near, far):
        plain = 0.5 * (values - returns)[mask].square().mean()
        close(value_loss(values, old, returns, mask, 0), plain, 1e-9)
        clipped = value_loss(values, old, returns, mask, clip)
        assert clipped >= plain - 1e-9
        kept = torch.where(
            (values - old).abs() <= clip, values, old + clip * (values - old).sign()
        )
        worse = torch.maximum((values - returns) ** 2, (kept - returns) ** 2)
        close(clipped, 0.5 * worse[mask].mean(), 1e-9)
    close(
        value_loss(near, old, returns, mask, clip),
        value_loss(near, old, returns, mask, 0),
        1e-9,
    )


@search(45)
@given(
    numbers(1e-3, 1),
    numbers(-5, 100),
    numbers(-5, 100),
    numbers(0.5, 20),
    st.integers(1, 100),
    st.integers(100, 500),
)
def test_beta_rises_with_the_kl_stays_at_its_target_and_moves_by_a_fifth_at_most(
    beta, kl, other, target, n, horizon
):
    low, high = sorted((kl, other))
    assert next_beta(beta, low, target, n, horizon) <= next_beta(
        beta, high, target, n, horizon
    )
    assert next_beta(beta, target, target, n, horizon) == beta
    moved = next_beta(beta, kl, target, n, horizon) / beta - 1
    assert abs(moved) <= 0.2 * n / horizon + 1e-12
    assert (kl - target) * moved >= 0
    if abs(kl / target - 1) >= 0.2:
        assert abs(moved) == pytest.approx(0.2 * n / horizon)


# Preferences

nats = batches_of(
    4, -300, 0
)  # log-probabilities of whole responses: chosen, rejected, and both of the reference
per_token = batches_of(2, -20, -1e-3)  # log-probabilities per token: chosen, rejected
betas = numbers(0.01, 2)


def swapped(chosen, rejected, *reference):
    return [rejected, chosen, *reference[::-1]]


@search(45)
@given(nats, betas, numbers(0, 1))
def test_swapping_pairs_moves_dpo_by_the_margin_and_turns_the_smoothing(
    sides, beta, wrong
):
    chosen, rejected = (
        implicit_rewards(sides[i], sides[i + 2], beta) for i in range(2)
    )
    margin = chosen - rejected
    loss, other = dpo_loss(*sides, beta), dpo_loss(*swapped(*sides), beta)
    close(other - loss, margin.mean(), 1e-9)
    close(
        dpo_loss(*swapped(*sides), beta, wrong), dpo_loss(*sides, beta, 1 - wrong), 1e-9
    )
    # Of one pair, the chances of the label and of its opposite make 1
    one = [side[:1] for side in sides]
    close(
        (-dpo_loss(*one, beta)).exp() + (-dpo_loss(*swapped(*one), beta)).exp(),
        1.0,
        1e-9,
    )
    assert torch.isfinite(loss) and loss >= 0


@search(45)
@given(nats, per_token, betas, numbers(-5, 50))
def test_swapping_the_pairs_does_to_each_loss_what_its_formula_says(
    sides, means, beta, baseline
):
    gap = (sides[0] - sides[2]) - (sides[1] - sides[3])
    close(
        ipo_loss(*swapped(*sides), beta) - ipo_loss(*sides, beta),
        (2 * gap / beta).mean(),
        1e-6,
    )
    chosen, rejected = means
    gap = chosen - rejected
    close(
        simpo_loss(*swapped(*means), beta, 0.0) - simpo_loss(*means, beta, 0.0),
        beta * gap.mean(),
        1e-9,
    )
    odds = log_odds(chosen) - log_odds(rejected)
    close(
        orpo_loss(*swapped(*means), 0.3) - orpo_loss(*means, 0.3),
        (gap + 0.3 * odds).mean(),
        1e-9,
    )
    # What a chosen answer gains, the same answer rejected loses
    ratios, z = (
        (sides[0] - sides[2], sides[1] - sides[3]),
        torch.tensor(baseline, dtype=torch.float64),
    )
    close(kto_loss(*ratios, z, beta) + kto_loss(*swapped(*ratios), z, beta), 1.0, 1e-9)


@search(45)
@given(batches_of(2, -200, 200), numbers(0, 0.5))
def test_swapping_pairs_moves_bradley_terry_by_the_gap_not_the_centring(
    scores, centring
):
    chosen, rejected = scores
    loss, other = (
        bradley_terry_loss(chosen, rejected, centring),
        bradley_terry_loss(rejected, chosen, centring),
    )
    close(other - loss, (chosen - rejected).mean(), 1e-8)
    close(
        loss - centring * (chosen + rejected).square().mean(),
        bradley_terry_loss(chosen, rejected),
        1e-8,
    )
    # Without centring there is no zero of scores
    close(
        bradley_terry_loss(chosen + 7, rejected + 7),
        bradley_terry_loss(chosen, rejected),
        1e-9,
    )


@search(40)
@given(nats, betas, numbers(-100, 100), numbers(0, 1))
def test_dpo_is_the_reward_models_loss_of_the_gap_of_the_log_ratios(
    sides, beta, shift, wrong
):
    chosen, rejected, *reference = sides
    loss = dpo_loss(*sides, beta, wrong)
    for moved_sides in (
        (chosen + shift, rejected + shift, *reference),
        (chosen, rejected, *(side + shift for side in reference)),
        (chosen + shift, rejected, reference[0] + shift, reference[1]),
    ):
        close(dpo_loss(*moved_sides, beta, wrong), loss, 1e-9)
    rewards = [implicit_rewards(sides[i], sides[i + 2], beta) for i in range(2)]
    close(dpo_loss(*sides, beta), bradley_terry_loss(*rewards), 1e-9)
    close(dpo_loss(chosen, rejected, chosen, rejected, beta, wrong), math.log(2))
    # A batch is the mean of its pairs in any order
    alone = [
        dpo_loss(*(side[i : i + 1] for side in sides), beta, wrong)
        for i in range(len(chosen))
    ]
    close(loss, torch.stack(alone).mean(), 1e-9)


@search(40)
@given(batches_of(4, -1e5, 0), betas)
def test_dpo_raises_chosen_and_lowers_rejected_by_the_same_finite_force(sides, beta):
    chosen, rejected, *reference = sides
    chosen, rejected = (
        chosen.clone().requires_grad_(),
        rejected.clone().requires_grad_(),
    )
    dpo_loss(chosen, rejected, *reference, beta).backward()
    h = beta * ((sides[0] - sides[2]) - (sides[1] - sides[3]))
    close(chosen.grad, -beta * (-h).sigmoid() / len(h), 1e-9)
    close(rejected.grad, -chosen.grad)


@search(40)
@given(batches_of(4, -300, 0), betas)
def test_swapping_the_pairs_swaps_the_rewards_that_are_reported(sides, beta):
    asked = torch.stack(sides[:2]), torch.stack(sides[2:])
    one, other = (
        pair_report(*asked, beta),
        pair_report(*(numbers.flip(0) for numbers in asked), beta),
    )
    assert other["margin"] == pytest.approx(-one["margin"], abs=1e-9)
    for name in ("reward", "logprob"):
        assert (other[f"chosen_{name}"], other[f"rejected_{name}"]) == (
            one[f"rejected_{name}"],
            one[f"chosen_{name}"],
        )
    rewards = implicit_rewards(*asked, beta)
    ties = (rewards[0] == rewards[1]).double().mean().item()
    assert one["accuracy"] + other["accuracy"] + ties == pytest.approx(1)


pairs_of_answers = st.lists(
    st.tuples(prompts, responses, responses), min_size=1, max_size=3
)


@search(25)
@given(pairs_of_answers, temperatures)
def test_a_pairs_log_probs_swap_with_its_answers_and_ignore_other_pairs(
    pairs, temperature
):
    found = pair_logprobs(POLICY, pairs, PAD, temperature)
    turned = [(prompt, rejected, chosen) for prompt, chosen, rejected in pairs]
    close(pair_logprobs(POLICY, turned, PAD, temperature), found.flip(0), 1e-10)
    for i, (prompt, *answers) in enumerate(pairs):
        close(
            found[:, i],
            get_response_log_probs(
                POLICY, *pack([prompt] * 2, answers, PAD), temperature
            ),
            1e-10,
        )


@search(45)
@given(batches_of(1, -30, -1e-6))
def test_log_odds_rise_with_the_log_probability_and_the_sigmoid_takes_them_back(
    logprobs,
):
    (logprobs,) = logprobs
    found = log_odds(logprobs)
    close(F.logsigmoid(found), logprobs, 1e-9)
    order = logprobs.argsort()
    assert (found[order].diff() >= 0).all()


few_letters = st.text("ab.", max_size=10)  # answers that agree here and there


@search(60)
@given(
    st.lists(st.tuples(texts, few_letters, few_letters), min_size=1, max_size=4),
    st.integers(4, 24),
    seeds,
)
def test_encoded_pairs_fit_into_the_context_and_differ(rows, context, seed):
    pairs = [pair(f"pair {i}", *row) for i, row in enumerate(rows)]
    whole = [
        (
            render_prompt([dict(role="user", content=asked)], TOKENIZER),
            [*TOKENIZER.encode(a), END],
            [*TOKENIZER.encode(b), END],
        )
        for asked, a, b in rows
    ]
    cut = [
        (asked, a[: context - len(asked)], b[: context - len(asked)])
        for asked, a, b in whole
    ]
    expected = [row for row in cut if row[1] != row[2]]
    if not expected or any(len(asked) >= context for asked, _, _ in whole):
        with pytest.raises(ValueError):
            encode_pairs(pairs, TOKENIZER, context)
        return
    assert encode_pairs(pairs, TOKENIZER, context) == expected
    # They part while both go on, and swapping them moves the token-level loss by the
    # mean gap from there on
    tokens, mask = pack_pairs(expected, PAD)
    scores, n, gaps = normal(*tokens.shape, seed=seed), len(expected), []
    for row, (asked, a, b) in enumerate(expected):
        parted = next(t for t, (one, other) in enumerate(zip(a, b)) if one != other)
        columns = slice(len(asked) + parted, len(asked) + min(len(a), len(b)))
        gaps.append(scores[row, columns] - scores[n + row, columns])
    loss, other = (
        token_level_loss(*(part.roll(shift, 0) for part in (scores, tokens, mask)))
        for shift in (0, n)
    )
    close(other - loss, torch.cat(gaps).mean(), 1e-9)


# Best of n


@st.composite
def draws(draw):
    """Answers and scores of up to 3 prompts and 6 answers each, ties included."""
    B, n = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    values = st.one_of(st.integers(-2, 2).map(float), numbers(-1e3, 1e3))
    scores = draw(
        st.lists(st.lists(values, min_size=n, max_size=n), min_size=B, max_size=B)
    )
    answers = [[[row, i] for i in range(n)] for row in range(B)]
    return answers, torch.tensor(scores, dtype=torch.float64)


@search(30)
@given(draws(), st.randoms(use_true_random=False))
def test_the_best_of_more_is_no_worse_and_does_not_depend_on_their_order(drawn, coins):
    answers, scores = drawn
    before = torch.full_like(scores[:, 0], -torch.inf)
    for n in range(1, scores.size(1) + 1):
        chosen, best = best_of_n(drawn, n)
        assert (best >= before).all()
        before = best
        for row, (_, i) in enumerate(chosen):
            # The first of equals
            assert i < n and chosen[row] == answers[row][i]
            assert (
                i == scores[row].tolist().index(max(scores[row, :n].tolist()))
                and best[row] == scores[row, i]
            )
        # Draw the first n in another order
        order = [*coins.sample(range(n), n), *range(n, scores.size(1))]
        shuffled = [[row[i] for i in order] for row in answers], scores[:, order]
        again, same_best = best_of_n(shuffled, n)
        assert torch.equal(same_best, best)
        assert [scores[row, i] for row, (_, i) in enumerate(again)] == best.tolist()
    (first,), (score,) = best_of_n((answers[:1], scores[:1]), 1)
    assert first == answers[0][0] and score == scores[0, 0]


@search(40)
@given(st.lists(numbers(0.01, 1), min_size=1, max_size=8), st.integers(1, 64))
def test_no_best_of_n_is_further_from_one_draw_than_the_formula_says(weights, n):
    total, below, exact = math.fsum(weights), 0.0, 0.0
    # The best is answer i where all are at most i and not all below
    for weight in weights:
        above = below + weight
        chance = (above / total) ** n - (below / total) ** n
        exact += chance * math.log(chance / (weight / total)) if chance > 0 else 0.0
        below = above
    assert -1e-9 <= exact <= best_of_n_kl(n) + 1e-9
    assert best_of_n_kl(n) < best_of_n_kl(n + 1) and best_of_n_kl(1) == 0


# Judging

tied = st.one_of(st.integers(-2, 2).map(float), numbers(-1e3, 1e3))


@search(45)
@given(st.lists(st.tuples(tied, tied), min_size=1, max_size=8))
def test_two_win_rates_of_one_contest_make_1(rows):
    a, b = (list(side) for side in zip(*rows))
    assert win_rate(a, b) + win_rate(b, a) == pytest.approx(1)
    assert 0 <= win_rate(a, b) <= 1 and win_rate(a, a) == 0.5
    # Scoring higher never loses a contest
    assert win_rate([x + 1 for x in a], b) >= win_rate(a, b)


words = st.sampled_from(
    [*COURTEOUS[:6], *BLUNT[:6], "the", "and", "thou", "zzz", "Grrr", "THE", "madam."]
)
answers = st.tuples(
    st.lists(st.one_of(words, texts), max_size=30).map(" ".join),
    st.sampled_from([".", "!", "?", ""]),
    st.sampled_from(["<|end|>", ""]),
).map("".join)
REAL = frozenset([*COURTEOUS, *BLUNT, "the", "and", "thou"])
BOUNDS = dict(
    courtesy=(-1, 1),
    ending=(-1, 0),
    length=(-1, 0),
    repetition=(-1.6, 0),
    spelling=(-2, 0),
)


@search(80)
@given(st.one_of(answers, anything))
def test_the_gold_score_is_the_sum_of_parts_within_their_bounds_and_1_at_the_most(
    answer,
):
    parts = gold_parts(answer, REAL)
    assert parts.keys() == BOUNDS.keys()
    assert all(low <= parts[name] <= high for name, (low, high) in BOUNDS.items())
    assert (
        gold_score(answer, REAL) == sum(parts.values())
        and -6.6 <= gold_score(answer, REAL) <= 1
    )
    if len(set(words_of(answer))) == len(words_of(answer)):
        assert parts["repetition"] == 0
    # More words are known in a larger world
    assert gold_parts(answer, REAL | set(words_of(answer)))["spelling"] == 0
    # The end closes an answer, and all that is finished is an answer
    assert finished(answer) <= answered(answer)
    assert manner(answer) in (-1, 0, 1)


@search(45)
@given(st.lists(texts, max_size=4), texts)
def test_a_text_is_an_answer_where_it_has_words_and_ends_once(parts, text):
    assert answered(text + "<|end|>") == bool(text.strip())
    assert (
        not answered(text)
        and not answered(f"{text}<|end|>{text}<|end|>")
        and not answered(f"{text}<|user|><|end|>")
    )
    spelt = "<|end|>".join(parts)
    assert words_of(spelt) == [word for part in parts for word in words_of(part)]


@search(40)
@given(
    st.lists(answers, min_size=1, max_size=5),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_runs_of_words_count_in_any_order_and_halve_when_all_is_said_twice(
    some, n, coins
):
    share = distinct_n(some, n)
    assert 0 <= share <= 1 and (share > 0) == any(
        len(words_of(answer)) >= n for answer in some
    )
    assert distinct_n(coins.sample(some, len(some)), n) == share
    assert distinct_n(some * 2, n) == pytest.approx(share / 2)


@search(40)
@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=8),
    st.integers(-50, 50),
    st.integers(1, 20),
)
def test_an_interval_is_centred_widens_with_confidence_and_follows_the_unit(
    values, zero, unit
):
    values = [value / 100 for value in values]
    mean, low, high = interval(values)
    assert low <= mean <= high and high - mean == pytest.approx(mean - low, abs=1e-9)
    assert mean == pytest.approx(sum(values) / len(values))
    _, lower, higher = interval(values, 0.99)
    assert lower <= low and high <= higher and (lower < low) == (len(set(values)) > 1)
    expected = [unit * end + zero for end in (mean, low, high)]
    assert interval([unit * value + zero for value in values]) == pytest.approx(
        expected, abs=1e-6
    )
    assert interval(values[::-1]) == pytest.approx((mean, low, high), abs=1e-9)
    # Of two values, Student's t is Cauchy's
    a, b = values[:2]
    assert interval([a, b])[2] - (a + b) / 2 == pytest.approx(
        abs(a - b) / 2 * math.tan(0.95 * math.pi / 2), rel=1e-6, abs=1e-9
    )


# Stages on disk

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@st.composite
def stored_tensors(draw):
    """Any bits in any shape: NaNs, infinities and zeros of both signs, scalars, nothing
    at all, views.
    """
    dtype, shape = (
        draw(st.sampled_from(DTYPES)),
        draw(st.lists(st.integers(0, 4), max_size=3)),
    )
    size = math.prod(shape) * dtype.itemsize
    bits = torch.tensor(
        list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8
    )
    tensor = (bits % 2).bool() if dtype == torch.bool else bits.view(dtype)
    tensor = tensor.view(shape)
    return tensor.mT if tensor.dim() > 1 and draw(st.booleans()) else tensor


def bits_of(tensor):
    return (
        tensor.dtype,
        tensor.shape,
        tensor.contiguous().flatten().view(torch.uint8).tolist(),
    )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_subnormal=False)
    | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters()), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.text(min_size=1, max_size=8)


@search(25)
@given(
    st.dictionaries(names, stored_tensors(), max_size=4),
    st.dictionaries(st.text(), json_values, max_size=3),
)
def test_a_stage_comes_back_bit_for_bit_whatever_it_holds(weights, history):
    calls = []

    def train():
        calls.append(1)
        return weights, history

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTTRAIN_STAGES", folder)
        for _ in range(2):  # as trained, and as read
            stage = store.obtain(
                "any", dict(history=history), train, code_of=CharTokenizer
            )
            assert stage.history == history and stage.weights.keys() == weights.keys()
            assert all(
                bits_of(stage.weights[name]) == bits_of(weights[name])
                for name in weights
            )
        assert len(calls) == 1


@search(30)
@given(
    st.dictionaries(st.text(max_size=3), json_values, min_size=1, max_size=4), st.data()
)
def test_a_stages_key_follows_what_its_inputs_say_and_not_their_order(inputs, data):
    def key(config, reads):
        return store.stage_key("any", config, [], reads, "the same code")

    turned = dict(reversed(inputs.items()))
    name = data.draw(st.sampled_from(list(inputs)))
    for changed in (
        inputs | {name: [inputs[name]]},
        {k: v for k, v in inputs.items() if k != name},
    ):
        assert key(turned, {}) == key(inputs, {}) != key(changed, {})
        assert key({}, turned) == key({}, inputs) != key({}, changed)


# The optimiser


@st.composite
def decomposed(draw):
    """Matrices (P, m, n) as their singular vectors and values: (P, m, k), (P, k), (P,
    k, n).
    """
    P, m, n = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    k, seed = min(m, n), draw(seeds)
    U, V = (
        torch.linalg.qr(normal(P, size, k, seed=seed + i)).Q
        for i, size in enumerate((m, n))
    )
    return U, tensors(draw, 0.01, 10, P, k), V.mT


@search(40)
@given(decomposed(), st.integers(1, 5))
def test_orthogonalising_keeps_directions_and_maps_each_singular_value(parts, steps):
    U, S, V = parts
    expected = S / (1.01 * S.norm(dim=-1, keepdim=True) + 1e-7)
    for a, b, c in POLAR_EXPRESS[:steps]:
        expected = a * expected + b * expected**3 + c * expected**5
    assert (expected > 0).all()  # no direction is turned round
    found = orthogonalise(U @ torch.diag_embed(S) @ V, steps)
    close(found, U @ torch.diag_embed(expected) @ V, 1e-8)


@search(20)
@given(st.sampled_from([(4, 4), (6, 3), (3, 6), (12, 4)]), numbers(0.1, 100), seeds)
def test_muons_first_step_follows_the_gradients_direction_and_not_its_length(
    shape, length, seed
):
    weights = [torch.nn.Parameter(normal(*shape, seed=seed)) for _ in range(3)]
    gradient = normal(*shape, seed=seed + 1)
    for weight, factor in zip(weights, (1.0, length, None)):
        weight.grad = None if factor is None else gradient * factor
    Muon(weights, lr=0.1).step()
    start = normal(*shape, seed=seed)
    close(weights[0], weights[1], 1e-3)
    assert torch.equal(weights[2], start)  # without a gradient nothing moves
    assert ((weights[0] - start) * gradient).sum() < 0  # downhill


def muon_step(gradient):
    """Where one step of Muon takes a weight of zeros."""
    weight = torch.nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient.clone()
    Muon([weight], lr=1.0).step()
    return weight.detach()


@search(40)
@given(st.integers(1, 5), st.integers(1, 12), seeds)
def test_muon_steps_for_query_key_and_value_each_by_itself(n, m, seed):
    gradient = normal(3 * n, n, seed=seed)
    close(
        muon_step(gradient),
        torch.cat([muon_step(part) for part in gradient.split(n)]),
        1e-9,
    )
    assume(m != 3 * n)
    # Turned round, a gradient turns its step round
    gradient, turn = (
        normal(m, n, seed=seed),
        torch.linalg.qr(normal(m, m, seed=seed + 1)).Q,
    )
    close(muon_step(turn @ gradient), turn @ muon_step(gradient), 1e-8)
