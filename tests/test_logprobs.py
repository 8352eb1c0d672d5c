"""Log-probs, entropy and KL estimators, against loops, closed forms and exact sums."""

import itertools
import math

import pytest
import torch
from tiny import CONFIG, close, normal, seeded

from posttrain.gpt import GPT, GPTConfig
from posttrain.logprobs import (
    entropy,
    get_response_log_probs,
    kl_estimate,
    masked_mean,
    pack,
    sequence_kl,
    token_logprobs,
)

PROMPTS = [[65, 3, 66], [65, 9, 9, 9, 9, 9, 66], [66]]
RESPONSES = [[1, 2, 3, 4, 67], [67], [5, 6]]


def moved(config=CONFIG, seed=0):
    """A model in float64 none of whose weights are zero."""
    generator = seeded(seed)
    model = GPT(config, generator).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return model


def test_packed_rows_by_hand():
    tokens, mask = pack([[1, 2], [3]], [[4], [5, 6, 7]], pad=68)
    assert tokens.tolist() == [[1, 2, 4, 68], [3, 5, 6, 7]]
    assert mask.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert tokens.dtype == torch.int64 and mask.dtype == torch.bool


def test_the_mask_holds_the_response_with_its_end_and_nothing_else():
    tokens, mask = pack(PROMPTS, RESPONSES, pad=68)
    assert [row[kept].tolist() for row, kept in zip(tokens, mask)] == RESPONSES
    # Even where the padding is the end token itself
    tokens, mask = pack(PROMPTS, RESPONSES, pad=67)
    assert [row[kept].tolist() for row, kept in zip(tokens, mask)] == RESPONSES


@pytest.mark.parametrize("pad", [68, 0, 67])
def test_a_rows_logprobs_do_not_depend_on_its_neighbours_or_on_the_padding(pad):
    model = moved()
    tokens, mask = pack(PROMPTS, RESPONSES, pad)
    together = token_logprobs(model(tokens), tokens)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES)):
        own, own_mask = pack([prompt], [response], 68)
        alone = token_logprobs(model(own), own)
        close(together[row][mask[row, 1:]], alone[own_mask[:, 1:]], atol=1e-10)


def test_an_empty_prompt_or_response_is_refused_by_its_row():
    with pytest.raises(ValueError, match="response 1 is empty"):
        pack([[1], [2], [3]], [[4], [], []], 68)
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        pack([[1], [2], []], [[4], [5], [6]], 68)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_logprobs_of_tokens_equal_a_loop_over_the_prefixes(temperature):
    logits, tokens = normal(2, 5, 7), torch.randint(7, (2, 5), generator=seeded(1))
    found = token_logprobs(logits, tokens, temperature)
    assert found.shape == (2, 4)
    for b, t in itertools.product(range(2), range(4)):
        weights = [math.exp(float(x) / temperature) for x in logits[b, t]]
        close(found[b, t], math.log(weights[tokens[b, t + 1]] / sum(weights)))


def test_the_logprobs_of_a_model_are_those_of_the_text_so_far():
    model, tokens = moved(), torch.tensor([[65, 4, 66, 8, 9, 67]])
    found = token_logprobs(model(tokens), tokens, 0.7)
    for t in range(1, 6):
        close(
            found[0, t - 1],
            (model(tokens[:, :t])[0, -1] / 0.7).log_softmax(-1)[tokens[0, t]],
            atol=1e-10,
        )


def walked(model, prompt, response, temperature=1.0):
    """The log-probability of a response, one forward pass per token."""
    total = 0.0
    for t, token in enumerate(response):
        total = (
            total
            + (
                model(torch.tensor([prompt + response[:t]]))[0, -1] / temperature
            ).log_softmax(-1)[token]
        )
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_responses_log_prob_is_the_sum_over_its_tokens_and_its_end(temperature):
    model = moved()
    found = get_response_log_probs(model, *pack(PROMPTS, RESPONSES, 68), temperature)
    assert found.shape == (3,)
    for value, prompt, response in zip(found, PROMPTS, RESPONSES):
        close(value, walked(model, prompt, response, temperature), 1e-10)
    if temperature == 1.0:
        close(get_response_log_probs(model, *pack(PROMPTS, RESPONSES, 68)), found)


