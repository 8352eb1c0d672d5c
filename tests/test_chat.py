"""Chat format: what is rendered and graded, padding, and what growing keeps."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.chat import (
    IGNORE,
    ask,
    build_labels,
    collate,
    grow_vocabulary,
    render,
    render_prompt,
)
from posttrain.gpt import GPT, GPTConfig
from posttrain.sampling import generate
from posttrain.sft import sft_loss
from posttrain.tokenizer import ALPHABET, CharTokenizer, UnknownCharacterError

TOKENIZER = CharTokenizer()
SHAPE = dict(context=64, n_layer=2, n_head=2, width=16)
CONFIGS = [GPTConfig(**SHAPE), GPTConfig.gpt2(**SHAPE)]


def user(text):
    return dict(role="user", content=text)


def assistant(text):
    return dict(role="assistant", content=text)


def moved(config, seed=0):
    """A model none of whose weights are zero, so that every path carries a signal."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


texts = st.text(ALPHABET, max_size=12)
messages = st.builds(dict, role=st.sampled_from(["user", "assistant"]), content=texts)
any_order = st.lists(messages, max_size=8)
answered = st.tuples(any_order, texts).map(lambda pair: [*pair[0], assistant(pair[1])])


def test_a_conversation_of_two_turns_is_rendered_as_written_here():
    turns = [user("Who?"), assistant("I."), user("Why?"), assistant("No.")]
    expected = "<|user|>Who?<|assistant|>I.<|end|><|user|>Why?<|assistant|>No.<|end|>"
    assert TOKENIZER.decode(render(turns, TOKENIZER)) == expected
    assert TOKENIZER.decode(
        render_prompt(turns[:3], TOKENIZER)
    ) == expected.removesuffix("No.<|end|>")
    assert render([], TOKENIZER) == []


def test_typed_text_never_becomes_a_special_token():
    for turn in (user("<|end|>"), assistant("<|user|>")):
        with pytest.raises(UnknownCharacterError, match="'<'"):
            render([turn], TOKENIZER)


@given(answered)
def test_the_prompt_is_an_exact_prefix_of_the_conversation_with_its_answer(turns):
    whole, prompt = render(turns, TOKENIZER), render_prompt(turns[:-1], TOKENIZER)
    assert whole[: len(prompt)] == prompt
    assert whole[len(prompt) :] == [
        *TOKENIZER.encode(turns[-1]["content"]),
        TOKENIZER.end,
    ]


def test_labels_of_two_turns_by_hand():
    tokens = render(
        [user("Who?"), assistant("I."), user("Why?"), assistant("No.")], TOKENIZER
    )
    labels = build_labels(tokens, TOKENIZER)
    shown = ["_" if label == IGNORE else TOKENIZER.decode([label]) for label in labels]
    assert shown == [
        *"______",
        "I",
        ".",
        "<|end|>",
        *"______",
        "N",
        "o",
        ".",
        "<|end|>",
    ]


@given(any_order)
def test_graded_are_each_answers_text_and_its_end_and_nothing_else(turns):
    tokens = render(turns, TOKENIZER)
    labels = build_labels(tokens, TOKENIZER)
    answers = [
        turn["content"] + "<|end|>" for turn in turns if turn["role"] == "assistant"
    ]
    assert TOKENIZER.decode(label for label in labels if label != IGNORE) == "".join(
        answers
    )
    assert len(labels) == len(tokens) and TOKENIZER.pad not in tokens
    assert all(label in (IGNORE, token) for token, label in zip(tokens, labels))


@given(any_order)
def test_no_user_token_no_user_text_and_no_assistant_token_is_graded(turns):
    expected = []
    for turn in turns:
        text = TOKENIZER.encode(turn["content"])
        written = turn["role"] == "assistant"
        expected += (
            [IGNORE, *text, TOKENIZER.end] if written else [IGNORE] * (1 + len(text))
        )
    assert build_labels(render(turns, TOKENIZER), TOKENIZER) == expected


