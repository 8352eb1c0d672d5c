"""Sampling: what is drawn, how likely, whatever neighbours, padding and cache."""

import pytest
import torch

from posttrain.gpt import GPT, GPTConfig
from posttrain.sampling import draw, generate, left_pad, sample_steps, visible


@pytest.fixture(scope="module", params=[True, False], ids=["rope", "learned positions"])
def model(request):
    model = GPT(
        GPTConfig(context=48, n_layer=2, n_head=2, width=16, rope=request.param)
    ).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return model


PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    "prompts", [PROMPTS, [[1, 2, 3], [4, 5, 6]]], ids=["padded", "equal lengths"]
)
def test_logprobs_equal_one_uncached_unpadded_forward_pass(model, prompts, temperature):
    samples = generate(model, prompts, 20, generator=seeded(), temperature=temperature)
    for prompt, response, logprobs in zip(
        prompts, samples.responses(), samples.logprobs
    ):
        tokens = torch.tensor([prompt + response])
        expected = (
            (model(tokens[:, :-1]) / temperature)
            .log_softmax(-1)
            .gather(-1, tokens[:, 1:, None])[0, :, 0]
        )
        torch.testing.assert_close(
            logprobs, expected[len(prompt) - 1 :], rtol=0, atol=1e-10
        )


def test_greedy_rows_do_not_depend_on_their_neighbours(model):
    together = generate(model, PROMPTS, 15, temperature=0).responses()
    alone = [
        generate(model, [prompt], 15, temperature=0).responses()[0]
        for prompt in PROMPTS
    ]
    assert together == alone


def test_same_generator_state_same_samples_and_no_other_randomness(model):
    first = generate(model, PROMPTS, 15, generator=seeded(3))
    torch.manual_seed(99)
    second = generate(model, PROMPTS, 15, generator=seeded(3))
    other = generate(model, PROMPTS, 15, generator=seeded(4))
    assert torch.equal(first.tokens, second.tokens)
    assert not torch.equal(first.tokens, other.tokens)


def test_draws_follow_the_distribution_at_every_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    for temperature in (0.5, 1.0, 2.0):
        tokens, logprobs = draw(logits.expand(40_000, 4), temperature, seeded())
        expected = (logits / temperature).softmax(-1)
        frequencies = torch.bincount(tokens, minlength=4) / 40_000
        # Allow four standard errors
        assert (
            (frequencies - expected).abs()
            < 4 * (expected * (1 - expected) / 40_000).sqrt()
        ).all()
        torch.testing.assert_close(logprobs, expected.log()[tokens])


def test_no_token_is_too_unlikely_to_be_drawn():
    """Top-k would leave out the last tokens, top-p and min-p the rare ones."""
    logits, n = torch.linspace(0, -3, 100), 50_000
    tokens, logprobs = draw(logits.expand(n, 100), 1.0, seeded())
    expected, frequencies = (
        logits.softmax(-1),
        torch.bincount(tokens, minlength=100) / n,
    )
    assert expected.min() * n > 60  # the rarest is due so often
    # Allow five standard errors
    assert ((frequencies - expected).abs() < 5 * (expected / n).sqrt()).all()
    torch.testing.assert_close(logprobs, expected.log()[tokens])


def test_the_stop_token_ends_a_row_and_is_kept_and_scored(model):
    free = generate(model, PROMPTS, 15, generator=seeded(3))
    stop = int(free.tokens[0, 6])
    samples = generate(model, PROMPTS, 15, generator=seeded(3), stop=stop)
    for response, row, kept, logprobs in zip(
        samples.responses(), free.tokens, samples.mask, samples.logprobs
    ):
        expected = row.tolist()
        if stop in expected:
            expected = expected[: expected.index(stop) + 1]
        assert response == expected
        assert kept.tolist() == [i < len(expected) for i in range(len(kept))]
        assert (logprobs[: len(expected)] < 0).all() and (
            logprobs[len(expected) :] == 0
        ).all()


def test_sampling_ends_early_when_every_row_has(model):
    first = int(generate(model, [[5]], 1, temperature=0).tokens[0, 0])
    assert generate(model, [[5], [5]], 30, temperature=0, stop=first).tokens.shape == (
        2,
        1,
    )


# Rows that end at very different times

STOP = 3
ROWS = {
    "padded": [
        [5, 6, 7, 8, 9, 10, 11],
        [1],
        [2, 4, 5],
        [4] * 5,
        [0, 1],
        [7],
        [8, 8],
        [9, 1, 2, 4],
        [5],
        [6, 7, 8],
        [10, 11],
        [2],
    ],
    "equal lengths": [[i, (5 * i + 1) % 12] for i in range(12)],
}


@pytest.fixture(scope="module", params=[True, False], ids=["rope", "learned positions"])
def few_words(request):
    """A model of 12 tokens, of which one in some ten is the stop token."""
    model = GPT(
        GPTConfig(
            vocab_size=12, context=48, n_layer=2, n_head=2, width=16, rope=request.param
        ),
        seeded(),
    ).double()
    generator = seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return model