def test_without_its_end_a_response_is_more_likely_by_just_the_end():
    model = moved()
    whole, open_ended = (
        get_response_log_probs(model, *pack([[65, 3, 66]], [r], 68))
        for r in ([1, 2, 67], [1, 2])
    )
    end = model(torch.tensor([[65, 3, 66, 1, 2]]))[0, -1].log_softmax(-1)[67]
    close(whole - open_ended, end[None], 1e-10)


def test_a_responses_log_prob_does_not_count_its_prompt_however_unlikely():
    model = moved()
    tokens, mask = pack([[65, 3, 66], [66]], [[1, 67], [1, 67]], 68)
    logits = model(tokens).detach()
    logits[0, :2] = 50 * normal(2, 69)  # what is said of the prompt's own tokens
    close(
        get_response_log_probs(lambda _: logits, tokens, mask),
        get_response_log_probs(model, tokens, mask).detach(),
        1e-12,
    )


@pytest.mark.parametrize("pad", [68, 0, 67])
def test_neither_padding_nor_neighbours_change_a_responses_log_prob(pad):
    model = moved()
    tokens, mask = pack(PROMPTS, RESPONSES, pad)
    wide = (
        torch.cat([tokens, torch.full((3, 9), pad)], 1),
        torch.cat([mask, mask.new_zeros(3, 9)], 1),
    )
    alone = torch.cat(
        [
            get_response_log_probs(model, *pack([p], [r], 68))
            for p, r in zip(PROMPTS, RESPONSES)
        ]
    )
    close(get_response_log_probs(model, tokens, mask), alone, 1e-10)
    close(get_response_log_probs(model, *wide), alone, 1e-10)


def test_padding_that_the_model_holds_impossible_makes_no_nan_of_sums_or_gradients():
    logits, (tokens, mask) = normal(3, 8, 69), pack(PROMPTS, RESPONSES, 68)
    logits[..., 68] = -torch.inf
    logits.requires_grad_()
    found = get_response_log_probs(lambda _: logits, tokens, mask)
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(logits.grad).all()
    # The gradient is that of the response's tokens: what came, less what was expected
    expected = torch.zeros_like(logits)
    for row, t in mask.nonzero().tolist():
        expected[row, t - 1] = -logits[row, t - 1].detach().softmax(-1)
        expected[row, t - 1, tokens[row, t]] += 1
    close(logits.grad, expected)


def test_the_probabilities_of_all_responses_of_three_tokens_add_up_to_1():
    model = moved(GPTConfig(vocab_size=4, context=8, n_layer=1, n_head=1, width=16))
    responses = [list(r) for r in itertools.product(range(4), repeat=3)]
    found = get_response_log_probs(
        model, *pack([[1, 2]] * len(responses), responses, 0)
    )
    close(found.exp().sum(), 1.0, 1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_entropy_equals_the_sum_over_outcomes(temperature):
    close(
        entropy(torch.zeros(3, 8, dtype=torch.float64), temperature), [math.log(8)] * 3
    )
    logits = normal(4, 5)
    found = entropy(logits, temperature)
    for row, value in zip(logits, found):
        weights = [math.exp(float(x) / temperature) for x in row]
        close(
            value, -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)
        )


