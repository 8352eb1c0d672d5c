"""Adapters on a real model: where they sit, and the folder in which peft finds them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.lora.adapters import (
    LoRAConfig,
    NewRows,
    add_lora,
    is_active,
    is_transposed,
    linear_kinds,
    shape_of,
)
from posttrain.lora.nf4 import NF4Linear, named_layers
from posttrain.real.merging import PREFIX, ROWS, WEIGHTS, adapter_tensors, merge_tensors
from posttrain.real.model import ModelError
from posttrain.real.peft_settings import SETTINGS, adapter_settings, refuse_unknown

FILES = (SETTINGS, WEIGHTS[0])


class TokenRows(NewRows):
    """Additions to some tokens' rows of a table, wherever they stand; nothing at first.

    One of these serves embedding and head alike where the two are one weight.
    """

    def __init__(self, table: nn.Module, tokens: list[int]):
        super().__init__(table, len(tokens))
        dtype = torch.promote_types(table.weight.dtype, torch.float32)
        self.rows = nn.Parameter(self.rows.detach().to(dtype))  # (n, C)
        self.register_buffer("tokens", torch.tensor(tokens), persistent=False)  # (n,)

    def embed(self, tokens: Tensor) -> Tensor:
        """What an embedding adds for tokens (...): (..., C), 0 for all but these."""
        chosen = tokens[..., None] == self.tokens  # (..., n)
        return chosen.to(self.rows.dtype) @ self.rows

    def score(self, x: Tensor) -> Tensor:
        """What a head adds to the logits for hidden states (..., C): (..., n), for
        these.
        """
        return F.linear(x.to(self.rows.dtype), self.rows)


def add_rows_to_some(table: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """A forward hook: the head's logits, with the chosen tokens' additions."""
    if not table.adapter.on:
        return output
    change = table.adapter.score(inputs[0]).to(output.dtype)  # (..., n)
    return output.index_add(-1, table.adapter.tokens, change)


def add_rows_to_embedding(table: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """A forward hook: the embedding's output, with the chosen tokens' additions.

    In the embedding's own precision, and scaled where it scales its rows, as Gemma's.
    """
    if not is_active(table.adapter):
        return output
    change = table.adapter.embed(inputs[0]) * getattr(table, "embed_scale", 1.0)
    return output + change.to(output.dtype)  # (..., C)


def targets_of(model: nn.Module) -> tuple[str, ...]:
    """The last names of all linear layers but the heads: what gets adapters (Dettmers
    2023).
    """
    kinds, head = linear_kinds(model), model.get_output_embeddings()
    names = (
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and module is not head
    )
    last = dict.fromkeys(name.rpartition(".")[2] for name in names)
    return tuple(name for name in last if name not in ("lm_head", "score"))


def quantize_blocks(model: nn.Module) -> None:
    """Pack the matrices of a model's blocks in four bits, in place.

    As `quantize_model`; and a matrix that is kept as (in, out) is turned first, which
    its layer then says of itself.
    """
    for name, layer in named_layers(model, linear_kinds(model), targets_of(model)):
        n_out, n_in = shape_of(layer)
        linear = nn.Linear(n_in, n_out, bias=False, device="meta")
        weight = layer.weight.detach()  # (out, in), or (in, out)
        linear.weight = nn.Parameter(weight.mT if is_transposed(layer) else weight)
        linear.bias = layer.bias
        packed = NF4Linear(linear)
        packed.was_transposed = is_transposed(layer)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed)


def adapt(
    model: nn.Module,
    rank: int,
    alpha: float,
    generator: torch.Generator,
    new_tokens: list[int] | None = None,
) -> LoRAConfig:
    """Freeze a model, and give its blocks' layers adapters, in place; return their
    settings.

    new_tokens: those whose rows in the tables are trained as well. A scoring head is
    trained.
    """
    config = LoRAConfig(rank=rank, alpha=alpha, targets=targets_of(model))
    add_lora(model, config, generator)
    if new_tokens:
        train_rows(model, new_tokens)
    if hasattr(model, "score"):
        model.score.float().requires_grad_(True)
    return config


def train_rows(model: nn.Module, tokens: list[int]) -> None:
    """Train some tokens' rows of embedding and head, in place; one row for both if
    tied.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.adapter = TokenRows(embedding, tokens)
    embedding.register_forward_hook(add_rows_to_embedding)
    if head is not None:
        tied = head.weight is embedding.weight
        head.adapter = embedding.adapter if tied else TokenRows(head, tokens)
        head.register_forward_hook(add_rows_to_some)


