"""A real model's own chat template: conversations and pairs as tokens, and what is
graded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from posttrain.chat import IGNORE, Message
from posttrain.data.formats import as_messages
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
# The shortest conversation, to see what a template makes of any
PROBE = [dict(role="user", content="a"), dict(role="assistant", content="b")]
PRIVATE = range(0xE000, 0xF900)  # Unicode's characters without a meaning

Example = tuple[list[int], list[int]]  # token ids, and labels: the ids, or IGNORE


@dataclass(frozen=True)
class Answer:
    """Where an answer stands in the text of the conversation that it ends."""

    text: str  # the conversation, as the template writes it
    prompt: str  # what the answer is written after; the text begins with it
    end: int  # in characters: behind the special tokens that end the answer


def give_template(tokenizer) -> int:
    """Give a tokenizer without a chat template ChatML's; return how many tokens that
    adds.

    What the tokenizer puts before any text, such as <s>, the template writes. The end
    of an answer becomes the tokenizer's eos, and the old one its padding where it had
    none.
    """
    if tokenizer.chat_template:
        return 0
    tokenizer.chat_template = f"{{{{ {json.dumps(opening(tokenizer))} }}}}{CHATML}"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    n = tokenizer.add_special_tokens(
        dict(additional_special_tokens=list(CHATML_TOKENS))
    )
    tokenizer.eos_token = CHATML_TOKENS[1]
    return n


def opening(tokenizer) -> str:
    """The special tokens that a tokenizer puts before any text in normal use, as
    text.
    """
    usual, bare = tokenizer("a")["input_ids"], encode("a", tokenizer)
    places = range(len(usual) - len(bare) + 1)
    n = next((i for i in places if usual[i : i + len(bare)] == bare), 0)
    return "".join(tokenizer.convert_ids_to_tokens(usual[:n]))


def settle_end(tokenizer) -> int:
    """Make the token that ends an answer the tokenizer's eos; return it.

    A template that writes the old eos by that name goes on to write the old one. Raises
    ModelError where answers have no end.
    """
    end, template = end_token(tokenizer), tokenizer.get_chat_template()
    if end == tokenizer.eos_token_id:
        return end
    if "eos_token" in template:
        # The line break is not written: transformers' Jinja drops it behind a block
        old = json.dumps(tokenizer.eos_token or "", ensure_ascii=False)
        tokenizer.chat_template = f"{{% set eos_token = {old} %}}\n{template}"
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return end


@dataclass(frozen=True)
class Specials:
    """A tokenizer's special tokens, those included that were added for a template."""

    ids: frozenset[int]
    pattern: re.Pattern  # any one of them, as text


def special_tokens(tokenizer) -> Specials:
    """The special tokens of a tokenizer; with thousands of them this takes a while.

    Raises ModelError for a slow tokenizer, which could not say where its tokens stand.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer is a slow one ({type(tokenizer).__name__}) and does not "
            "say which letters a token stands for: save it as a fast one "
            "(tokenizer.json)"
        )
    added = tokenizer.added_tokens_decoder.values()
    texts = {token.content for token in added if token.special}
    texts |= {text for text in tokenizer.all_special_tokens if text}
    longest_first = sorted(texts, key=len, reverse=True)
    ids = frozenset(tokenizer.convert_tokens_to_ids(longest_first))
    return Specials(ids, re.compile("|".join(map(re.escape, longest_first)) or "(?!)"))


def rendered(messages: list[Message], tokenizer, prompt: bool = False) -> str:
    """A conversation as text in the model's own format; with `prompt`, up to an
    answer.
    """
    turns = [
        {key: value for key, value in message.items() if key != "weight"}
        for message in messages
    ]
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # a template is a program, and may fail in any way
        raise ModelError(
            f"the tokenizer's chat template fails ({error}): use turns that it takes, "
            "or give the tokenizer another template"
        ) from None


def encode(text: str, tokenizer) -> list[int]:
    """The tokens of a text that has its special tokens in it already."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def render_chat(messages: list[Message], tokenizer) -> Example:
    """A conversation's tokens, and as labels those that the assistant has to write.

    The tokens are those of `apply_chat_template`. Graded are the answers, each with its
    end; all else is IGNORE. Raises ModelError as `render_chats` does, and where that
    makes several rows.
    """
    examples = render_chats(messages, tokenizer)
    if len(examples) > 1:
        raise ModelError(
            "the tokenizer's chat template rewrites earlier turns: make a row of each "
            f"of the {len(examples)} answers, as render_chats does"
        )
    return examples[0]