def test_masked_means_see_only_what_the_mask_shows():
    values = torch.tensor([[1.0, float("nan"), 3.0], [float("inf"), 8.0, float("nan")]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    # Over tokens: a mean of the rows' means is 5
    assert masked_mean(values, mask).item() == 4.0
    with pytest.raises(ValueError, match="False everywhere"):
        masked_mean(values, torch.zeros_like(mask))


def test_kl_estimates_of_one_token_by_hand():
    logprobs, reference = (
        torch.tensor([0.5], dtype=torch.float64).log(),
        torch.tensor([0.25], dtype=torch.float64).log(),
    )
    close(kl_estimate(logprobs, reference, "k1"), [math.log(2)])
    close(kl_estimate(logprobs, reference), [math.log(2)])
    close(kl_estimate(logprobs, reference, "k2"), [math.log(2) ** 2 / 2])
    close(kl_estimate(logprobs, reference, "k3"), [0.5 - 1 + math.log(2)])
    with pytest.raises(ValueError, match="'k4' is no KL estimator"):
        kl_estimate(logprobs, reference, "k4")


@pytest.mark.parametrize("seed", range(4))
def test_the_expectations_of_k1_and_k3_are_the_exact_kl_and_that_of_k2_nearly(seed):
    p = normal(6, seed=seed).softmax(-1)
    far, near = (
        normal(6, seed=seed + 10).softmax(-1),
        (p.log() + 0.01 * normal(6, seed=seed + 20)).softmax(-1),
    )
    for q in (far, near):
        exact = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q))
        for kind in ("k1", "k3"):
            close((p * kl_estimate(p.log(), q.log(), kind)).sum(), exact)
        assert (kl_estimate(p.log(), q.log(), "k3") >= 0).all()
        k2 = float((p * kl_estimate(p.log(), q.log(), "k2")).sum())
        close(
            torch.tensor(k2),
            sum(
                float(a) * math.log(float(a) / float(b)) ** 2 / 2 for a, b in zip(p, q)
            ),
            atol=1e-6,
        )
    # q is near: k2 is right to a few per cent, and both are far from 0 in those units
    assert abs(k2 / exact - 1) < 0.05 and exact > 1e-6


def test_k3_keeps_its_digits_near_zero_in_float32():
    policy = torch.linspace(-2, -1, 20)  # float32
    reference = policy + torch.tensor([1e-4, -1e-4, 3e-4, -1e-3]).repeat(5)
    exact = kl_estimate(policy.double(), reference.double(), "k3")
    found = kl_estimate(policy, reference, "k3").double()
    assert ((found - exact).abs() < 3e-3 * exact).all()
    naive = ((reference - policy).exp() - 1 - (reference - policy)).double()
    assert ((naive - exact).abs() > 0.1 * exact).any()  # so the test can fail


def test_sequence_kl_of_a_model_with_itself_is_zero():
    model = moved()
    tokens, mask = pack(PROMPTS, RESPONSES, 68)
    found = sequence_kl(model, model, tokens, mask)
    assert found.tolist() == [0, 0, 0] and not found.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sequence_kl_equals_a_loop_over_tokens_and_vocabulary(temperature):
    policy, reference = moved(seed=0), moved(seed=1)
    tokens, mask = pack(PROMPTS, RESPONSES, 68)
    found = sequence_kl(policy, reference, tokens, mask, temperature)
    assert found.shape == (3,) and not found.requires_grad
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES)):
        total = 0.0
        for t in range(len(response)):
            text = torch.tensor([prompt + response[:t]])
            p, q = (
                (model(text)[0, -1] / temperature).softmax(-1).tolist()
                for model in (policy, reference)
            )
            total += sum(a * math.log(a / b) for a, b in zip(p, q))
        assert total > 0.01
        close(found[row], total, atol=1e-9)


def test_the_mean_of_sequence_kl_over_all_responses_is_the_exact_kl():
    config = GPTConfig(vocab_size=4, context=8, n_layer=1, n_head=1, width=16)
    policy, reference = moved(config, 0), moved(config, 1)
    responses = [list(r) for r in itertools.product(range(4), repeat=3)]
    tokens, mask = pack([[1, 2]] * len(responses), responses, 0)
    with torch.no_grad():
        p, q = (
            (token_logprobs(model(tokens), tokens) * mask[:, 1:]).sum(-1)
            for model in (policy, reference)
        )
    close(p.exp().sum(), 1.0, atol=1e-10)
    exact = (p.exp() * (p - q)).sum()
    close(
        (p.exp() * sequence_kl(policy, reference, tokens, mask)).sum(), exact, atol=1e-9
    )
