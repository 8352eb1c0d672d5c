"""GPT-2's published weights in the book's own transformer."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from posttrain.gpt import GPT, GPTConfig
from posttrain.real.model import BUFFERS, ModelError, some_of


def gpt2_config(folder: str | Path) -> GPTConfig:
    """The book's configuration of the GPT-2 in a folder. Raises ModelError for
    others.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} has no config.json: give a folder of a Hugging Face GPT-2"
        )
    said = json.loads(path.read_text(encoding="utf-8"))
    if (
        said.get("model_type") != "gpt2"
        or said.get("activation_function") != "gelu_new"
    ):
        raise ModelError(
            f"{folder} holds a {said.get('model_type')!r} model: give a GPT-2"
        )
    return GPTConfig.gpt2(
        vocab_size=said["vocab_size"],
        context=said["n_positions"],
        n_layer=said["n_layer"],
        n_head=said["n_head"],
        width=said["n_embd"],
    )


def modules_of_gpt2(config: GPTConfig) -> dict[str, str]:
    """GPT-2's names of the modules, by the book's."""
    names = dict(
        embedding="wte", position_embedding="wpe", final_norm="ln_f", head="wte"
    )
    for i in range(config.n_layer):
        block, theirs = f"blocks.{i}.", f"h.{i}."
        names |= {
            block + "attention_norm": theirs + "ln_1",
            block + "mlp_norm": theirs + "ln_2",
            block + "attention.qkv": theirs + "attn.c_attn",
            block + "attention.out": theirs + "attn.c_proj",
            block + "mlp.up": theirs + "mlp.c_fc",
            block + "mlp.down": theirs + "mlp.c_proj",
        }
    return names


def renamed(weights: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """GPT-2's tensors under the book's names.

    Its matrices are stored as (in, out), PyTorch's as (out, in): they are turned.
    Queries, keys and values stand in one matrix in the same order in both.
    """
    state = {}
    for ours, theirs in modules_of_gpt2(config).items():
        for kind in ("weight", "bias"):
            value = weights.get(f"{theirs}.{kind}")
            if value is not None:
                turned = ".c_" in theirs and kind == "weight"
                state[f"{ours}.{kind}"] = value.T.contiguous() if turned else value
    return state


def refuse_another_gpt2(
    path: Path, weights: dict[str, Tensor], state: dict, model: GPT
) -> None:
    """Raise ModelError unless the tensors in a file are those that its configuration
    asks for.

    Masks may stand beside them, and the embedding once more as the head.
    """
    own, known = model.state_dict(), {*modules_of_gpt2(model.config).values()}
    extra = {
        name
        for name in weights
        if name.rpartition(".")[0] not in known and not BUFFERS.search(name)
    }
    extra -= {"lm_head.weight"}
    for what, names in (
        ("lacks", {*own} - {*state}),
        ("has no place for", extra),
        ("has in another size", {n for n in state if own[n].shape != state[n].shape}),
    ):
        if names:
            raise ModelError(
                f"{path} {what} {some_of(names)}: it is no GPT-2 with this config.json"
            )


def load_gpt2(folder: str | Path, dtype: torch.dtype = torch.float32) -> GPT:
    """The book's GPT with the weights of the GPT-2 in a folder of Hugging Face's form.

    Raises ModelError where one of the files is missing or holds something else.
    """
    config, path = gpt2_config(folder), Path(folder) / "model.safetensors"
    if not path.is_file():
        raise ModelError(
            f"{folder} has no model.safetensors: download it beside config.json"
        )
    model = GPT(config, torch.Generator()).to(dtype)
    weights = {
        name.removeprefix("transformer."): value
        for name, value in safetensors.torch.load_file(path).items()
    }
    state = renamed(weights, config)
    refuse_another_gpt2(path, weights, state, model)
    model.load_state_dict(state)
    return model
