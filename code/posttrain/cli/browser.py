"""Trained models as script files, for the page that runs them in a browser.

What reads them there is book/_static/gpt.js.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.data.corpus import Corpus
from posttrain.gpt import GPT
from posttrain.reward_model import RewardModel
from posttrain.stages import STAGES
from posttrain.tokenizer import SUBSTITUTES, CharTokenizer

LARGEST = 2**19 - 1  # of a 20-bit whole number
GROUP = 64  # neighbours that share a scale


def quantise(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as a scale per group of G neighbours, (N, 1), and 20-bit whole numbers,
    (N, G).

    Their product is the weights, to within half a scale: a millionth of the group's
    largest. G is 64, or 1 where the last dimension does not split into sixty-fours.
    """
    wide = weights.dim() and weights.size(-1) % GROUP == 0
    groups = weights.detach().float().reshape(-1, GROUP if wide else 1)  # (N, G)
    largest = groups.abs().amax(-1, keepdim=True)  # (N, 1)
    scales = torch.where(largest > 0, largest / LARGEST, 1.0)
    return scales, (groups / scales).round().to(torch.int32)


def pack_bits(numbers: Tensor) -> bytes:
    """20-bit whole numbers: the upper 16 bits of each, then the lower four, two to a
    byte.
    """
    numbers = numbers.flatten()
    low = F.pad(numbers & 15, (0, len(numbers) % 2)).view(-1, 2)  # (N / 2, 2)
    upper, lower = numbers >> 4, low[:, 0] | low[:, 1] << 4
    return upper.numpy().astype("<i2").tobytes() + lower.numpy().astype("u1").tobytes()


def tensors_of(model: GPT | RewardModel) -> dict[str, Tensor]:
    """The weights that the page needs, by its names for them."""
    if isinstance(model, GPT):
        return dict(model.state_dict())
    head = {"score.weight": model.head.weight, "score.bias": model.head.bias}
    return {
        **model.body.state_dict(),
        **head,
        "shift": model.shift,
        "scale": model.scale,
    }


def rounded(model: GPT) -> GPT:
    """A copy of a model whose weights are what is left of them after `quantise`."""
    copy = GPT(model.config)
    for weights, parameter in zip(
        tensors_of(model).values(), tensors_of(copy).values()
    ):
        scales, numbers = quantise(weights)
        parameter.copy_((scales * numbers).view_as(weights))
    return copy


def script(name: str, model: GPT | RewardModel) -> str:
    """A script that puts a model, packed, into the page's `models` under a name.

    Raises ValueError for a model whose block is not the book's own: the page knows no
    other.
    """
    config = (model.body if isinstance(model, RewardModel) else model).config
    if not (config.rope and config.qk_norm and config.relu2 and config.bare):
        raise ValueError(
            f"the page cannot run {name}: it knows only the book's own block"
        )
    tensors, data = [], b""
    for tensor, weights in tensors_of(model).items():
        scales, numbers = quantise(weights)
        tensors.append([tensor, *numbers.shape])
        data += scales.numpy().astype("<f4").tobytes() + pack_bits(numbers)
    shape = dict(
        vocabulary=config.vocab_size,
        context=config.context,
        layers=config.n_layer,
        heads=config.n_head,
        width=config.width,
    )
    packed = dict(shape=shape, tensors=tensors, data=base64.b64encode(data).decode())
    return f"models[{json.dumps(name)}] = {json.dumps(packed)};\n"


def tokens_script() -> str:
    """A script that tells the page the tokens, by their ids, and how to clean a
    text.
    """
    known = dict(TOKENS=CharTokenizer().tokens, SUBSTITUTES=SUBSTITUTES)
    return "".join(
        f"const {name} = {json.dumps(value)};\n" for name, value in known.items()
    )


def write_models(corpus: Corpus, folder: Path) -> None:
    """Write the script files of the tokens and of all models that the page runs.

    Models that are not there yet are trained.
    """
    texts = {
        f"{name}.js": script(name, load(corpus)[0]) for name, load in STAGES.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (texts | {"tokens.js": tokens_script()}).items():
        (folder / name).write_text(text, encoding="utf-8")
