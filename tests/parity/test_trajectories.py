"""Twenty training steps, ours and the library's, from the same weights on the same
batches, step for step.

Our loops are run as they are, and so is train() of TRL's SFTTrainer, RewardTrainer and
DPOTrainer. Both sides take AdamW at one rate that falls to 0, ours in place of Muon.
(PPO's updates are in test_ppo_parity.py.)

A step's loss is before that step. Losses, and the weights after the last step, are held
to the tolerances of single functions: 1e-9 in float64 and 1e-5 in float32, although
rounding is carried on from step to step.
"""

import contextlib
import copy
from unittest import mock

import pytest
import torch
from datasets import Dataset
from parity.oracles import (
    DTYPES,
    TOLERANCE,
    as_gpt2,
    as_gpt2_names,
    as_scoring_gpt2,
    chat_tokenizer,
    in_float64,
    policy_of,
    scorer_of,
    unnormalised,
)
from tiny import PAD, TOKENIZER, seeded
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from posttrain import dpo, reward_model, sft
from posttrain.data import datasets
from posttrain.gpt import GPTConfig
from posttrain.optim import adamw

STEPS, RATE = 20, 3e-3
SHAPE = GPTConfig.gpt2(vocab_size=69, context=192, n_layer=2, n_head=2, width=16)


def our_adamw(model, rates):
    """AdamW for all weights, in place of Muon for some."""
    return [adamw([dict(params=list(model.parameters()))], lr=RATE, weight_decay=0.0)]