def peft_state(model: nn.Module) -> dict[str, Tensor]:
    """What was trained beside the frozen weights, under the names that peft gives
    it.
    """
    state, seen = {}, set()
    for name, module in model.named_modules():
        adapter = getattr(module, "adapter", None)
        if adapter is None or id(adapter) in seen:
            continue
        seen.add(id(adapter))
        if isinstance(adapter, TokenRows):
            # peft keeps the rows themselves, and not what was added
            rows = module.weight[adapter.tokens].float() + adapter.rows
            state[f"{PREFIX}{name}{ROWS}"] = rows
        else:
            state[f"{PREFIX}{name}.lora_A.weight"] = adapter.A
            state[f"{PREFIX}{name}.lora_B.weight"] = adapter.B
    if hasattr(model, "score"):
        state[f"{PREFIX}score.weight"] = model.score.weight
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def peft_config(model: nn.Module, config: LoRAConfig, base: str) -> dict:
    """The settings that peft needs to put the adapters where they were."""
    scores = hasattr(model, "score")
    rows = {
        name.rpartition(".")[2]: module.adapter.tokens.tolist()
        for name, module in model.named_modules()
        if isinstance(getattr(module, "adapter", None), TokenRows)
    }
    # Tied rows stand in one table, and peft finds the other by itself
    tied = (
        len(
            {
                id(m.adapter)
                for m in model.modules()
                if hasattr(m, "adapter") and isinstance(m.adapter, TokenRows)
            }
        )
        == 1
    )
    return dict(
        peft_type="LORA",
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
        base_model_name_or_path=base,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=list(config.targets),
        bias="none",
        inference_mode=True,
        fan_in_fan_out=any(
            is_transposed(module) or getattr(module, "was_transposed", False)
            for module in model.modules()
        ),
        modules_to_save=["score"] if scores else None,
        trainable_token_indices=(dict(list(rows.items())[:1]) if tied else rows)
        or None,
    )


def save_adapter(folder: Path, model: nn.Module, config: LoRAConfig, base: str) -> None:
    """Write the two files that `PeftModel.from_pretrained` reads; neither is
    half-written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in FILES]
    parts = [path.with_suffix(".part") for path in paths]
    settings = json.dumps(peft_config(model, config, base), indent=2) + "\n"
    parts[0].write_text(settings, encoding="utf-8")
    safetensors.torch.save_file(peft_state(model), parts[1], metadata=dict(format="pt"))
    for part, path in reversed(list(zip(parts, paths))):
        os.replace(part, path)


def merge_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Add the adapter in a folder to a model's weights, in place, as peft would.

    A scoring head is taken over where the model has one. Raises ModelError for what
    does not fit, and for what is not understood of the adapter's settings, by name.
    """
    folder = Path(folder).expanduser()
    settings = adapter_settings(folder)
    if settings is None:
        raise ModelError(f"{folder} has no {SETTINGS}: give an adapter's folder")
    refuse_unknown(folder, settings)
    try:
        merge_tensors(model, settings, adapter_tensors(folder), folder)
    except (AttributeError, RuntimeError, TypeError, ZeroDivisionError, re.error) as e:
        raise ModelError(
            f"the adapter in {folder} does not fit ({e}): give the model that it was "
            "trained on, or merge it with peft"
        ) from None
    return model