def render_chats(
    messages: list[Message], tokenizer, special: Specials | None = None
) -> list[Example]:
    """A conversation as one row; or as one for each answer, where the template writes
    earlier turns otherwise once others follow.

    An answer of `weight` 0 is read and not graded. special: the tokenizer's, where they
    are known already. Raises ModelError for an answer that the template changes or does
    not end.
    """
    special = special or special_tokens(tokenizer)
    answers = [
        locate(messages[: i + 1], tokenizer, special)
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight") != 0
    ]
    if not answers:
        raise ModelError("there is no answer in it to learn from")
    # Hold the text before each answer's end against the whole conversation's
    whole = rendered(messages, tokenizer)
    if all(whole.startswith(each.text[: each.end]) for each in answers):
        return [grade(whole, answers, tokenizer, special)]
    return [grade(each.text, [each], tokenizer, special) for each in answers]


def grade(text: str, answers: list[Answer], tokenizer, special: Specials) -> Example:
    """A text's tokens, encoded once, and as labels those of its answers.

    Raises ModelError where a token holds letters of prompt and answer both: the model
    would never be asked to write it.
    """
    tokens, starts, ends = encode_with_places(text, tokenizer)
    labels = [IGNORE] * len(tokens)
    for answer in answers:
        prompt, begins = encode(answer.prompt, tokenizer), len(answer.prompt)
        first, last = len(prompt), sum(start < answer.end for start in starts)
        # A token for what is unknown may be the same and hold more letters
        if tokens[:first] != prompt or text[begins : ends[first - 1]].strip():
            said = text[begins : answer.end].strip()
            raise ModelError(
                f"a token holds both the start of the answer {said[:40]!r} and what "
                "stands before it: begin the answer with a letter, or take the row away"
            )
        if tokens[last - 1] not in special.ids:
            raise ModelError(
                "the tokenizer does not make a special token of the end of an answer: "
                "give it another template"
            )
        refuse_unknown(tokens[first:last], text[begins : answer.end], tokenizer)
        labels[first:last] = tokens[first:last]
    return tokens, labels


def refuse_unknown(tokens: list[int], said: str, tokenizer) -> None:
    """Raise ModelError where an answer's tokens hold the one for what is unknown: the
    model would learn to write that.
    """
    unknown = tokenizer.unk_token
    if tokenizer.unk_token_id in tokens[:-1] and unknown not in said:
        raise ModelError(
            f"the tokenizer has no token for a part of the answer {said[:40]!r} and "
            f"reads {unknown} there: write it otherwise, or take the row away"
        )


def encode_with_places(text: str, tokenizer) -> tuple[list[int], list[int], list[int]]:
    """The tokens of a text, and at which character each begins and ends."""
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts, ends = zip(*coded["offset_mapping"])
    return coded["input_ids"], [*starts], [*ends]


def locate(messages: list[Message], tokenizer, special: Specials) -> Answer:
    """Where the last message, an answer, stands in its conversation's text.

    Raises ModelError where the template changes the answer, does not end it, or asks
    for it with another question.
    """
    text = rendered(messages, tokenizer)
    start, stop = find_content(messages, text, tokenizer)
    asked, before = rendered(messages[:-1], tokenizer, prompt=True), text[:start]
    if not (before.startswith(asked) or asked.startswith(before)):
        refuse_other_question(messages, text, asked, tokenizer)
    prompt = prompt_before(before, asked)
    return Answer(text, prompt, find_end(text, stop, prompt, tokenizer, special))


