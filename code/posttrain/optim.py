"""The optimisers: Muon for the matrices inside the blocks, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The polynomials a x + b x^3 + c x^5 that best flatten singular values to 1, one per iteration:
# Amsel et al. 2025, "The Polar Express", with its safety factor 1.01 worked in
POLAR_EXPRESS = (
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
)


def orthogonalise(matrices: Tensor, steps: int = 3) -> Tensor:
    r"""Replace each matrix $U S V^\top$ by nearly $U V^\top$: all singular values near 1.

    The directions stay. matrices: (P, m, n), all P worked on at once. `steps` iterations of
    $X \to aX + b(XX^\top)X + c(XX^\top)^2X$ do it with matrix products alone.
    Source: Jordan et al. 2024 (Muon), with the coefficients of Amsel et al. 2025.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    X = matrices.mT if tall else matrices
    # Bring all singular values below 1
    X = X / (1.01 * torch.linalg.matrix_norm(X, keepdim=True) + 1e-7)
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = X @ X.mT  # (P, m, m)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b XX' + c (XX')^2
        X = torch.baddbmm(X, polynomial, X, beta=a)  # (P, m, n)
    return X.mT if tall else X


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every update moves all directions of a weight matrix alike.

    For 2-d weights only. A weight of shape (3n, n) is query, key and value on top of each
    other: three matrices. Source: Jordan et al. 2024.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float = 0.01,
                 momentum: float = 0.9, steps: int = 3):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, steps=steps))

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, matrices of one shape together."""
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
        gradients = torch.stack([parameter.grad for parameter in parameters])  # (P, m, n)
        momentum = torch.stack([state["momentum"] for state in states])  # (P, m, n)
        # Average the gradients, and look one step ahead (Nesterov)
        momentum.lerp_(gradients, 1 - group["momentum"])
        for state, average in zip(states, momentum):
            state["momentum"].copy_(average)
        direction = gradients.lerp_(momentum, group["momentum"])
        # Orthogonalise queries, keys and values each by itself
        m, n = direction.shape[1:]
        squares = direction.view(-1, n, n) if m == 3 * n else direction
        squares = orthogonalise(squares, group["steps"]) * max(1, squares.size(1) / n) ** 0.5
        torch._foreach_add_(
            parameters, list(squares.reshape(direction.shape)), alpha=-group["lr"]
        )


def adamw(groups: list[dict], **options) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), in one kernel where PyTorch has that for the CPU."""
    try:
        # Hand over copies: a refusal comes after the groups have been marked as fused
        return torch.optim.AdamW([dict(group) for group in groups], fused=True, **options)
    except RuntimeError:
        return torch.optim.AdamW(groups, **options)


def set_rates(groups: list[dict], peaks: list[float], scale: float) -> None:
    """Give each parameter group its peak rate times a factor."""
    for group, peak in zip(groups, peaks):
        group["lr"] = peak * scale
