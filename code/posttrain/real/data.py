"""A real model's own chat template: conversations and pairs as tokens, and what is
graded.
"""

from __future__ import annotations

from itertools import accumulate

from posttrain.chat import IGNORE, Message
from posttrain.data.formats import as_messages, unlearned
from posttrain.preference_pairs import Pair
from posttrain.real.model import ModelError

# Where a tokenizer has no template of its own: OpenAI's ChatML
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ "
    "'\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def give_template(tokenizer) -> int:
    """Give a tokenizer without a chat template ChatML's; return how many tokens that
    adds.
    """
    if tokenizer.chat_template:
        return 0
    tokenizer.chat_template = CHATML
    return tokenizer.add_special_tokens(
        dict(additional_special_tokens=list(CHATML_TOKENS))
    )


def rendered(messages: list[Message], tokenizer, prompt: bool = False) -> str:
    """A conversation as text in the model's own format; with `prompt`, up to an
    answer.
    """
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # a template is a program, and may fail in any way
        raise ModelError(f"the tokenizer's chat template fails ({error})") from None


def encode(text: str, tokenizer) -> list[int]:
    """The tokens of a text that has its special tokens in it already."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def render_chat(messages: list[Message], tokenizer) -> tuple[list[int], list[int]]:
    """A conversation's tokens, and as labels those that the assistant has to write.

    These are its text and the special token that ends it; all else is IGNORE. Prompt
    and answer are encoded each by itself, as they are when the model is used. Raises
    ModelError where the template, given one more message, changes what it made of those
    before.
    """
    tokens, labels, done = [], [], ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = rendered(messages[:i], tokenizer, prompt=True)
        whole = rendered(messages[: i + 1], tokenizer)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise ModelError(
                "the tokenizer's chat template rewrites earlier turns at message "
                f"{i}: train "
                "on conversations of one answer each"
            )
        # Grade the answer up to and including its end, and nothing else
        asked, answer = encode(prompt[len(done) :], tokenizer), whole[len(prompt) :]
        answered, n_graded = until_end(answer, message["content"], tokenizer)
        tokens += asked + answered
        labels += [IGNORE] * len(asked) + answered[:n_graded]
        labels += [IGNORE] * (len(answered) - n_graded)
        done = whole
    return tokens, labels


def until_end(answer: str, content: str, tokenizer) -> tuple[list[int], int]:
    """An answer's tokens as the template writes them, and how many lead up to its end.

    The end is the first special token behind the content. Raises ModelError where there
    is none, and where the template changes the content.
    """
    text, special = content.strip(), special_ids(tokenizer)
    if text not in answer:
        raise ModelError(
            f"the tokenizer's chat template changes the answer {text[:40]!r}"
        )
    # Look behind the content: a special token's name inside it ends nothing
    tail = encode(answer[answer.index(text) + len(text) :], tokenizer)
    ends = [i for i, token in enumerate(tail) if token in special]
    if not ends:
        raise ModelError(
            "the tokenizer's chat template ends an answer with no special token: the "
            "model "
            "could not learn to stop"
        )
    # A special token splits the text, so that what follows it is the same in both
    tokens = encode(answer, tokenizer)
    return tokens, len(tokens) - (len(tail) - ends[0] - 1)


def special_ids(tokenizer) -> set[int]:
    """The ids of all special tokens, those included that were added for a template."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def render_chat_prompt(prompt: str | list[Message], tokenizer) -> list[int]:
    """The tokens of a question, or of messages, up to where the assistant begins."""
    return encode(rendered(as_messages(prompt), tokenizer, True), tokenizer)


def render_weighted(messages: list[Message], tokenizer) -> tuple[list[int], list[int]]:
    """`render_chat`, whose labels leave out the answers that have `weight` 0.

    Raises ModelError where the labels of answers are not apart.
    """
    plain = [dict(role=m["role"], content=m["content"]) for m in messages]
    tokens, labels = render_chat(plain, tokenizer)
    weights = [m.get("weight", 1) for m in messages if m["role"] == "assistant"]
    if all(weights):
        return tokens, labels
    # Number the runs of labels: each is an answer with its end
    graded = [label != IGNORE for label in labels]
    starts = [now and not before for now, before in zip(graded, [False, *graded])]
    if sum(starts) != len(weights):
        raise ModelError(
            "the tokenizer's chat template puts nothing between two answers: leave "
            "out the weights"
        )
    answers = [n - 1 for n in accumulate(starts)]
    kept = [now and weights[n] for now, n in zip(graded, answers)]
    return tokens, [label if keep else IGNORE for label, keep in zip(labels, kept)]


def end_token(tokenizer) -> int:
    """The token that ends an answer in this model's chat format."""
    probe = [dict(role="user", content="a"), dict(role="assistant", content="b")]
    return [label for label in render_chat(probe, tokenizer)[1] if label != IGNORE][-1]


def pad_token(tokenizer) -> int:
    """The token to fill rows with: its own where there is one. It is never graded or
    seen.
    """
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


def encode_chats(
    rows: list[dict], tokenizer, max_length: int
) -> list[tuple[list[int], list[int]]]:
    """(tokens, labels) of each conversation. Raises ModelError for one that is too
    long.
    """
    examples = []
    for row in rows:
        tokens, labels = render_weighted(row["messages"], tokenizer)
        refuse_excess(f"conversation {row['id']}", len(tokens), max_length)
        examples.append((tokens, labels))
    return examples


def encode_chat_pairs(rows: list[dict], tokenizer, max_length: int) -> list[Pair]:
    """(prompt, chosen, rejected) as tokens, the answers with their end.

    Raises ModelError for a pair that is too long: none is cut.
    """
    pairs = []
    for row in rows:
        prompt, answers = render_chat_prompt(row["prompt"], tokenizer), []
        for side in ("chosen", "rejected"):
            asked = [unlearned(message) for message in as_messages(row["prompt"])]
            answer = dict(role="assistant", content=row[side])
            _, labels = render_weighted([*asked, answer], tokenizer)
            answers.append([label for label in labels if label != IGNORE])
            refuse_excess(
                f"pair {row['id']}", len(prompt) + len(answers[-1]), max_length
            )
        pairs.append((prompt, *answers))
    return pairs


def refuse_excess(what: str, n: int, max_length: int) -> None:
    """Raise ModelError where n tokens are more than allowed."""
    if n > max_length:
        raise ModelError(
            f"{what} has {n} tokens and the longest allowed is {max_length}: shorten "
            "it, or "
            "raise --max-length where model and memory can take it"
        )
