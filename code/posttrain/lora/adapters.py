"""LoRA: a frozen model, and beside each of its linear layers a small trained
addition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.lora.nf4 import NF4Linear, named_layers


@dataclass(frozen=True)
class LoRAConfig:
    """Which layers get an adapter, and how large it is."""

    rank: int = 8  # r, the inner width of an adapter
    alpha: float = 16.0  # the addition is scaled by alpha / rank
    targets: tuple[str, ...] = ("qkv", "out", "up", "down")  # the ends of layers' names
    # Tokens, the last ones, whose rows in the tables below are trained
    new_rows: int = 0
    tables: tuple[str, str] = ("embedding", "head")  # the two that have a row per token

    def __post_init__(self):
        for name, least in dict(rank=1, new_rows=0).items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: use at least {least}"
                )
        if self.alpha <= 0:
            raise ValueError(f"alpha is {self.alpha}: use a number above 0")


def low_rank(x: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    r"""The addition $\frac{\alpha}{r} B A x$ for inputs (..., in): (..., out).

    A: (r, in), B: (out, r). The product B A is never formed. Source: Hu et al. 2021,
    section 4.1.
    """
    h = F.linear(x, A)  # (..., r)
    return F.linear(h, B) * (alpha / A.size(0))  # (..., out)


class Adapter(nn.Module):
    """The addition to one linear layer, `low_rank`; at first 0, since B is.

    A begins uniform, as the weight of an `nn.Linear` does. Both are in single precision
    where the layer has half of it.
    """

    def __init__(
        self, layer: nn.Module, config: LoRAConfig, generator: torch.Generator | None
    ):
        super().__init__()
        n_out, n_in = shape_of(layer)
        weight = layer.weight.detach()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        A, B = torch.empty(config.rank, n_in), torch.zeros(n_out, config.rank)
        A.uniform_(-(n_in**-0.5), n_in**-0.5, generator=generator)
        self.A = nn.Parameter(A.to(weight.device, dtype))  # (r, in)
        self.B = nn.Parameter(B.to(weight.device, dtype))  # (out, r)
        self.alpha = config.alpha
        self.on, self.merged = True, False

    def forward(self, x: Tensor) -> Tensor:
        return low_rank(x.to(self.A.dtype), self.A, self.B, self.alpha)  # (..., out)

    def change(self) -> Tensor:
        """What the addition makes of the layer's weight: (out, in)."""
        return self.B @ self.A * (self.alpha / self.A.size(0))


class NewRows(nn.Module):
    """Additions to a table's last rows, one per new token; nothing at first."""

    def __init__(self, table: nn.Module, n: int):
        super().__init__()
        self.first = table.weight.size(0) - n  # the token of the first new row
        self.rows = nn.Parameter(torch.zeros_like(table.weight[self.first :]))  # (n, C)
        self.on, self.merged = True, False

    def embed(self, tokens: Tensor) -> Tensor:
        """What an embedding adds for tokens (...): (..., C), 0 for the old ones."""
        change = F.pad(self.rows, (0, 0, 1, 0))  # (1 + n, C)
        return F.embedding((tokens - self.first + 1).clamp_min(0), change)

    def score(self, x: Tensor) -> Tensor:
        """What a head adds to the logits of hidden states (..., C): (..., V), 0 for the
        old.
        """
        return F.pad(F.linear(x, self.rows), (self.first, 0))


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer."""
    if is_transposed(layer):
        return layer.weight.size(1), layer.weight.size(0)
    return layer.out_features, layer.in_features


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer keeps its weight as (in, out): transformers' `Conv1D`, in
    GPT-2.
    """
    return type(layer).__name__ == "Conv1D"


def linear_kinds(model: nn.Module) -> tuple[type, ...]:
    """The classes of layers that can have an adapter."""
    return (
        nn.Linear,
        NF4Linear,
        *{type(m) for m in model.modules() if is_transposed(m)},
    )


def is_active(adapter: Adapter | NewRows) -> bool:
    """Whether an adapter adds something in the forward pass: it is on, and not
    merged.
    """
    return adapter.on and not adapter.merged