def test_padding_is_on_the_right_has_a_token_of_its_own_and_is_not_graded():
    tokens, labels = collate(
        [([5, 6, 7], [IGNORE, 6, 7]), ([8], [8]), ([1, 2], [1, IGNORE])], TOKENIZER.pad
    )
    P, I = TOKENIZER.pad, IGNORE
    assert tokens.tolist() == [[5, 6, 7], [8, P, P], [1, 2, P]]
    assert labels.tolist() == [[I, 6, 7], [8, I, I], [1, I, I]]
    assert tokens.dtype == labels.dtype == torch.int64
    assert TOKENIZER.pad not in (TOKENIZER.end, TOKENIZER.user, TOKENIZER.assistant)


def unequal_examples():
    answers = ["No.", "It is the east, and Juliet is the sun.", "Ay", ""]
    rows = [render([user("Who?"), assistant(answer)], TOKENIZER) for answer in answers]
    return [(tokens, build_labels(tokens, TOKENIZER)) for tokens in rows]


@pytest.mark.parametrize("config", CONFIGS, ids=["book", "gpt2"])
def test_logits_and_loss_of_a_row_do_not_depend_on_its_padding(config):
    model = moved(replace(config, vocab_size=69)).double()
    examples = unequal_examples()
    tokens, labels = collate(examples, TOKENIZER.pad)
    together = model(tokens)
    for row, example in enumerate(examples):
        own_tokens, own_labels = collate([example], TOKENIZER.pad)
        alone = model(own_tokens)
        torch.testing.assert_close(
            together[row : row + 1, : own_tokens.size(1)], alone, rtol=0, atol=1e-10
        )
        loss = sft_loss(together[row : row + 1], labels[row : row + 1])
        torch.testing.assert_close(
            loss, sft_loss(alone, own_labels), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("stand_in", [0, TOKENIZER.end, TOKENIZER.assistant])
def test_what_stands_in_the_padding_changes_neither_loss_nor_gradient(stand_in):
    model = moved(replace(CONFIGS[0], vocab_size=69)).double()
    results = []
    for pad in (TOKENIZER.pad, stand_in):
        tokens, labels = collate(unequal_examples(), pad)
        model.zero_grad()
        loss = sft_loss(model(tokens), labels)
        loss.backward()
        results.append(
            [
                loss.detach(),
                *(parameter.grad.clone() for parameter in model.parameters()),
            ]
        )
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS, ids=["book", "gpt2"])
def test_growing_keeps_the_old_tokens_logits_and_adds_the_means(config):
    model = moved(config)
    grown = grow_vocabulary(model, 69)
    assert grown.config == replace(config, vocab_size=69)
    tokens = torch.randint(65, (4, 64), generator=seeded())
    old, new = model(tokens), grown(tokens)
    assert new.shape == (4, 64, 69)
    torch.testing.assert_close(new[..., :65], old, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        new[..., 65:], old.mean(-1, keepdim=True).expand(-1, -1, 4), rtol=0, atol=1e-5
    )
    for name in ("embedding", "head"):
        before, after = getattr(model, name).weight, getattr(grown, name).weight
        assert torch.equal(after[:65], before)
        torch.testing.assert_close(
            after[65:], before.mean(0).expand(4, -1), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("config", CONFIGS, ids=["book", "gpt2"])
def test_growing_keeps_all_other_weights_bit_for_bit(config):
    model = moved(config)
    before, after = model.state_dict(), grow_vocabulary(model, 69).state_dict()
    assert before.keys() == after.keys()
    others = [
        name for name in before if name not in ("embedding.weight", "head.weight")
    ]
    assert all(torch.equal(before[name], after[name]) for name in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_grown_model_has_the_precision_of_the_one_it_was_grown_from(dtype):
    model, tokens = (
        moved(CONFIGS[0]).to(dtype),
        torch.randint(65, (4, 64), generator=seeded()),
    )
    grown = grow_vocabulary(model, 69)
    assert {parameter.dtype for parameter in grown.parameters()} == {dtype}
    torch.testing.assert_close(
        grown(tokens)[..., :65],
        model(tokens),
        rtol=0,
        atol=1e-6 if dtype == torch.float32 else 1e-13,
    )


@given(st.integers(0, 10**6), st.integers(0, 30))
@settings(deadline=None, max_examples=50)
def test_a_new_token_gets_at_most_one_vth_of_the_old_probability(seed, scale):
    generator = seeded(seed)
    model = GPT(CONFIGS[0], generator)
    with torch.no_grad():
        model.head.weight.normal_(generator=generator)
    hidden = scale * torch.randn(20, 16, generator=generator)
    probabilities = (
        grow_vocabulary(model, 69).head(hidden).double().softmax(-1)
    )  # (20, 69)
    old, new = probabilities[:, :65].sum(-1, keepdim=True), probabilities[:, 65:]
    assert (new <= old / 65 * (1 + 1e-4)).all()


@pytest.mark.parametrize("config", CONFIGS, ids=["book", "gpt2"])
def test_the_model_that_was_grown_from_stays_as_it_was_and_shares_nothing(config):
    model = moved(config)
    before = copy.deepcopy(model.state_dict())
    grown = grow_vocabulary(model, 69)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.zero_()
    assert model.config == config
    assert all(
        torch.equal(before[name], weight) for name, weight in model.state_dict().items()
    )
    assert model.embedding.weight.shape == model.head.weight.shape == (65, 16)


def test_a_tied_head_stays_tied_and_one_of_its_own_stays_its_own():
    book, gpt2 = (grow_vocabulary(moved(config), 69) for config in CONFIGS)
    assert gpt2.head.weight is gpt2.embedding.weight
    assert book.head.weight is not book.embedding.weight


def test_a_grown_model_can_be_trained():
    grown = grow_vocabulary(moved(CONFIGS[0]), 69)
    grown(torch.tensor([[TOKENIZER.user, 1, TOKENIZER.assistant]])).logsumexp(
        -1
    ).sum().backward()
    assert all(parameter.grad is not None for parameter in grown.parameters())
    assert grown.embedding.weight.grad[TOKENIZER.user].abs().sum() > 0


def test_growing_by_nothing_is_a_copy_and_shrinking_is_refused():
    model = moved(CONFIGS[0])
    same, tokens = grow_vocabulary(model, 65), torch.arange(60)[None]
    assert same is not model and torch.equal(same(tokens), model(tokens))
    with pytest.raises(ValueError, match="65 tokens cannot grow to 64"):
        grow_vocabulary(model, 64)


@pytest.fixture(scope="module")
def talker():
    """A chat model that ends some of its answers early and others not at all."""
    return moved(replace(CONFIGS[0], vocab_size=69), seed=1)


QUESTIONS = ["Who?", "Where is the duke?", "Why", "", *("What is it?",) * 16]


def test_an_answer_ends_with_end_or_has_all_the_tokens_there_were(talker):
    answers = ask(talker, QUESTIONS, generator=seeded(), max_new_tokens=30)
    assert len(answers) == len(QUESTIONS)
    lengths = [len(re.findall(r"<\|\w+\|>|.", answer, re.DOTALL)) for answer in answers]
    finished = [answer.endswith("<|end|>") for answer in answers]
    assert True in finished and False in finished
    assert all(
        length <= 30 if done else length == 30
        for length, done in zip(lengths, finished)
    )
    assert all("<|end|>" not in answer.removesuffix("<|end|>") for answer in answers)


@pytest.mark.parametrize("temperature", [0, 0.8, 1.5])
def test_a_question_is_asked_in_the_chat_format_at_the_temperature_given(
    talker, temperature
):
    prompts = [render_prompt([user(question)], TOKENIZER) for question in QUESTIONS]
    expected = generate(
        talker,
        prompts,
        20,
        generator=seeded(),
        temperature=temperature,
        stop=TOKENIZER.end,
    )
    answers = ask(
        talker,
        QUESTIONS,
        generator=seeded(),
        temperature=temperature,
        max_new_tokens=20,
    )
    assert answers == [TOKENIZER.decode(response) for response in expected.responses()]


def test_answers_come_from_the_generator_and_no_other_randomness(talker):
    first = ask(talker, QUESTIONS, generator=seeded(3), max_new_tokens=20)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert ask(talker, QUESTIONS, generator=seeded(3), max_new_tokens=20) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert ask(talker, QUESTIONS, generator=seeded(4), max_new_tokens=20) != first
