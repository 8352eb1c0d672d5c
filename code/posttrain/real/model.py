"""A language model from elsewhere, wrapped so that the book's losses and loops run on
it.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from posttrain.real.graded import logits_at
from posttrain.reward_model import HEAD_STD, last_of

INSTALL = 'pip install "transformers>=4.57"'
# What older files hold beside weights: masks and angles, which are computed now
BUFFERS = re.compile(
    r"(^|\.)(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$|"
    r"(^|\.)position_ids$"
)


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
    """A model's configuration, every dropout set to 0.

    Raises ModelError, also for a model that reads in both directions.
    """
    config = fetch(library().AutoConfig, name)
    refuse_two_way(config)
    for part in (config, config.get_text_config()):
        for field in vars(part):
            dropped = field.endswith(("pdrop", "_dropout", "dropout"))
            if dropped and getattr(part, field):
                setattr(part, field, 0.0)
    return config


def refuse_two_way(config) -> None:
    """Raise ModelError for a kind of model that reads what comes after a token, too."""
    kinds = library().models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if config.model_type in kinds and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"a {config.model_type!r} model reads in both directions: give a causal "
            "language model, one that GPT-2, Llama or Qwen is an example of"
        )


def context_of(name: str) -> int:
    """The longest sequence that a model can read, in tokens. Raises ModelError."""
    config = load_config(name).get_text_config()
    return getattr(config, "max_position_embeddings", None) or 2**31


def model_class(scores: bool):
    """Where transformers finds a causal language model, or one with scores."""
    auto = library()
    return (
        auto.AutoModelForSequenceClassification if scores else auto.AutoModelForCausalLM
    )


def build_empty(config, scores: bool = False) -> nn.Module:
    """The model of a configuration without its numbers: names and shapes alone.

    It is built on PyTorch's device "meta", where tensors take no memory. Raises
    ModelError for a kind of model that is no causal language model.
    """
    refuse_two_way(config)
    config = copy.deepcopy(config)
    if scores:
        config.num_labels = 1
    try:
        with torch.device("meta"):
            return model_class(scores).from_config(config)
    except (ValueError, ImportError, AttributeError, TypeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["no reason was given"])[0]
        raise ModelError(
            f"a {config.model_type!r} model cannot be built ({reason}): give a causal "
            "language model that this transformers knows"
        ) from None


def load_model(
    name: str, scores: bool = False, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A causal language model, or with `scores` one with a number per token, on the
    CPU.

    Raises ModelError for what cannot be loaded, and where the weights are not those
    that the configuration asks for: all of them, each of its size, and no other.
    """
    config = load_config(name)
    if scores:
        config.num_labels = 1
    model, told = fetch(
        model_class(scores),
        name,
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are named below
    )
    refuse_adapted(name, model)
    refuse_other_weights(name, model, told, scores)
    note_own_head(model)
    return model


def refuse_adapted(name: str, model: nn.Module) -> None:
    """Raise ModelError where transformers has put peft's adapters into a model."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{name} holds an adapter: download it, and give its folder as the model"
        )


def refuse_other_weights(name: str, model: nn.Module, told: dict, scores: bool) -> None:
    """Raise ModelError unless every weight was used and none was missing.

    told: transformers' report of the loading. Masks and angles that are computed may be
    too many. A scoring model may lack the score, unless it was saved as one, and its
    file may hold the head of the language model that it was; GPT-NeoX's has a name of
    its own in files.
    """
    missing, unused = set(told["missing_keys"]), set(told["unexpected_keys"])
    unused = {key for key in unused if not BUFFERS.search(key)}
    if scores and not hasattr(model, "score"):
        raise ModelError(
            f"{name}: transformers' {type(model).__name__} has no score to train: give "
            "a model of another kind"
        )
    if scores and not saved_with_score(model.config):
        missing -= {"score.weight"}
    if scores and unused:
        unused -= {*build_empty(model.config).state_dict(), "embed_out.weight"}
    other = [
        f"{key} ({size_of(there)} in the file, {size_of(here)} in the model)"
        for key, there, here in told["mismatched_keys"]
    ]
    found = [
        f"{what} {some_of(names)}"
        for what, names in (
            ("it lacks", missing),
            ("it has no place for", unused),
            ("of another size is", other),
        )
        if names
    ]
    if found or told.get("error_msgs"):
        raise ModelError(
            f"the weights in {name} are not those of a {type(model).__name__} with its "
            f"config.json: {'; '.join(found) or told['error_msgs'][0]}: give the whole "
            "folder as it was published, or rename the weights if a wrapper has put a "
            "prefix before their names"
        )


def saved_with_score(config) -> bool:
    """Whether a configuration is that of a model with a number per token."""
    kinds = config.architectures or [""]
    return kinds[0].endswith("ForSequenceClassification")


def size_of(shape: Iterable[int]) -> str:
    """A tensor's size in words: 64 x 32."""
    return " x ".join(map(str, shape)) or "a number"


def some_of(names: Iterable[str], shown: int = 3) -> str:
    """The first few of some names, sorted, and how many there are beside."""
    names = sorted(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def note_own_head(model: nn.Module) -> None:
    """Let the configuration say so where a head has weights of its own, in place.

    Files exist whose configuration ties head and embedding, and that hold both, with
    other numbers in each: growing or saving the model would tie them.
    """
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        untie(model)


def untie(model: nn.Module) -> None:
    """Say in a model's configuration that head and embedding are two, in place."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


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

    Rows may be padded on the right, where no real token looks. With columns (B, K) the
    head is asked at these alone: logits (B, K, V).
    """

    def forward(self, tokens: Tensor, columns: Tensor | None = None) -> Tensor:
        with self.precision():
            if columns is not None:
                return logits_at(self.inner, tokens, columns).float()
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