def find_content(messages: list[Message], text: str, tokenizer) -> tuple[int, int]:
    """Where the last message's content begins and stops in the conversation's text.

    White space that the template strips is no part of it. Raises ModelError where the
    template changes more than that.
    """
    content = messages[-1]["content"]
    first, last = len(content) - len(content.lstrip()), len(content.rstrip())

    def found(order: range) -> tuple[int | None, int]:
        places = ((place(k, messages, text, tokenizer), k) for k in order)
        return next((at for at in places if at[0] is not None), (None, 0))

    # Let the mark shield white space from being stripped, or stand behind what was
    start, kept_from = found(range(first + 1))
    stop, kept_to = found(range(len(content), last - 1, -1))
    if start is None and stop is not None:
        # Where the template reads the content's beginning, count back from its end
        kept_from = first
        start = max(0, stop - (kept_to - first))
    if not start or stop is None or text[start:stop] != content[kept_from:kept_to]:
        raise ModelError(
            f"the tokenizer's chat template changes the answer {content[:40]!r} or "
            "leaves it out: write it as the template does, or take the row away"
        )
    return start, stop


def place(
    k: int, messages: list[Message], text: str, tokenizer, which: int = -1
) -> int | None:
    """Where the k-th character of a message's content stands in the conversation's
    text, or None where the template does not say.

    Found by rendering once more with a mark there, never by a search for letters.
    """
    message = messages[which]
    content = message["content"]
    mark = next(chr(c) for c in PRIVATE if chr(c) not in text + content)
    marked, with_mark = content[:k] + mark + content[k:], [*messages]
    with_mark[which] = {**message, "content": marked}
    before, found, after = rendered(with_mark, tokenizer).partition(mark)
    return len(before) if found and before + after == text else None


def refuse_other_question(
    messages: list[Message], text: str, asked: str, tokenizer
) -> None:
    """Raise ModelError where the template writes the question otherwise once it is
    answered: what was trained would never be asked.
    """
    k = len(messages[-2]["content"].rstrip())
    at = place(k, messages, text, tokenizer, which=-2)
    if at is None or text[:at] != asked[:at]:
        raise ModelError(
            "the tokenizer's chat template writes the question otherwise once it is "
            "answered: put what a system turn says into the question, or give the "
            "tokenizer another template"
        )


def prompt_before(before: str, asked: str) -> str:
    """What an answer is written after, of the text before it.

    asked: the conversation with the template's own prompt for an answer. White space
    alone between that and the answer the model writes; where the template puts in more,
    such as an empty thought, that belongs to the prompt. A last space never does: it
    hangs on the answer's first word.
    """
    gap = before[len(asked) :] if before.startswith(asked) else before
    return (before if gap.strip() else asked).rstrip(" ")


def find_end(text: str, stop: int, prompt: str, tokenizer, special: Specials) -> int:
    """Where the special tokens end that end an answer whose content stops at `stop`.

    They are the first behind it and those that follow at once, up to the tokenizer's
    eos, or to one that opens a text or an answer. Raises ModelError where there is
    none.
    """
    end = special.pattern.search(text, stop)
    if end is None:
        raise ModelError(
            "the tokenizer's chat template ends an answer with no special token: the "
            "model could not learn to stop; give the tokenizer another template"
        )
    opens = {tokenizer.bos_token, *special.pattern.findall(prompt)[-1:]}
    while end.group() != tokenizer.eos_token:
        following = special.pattern.match(text, end.end())
        if following is None or following.group() in opens:
            break
        end = following
    return end.end()


def render_chat_prompt(
    asked: str | list[Message], tokenizer, special: Specials | None = None
) -> list[int]:
    """The tokens of a question, or of a conversation up to one, and of all that stands
    before the answer.
    """
    special = special or special_tokens(tokenizer)
    messages = [*as_messages(asked), PROBE[1]]
    return encode(locate(messages, tokenizer, special).prompt, tokenizer)


def end_token(tokenizer) -> int:
    """The token that ends an answer in this model's chat format."""
    with naming("a question 'a' with the answer 'b'"):
        _, labels = render_chat(PROBE, tokenizer)
    return [label for label in labels if label != IGNORE][-1]