def add_output(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """A forward hook: the layer's output, and what its adapter adds."""
    if not is_active(layer.adapter):
        return output
    return output + layer.adapter(inputs[0]).to(output.dtype)


def add_rows_embedded(table: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """A forward hook: the embedding's output, with the new rows' additions."""
    return (
        output + table.adapter.embed(inputs[0]) if is_active(table.adapter) else output
    )


def add_rows_scored(table: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """A forward hook: the head's logits, with the new rows' additions."""
    return (
        output + table.adapter.score(inputs[0]) if is_active(table.adapter) else output
    )


def add_lora(
    model: nn.Module, config: LoRAConfig, generator: torch.Generator | None = None
) -> nn.Module:
    """Freeze a model in place, and give each target an adapter; return it, unchanged in
    effect.

    Weights keep their names; an adapter's are the layer's with `.adapter.A` and
    `.adapter.B`. Quantised layers may be targets. Raises ValueError where a target is
    no layer's name, where the model has adapters already, and for new rows in tables
    that are one and the same weight.
    """
    if adapters_of(model):
        raise ValueError("the model has adapters already: merge them, or load it anew")
    layers = named_layers(model, linear_kinds(model), config.targets)
    model.requires_grad_(False)
    for _, layer in layers:
        layer.adapter = Adapter(layer, config, generator)
        layer.register_forward_hook(add_output)
    if config.new_rows:
        add_new_rows(model, config)
    return model


def add_new_rows(model: nn.Module, config: LoRAConfig) -> None:
    """Train the last rows of embedding and head, in place. Raises as `add_lora`
    does.
    """
    embedding, head = (model.get_submodule(name) for name in config.tables)
    if embedding.weight is head.weight:
        raise ValueError(
            "embedding and head share one weight: new rows need a head of its own"
        )
    for table, hook in ((embedding, add_rows_embedded), (head, add_rows_scored)):
        table.adapter = NewRows(table, config.new_rows)
        table.register_forward_hook(hook)


def adapters_of(model: nn.Module) -> dict[str, Adapter | NewRows]:
    """Every adapter in a model by its full name."""
    kinds = (Adapter, NewRows)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model is the frozen one, bit for bit.

    Raises ValueError for merged adapters, which cannot be left out.
    """
    were = {adapter: adapter.on for adapter in adapters_of(model).values()}
    if any(adapter.merged for adapter in were):
        raise ValueError("the adapters are merged into the weights: unmerge them first")
    try:
        for adapter in were:
            adapter.on = False
        yield model
    finally:
        for adapter, on in were.items():
            adapter.on = on


class Reference(nn.Module):
    """The model as it was before its adapters, with no weights of its own.

    It takes what the model takes. Raises as `adapters_off` does.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.config = model, model.config

    @torch.no_grad()
    def forward(self, *arguments, **options) -> Tensor:
        with adapters_off(self.model):
            return self.model(*arguments, **options)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained numbers alone, by name: copies, on the CPU."""
    return {
        f"{name}.{key}": parameter.detach().cpu().clone()
        for name, adapter in adapters_of(model).items()
        for key, parameter in adapter.named_parameters()
    }


@torch.no_grad()
def load_adapter_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put what `adapter_state` has returned into a model with adapters of the same
    shape.

    Raises ValueError where a name or a shape does not fit, and changes nothing then.
    """
    own = {
        f"{name}.{key}": parameter
        for name, adapter in adapters_of(model).items()
        for key, parameter in adapter.named_parameters()
    }
    for name in sorted({*own, *state}):
        if name not in own or name not in state:
            place = "model" if name in own else "state"
            raise ValueError(
                f"{name} is only in the {place}: add adapters as the state's model "
                "had them"
            )
        if own[name].shape != state[name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(own[name].shape)} in the model and "
                f"{tuple(state[name].shape)} in the state: use the same rank"
            )
    for name, parameter in own.items():
        parameter.copy_(state[name])


@torch.no_grad()
def add_to_weights(model: nn.Module, sign: int) -> None:
    """Add every adapter, times sign, to the weight that it stands beside."""
    for name, adapter in adapters_of(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(adapter, NewRows):
            layer.weight[adapter.first :] += sign * adapter.rows
        else:
            change = adapter.change()  # (out, in)
            change = change.mT if is_transposed(layer) else change
            layer.weight += (sign * change).to(layer.weight.dtype)
        adapter.merged = sign > 0


def merge(model: nn.Module) -> nn.Module:
    """Add every adapter to its layer's weight, in place: no extra work from then on.

    Equal to what it was but for rounding. Raises ValueError where there is nothing to
    merge, and for a quantised layer: its sixteen levels would round most of the
    addition away.
    """
    adapters = adapters_of(model)
    if not adapters or any(adapter.merged for adapter in adapters.values()):
        raise ValueError(
            "there is nothing to merge: no adapter was added, or it is merged"
        )
    layers = [model.get_submodule(name.rpartition(".")[0]) for name in adapters]
    if any(isinstance(layer, NF4Linear) for layer in layers):
        raise ValueError(
            "a quantised layer cannot take its adapter in: load the adapters' state "
            "into the "
            "model that was not quantised"
        )
    add_to_weights(model, 1)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Take every adapter out of its layer's weight again, in place: exact but for
    rounding.

    Raises ValueError where none is merged.
    """
    adapters = adapters_of(model)
    if not any(adapter.merged for adapter in adapters.values()):
        raise ValueError("no adapter is merged: there is nothing to take out")
    add_to_weights(model, -1)
    return model


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many numbers are trained, and how many there are, quantised weights
    included.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    quantised = [module for module in model.modules() if isinstance(module, NF4Linear)]
    return trained, total + sum(
        layer.in_features * layer.out_features for layer in quantised
    )


def trainable_share(model: nn.Module) -> float:
    """The share of a model's numbers that are trained, its adapters' among them."""
    trained, total = parameter_counts(model)
    return trained / total
