"""A language model from elsewhere, wrapped so that the book's losses and loops run on
it.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from posttrain.reward_model import HEAD_STD, last_of

INSTALL = 'pip install "transformers>=4.57"'


class ModelError(ValueError):
    """A model or its tokenizer cannot be used: one line that says why, and the way
    out.
    """


def library():
    """Hugging Face's transformers, imported when it is needed. Raises ModelError
    without it.
    """
    # What it will rename in its next version is no concern of a page or a terminal
    warnings.filterwarnings("ignore", "IProgress not found")
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
    try:
        import transformers
    except ImportError:
        raise ModelError(f"transformers is not installed: {INSTALL}") from None
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name, or the best there is. Raises ModelError where it is
    missing.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    there = dict(cuda=cuda, mps=mps, cpu=True)
    if name == "auto":
        return torch.device(next(kind for kind, present in there.items() if present))
    kind = name.split(":")[0]
    if not there.get(kind):
        known = ", ".join(kind for kind, present in there.items() if present)
        raise ModelError(f"there is no device {name!r} here: use one of auto, {known}")
    return torch.device(name)


def fetch(what, name: str, **options):
    """`from_pretrained` of a folder or a hub name, its errors in one line.

    what: a class of transformers, such as AutoConfig. Raises ModelError.
    """
    looks_local = (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    )
    folder = Path(name).expanduser()
    if looks_local and not folder.is_dir():
        raise ModelError(f"{name}: no such folder")
    try:
        return what.from_pretrained(str(folder) if folder.is_dir() else name, **options)
    except (MemoryError, UnicodeError):
        raise
    except Exception as error:  # files from elsewhere make a library fail in any way
        if "memory" in str(error):
            raise
        reason = (str(error).strip().splitlines() or ["cannot be read"])[0]
        raise ModelError(
            f"{name} cannot be loaded ({reason}): give a folder with config.json, "
            "weights and "
            "tokenizer, or the name of a model on the hub, with a network"
        ) from None


def load_config(name: str):
    """A model's configuration, every dropout set to 0. Raises ModelError."""
    config = fetch(library().AutoConfig, name)
    for field in vars(config):
        if field.endswith(("pdrop", "_dropout", "dropout")) and getattr(config, field):
            setattr(config, field, 0.0)
    return config


def context_of(name: str) -> int:
    """The longest sequence that a model can read, in tokens. Raises ModelError."""
    config = load_config(name)
    return getattr(config, "max_position_embeddings", None) or 2**31


def load_model(
    name: str, scores: bool = False, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A causal language model, or with `scores` one with a number per token, on the
    CPU.

    Raises ModelError for what cannot be loaded.
    """
    auto, config = library(), load_config(name)
    if scores:
        config.num_labels = 1
    kind = (
        auto.AutoModelForSequenceClassification if scores else auto.AutoModelForCausalLM
    )
    return fetch(kind, name, config=config, dtype=dtype)


def start_scores(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Fill a scoring head's weights anew: near 0, as for the book's reward model."""
    nn.init.normal_(model.score.weight, std=HEAD_STD, generator=generator)
    return model


class Wrapped(nn.Module):
    """What the two wrappers share: the model inside, and the precision that it computes
    in.

    bf16: matrix products in bfloat16, whatever type the weights have. checkpointing:
    keep each block's input alone, and compute the rest again on the way back (Chen et
    al. 2016).
    """

    def __init__(
        self, inner: nn.Module, bf16: bool = False, checkpointing: bool = False
    ):
        super().__init__()
        self.inner, self.bf16 = inner, bf16
        if checkpointing:
            options = dict(use_reentrant=False)
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        inner.train()  # checkpointing asks for it; there is no dropout

    @property
    def config(self):
        return self.inner.config

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def precision(self):
        """The context in which a forward pass is computed."""
        kind = self.device.type
        return (
            torch.autocast(kind, dtype=torch.bfloat16) if self.bf16 else nullcontext()
        )


class LanguageModel(Wrapped):
    """Tokens (B, T) in, logits (B, T, V) out, in float32: what the book's losses ask
    for.

    Rows may be padded on the right, where no real token looks.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        with self.precision():
            logits = self.inner(input_ids=tokens, use_cache=False).logits  # (B, T, V)
        return logits.float()


class ScoringModel(Wrapped):
    """A transformer with one number per token: the reward model, and the value model.

    `shift` and `scale` fix the scores' zero and unit, as in `reward_model.RewardModel`.
    """

    def __init__(
        self, inner: nn.Module, bf16: bool = False, checkpointing: bool = False
    ):
        super().__init__(inner, bf16, checkpointing)
        self.shift, self.scale = 0.0, 1.0

    def token_scores(self, tokens: Tensor) -> Tensor:
        """The head's number at each token: tokens (B, T) to (B, T)."""
        with self.precision():
            hidden = self.inner.base_model(
                input_ids=tokens, use_cache=False
            ).last_hidden_state
            raw = self.inner.score(hidden).squeeze(-1)  # (B, T)
        return (raw.float() - self.shift) / self.scale

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The score (B,) of each response: at its last token; mask (B, T) as from
        `pack`.
        """
        return last_of(self.token_scores(tokens), mask)  # (B,)


class TokenValues(nn.Module):
    """A scoring model asked at every token: the value model of PPO."""

    def __init__(self, model: ScoringModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """The values (B, T) of tokens (B, T): column t has read the tokens up to t."""
        return self.model.token_scores(tokens)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that gets no gradients: the reference, where nothing can be switched
    off.
    """
    return copy.deepcopy(model).requires_grad_(False)
