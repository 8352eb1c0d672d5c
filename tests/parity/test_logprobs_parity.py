"""Log-probs, masks, entropies, KL estimates: ours, TRL's, PyTorch's distributions."""

from types import SimpleNamespace

import pytest
import torch
from parity.oracles import (
    DTYPES,
    agree,
    always,
    as_gpt2,
    excerpt,
    near,
    policy_of,
    run,
    seeded,
    texts,
)
from tiny import PAD, normal
from torch.distributions import Categorical, kl_divergence
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.ppo import ppo_trainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from posttrain.logprobs import (
    entropy,
    get_response_log_probs,
    kl_estimate,
    masked_mean,
    pack,
    sequence_kl,
    token_logprobs,
)

# (scale of the logits, temperature): plain, sharp, and extreme, where a power of 2
# keeps the division exact
SCALES = [(1.0, 1.0), (5.0, 0.8), (2000.0, 0.5)]
PPO_KL = excerpt(
    "trl.experimental.ppo.ppo_trainer", "logr = ref_logprobs - logprobs", "kl = -logr"
)
GRPO_KL = excerpt("trl.trainer.grpo_trainer", "per_token_kl = (", ")")


def batch(seed, scale):
    """Tokens (B, T), the response's mask, and logits (B, T, 69) of them."""
    tokens, mask = pack(*texts(seed), PAD)
    return tokens, mask, scale * normal(*tokens.shape, 69, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale, temperature", SCALES)
@pytest.mark.parametrize("seed", range(3))
def test_token_logprobs_are_trls_selective_log_softmax_of_what_comes_next(
    seed, scale, temperature, dtype
):
    tokens, _, logits = batch(seed, scale)
    agree(
        lambda x: token_logprobs(x, tokens, temperature),
        lambda x: selective_log_softmax(x[:, :-1] / temperature, tokens[:, 1:]),
        [logits],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale, temperature", SCALES)
@pytest.mark.parametrize("seed", range(3))
def test_a_responses_log_prob_is_trls_sum_and_0_where_nothing_is_masked_in(
    seed, scale, temperature, dtype
):
    tokens, mask, logits = batch(seed, scale)
    mask[-1] = False  # an empty response: `pack` refuses it, the sum does not mind
    labels = tokens.masked_fill(~mask, -100)
    sums = agree(
        lambda x: get_response_log_probs(always(x), tokens, mask, temperature),
        lambda x: CPOTrainer.get_batch_logps(x / temperature, labels),
        [logits],
        dtype,
    )
    assert sums[-1] == 0 and (sums[:-1] < 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_response_log_probs_of_a_gpt2_are_trls_of_transformers_gpt2(dtype):
    model = policy_of(0, dtype)
    tokens, mask = pack(*texts(4), PAD)
    logits = as_gpt2(model.double())(
        tokens, attention_mask=(tokens != PAD).long()
    ).logits
    theirs = CPOTrainer.get_batch_logps(logits, tokens.masked_fill(~mask, -100))
    near(get_response_log_probs(model.to(dtype), tokens, mask), theirs, dtype)


@pytest.mark.parametrize("seed", range(5))
def test_packed_tokens_and_masks_are_those_of_trls_collator(seed):
    prompts, responses = texts(seed)
    rows = [
        dict(prompt_ids=p, chosen_ids=r, rejected_ids=r)
        for p, r in zip(prompts, responses)
    ]
    theirs = DataCollatorForPreference(pad_token_id=PAD)(rows)
    tokens, mask = pack(prompts, responses, PAD)
    assert torch.equal(tokens, theirs["input_ids"][: len(rows)])
    assert torch.equal(mask, theirs["completion_mask"][: len(rows)].bool())
    assert torch.equal(tokens != PAD, theirs["attention_mask"][: len(rows)].bool())


def test_an_empty_response_which_trls_collator_lets_pass_is_refused_by_its_row():
    # On purpose: a pair that has lost its answer is a mistake in the data
    rows = [
        dict(prompt_ids=[1], chosen_ids=answer, rejected_ids=[2])
        for answer in ([3], [])
    ]
    assert (
        DataCollatorForPreference(pad_token_id=PAD)(rows)["completion_mask"][1].sum()
        == 0
    )
    with pytest.raises(ValueError, match="response 1 is empty"):
        pack([[1], [1]], [[3], []], PAD)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale, temperature", SCALES)
def test_entropies_are_trls_and_those_of_pytorchs_categorical(
    scale, temperature, dtype
):
    logits = scale * normal(3, 7, 69)
    agree(
        lambda x: entropy(x, temperature),
        lambda x: entropy_from_logits(x / temperature),
        [logits],
        dtype,
    )
    theirs = Categorical(logits=logits.to(dtype).double() / temperature).entropy()
    near(entropy(logits.to(dtype), temperature), theirs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_masked_means_are_trls(seed, dtype):
    generator = seeded(seed)
    mask = torch.rand(4, 9, generator=generator) < 0.4
    mask[1] = False
    agree(
        lambda x: masked_mean(x, mask),
        lambda x: ppo_trainer.masked_mean(x, mask),
        [100 * normal(4, 9)],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [1e-6, 0.1, 2.0, 12.0])
@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_those_of_trls_ppo_and_k3_that_of_its_grpo(kind, gap, dtype):
    logprobs, reference = (
        -normal(5, 8).abs(),
        -normal(5, 8).abs() - gap * normal(5, 8, seed=3),
    )

    def ppos(policy, other):
        return run(
            PPO_KL,
            logprobs=policy,
            ref_logprobs=other,
            args=SimpleNamespace(kl_estimator=kind),
        ).kl

    def grpos(policy, other):
        return run(
            GRPO_KL, per_token_logps=policy, ref_per_token_logps=other
        ).per_token_kl

    ours = lambda policy, other: kl_estimate(policy, other, kind)  # noqa: E731
    agree(ours, ppos, [logprobs, reference], dtype)
    if kind == "k3":
        agree(ours, grpos, [logprobs, reference], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_k2_is_half_the_squared_log_ratio(dtype):
    # TRL has no k2
    inputs = [normal(5, 8), normal(5, 8, seed=3)]
    agree(
        lambda p, q: kl_estimate(p, q, "k2"),
        lambda p, q: 0.5 * (p - q) ** 2,
        inputs,
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind, exact", [("k1", True), ("k2", False), ("k3", True)])
def test_the_mean_of_an_estimator_over_all_outcomes_is_pytorchs_kl_divergence(
    kind, exact, dtype
):
    p = normal(6, 9).to(dtype)
    q = p + 0.02 * normal(6, 9, seed=3).to(dtype)
    theirs = kl_divergence(
        Categorical(logits=p.double()), Categorical(logits=q.double())
    )
    one, other = p.log_softmax(-1), q.log_softmax(-1)
    ours = (one.exp() * kl_estimate(one, other, kind)).sum(-1)
    if exact:
        near(ours, theirs, dtype)
    else:
        assert torch.allclose(
            ours.double(), theirs, rtol=0.05, atol=0
        ) and not torch.equal(ours.double(), theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale, temperature", SCALES)
def test_the_kl_of_whole_responses_is_pytorchs_summed_over_their_tokens(
    scale, temperature, dtype
):
    tokens, mask, logits = batch(2, scale)
    others = logits + normal(*logits.shape, seed=8)
    p, q = logits.to(dtype), others.to(dtype)
    whole = [Categorical(logits=x.double()[:, :-1] / temperature) for x in (p, q)]
    theirs = (kl_divergence(*whole) * mask[:, 1:]).sum(-1)
    near(sequence_kl(always(p), always(q), tokens, mask, temperature), theirs, dtype)
