"""Reward models and their losses: ours, TRL's, and transformers' scoring GPT-2."""

import copy
from types import SimpleNamespace

import pytest
import torch
from parity.oracles import (
    DTYPES,
    Speaker,
    agree,
    as_scoring_gpt2,
    body_gradients,
    near,
    pairs_of_texts,
    peer_gradients,
    same_gradients,
    scorer_of,
    stub,
    texts,
    unnormalised,
)
from scipy import stats
from tiny import PAD, normal
from torch.nn.functional import logsigmoid
from trl import RewardTrainer
from trl.experimental.utils import first_true_indices, get_reward
from trl.trainer.reward_trainer import DataCollatorForPreference

from posttrain.logprobs import pack
from posttrain.ppo import ValueModel
from posttrain.preference_pairs import pack_pairs
from posttrain.reward_model import (
    bradley_terry_loss,
    last_of,
    normalise,
    pair_accuracy,
    score_pairs,
    token_level_loss,
)


def collated(pairs):
    rows = [
        dict(chosen_ids=prompt + chosen, rejected_ids=prompt + rejected)
        for prompt, chosen, rejected in pairs
    ]
    return DataCollatorForPreference(pad_token_id=PAD)(rows)


def trl_loss(model, inputs, centring=None):
    """RewardTrainer's loss, and what it notes."""
    trainer = stub(model, args=SimpleNamespace(center_rewards_coefficient=centring))
    loss = RewardTrainer.compute_loss(trainer, model, inputs)
    return loss, {
        name: values[-1] for name, values in trainer._metrics["train"].items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centring", [0.0, 0.01, 2.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_the_bradley_terry_loss_is_trls_with_its_centring(scale, centring, dtype):
    def theirs(scores):
        model = Speaker(lambda _: scores[:, None])
        return trl_loss(
            model, dict(attention_mask=torch.ones(14, 1)), centring or None
        )[0]

    agree(
        lambda x: bradley_terry_loss(*x.chunk(2), centring),
        theirs,
        [scale * normal(14)],
        dtype,
    )


@pytest.mark.parametrize("seed", range(4))
def test_packed_pairs_are_those_of_trls_collator(seed):
    pairs = pairs_of_texts(seed)
    theirs = collated(pairs)
    tokens, _ = pack_pairs(pairs, PAD)
    assert torch.equal(tokens, theirs["input_ids"])
    assert torch.equal(tokens != PAD, theirs["attention_mask"].bool())


@pytest.mark.parametrize("seed", range(4))
def test_the_last_value_of_each_row_stands_where_trl_and_transformers_look(seed):
    prompts, responses = texts(seed)
    tokens, mask = pack(prompts, responses, PAD)
    values = normal(*tokens.shape)
    before_the_padding = first_true_indices(tokens == PAD) - 1
    assert torch.equal(
        last_of(values, mask), values[torch.arange(len(values)), before_the_padding]
    )


def test_an_empty_response_which_trl_scores_at_its_prompts_last_token_is_refused():
    mask = torch.tensor([[False, True], [False, False]])
    with pytest.raises(ValueError, match="no response to read"):
        last_of(normal(2, 2), mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_transformers_scoring_gpt2_and_of_trls_get_reward(
    seed, dtype
):
    model = scorer_of(seed, dtype)
    peer = as_scoring_gpt2(copy.deepcopy(model).double()).eval()
    prompts, responses = texts(seed)
    prompts = [prompts[0]] * len(prompts)  # TRL's context has one length
    tokens, mask = pack(prompts, responses, PAD)
    with torch.no_grad():
        whole = peer(tokens, attention_mask=(tokens != PAD).long()).logits[:, 0]
        numbers, scores, _ = get_reward(peer, tokens, PAD, len(prompts[0]))
    # Ours has a zero and a unit besides
    unit = lambda raw: (raw - model.shift) / model.scale  # noqa: E731
    near(model(tokens, mask), unit(whole), dtype)
    near(model(tokens, mask), unit(scores), dtype)
    real = tokens != PAD
    near(model.token_scores(tokens)[real], unit(numbers[..., 0])[real], dtype)
    # A value model that starts from it says the same at every token
    near(
        ValueModel.from_reward_model(model)(tokens)[real],
        unit(numbers[..., 0])[real],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centring", [0.0, 0.5])
def test_the_loss_of_pairs_and_its_gradients_are_those_of_trl(centring, dtype):
    model, pairs = unnormalised(scorer_of(3, dtype)), pairs_of_texts(6)
    peer = as_scoring_gpt2(copy.deepcopy(model).double())
    peer.config.pad_token_id = PAD
    loss = bradley_terry_loss(*score_pairs(model, pairs, PAD), centring)
    loss.backward()
    theirs, noted = trl_loss(peer, dict(collated(pairs)), centring or None)
    theirs.backward()
    near(loss, theirs, dtype)
    same_gradients(body_gradients(model.body), peer_gradients(peer.transformer), dtype)
    same_gradients(peer_gradients(model.head), peer_gradients(peer.score), dtype)
    assert pair_accuracy(model, pairs, PAD) == pytest.approx(
        noted["accuracy"], rel=1e-6
    )
    assert 0 < noted["accuracy"] < 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_token_level_loss_is_deepspeed_chats_slice_from_where_the_answers_part(
    seed, scale, dtype
):
    pairs = pairs_of_texts(seed)
    tokens, mask = pack_pairs(pairs, PAD)

    def theirs(scores):
        # DeepSpeed-Chat goes on to the longer answer's end and means pair by pair; ours
        # ends with the shorter, and every token counts alike
        parts = []
        for row, (prompt, chosen, rejected) in enumerate(pairs):
            first = next(
                i
                for i, (a, b) in enumerate(zip(tokens[row], tokens[row + len(pairs)]))
                if a != b
            )
            end = len(prompt) + min(len(chosen), len(rejected))
            parts.append(
                -logsigmoid(
                    scores[row, first:end] - scores[row + len(pairs), first:end]
                )
            )
        return torch.cat(parts).mean()

    agree(
        lambda x: token_level_loss(x, tokens, mask),
        theirs,
        [scale * normal(*tokens.shape)],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalised_scores_are_scipys_z_scores(dtype):
    model = scorer_of(4, dtype)
    prompts, responses = texts(2)
    tokens, mask = pack(prompts * 3, responses[::-1] * 3, PAD)
    raw = model(tokens, mask).detach().double()
    normalise(model, tokens, mask)
    near(model(tokens, mask), stats.zscore(raw.numpy(), ddof=1), dtype)
