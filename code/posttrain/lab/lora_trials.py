"""LoRA under trial: adapters over several seeds, and what training keeps in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from posttrain.chat import grow_vocabulary
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.gpt import GPT
from posttrain.lab.sft_trials import answers_of, sft_scorecard
from posttrain.lora.adapters import LoRAConfig, add_lora
from posttrain.lora.nf4 import quantize_model
from posttrain.pretrain import PretrainConfig, build_optimizers, validation_loss
from posttrain.sft import (
    SFTConfig,
    conversation_loss,
    encode_conversations,
    fine_tune,
    plain_sft,
    sft_loss,
)
from posttrain.stages import base_model, encode_split
from posttrain.tokenizer import SPECIAL_TOKENS, CharTokenizer

NEW_TOKENS = len(SPECIAL_TOKENS)


@dataclass(frozen=True)
class LoRATrialConfig:
    """One fine-tuning run of the base model by adapters."""

    sft: SFTConfig = field(default_factory=lambda: plain_sft(evaluations=5))
    lora: LoRAConfig = field(default_factory=lambda: LoRAConfig(new_rows=NEW_TOKENS))
    quantized: bool = False  # QLoRA: the layers that have adapters are kept in NF4

    def __post_init__(self):
        if self.sft.steps % self.sft.evaluations:
            raise ValueError(
                f"{self.sft.steps} steps cannot be cut into {self.sft.evaluations} "
                "equal parts"
            )


def lora_model(base: GPT, config: LoRATrialConfig) -> GPT:
    """A copy of the base model with room for the chat's tokens, frozen but for its
    adapters.
    """
    model = grow_vocabulary(base, CharTokenizer().vocab_size)
    if config.quantized:
        quantize_model(model, config.lora.targets)
    return add_lora(model, config.lora, torch.Generator().manual_seed(config.sft.seed))


def lora_sft(
    base: GPT,
    conversations: list[dict],
    text: Tensor,
    config: LoRATrialConfig,
    measure: Callable[[GPT], dict] = lambda model: {},
) -> tuple[GPT, dict]:
    """`sft` by adapters: the model, and a history with `learned` beside what `sft`
    notes.

    The optimisers leave alone what has no gradient. `learned` is the loss on the
    conversations that are trained on, at that moment.
    """
    tokenizer, model = CharTokenizer(), lora_model(base, config)
    examples = encode_conversations(conversations, tokenizer, model.config.context)

    def measured(model: GPT) -> dict:
        learned = conversation_loss(model, examples, tokenizer.pad)
        return dict(learned=learned, **measure(model))

    return model, fine_tune(model, conversations, text, config.sft, measured)


def lora_trial(corpus: Corpus, config: LoRATrialConfig, seed: int) -> dict:
    """The history of one run, with the scorecard of `sft_trials` at each evaluation.

    `base_loss` is the base model's Shakespeare loss.
    """
    (text, validation), base = encode_split(corpus), base_model(corpus)[0]
    conversations, config = (
        datasets.conversations(),
        replace(config, sft=replace(config.sft, seed=seed)),
    )
    known = answers_of(conversations)

    def judge(model: GPT) -> dict[str, float]:
        return sft_scorecard(model, known, validation, seed)

    history = lora_sft(base, conversations, text, config, judge)[1]
    return history | dict(base_loss=validation_loss(base, validation, windows=32))


def size_of(tensors: Iterable[Tensor]) -> int:
    """The bytes that tensors take, a storage that several share counted once."""
    storages = {id_of(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def id_of(tensor: Tensor) -> int:
    """Where a tensor's numbers lie: equal for two that share them."""
    return tensor.untyped_storage().data_ptr()


def training_memory(model: GPT, tokens: Tensor, labels: Tensor) -> dict[str, int]:
    """Bytes that one step of fine-tuning keeps, counted tensor by tensor; it takes the
    step.

    `weights`: parameters and stored buffers. `activations`: what the forward pass has
    put aside for the backward pass. `gradients`, and `optimizer`: what Muon and AdamW
    keep.
    """
    kept, put_aside = list(model.state_dict().values()), []
    known = {id_of(tensor) for tensor in kept}

    def note(tensor: Tensor) -> Tensor:
        if id_of(tensor) not in known:
            put_aside.append(tensor)
        return tensor

    # Watch what a forward pass saves, then take the step
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = sft_loss(model(tokens), labels)
    activations = size_of(put_aside)
    loss.backward()
    optimizers = build_optimizers(model, PretrainConfig())
    for optimizer in optimizers:
        optimizer.step()
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return dict(
        weights=size_of(kept),
        activations=activations,
        gradients=size_of(p.grad for p in model.parameters() if p.grad is not None),
        optimizer=size_of(
            v for state in states for v in state.values() if torch.is_tensor(v)
        ),
    )
