"""The optimisers: Muon for the matrices inside the blocks, AdamW for everything
else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

# The polynomials a x + b x^3 + c x^5 that best flatten singular values to 1, one per
# iteration: Amsel et al. 2025, "The Polar Express", with its safety factor 1.01 worked
# in
POLAR_EXPRESS = (
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
)


def orthogonalise(matrices: Tensor, steps: int = 3) -> Tensor:
    """Replace each matrix by the nearest rotation, nearly: all singular values near 1.

    The directions stay: U S V' becomes U V'. matrices: (P, m, n), all P worked on at
    once. `steps` iterations of X -> a X + b (X X') X + c (X X')(X X') X do it with
    matrix products alone. Source: Jordan et al. 2024 (Muon), with the coefficients of
    Amsel et al. 2025.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    X = matrices.mT if tall else matrices
    # Bring all singular values below 1
    X = X / (1.01 * torch.linalg.matrix_norm(X, keepdim=True) + 1e-7)
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = X @ X.mT  # (P, m, m)
        polynomial = torch.baddbmm(
            gram, gram, gram, beta=b, alpha=c
        )  # b XX' + c (XX')^2
        X = torch.baddbmm(X, polynomial, X, beta=a)  # (P, m, n)
    return X.mT if tall else X


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every update moves all directions of a weight matrix
    alike.

    For 2-d weights only. A weight of shape (3n, n) is query, key and value on top of
    each other: three matrices. Source: Jordan et al. 2024.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float = 0.01,
        momentum: float = 0.9,
        steps: int = 3,
    ):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, steps=steps))

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, matrices of one shape
        together.
        """
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self.update(parameters, group)

    def update(self, parameters: list[nn.Parameter], group: dict) -> None:
        """One step for parameters of one shape (m, n)."""
        states = [self.state[parameter] for parameter in parameters]
        for state, parameter in zip(states, parameters):
            state.setdefault("momentum", torch.zeros_like(parameter))
        gradients = torch.stack(
            [parameter.grad for parameter in parameters]
        )  # (P, m, n)
        momentum = torch.stack([state["momentum"] for state in states])  # (P, m, n)
        # Average the gradients, and look one step ahead (Nesterov)
        momentum.lerp_(gradients, 1 - group["momentum"])
        for state, average in zip(states, momentum):
            state["momentum"].copy_(average)
        direction = gradients.lerp_(momentum, group["momentum"])
        # Orthogonalise queries, keys and values each by itself
        m, n = direction.shape[1:]
        squares = direction.view(-1, n, n) if m == 3 * n else direction
        squares = (
            orthogonalise(squares, group["steps"]) * max(1, squares.size(1) / n) ** 0.5
        )
        torch._foreach_add_(
            parameters, list(squares.reshape(direction.shape)), alpha=-group["lr"]
        )


def adamw(groups: list[dict], **options) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), in one kernel where PyTorch has that for the
    CPU.
    """
    try:
        # Hand over copies: a refusal comes after the groups have been marked as fused
        return torch.optim.AdamW(
            [dict(group) for group in groups], fused=True, **options
        )
    except RuntimeError:
        return torch.optim.AdamW(groups, **options)


def linear_fall(steps: int) -> Callable[[int], float]:
    """The factor of the rates at each step: 1 at the first, in a straight line to 0."""
    return lambda step: 1 - step / steps


class Descent:
    """How a run goes down its gradients: its optimisers, and the rates at each step.

    scale: the factor of each peak rate, by step. max_norm: gradients that are longer
    together are scaled down to it; None leaves them as they are.
    """

    def __init__(
        self,
        optimizers: list[torch.optim.Optimizer],
        scale: Callable[[int], float],
        max_norm: float | None = None,
    ):
        # Round numbers below 1e-38 to 0, where CPUs crawl: the momentum of idle units
        torch.set_flush_denormal(True)
        self.optimizers, self.scale, self.max_norm = optimizers, scale, max_norm
        self.groups = [group for each in optimizers for group in each.param_groups]
        self.peaks = [group["lr"] for group in self.groups]

    def step(self, step: int) -> dict[str, float]:
        """Take a step along the gradients that were added up, and forget them.

        Returns their norm as `gradient_norm` where there is a largest. Raises
        ValueError where it is not a number.
        """
        noted = {} if self.max_norm is None else dict(gradient_norm=self.clip(step))
        for group, peak in zip(self.groups, self.peaks):
            group["lr"] = peak * self.scale(step)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return noted

    def clip(self, step: int) -> float:
        """Scale gradients that are too long down to the largest norm; return the norm
        before.
        """
        parameters = [p for group in self.groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.max_norm).item()
        if not math.isfinite(norm):
            raise ValueError(f"the gradient of step {step} is {norm}: lower the rate")
        return norm
