"""Tiny random models with tokenizers, in the files and formats of the real ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from posttrain.real.data import CHATML, CHATML_TOKENS
from posttrain.real.model import library


def build_tokenizer(texts: Iterable[str], vocab_size: int = 384, chat: bool = True):
    """A byte-level BPE tokenizer like GPT-2's, learned from a few texts.

    chat: with ChatML's tokens and template; else bare, as GPT-2's is.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<|endoftext|>", *(CHATML_TOKENS if chat else ())]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(texts, trainer)
    ends = dict(eos_token=special[-1], pad_token="<|endoftext|>")
    tokenizer = library().PreTrainedTokenizerFast(tokenizer_object=bpe, **ends)
    if chat:
        tokenizer.chat_template = CHATML
    return tokenizer


def tiny_config(kind: str, vocab_size: int, n_layer: int = 2):
    """The configuration of a tiny "llama", "qwen2" or "gpt2"."""
    if kind == "gpt2":
        return library().GPT2Config(
            vocab_size=vocab_size,
            n_positions=256,
            n_embd=64,
            n_layer=n_layer,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    configs = dict(llama=library().LlamaConfig, qwen2=library().Qwen2Config)
    return configs[kind](
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=n_layer,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )


def make_tiny(
    folder: str | Path,
    texts: Iterable[str],
    kind: str = "llama",
    chat: bool = True,
    seed: int = 0,
) -> Path:
    """Save a random model and its tokenizer in a folder, as a real model's folder
    looks.
    """
    tokenizer = build_tokenizer(texts, chat=chat)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = tiny_config(kind, len(tokenizer))
        model = library().AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
