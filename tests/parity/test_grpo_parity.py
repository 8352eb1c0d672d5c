"""GRPO's losses, values and gradients, beside TRL's trainer."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from posttrain.checked.grpo import Choices, grpo_losses
from posttrain.lab.ppo_variants import NoValues
from posttrain.logprobs import token_logprobs
from posttrain.ppo import Models, PPOConfig, Rollout

trl = pytest.importorskip("trl")
B, T, P, V = 4, 9, 3, 11  # answers, tokens, of these the prompt's, vocabulary
LENGTHS = (1, 6, 3, 4)
KINDS = {"sequence": "grpo", "token": "bnpo", "fixed": "dr_grpo"}


class Table(torch.nn.Module):
    """A policy whose logits are its weights, a table per row."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, tokens):
        return self.logits


def answers(seed):
    """A rollout, and the logits of a policy that has moved since."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (B, T), generator=generator)
    place = torch.arange(T - 1)
    lengths = torch.tensor(LENGTHS)[:, None]
    actions = (place >= P - 1) & (place < P - 1 + lengths)  # (B, T-1)
    made = dict(generator=generator, dtype=torch.float64)
    now, old, reference = (torch.randn(B, T, V, **made) for _ in range(3))
    old = now + 0.3 * old
    said = [token_logprobs(each, tokens, 1.0) * actions for each in (old, reference)]
    scores = torch.randn(B, **made)
    ended = torch.ones(B, dtype=torch.bool)
    seen = Rollout(tokens, actions, *said, torch.zeros(B, T - 1), scores, ended)
    return seen, now


def trls(seen, policy, choices, beta, longest):
    """TRL's loss of the same answers."""
    said = (token_logprobs(policy(seen.tokens), seen.tokens, 1.0) * seen.actions)[
        :, P - 1 :
    ]
    trainer = MagicMock(
        loss_type=KINDS[choices.mean],
        importance_sampling_level=choices.ratio,
        beta=beta,
        epsilon_low=choices.clip_low,
        epsilon_high=choices.clip_high,
        max_completion_length=longest,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        use_adaptive_entropy=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        _get_per_token_logps_and_entropies=lambda *a, **k: (said, said.detach(), None),
    )
    trainer.accelerator.gather = lambda value: value
    model = SimpleNamespace(training=True)
    inputs = dict(
        prompt_ids=seen.tokens[:, :P],
        prompt_mask=torch.ones(B, P, dtype=torch.long),
        completion_ids=seen.tokens[:, P:],
        completion_mask=seen.actions[:, P - 1 :].long(),
        advantages=seen.scores,
        old_per_token_logps=seen.logprobs[:, P - 1 :],
        ref_per_token_logps=seen.reference_logprobs[:, P - 1 :],
    )
    return trl.GRPOTrainer._compute_loss(trainer, model, inputs)


@pytest.mark.parametrize("mean", [*KINDS])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("high", [0.2, 0.28])
def test_values_and_gradients_are_trls(mean, ratio, beta, high):
    choices = Choices(mean=mean, ratio=ratio, clip_high=high)
    config = PPOConfig(max_new_tokens=7, beta=beta, temperature=1.0)
    held = 0.0
    for seed in range(5):
        seen, now = answers(seed)
        found = []
        for ours in (True, False):
            policy = Table(now.clone())
            if ours:
                models = Models(policy, NoValues(), None, None)
                advantages = seen.scores[:, None] * seen.actions
                zeros = torch.zeros_like(advantages)
                losses = grpo_losses(models, seen, advantages, zeros, config, choices)
                loss, held = losses["total"], held + losses["clip_fraction"].item()
            else:
                loss = trls(seen, policy, choices, beta, 7)
            loss.backward()
            found.append((loss.detach(), policy.logits.grad))
        torch.testing.assert_close(*found, rtol=0, atol=1e-12)
        assert found[0][1].abs().max() > 1e-3
    assert held > 0 or ratio == "sequence"