def pad_token(tokenizer) -> int:
    """The token to fill rows with: its own, or any but the end. It is never graded or
    seen.
    """
    own, bos = tokenizer.pad_token_id, tokenizer.bos_token_id
    known = (own, bos, tokenizer.unk_token_id, 0, 1)
    return next(t for t in known if t is not None and t != tokenizer.eos_token_id)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say of a ModelError which row it is about."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{what}: {error}") from None


def encode_chats(rows: list[dict], tokenizer, max_length: int) -> list[Example]:
    """The rows that conversations are, as `render_chats` makes them.

    Raises ModelError, naming the conversation, for one that cannot be learned or is too
    long.
    """
    examples, encoded = [], chat_encoder(tokenizer, max_length)
    for row in rows:
        with naming(f"conversation {row['id']}"):
            examples += encoded(row)
    return examples


def chat_encoder(tokenizer, max_length: int) -> Callable[[dict], list[Example]]:
    """A function of one conversation that gives its rows.

    It raises ModelError for one that cannot be learned or is too long.
    """
    special, end = special_tokens(tokenizer), cache(lambda: end_token(tokenizer))

    def encoded(row: dict) -> list[Example]:
        found = render_chats(row["messages"], tokenizer, special)
        for tokens, labels in found:
            refuse_other_end(labels, end(), tokenizer)
            refuse_excess(len(tokens), max_length)
        return found

    return encoded


def refuse_other_end(labels: list[int], end: int, tokenizer) -> None:
    """Raise ModelError where an answer ends with another token than this."""
    for label, following in zip(labels, [*labels[1:], IGNORE]):
        if label != IGNORE == following and label != end:
            raise ModelError(
                f"an answer ends with {tokenizer.decode([label])!r}, and the model is "
                f"to stop at {tokenizer.decode([end])!r}: make it a row of its own"
            )


def encode_chat_pairs(rows: list[dict], tokenizer, max_length: int) -> list[Pair]:
    """(prompt, chosen, rejected) as tokens, the answers with their end.

    Raises ModelError, naming the pair, for one that cannot be compared or is too long:
    none is cut.
    """
    pairs, encoded = [], pair_encoder(tokenizer, max_length)
    for row in rows:
        with naming(f"pair {row['id']}"):
            pairs.append(encoded(row))
    return pairs


def pair_encoder(tokenizer, max_length: int) -> Callable[[dict], Pair]:
    """A function of one pair that gives it as tokens.

    It raises ModelError for one that cannot be compared or is too long.
    """
    special, end = special_tokens(tokenizer), cache(lambda: end_token(tokenizer))

    def encoded(row: dict) -> Pair:
        prompt, *answers = encode_pair(row, tokenizer, special)
        for answer in answers:
            refuse_other_end(answer, end(), tokenizer)
            refuse_excess(len(prompt) + len(answer), max_length)
        return prompt, *answers

    return encoded


def encode_pair(row: dict, tokenizer, special: Specials) -> Pair:
    """One pair as tokens. Raises ModelError where its sides have two prompts or one
    answer.
    """
    prompts, answers = [], []
    for side in ("chosen", "rejected"):
        answer = dict(role="assistant", content=row[side])
        found = locate([*as_messages(row["prompt"]), answer], tokenizer, special)
        tokens, labels = grade(found.text, [found], tokenizer, special)
        n = next(i for i, label in enumerate(labels) if label != IGNORE)
        prompts.append(tokens[:n])
        answers.append([label for label in labels if label != IGNORE])
    if prompts[0] != prompts[1]:
        raise ModelError(
            "the tokenizer's chat template writes something else before the chosen "
            "answer than before the rejected one: give both a thought, or neither"
        )
    if answers[0] == answers[1]:
        raise ModelError("chosen and rejected are the same tokens: take the row away")
    return prompts[0], *answers


def refuse_excess(n: int, max_length: int) -> None:
    """Raise ModelError where n tokens are more than allowed."""
    if n > max_length:
        raise ModelError(
            f"it has {n} tokens and the longest allowed is {max_length}: shorten it, "
            "or raise --max-length where model and memory can take it"
        )
