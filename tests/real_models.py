"""Tiny models in folders, made once, for the tests of what trains a real model."""

import functools
import json
import tempfile
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from posttrain.data import datasets
from posttrain.real.data import encode_chat_pairs, encode_chats
from posttrain.real.model import fetch, library
from posttrain.real.tiny import make_tiny

CONVERSATIONS, PAIRS = datasets.conversations()[:10], datasets.preferences()[:8]


@functools.cache
def folder(kind="llama", chat=True):
    """A folder with a tiny model and its tokenizer, the same for all tests of a
    process.
    """
    texts = [message["content"] for row in CONVERSATIONS for message in row["messages"]]
    return str(make_tiny(tempfile.mkdtemp(), texts, kind, chat))


@functools.cache
def tokenizer(kind="llama"):
    return fetch(library().AutoTokenizer, folder(kind))


def examples():
    return encode_chats(CONVERSATIONS, tokenizer(), 256)


def encoded_pairs():
    return encode_chat_pairs(PAIRS, tokenizer(), 256)


def data_file(path: Path, rows) -> str:
    """Rows as JSON Lines in a file."""
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


SHAPES = ("bytes", "bytes with bos", "metaspace first", "metaspace always", "prepended")
STRIPPING = "bytes, stripping"  # special tokens that swallow white space, as Phi-3's


@functools.cache
def shaped_tokenizer(shape: str, special: tuple[str, ...] = ()):
    """A small tokenizer of one of the shapes that published ones have, without a
    template. Its bos, eos and unk are <s>, </s> and <unk>.
    """
    rows = datasets.conversations()[:10]
    texts = [message["content"] for row in rows for message in row["messages"]]
    first = ["<unk>", "<s>", "</s>"]
    if shape.startswith("bytes"):
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    else:
        first += [f"<0x{byte:02X}>" for byte in range(256)]
        core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        if shape == "prepended":
            spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            core.normalizer = normalizers.Sequence(spaces)
        else:
            scheme = shape.removeprefix("metaspace ")
            core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        core.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=first,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        if shape.startswith("bytes")
        else [],
    )
    core.train_from_iterator(texts, trainer)
    if shape == "bytes with bos":
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    ends = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made = library().PreTrainedTokenizerFast(tokenizer_object=core, **ends)
    strips = dict(special=True, rstrip=shape == STRIPPING)
    made.add_tokens([AddedToken(text, **strips) for text in special])
    return made
