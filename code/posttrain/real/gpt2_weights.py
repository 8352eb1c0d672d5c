"""GPT-2's published weights in the book's own transformer."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from posttrain.gpt import GPT, GPTConfig
from posttrain.real.model import ModelError


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


def renamed(weights: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """GPT-2's tensors under the book's names.

    Its matrices are stored as (in, out), PyTorch's as (out, in): they are turned.
    Queries, keys and values stand in one matrix in the same order in both.
    """
    weights = {
        name.removeprefix("transformer."): value for name, value in weights.items()
    }
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
    state = {}
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            value = weights.get(f"{theirs}.{kind}")
            if value is not None:
                turned = ".c_" in theirs and kind == "weight"
                state[f"{ours}.{kind}"] = value.T.contiguous() if turned else value
    return state


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
    missing, extra = model.load_state_dict(
        renamed(safetensors.torch.load_file(path), config), strict=False
    )
    if missing or extra:
        raise ModelError(
            f"{path} lacks {', '.join([*missing, *extra][:3])}: it is no GPT-2"
        )
    return model
