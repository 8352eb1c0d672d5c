"""NF4: weights in four bits each, on sixteen levels that suit a normal distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES_BLOCK = 256  # scales that share one scale of theirs
OUTERMOST = 1 - (1 / 30 + 1 / 32) / 2  # the last level's probability, as published


def nf4_levels() -> Tensor:
    r"""The sixteen levels of NormalFloat, from -1 to 1, 0 among them: (16,).

    Quantiles of the standard normal at evenly spaced probabilities, eight of them above
    0 and seven below, divided by the largest. Source: Dettmers et al. 2023, section 3
    and appendix E.
    """
    above = torch.linspace(OUTERMOST, 0.5, 9, dtype=torch.float64)[:-1]  # (8,)
    below = torch.linspace(OUTERMOST, 0.5, 8, dtype=torch.float64)[:-1]  # (7,)
    zero = torch.zeros(1, dtype=torch.float64)
    levels = torch.cat([-torch.special.ndtri(below), zero, torch.special.ndtri(above)])
    return (levels / levels.max()).sort().values.float()  # (16,)


def int4_levels() -> Tensor:
    """Fifteen evenly spaced levels from -1 to 1, those of a plain four-bit integer:
    (15,).
    """
    return torch.arange(-7, 8) / 7


def blocks_of(values: Tensor, size: int) -> Tensor:
    """Any tensor as rows of `size` numbers, the last filled up with zeros: (N,
    size).
    """
    flat = values.flatten()
    return F.pad(flat, (0, -len(flat) % size)).view(-1, size)


def quantize(weights: Tensor, levels: Tensor, block: int = 64) -> tuple[Tensor, Tensor]:
    """Each weight as the number of its nearest level, in blocks that each have a scale.

    Returns codes (N, block), uint8, and scales (N,), each block's largest absolute
    weight. A weight is about levels[code] * scale. Raises ValueError for a weight that
    is not finite.
    """
    if not torch.isfinite(weights).all():
        raise ValueError("a weight is NaN or infinite: it has no nearest level")
    rows = blocks_of(weights.float(), block)  # (N, block)
    scales = rows.abs().amax(-1)  # (N,)
    # Bring each block to [-1, 1]; a block of zeros stays as it is
    unit = rows / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    # Count the midpoints below each weight
    midpoints = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(unit, midpoints.to(unit.device))  # (N, block)
    return codes.to(torch.uint8), scales


def dequantize(
    codes: Tensor, scales: Tensor, levels: Tensor, shape: torch.Size
) -> Tensor:
    """The weights that codes (N, block) and scales (N,) stand for, in their old
    shape.
    """
    rows = levels[codes.int()] * scales[:, None]  # (N, block)
    return rows.flatten()[: shape.numel()].view(shape)


def pack_codes(codes: Tensor) -> Tensor:
    """Two codes in a byte, the first in its upper half: (N, block) to (N, block /
    2).
    """
    return codes[:, 0::2] << 4 | codes[:, 1::2]


def unpack_codes(packed: Tensor) -> Tensor:
    """Two codes from every byte: (N, block / 2) to (N, block)."""
    return torch.stack([packed >> 4, packed & 15], dim=-1).flatten(1)


@dataclass(frozen=True)
class PackedScales:
    """Scales in eight bits each: (code * step of its block) + mean."""

    codes: Tensor  # (M, SCALES_BLOCK), int8
    steps: Tensor  # (M,), float32
    mean: Tensor  # (), float32


def quantize_scales(scales: Tensor) -> PackedScales:
    """Double quantisation: scales (N,) as 8-bit integers in blocks, their mean kept
    aside.

    All scales are positive, so without the mean half of the integers would stand idle.
    Source: Dettmers et al. 2023, section 3; they use 8-bit floats.
    """
    mean = scales.mean()
    rows = blocks_of(scales - mean, SCALES_BLOCK)  # (M, SCALES_BLOCK)
    steps = rows.abs().amax(-1) / 127  # (M,)
    codes = rows / steps.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return PackedScales(codes.round().to(torch.int8), steps, mean)


def dequantize_scales(packed: PackedScales, n: int) -> Tensor:
    """The first n scales that `quantize_scales` has packed: (n,), none below 0."""
    rows = packed.codes * packed.steps[:, None] + packed.mean  # (M, SCALES_BLOCK)
    return rows.flatten()[:n].clamp_min(0)


class Reconstruct(torch.autograd.Function):
    """A linear map whose weight is rebuilt from four bits, once forward and once
    backward.

    Nothing but the layer is kept in between, so the graph holds no weight in full
    precision.
    """

    @staticmethod
    def forward(ctx, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight.to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.weight.to(grad.dtype), None


class NF4Linear(nn.Module):
    """A frozen linear layer whose weight is kept in NF4 with doubly quantised scales.

    Its input gets a gradient, its weight none. It takes any device's tensors.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        levels, weight = nf4_levels().to(layer.weight.device), layer.weight.detach()
        codes, scales = quantize(weight, levels)
        packed = quantize_scales(scales)
        self.register_buffer("codes", pack_codes(codes))  # (N, 32)
        self.register_buffer("scale_codes", packed.codes)  # (M, SCALES_BLOCK)
        self.register_buffer("scale_steps", packed.steps)  # (M,)
        self.register_buffer("scale_mean", packed.mean)  # ()
        self.register_buffer("levels", levels, persistent=False)
        self.bias, self.dtype = layer.bias, weight.dtype

    @property
    def weight(self) -> Tensor:
        """The weight as it is used, rebuilt: (out, in)."""
        packed = PackedScales(self.scale_codes, self.scale_steps, self.scale_mean)
        scales = dequantize_scales(packed, len(self.codes))  # (N,)
        shape = torch.Size([self.out_features, self.in_features])
        return dequantize(unpack_codes(self.codes), scales, self.levels, shape).to(
            self.dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        y = Reconstruct.apply(x, self)  # (..., out)
        return y if self.bias is None else y + self.bias


def quantize_model(model: nn.Module, targets: tuple[str, ...]) -> nn.Module:
    """Put an NF4Linear in the place of every linear layer whose name ends in a target.

    In place; returns the model. Raises ValueError for a target that no layer's name
    ends in.
    """
    for name, layer in named_layers(model, nn.Linear, targets):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, NF4Linear(layer))
    return model


def named_layers(
    model: nn.Module, kinds: type | tuple[type, ...], targets: tuple[str, ...]
) -> list[tuple[str, nn.Module]]:
    """The layers of these kinds whose name is a target, or ends in a dot and a target.

    Raises ValueError for a target that no layer has, naming those that there are.
    """
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, kinds)]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name, _ in layers):
            known = ", ".join(sorted({name.rpartition(".")[2] for name, _ in layers}))
            raise ValueError(
                f"no linear layer's name ends in {target!r}: there are {known}"
            )
    return [
        (name, layer)
        for name, layer in layers
        if any(f".{name}".endswith(f".{target}") for target in targets)
    ]


def bits_per_weight(layer: NF4Linear) -> float:
    """The bits that a layer's buffers take, per weight, its table of levels not
    counted.
    """
    kept = (layer.codes, layer.scale_codes, layer.scale_steps, layer.scale_mean)
    bits = 8 * sum(part.numel() * part.element_size() for part in kept)
    return bits / (layer.in_features * layer.out_features)
