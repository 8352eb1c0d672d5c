"""Chat format: special tokens between the turns, and labels that say what is graded."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from posttrain.gpt import GPT
from posttrain.sampling import generate
from posttrain.tokenizer import CharTokenizer

Message = dict[str, str]  # {"role": "user" or "assistant", "content": text}

IGNORE = (
    -100
)  # the label of a token that no loss grades; PyTorch's cross-entropy skips it


def render(messages: list[Message], tokenizer: CharTokenizer) -> list[int]:
    """The chat template: a conversation as token ids.

    Every turn opens with its role's token, and the assistant's ends with <|end|>.
    Raises ValueError for another role, and for a character outside the alphabet.
    """
    tokens = []
    for message in messages:
        text = tokenizer.encode(message["content"])
        if message["role"] == "user":
            tokens += [tokenizer.user, *text]
        elif message["role"] == "assistant":
            tokens += [tokenizer.assistant, *text, tokenizer.end]
        else:
            raise ValueError(
                f"{message['role']!r} is no role: use 'user' or 'assistant'"
            )
    return tokens


def render_prompt(messages: list[Message], tokenizer: CharTokenizer) -> list[int]:
    """A conversation whose next turn is the assistant's, up to and including
    <|assistant|>.
    """
    return [*render(messages, tokenizer), tokenizer.assistant]


def render_question(text: str, tokenizer: CharTokenizer) -> list[int]:
    """The prompt of a conversation of one question: token ids."""
    return render_prompt([dict(role="user", content=text)], tokenizer)


def build_labels(tokens: list[int], tokenizer: CharTokenizer) -> list[int]:
    """Each token as its own label where it is graded, and IGNORE where it is not.

    Graded is what the assistant has to write: its text and its <|end|>.
    """
    labels, answering = [], False
    for token in tokens:
        labels.append(token if answering else IGNORE)
        # Grade from the token after <|assistant|> up to and including <|end|>
        if token == tokenizer.assistant:
            answering = True
        elif token == tokenizer.end:
            answering = False
    return labels


def collate(
    examples: list[tuple[list[int], list[int]]], pad: int
) -> tuple[Tensor, Tensor]:
    """Stack (tokens, labels) of unequal lengths: both (B, T), padded on the right.

    Padding has a token of its own, and the label IGNORE.
    """
    T = max(len(tokens) for tokens, _ in examples)
    tokens = torch.full((len(examples), T), pad)  # (B, T)
    labels = torch.full((len(examples), T), IGNORE)  # (B, T)
    for row, (ids, graded) in enumerate(examples):
        tokens[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(graded)] = torch.tensor(graded)
    return tokens, labels


@torch.no_grad()
def grow_vocabulary(model: GPT, vocab_size: int) -> GPT:
    """A copy of a model with room for more tokens; the logits of the old ones do not
    change.

    Each new row of the embedding and of the head is the mean of the old rows. A new
    token's logit is then the mean of the old logits, so it gets at most 1/V of the old
    probability (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
    Models").
    """
    V = model.config.vocab_size
    if vocab_size < V:
        raise ValueError(f"a vocabulary of {V} tokens cannot grow to {vocab_size}")
    grown = GPT(replace(model.config, vocab_size=vocab_size), torch.Generator())
    grown.to(model.head.weight.dtype)
    weights = dict(model.state_dict())
    # Append the mean row to the two tables that have one row per token
    for name in ("embedding.weight", "head.weight"):
        mean = weights[name].mean(0, keepdim=True)  # (1, C)
        weights[name] = torch.cat([weights[name], mean.expand(vocab_size - V, -1)])
    grown.load_state_dict(weights)
    return grown


def ask(
    model: GPT,
    questions: list[str],
    *,
    generator: torch.Generator | None = None,
    temperature: float = 0.8,
    max_new_tokens: int = 160,
) -> list[str]:
    """What a model answers to each question, in chat format, special tokens spelt out.

    An answer ends with <|end|> unless max_new_tokens ran out first.
    """
    tokenizer = CharTokenizer()
    prompts = [render_question(question, tokenizer) for question in questions]
    samples = generate(
        model,
        prompts,
        max_new_tokens,
        generator=generator,
        temperature=temperature,
        stop=tokenizer.end,
    )
    return [tokenizer.decode(response) for response in samples.responses()]
