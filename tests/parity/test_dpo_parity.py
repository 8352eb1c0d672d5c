"""DPO and the losses beside it: ours, and TRL's DPO, CPO, ORPO and KTO trainers run on
stand-ins for themselves.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from parity.oracles import (
    DTYPES,
    Speaker,
    agree,
    always,
    as_gpt2,
    body_gradients,
    in_float64,
    near,
    pairs_of_texts,
    peer_gradients,
    policy_of,
    same_gradients,
    stub,
)
from tiny import PAD, normal
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from posttrain.dpo import (
    DPOConfig,
    dpo_loss,
    mismatched_kl,
    pair_logprobs,
    pair_loss,
    pair_report,
    preference_loss,
)
from posttrain.logprobs import get_response_log_probs
from posttrain.preference_losses import (
    ipo_loss,
    kto_loss,
    log_odds,
    orpo_loss,
    simpo_loss,
)
from posttrain.preference_pairs import pack_pairs


def collated(pairs):
    rows = [
        dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair)) for pair in pairs
    ]
    return DataCollatorForPreference(pad_token_id=PAD)(rows)


def trl_dpo(policy, reference, inputs, kind="sigmoid", beta=0.1, label_smoothing=0.0):
    """DPOTrainer's loss, and what it notes."""
    trainer = stub(
        policy,
        ref_model=reference,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    loss = DPOTrainer._compute_loss(trainer, policy, dict(inputs), False)
    return loss, {
        name: values[-1] for name, values in trainer._metrics["train"].items()
    }


def saying(*logprobs):
    """Stand-ins for two models, and TRL's batch, such that its log-probabilities of
    whole responses are these.

    logprobs: (B,) each: the policy's of the chosen and of the rejected, the
    reference's. Each response is one token, and the logits of two tokens are worked out
    from its probability.
    """
    n = 2 * len(logprobs[0])
    inputs = dict(
        input_ids=torch.zeros(n, 2, dtype=torch.long), attention_mask=torch.ones(n, 2)
    )
    inputs["completion_mask"] = torch.tensor([[0, 1]] * n)

    def logits(*two):
        logprob = torch.cat(two)  # (2B,)
        other = torch.log(-torch.expm1(logprob))
        said = torch.stack([logprob, other], dim=-1)  # (2B, 2)
        return torch.stack([said, said], dim=1)  # (2B, 2, 2)

    models = [
        Speaker(lambda _, two=two: logits(*two)) for two in (logprobs[:2], logprobs[2:])
    ]
    return *models, inputs


def four(n=7, scale=1.0):
    """Log-probabilities of whole responses, (n,) each."""
    return [-scale * (0.1 + normal(n, seed=i).abs()) for i in range(4)]


def frozen(loss):
    """A loss whose reference gets no gradient, as in TRL."""
    return lambda chosen, rejected, *reference: loss(
        chosen, rejected, *(x.detach() for x in reference)
    )


# The losses, as functions of log-probabilities


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0.02, 0.1, 5.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_dpo_loss_is_trls(scale, beta, dtype):
    theirs = lambda *logprobs: trl_dpo(*saying(*logprobs), beta=beta)[0]  # noqa: E731
    agree(
        frozen(lambda *logprobs: dpo_loss(*logprobs, beta)),
        theirs,
        four(scale=scale),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label_smoothing", [0.1, 0.49])
def test_smoothed_dpo_is_the_mean_of_trls_aot_over_single_pairs(label_smoothing, dtype):
    # TRL's own "sigmoid" passes label_smoothing over; with one pair there is nothing
    # for "aot" to sort, and it is cDPO
    wrong = label_smoothing * torch.linspace(0.2, 1.0, 7, dtype=torch.float64)

    def theirs(*logprobs):
        pairs = zip(*(x.split(1) for x in logprobs))
        options = dict(kind="aot", beta=0.3)
        alone = [
            trl_dpo(*saying(*pair), label_smoothing=eps.item(), **options)[0]
            for pair, eps in zip(pairs, wrong)
        ]
        return torch.stack(alone).mean()

    agree(
        frozen(lambda *x: dpo_loss(*x, 0.3, wrong.to(dtype))),
        theirs,
        four(scale=5.0),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gap", [1e3, 1e5])
def test_dpo_far_from_even_is_mitchells_formula_in_logaddexps(
    gap, label_smoothing, dtype
):
    # The stand-ins for TRL's models hold no probabilities that small
    def theirs(a, b, c, d):
        h, zero = 0.5 * ((a - c) - (b - d)), torch.zeros_like(a)
        return (
            (1 - label_smoothing) * torch.logaddexp(zero, -h)
            + label_smoothing * torch.logaddexp(zero, h)
        ).mean()

    agree(lambda *x: dpo_loss(*x, 0.5, label_smoothing), theirs, four(scale=gap), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_ipo_is_trls_for_responses_of_one_token_where_a_sum_is_a_mean(beta, dtype):
    # TRL divides each log-ratio by the response's length first; the paper and we do not
    def theirs(*logprobs):
        return trl_dpo(*saying(*logprobs), kind="ipo", beta=beta)[0]

    agree(
        frozen(lambda *logprobs: ipo_loss(*logprobs, beta)),
        theirs,
        four(scale=3.0),
        dtype,
    )


def cpo(**settings):
    return SimpleNamespace(
        alpha=0.0,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
        **settings,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta, gamma", [(2.0, 1.0), (0.5, 0.0), (10.0, 5.0)])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_simpo_is_trls(scale, beta, gamma, dtype):
    def theirs(chosen, rejected):
        settings = cpo(loss_type="simpo", beta=beta, simpo_gamma=gamma)
        return CPOTrainer.cpo_loss(settings, chosen, rejected)[0].mean()

    agree(
        lambda *means: simpo_loss(*means, beta, gamma),
        theirs,
        four(scale=scale)[:2],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_orpo_is_trls(scale, dtype):
    def theirs(chosen, rejected):
        reward = ORPOTrainer.odds_ratio_loss(cpo(beta=0.3), chosen, rejected)[0]
        # TRL's fine-tuning part is a mean over all tokens of a batch; ours one over
        # answers, of their own means
        return (-chosen - reward).mean()

    agree(lambda *means: orpo_loss(*means, 0.3), theirs, four(scale=scale)[:2], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_odds_are_pytorchs_logit_of_the_probability(dtype):
    agree(log_odds, lambda x: torch.logit(x.exp()), [four(50)[0]], dtype)


# From logits: masks, sums and means


@pytest.mark.parametrize("seed", range(4))
def test_packed_pairs_and_their_mask_are_those_of_trls_collator(seed):
    pairs = pairs_of_texts(seed)
    theirs = collated(pairs)
    tokens, mask = pack_pairs(pairs, PAD)
    assert torch.equal(tokens, theirs["input_ids"])
    assert torch.equal(mask, theirs["completion_mask"].bool())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_dpo_from_logits_is_trls_and_so_is_what_is_reported(seed, empty, scale, dtype):
    pairs = pairs_of_texts(seed)
    inputs, (tokens, mask) = collated(pairs), pack_pairs(pairs, PAD)
    if empty:  # a response of no tokens: `pack` refuses it, the loss does not mind
        mask[1] = False
        inputs["completion_mask"][1] = 0
    known = (scale * normal(*tokens.shape, 69, seed=9)).to(dtype)
    noted = {}

    def ours(logits):
        now, then = (
            get_response_log_probs(always(x), tokens, mask).view(2, -1)
            for x in (logits, known)
        )
        noted["ours"] = pair_report(now, then, 0.1)
        if empty:  # its mean over 0 tokens has no value, and is not asked for
            return dpo_loss(*now, *then, 0.1)
        return preference_loss(
            now,
            then,
            mask.sum(-1).view(2, -1),
            DPOConfig(beta=0.1, label_smoothing=0.0, nll_weight=0.0),
        )

    def theirs(logits):
        loss, noted["theirs"] = trl_dpo(
            Speaker(always(logits)), Speaker(always(known.double())), inputs
        )
        return loss

    agree(ours, theirs, [scale * normal(*tokens.shape, 69)], dtype)
    same = dict(
        chosen_reward="rewards/chosen",
        rejected_reward="rewards/rejected",
        margin="rewards/margins",
        accuracy="rewards/accuracies",
        chosen_logprob="logps/chosen",
        rejected_logprob="logps/rejected",
    )
    assert noted["ours"].keys() == same.keys()
    for name, number in noted["ours"].items():
        near(torch.tensor(number, dtype=dtype), noted["theirs"][same[name]], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_ipo_from_logits_is_trls_once_the_log_ratios_are_means(seed, dtype):
    pairs = pairs_of_texts(seed)
    tokens, mask = pack_pairs(pairs, PAD)
    known, lengths = normal(*tokens.shape, 69, seed=9).to(dtype), mask.sum(-1)

    def ours(logits):
        means = [
            get_response_log_probs(always(x), tokens, mask) / lengths
            for x in (logits, known)
        ]
        return ipo_loss(*(x for both in means for x in both.chunk(2)), 0.2)

    def theirs(logits):
        models = Speaker(always(logits)), Speaker(always(known.double()))
        return trl_dpo(*models, collated(pairs), kind="ipo", beta=0.2)[0]

    agree(ours, theirs, [normal(*tokens.shape, 69)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ["simpo", "orpo"])
@pytest.mark.parametrize("seed", range(3))
def test_losses_of_means_from_logits_are_trls_of_its_averaged_log_probs(
    seed, loss, dtype
):
    pairs = pairs_of_texts(seed)
    tokens, mask = pack_pairs(pairs, PAD)
    labels = tokens.masked_fill(~mask, -100)
    config = DPOConfig(loss=loss, beta=2.0, gamma=0.7, odds_weight=0.3, nll_weight=0.5)

    def ours(logits):
        logprobs = get_response_log_probs(always(logits), tokens, mask).view(2, -1)
        return preference_loss(
            logprobs, torch.zeros_like(logprobs), mask.sum(-1).view(2, -1), config
        )

    def theirs(logits):
        chosen, rejected = CPOTrainer.get_batch_logps(
            logits, labels, average_log_prob=True
        ).chunk(2)
        if loss == "simpo":
            losses = CPOTrainer.cpo_loss(
                cpo(loss_type=loss, beta=2.0, simpo_gamma=0.7), chosen, rejected
            )[0]
        else:
            losses = (
                -chosen
                - ORPOTrainer.odds_ratio_loss(cpo(beta=0.3), chosen, rejected)[0]
            )
        return (losses - 0.5 * chosen).mean()

    agree(ours, theirs, [2 * normal(*tokens.shape, 69)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_the_chosen_answers_surprise_of_one_pair_is_trls_sft_loss(seed, dtype):
    # With more pairs TRL takes the mean over all their tokens, and we over the answers'
    # own means
    pairs = pairs_of_texts(seed)[1:2]
    tokens, mask = pack_pairs(pairs, PAD)

    def ours(logits):
        logprobs = get_response_log_probs(always(logits), tokens, mask).view(2, -1)
        known, lengths = logprobs.detach() - 1, mask.sum(-1).view(2, -1)
        one, other = (
            preference_loss(logprobs, known, lengths, DPOConfig(nll_weight=w))
            for w in (1.0, 0.0)
        )
        return one - other

    def theirs(logits):
        model = Speaker(always(logits))
        return trl_dpo(
            model, Speaker(always(logits.detach())), collated(pairs), kind="sft"
        )[0]

    agree(ours, theirs, [normal(*tokens.shape, 69)], dtype)


# On models


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(2))
def test_the_dpo_loss_of_pairs_and_its_gradients_are_those_of_trl(seed, dtype):
    policy, reference, pairs = (
        policy_of(seed, dtype),
        policy_of(seed + 1, dtype),
        pairs_of_texts(seed),
    )
    peers = [as_gpt2(copy.deepcopy(model).double()) for model in (policy, reference)]
    loss, _ = pair_loss(
        policy,
        reference,
        pairs,
        pair_logprobs(reference, pairs, PAD),
        DPOConfig(beta=0.05, label_smoothing=0.0, nll_weight=0.0),
        PAD,
    )
    loss.backward()
    with in_float64():
        theirs, noted = trl_dpo(*peers, collated(pairs), beta=0.05)
    theirs.backward()
    near(loss, theirs, dtype)
    same_gradients(body_gradients(policy), peer_gradients(peers[0].transformer), dtype)
    assert all(
        parameter.grad is None
        for parameter in (*reference.parameters(), *peers[1].parameters())
    )
    assert abs(noted["rewards/margins"]) > 0.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("swapped", [False, True])
def test_ktos_loss_baseline_and_gradients_are_trls_on_transformers_gpt2(swapped, dtype):
    policy, reference = (
        policy_of(seed, dtype) for seed in ((1, 0) if swapped else (0, 1))
    )
    pairs, config = pairs_of_texts(5), DPOConfig(loss="kto", beta=0.05, nll_weight=0.0)
    peers = [as_gpt2(copy.deepcopy(model).double()) for model in (policy, reference)]
    # Ours takes the chosen answer of the pair after, TRL the answer of the row before:
    # so its rows go backwards. TRL mismatches the rejected answers too, where a batch
    # holds them: it is given those of the chosen alone
    back, collate = pairs[::-1], DataCollatorForUnpairedPreference(pad_token_id=PAD)
    rows = [dict(prompt_ids=p, completion_ids=c, label=True) for p, c, _ in back]
    rows += [dict(prompt_ids=p, completion_ids=r, label=False) for p, _, r in back]
    others = [before for _, before, _ in back[-1:] + back[:-1]]
    inputs = collate(
        [row | dict(KL_completion_ids=other) for row, other in zip(rows, others)]
    ) | collate(rows)
    loss, _ = pair_loss(
        policy, reference, pairs, pair_logprobs(reference, pairs, PAD), config, PAD
    )
    loss.backward()
    trainer = stub(
        peers[0],
        ref_model=peers[1],
        calculate_KL=True,
        precompute_ref_logps=False,
        use_liger_kernel=False,
        loss_type="kto",
        beta=0.05,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        _is_vlm=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    trainer._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(
        trainer, model, batch
    )
    theirs = KTOTrainer._compute_loss(trainer, peers[0], inputs, False)
    theirs.backward()
    near(loss, theirs, dtype)
    near(
        mismatched_kl(policy, reference, pairs, PAD).clamp_min(0),
        trainer._metrics["train"]["kl"][-1],
        dtype,
    )
    same_gradients(body_gradients(policy), peer_gradients(peers[0].transformer), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("baseline", [-1.0, 0.0, 2.5])
def test_kto_is_the_formula_of_ethayarajh_et_al_in_tanhs(baseline, dtype):
    chosen, rejected = 20 * normal(6), 20 * normal(6, seed=1)

    def theirs(chosen, rejected):
        z = max(baseline, 0.0)

        def shortfall(gain):
            return 0.5 * (1 - torch.tanh(0.1 * gain / 2))  # 1 - sigmoid(0.1 gain)

        return torch.cat([shortfall(chosen - z), shortfall(z - rejected)]).mean()

    agree(
        lambda *x: kto_loss(*x, torch.tensor(baseline), 0.1),
        theirs,
        [chosen, rejected],
        dtype,
    )