def plain_sampling(model, prompts, new, generator, temperature, stop):
    """Responses and their log-probs, every text read afresh for each token.

    At each step clocks ring for every row, also for those that have ended.
    """
    responses, logprobs, ended = (
        [[] for _ in prompts],
        [[] for _ in prompts],
        [False] * len(prompts),
    )
    for _ in range(new):
        if all(ended):
            break
        clocks = None
        if temperature:
            clocks = (
                torch.empty(len(prompts), 12, dtype=torch.float64)
                .exponential_(generator=generator)
                .log()
            )
        for row, (prompt, response) in enumerate(zip(prompts, responses)):
            if ended[row]:
                continue
            odds = (
                model(torch.tensor([prompt + response]))[0, -1] / (temperature or 1.0)
            ).log_softmax(-1)
            token = int((odds - clocks[row] if temperature else odds).argmax())
            response.append(token)
            logprobs[row].append(odds[token].item())
            ended[row] = token == stop
    return responses, logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0])
@pytest.mark.parametrize("prompts", ROWS.values(), ids=ROWS)
def test_rows_that_end_early_change_nothing_of_what_is_drawn(
    few_words, prompts, temperature
):
    one, other = seeded(4), seeded(4)
    expected, logprobs = plain_sampling(few_words, prompts, 40, one, temperature, STOP)
    samples = generate(
        few_words, prompts, 40, generator=other, temperature=temperature, stop=STOP
    )
    assert samples.responses() == expected
    for row, kept, own in zip(samples.logprobs, samples.mask, logprobs):
        torch.testing.assert_close(
            row[kept], torch.tensor(own, dtype=torch.float64), rtol=0, atol=1e-10
        )
        assert (row[~kept] == 0).all()
    # As many clocks were wound up as if no row had been dropped
    assert torch.equal(one.get_state(), other.get_state())
    if temperature:
        assert len({len(response) for response in expected}) >= 6


def rows_read(model, prompts, new, **options):
    """How many rows the model reads at each step, and what was sampled."""
    read = []
    hook = model.register_forward_pre_hook(
        lambda _, inputs: read.append(len(inputs[0]))
    )
    samples = generate(model, prompts, new, **options)
    hook.remove()
    return read, samples


@pytest.mark.parametrize("prompts", ROWS.values(), ids=ROWS)
def test_rows_that_have_ended_are_read_no_longer_once_they_are_half_of_those_read(
    few_words, prompts
):
    read, samples = rows_read(few_words, prompts, 40, generator=seeded(4), stop=STOP)
    # Rows that go on after each step
    going_on = (samples.mask & (samples.tokens != STOP)).sum(0).tolist()
    expected = [12]
    for n in going_on[:-1]:
        expected.append(n if n <= expected[-1] / 2 else expected[-1])
    assert read == expected
    assert len(set(read)) >= 3 and read[-1] <= 3  # dropped again and again


def test_without_a_stop_token_no_row_is_dropped_and_the_last_token_is_not_read(
    few_words,
):
    read, samples = rows_read(few_words, ROWS["padded"], 10, generator=seeded(4))
    assert read == [12] * 10 and samples.mask.all() and samples.tokens.shape == (12, 10)


def test_no_token_is_read_after_every_row_has_ended(few_words):
    first = int(generate(few_words, [[5]], 1, temperature=0).tokens[0, 0])
    read, samples = rows_read(few_words, [[5], [5]], 30, temperature=0, stop=first)
    assert read == [2] and samples.tokens.tolist() == [[first]] * 2


def test_each_step_has_a_token_for_every_row_and_says_which_had_not_ended(few_words):
    prompts = ROWS["padded"]
    steps = list(sample_steps(few_words, prompts, 40, generator=seeded(4), stop=STOP))
    samples = generate(few_words, prompts, 40, generator=seeded(4), stop=STOP)
    for t, (tokens, logprobs, alive) in enumerate(steps):
        assert tokens.shape == logprobs.shape == alive.shape == (12,)
        assert torch.equal(alive, samples.mask[:, t]) and torch.equal(
            tokens, samples.tokens[:, t]
        )
        ended = [STOP in row[:t] for row in samples.tokens.tolist()]
        assert alive.tolist() == [not each for each in ended]


def test_left_pad_and_visible_by_hand():
    tokens, mask = left_pad([[7, 8], [9]])
    assert tokens.tolist() == [[7, 8], [0, 9]]
    assert mask.tolist() == [[True, True], [False, True]]
    assert visible(mask).int().tolist() == [[[[1, 0], [1, 1]]], [[[1, 0], [0, 1]]]]


def test_what_cannot_be_sampled_is_refused_by_name(model):
    with pytest.raises(ValueError, match="empty prompt"):
        generate(model, [[1], []], 5)
    with pytest.raises(ValueError, match="empty prompt"):
        generate(model, [], 5)
    with pytest.raises(ValueError, match="temperature -1 is negative"):
        generate(model, [[1]], 5, temperature=-1)
    with pytest.raises(
        ValueError, match="40 tokens and 20 new ones do not fit into the context of 48"
    ):
        generate(model, [[1] * 40], 20)
    with pytest.raises(ValueError, match="0 new tokens"):
        generate(model, [[1]], 0)
    # The last token drawn is never read
    assert generate(model, [[1] * 40], 9).tokens.shape == (
        1,
        9,
    )