def falling(model):
    """PyTorch's AdamW and a rate that falls in a straight line to 0, as a trainer takes
    them.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    return optimizer, LambdaLR(optimizer, lambda step: 1 - step / STEPS)


def settings(kind, folder, batch_size, **changes):
    """A trainer's arguments: no checkpoints, reports, bars, clipping, shuffling,
    cutting or recomputing.
    """
    return kind(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        max_steps=STEPS,
        max_length=None,
        max_grad_norm=0.0,
        per_device_train_batch_size=batch_size,
        train_sampling_strategy="sequential",
        **changes,
    )


def precision(dtype):
    """Let the trainers' own numbers, such as the logged loss, be of this precision
    too.
    """
    return in_float64() if dtype == torch.float64 else contextlib.nullcontext()


def in_order(n, batch_size, seed=0):
    """The rows of all batches of a run, in the order in which ours draws them."""
    drawn = sft.epochs(n, batch_size, seeded(seed))
    return [i for _ in range(STEPS) for i in next(drawn)]


def trained(trainer):
    """The losses of a trainer's steps."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def track(ours, theirs, body, peer, dtype):
    """Assert that losses agree step for step, and the last weights too, and that
    training has moved them.
    """
    assert len(ours) == len(theirs) == STEPS
    for step, (one, other) in enumerate(zip(ours, theirs)):
        assert one == pytest.approx(
            other, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype]
        ), f"step {step}"
    assert ours[-1] < 0.9 * ours[0] and len({*ours}) == STEPS
    weights = peer.state_dict()
    for name, weight in as_gpt2_names(body.state_dict()).items():
        other = weights[name]
        if name.endswith("c_attn.bias"):
            # A key's bias is the same for all keys: it has no part in the softmax, and
            # its gradient is rounding alone
            weight, other = (
                torch.cat([q, v]) for q, _, v in (x.chunk(3) for x in (weight, other))
            )
        torch.testing.assert_close(weight, other, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_twenty_steps_of_sft_in_two_parts_are_those_of_trls_sfttrainer(dtype, tmp_path):
    model = policy_of(0, dtype, SHAPE)
    peer = as_gpt2(model)
    examples = sft.encode_conversations(
        datasets.conversations(), TOKENIZER, SHAPE.context
    )
    config = sft.SFTConfig(steps=STEPS, batch_size=4, micro_batch_size=2, replay=0)
    with mock.patch.object(sft, "build_optimizers", our_adamw):
        ours = [
            noted["loss"]
            for noted in sft.sft_steps(model, examples, torch.zeros(0), config, PAD)
        ]
    rows = [
        dict(zip(("input_ids", "labels"), examples[i]))
        for i in in_order(len(examples), 4)
    ]
    with precision(dtype):
        trainer = SFTTrainer(
            model=peer,
            args=settings(SFTConfig, tmp_path, 2, gradient_accumulation_steps=2),
            train_dataset=Dataset.from_list(rows),
            processing_class=chat_tokenizer(),
            optimizers=falling(peer),
        )
        track(ours, trained(trainer), model, peer.transformer, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_twenty_steps_of_reward_modelling_are_those_of_trls_rewardtrainer(
    dtype, tmp_path
):
    model = unnormalised(scorer_of(1, dtype, SHAPE))
    peer = as_scoring_gpt2(model)
    pairs = reward_model.encode_pairs(
        datasets.elsewhere_preferences(), TOKENIZER, SHAPE.context
    )
    # The comparison token by token is not in TRL
    config = reward_model.RewardConfig(
        steps=STEPS, batch_size=6, lr=RATE, token_weight=0.0, centring=0.05
    )
    ours = [
        noted["loss"] for noted in reward_model.reward_steps(model, pairs, config, PAD)
    ]
    rows = [
        dict(chosen_ids=prompt + chosen, rejected_ids=prompt + rejected)
        for prompt, chosen, rejected in (pairs[i] for i in in_order(len(pairs), 6))
    ]
    with precision(dtype):
        trainer = RewardTrainer(
            model=peer,
            args=settings(RewardConfig, tmp_path, 6, center_rewards_coefficient=0.05),
            train_dataset=Dataset.from_list(rows),
            processing_class=chat_tokenizer(),
            optimizers=falling(peer),
        )
        track(ours, trained(trainer), model.body, peer.transformer, dtype)
    torch.testing.assert_close(
        model.head.weight, peer.score.weight, rtol=0, atol=TOLERANCE[dtype]
    )
    torch.testing.assert_close(
        model.head.bias, peer.score.bias, rtol=0, atol=TOLERANCE[dtype]
    )


class FromTokens(DPOTrainer):
    """TRL's trainer, for pairs that are token ids already."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


@pytest.mark.parametrize("dtype", DTYPES)
def test_twenty_steps_of_dpo_are_those_of_trls_dpotrainer(dtype, tmp_path):
    model = policy_of(2, dtype, SHAPE)
    policy, peer, reference = copy.deepcopy(model), as_gpt2(model), as_gpt2(model)
    pairs = reward_model.encode_pairs(
        datasets.elsewhere_preferences(), TOKENIZER, SHAPE.context
    )
    config = dpo.DPOConfig(
        steps=STEPS,
        batch_size=6,
        beta=0.1,
        lr=RATE,
        label_smoothing=0.0,
        nll_weight=0.0,
    )
    steps = list(dpo.dpo_steps(policy, model, pairs, config))
    rows = [
        dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pairs[i]))
        for i in in_order(len(pairs), 6)
    ]
    with precision(dtype):
        trainer = FromTokens(
            model=peer,
            ref_model=reference,
            args=settings(DPOConfig, tmp_path, 6, beta=0.1),
            train_dataset=Dataset.from_list(rows),
            processing_class=chat_tokenizer(),
            optimizers=falling(peer),
        )
        track(
            [step["loss"] for step in steps],
            trained(trainer),
            policy,
            peer.transformer,
            dtype,
        )
    noted = [entry for entry in trainer.state.log_history if "loss" in entry]
    for ours, theirs in (
        ("chosen_reward", "rewards/chosen"),
        ("rejected_reward", "rewards/rejected"),
        ("margin", "rewards/margins"),
        ("accuracy", "rewards/accuracies"),
        ("chosen_logprob", "logps/chosen"),
    ):
        expected = pytest.approx(
            [entry[theirs] for entry in noted],
            rel=TOLERANCE[dtype],
            abs=TOLERANCE[dtype],
        )
        assert [step[ours] for step in steps] == expected, ours
