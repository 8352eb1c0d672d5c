"""Tiny models in folders, made once, for the tests of what trains a real model."""

import functools
import json
import tempfile
from pathlib import Path

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
