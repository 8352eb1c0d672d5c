"""What the PPO chapter draws: its four models, pay against KL, answers to walk
along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from posttrain.show.charts import curves, diagram, set_root_scale
from posttrain.show.figures import GREY
from posttrain.show.interactive import Interactive
from posttrain.show.tokens import ScoreView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from posttrain.ppo import PPOConfig, Rollout
    from posttrain.show.runs import Runs

BOXES = {
    "prompt": (0, 2.2),
    "policy\n(trained)": (1.6, 2.2),
    "response": (3.3, 2.2),
    "reference\n(frozen)": (5.2, 3.6),
    "reward model\n(frozen)": (5.2, 2.2),
    "value model\n(trained)": (5.2, 1.1),
    "KL penalty,\nper token": (7.3, 3.1),
    "score,\nat the end": (7.3, 2.2),
    "values,\nper token": (7.3, 1.1),
    "rewards": (9.1, 2.75),
    "advantages,\nreturns": (9.1, 1.4),
    "gradients": (5.2, 0.1),
}
ARROWS = [
    "prompt > policy",
    "policy > response",
    "response > reference",
    "response > reward model",
    "response > value model",
    "policy > KL penalty,",
    "reference > KL penalty,",
    "reward model > score,",
    "value model > values,",
    "KL penalty, > rewards",
    "score, > rewards",
    "rewards > advantages,",
    "values, > advantages,",
    "advantages, > gradients",
    "gradients > policy",
    "gradients > value model",
]
COLOURS = {"policy": "PPO", "value model": "PPO", "reference": "SFT"}


def four_models() -> Figure:
    """The four models of PPO and what flows between them; the trained two are heavy."""
    return diagram(BOXES, ARROWS, ["policy", "value model"], COLOURS)


def clip_shapes(eps: float = 0.2) -> Figure:
    """PPO's loss of one token against its ratio, for an advantage of 1 and of -1."""
    # PyTorch takes a second to import
    import torch

    from posttrain.ppo import policy_loss

    one, old = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1)
    ratios = torch.linspace(0.4, 1.6, 121)
    panels = {}
    for advantage, what in ((1.0, "a good token, A = 1"), (-1.0, "a bad one, A = -1")):
        better = torch.full((1, 1), advantage)
        clipped = [
            policy_loss(ratio.log().view(1, 1), old, better, one, eps)[0].item()
            for ratio in ratios
        ]
        free = [-advantage * ratio for ratio in ratios.tolist()]
        lines = {"PPO": (ratios.tolist(), clipped), "no clip": (ratios.tolist(), free)}
        panels[f"loss of {what}"] = lines
    return curves(panels, x="ratio: probability now / probability then")


def paid_and_meant(groups: Mapping[str, Runs]) -> Figure:
    """Reward score and rubric score against the KL, a line per run from card to card.

    groups: label to runs of PPO, of which the first have its colour and all others are
    grey. A ring is where a run ends.
    """
    meant = "gold rubric: what is meant"
    labels = {"score": "reward model: what is paid (deviations)", "gold_score": meant}
    panels = {
        label: {
            name: runs.series("cards", key, x=("cards", "kl"))
            for name, runs in groups.items()
        }
        for key, label in labels.items()
    }
    colours = dict(zip(groups, ["PPO"] + [GREY] * (len(groups) - 1)))
    kl = "KL to the SFT model (nats per answer)"
    figure = curves(panels, x=kl, colours=colours)
    for axis in figure.axes:
        for line in axis.lines:
            ring = dict(markerfacecolor="none", markersize=9, color=line.get_color())
            axis.plot(line.get_xdata()[-1:], line.get_ydata()[-1:], "o", **ring)
        set_root_scale(axis)
    return figure


def rollout_view(
    answers: Mapping[str, tuple[Rollout, int, float]], config: PPOConfig
) -> Interactive:
    """Answers to walk along, token by token, with all that the loop knows of them.

    answers: name to (rollout, row, beta). Advantages are those before whitening.
    """
    seen = [answer_of(name, *each, config) for name, each in answers.items()]
    still = ScoreView(seen[0]["tokens"], seen[0]["advantage"])
    lam = config.gae_lambda
    return Interactive("rollout", still, answers=seen, gamma=config.gamma, lam=lam)


def answer_of(
    name: str, rollout: Rollout, row: int, beta: float, config: PPOConfig
) -> dict[str, object]:
    """One answer of a rollout: its tokens as texts, and for each what is known of
    it.
    """
    # PyTorch takes a second to import
    from posttrain.ppo import gae, token_rewards
    from posttrain.tokenizer import CharTokenizer

    here, texts = rollout.actions[row], CharTokenizer().tokens
    kl = rollout.logprobs - rollout.reference_logprobs  # (B, T-1)
    rewards = token_rewards(rollout.scores, kl, rollout.actions, beta)
    lasting = (config.gamma, config.gae_lambda)
    advantages, _ = gae(rewards, rollout.values, rollout.actions, *lasting)
    columns = {
        "log-probability": rollout.logprobs,
        "reference": rollout.reference_logprobs,
        "value": rollout.values,
        "reward": rewards,
        "advantage": advantages,
    }
    numbers = {
        key: [round(x, 6) for x in values[row][here].tolist()]
        for key, values in columns.items()
    }
    tokens = [texts[t] for t in rollout.tokens[row, 1:][here]]
    score = rollout.scores[row].item()
    return dict(name=name, beta=beta, score=score, tokens=tokens) | numbers
