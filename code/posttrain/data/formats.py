"""The forms that training data has elsewhere, each row as the book has it.

A row is taken for what its fields say: messages (OpenAI, TRL), conversations
(ShareGPT), instruction and output (Alpaca), prompt and completion, chosen and rejected.
Other columns are ignored. What could mean two things is refused, and so is what changes
a row's meaning in a way that is not learned here, such as tools.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from posttrain.chat import Message
from posttrain.data.json_rows import TWICE, RowProblem

SPEAKERS = dict(
    system="system",
    user="user",
    human="user",
    assistant="assistant",
    gpt="assistant",
    chatgpt="assistant",
)
TOOLS = ("tool", "tool_call", "function", "function_call", "observation")
# Names of one thing in different forms
ROLE, CONTENT = ("role", "from"), ("content", "value")
SYSTEM, TALKS = ("system", "system_prompt"), ("messages", "conversations")
SIDES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
# What changes the tokens of a row or of a message, or what of it is graded
EXTRAS = ("tools", "functions", "images", "videos", "audios", "history")
EXTRAS += ("chat_template_kwargs",)
MESSAGE_EXTRAS = ("tool_calls", "function_call", "tool_call_id", "images", "audio")
MESSAGE_EXTRAS += ("thinking", "reasoning", "reasoning_content", "refusal")
MESSAGE_EXTRAS += ("train", "training", "loss", "mask")
NOTHING = (None, "", "[]", "{}", "null", [], {})  # what an empty column holds
SURROGATE = re.compile("[\ud800-\udfff]")


# Rows


def conversation_of(row: dict) -> dict:
    """A row's `messages`: after a system turn, if any, user and assistant take turns,
    and the assistant has the last word.

    An answer that is read and not learned has `weight` 0. Raises RowProblem.
    """
    refuse_extras(row, EXTRAS)
    for name in ("label", "kto_tag"):
        if row.get(name) is False:
            raise RowProblem(f"{name} is false: a bad answer is not one to learn")
    found = [with_system(each, row) for each in [*talks(row), *with_answers(row)]]
    if not found:
        raise RowProblem(
            "it has none of messages, conversations, prompt and completion, or "
            f"instruction and output, but {fields_of(row)}"
        )
    refuse_ambiguous(found, "messages, prompt or instruction")
    messages = found[0]
    refuse_bad_turns(messages, "assistant")
    if all(m.get("weight") == 0 for m in messages if m["role"] == "assistant"):
        raise RowProblem("every answer has weight 0: there is nothing to learn")
    return dict(messages=messages)


def pair_of(row: dict) -> dict:
    """A row's `prompt`, and two answers to it, `chosen` and `rejected`.

    Of two lists of messages the last of each is the answer, and those before it, which
    have to be the same, are the prompt. Raises RowProblem.
    """
    refuse_extras(row, EXTRAS)
    names = sides_of(row)
    if names is None:
        raise RowProblem(f"it lacks chosen or rejected, and has {fields_of(row)}")
    sides = [side_of(row[name], name) for name in names]
    whole = [side[0]["role"] != "assistant" for side in sides]
    if all(whole) and row.get("prompt") in NOTHING:
        row = row | dict(prompt=None)
    asked = asked_of(row, () if any(whole) else TALKS)
    if not asked and not all(whole):
        raise RowProblem(
            "there is no prompt in it: add one, or give both answers as the last of "
            "a list of messages"
        )
    before = [behind(asked, side[:-1], name) for side, name in zip(sides, names)]
    if before[0] != before[1]:
        raise RowProblem(
            "the messages before the two answers differ: a pair is two answers to "
            "one prompt"
        )
    chosen, rejected = (side[-1]["content"] for side in sides)
    if chosen == rejected:
        raise RowProblem(
            "chosen and rejected are the same: there is no preference in it"
        )
    prompt = prompt_from(with_system(before[0], row))
    return dict(prompt=prompt, chosen=chosen, rejected=rejected)


def prompt_of(row: dict) -> dict:
    """A row's `prompt`, whatever answers there are beside it. Raises RowProblem."""
    refuse_extras(row, EXTRAS)
    if sides_of(row):
        return dict(prompt=pair_of(row)["prompt"])
    asked = asked_of(row, TALKS)
    if not asked:
        raise RowProblem(
            "it has none of prompt, messages, conversations or instruction, but "
            f"{fields_of(row)}"
        )
    return dict(prompt=prompt_from(with_system(asked, row)))


def as_messages(prompt: str | list[Message]) -> list[Message]:
    """A row's prompt as messages: a text is the user's."""
    return [said("user", prompt)] if isinstance(prompt, str) else prompt


def prompt_from(messages: list[Message]) -> str | list[Message]:
    """Messages as a row's prompt: the text, where it is one question and no more.

    Raises RowProblem where they do not end with the user's.
    """
    refuse_bad_turns(messages, "user")
    return messages[0]["content"] if len(messages) == 1 else messages


# Forms


def talks(row: dict, names: tuple[str, ...] = TALKS) -> Iterator[list[Message]]:
    """The messages of each list of them that a row has."""
    for name in names:
        if row.get(name) is not None:
            yield messages_of(row[name], name)


def with_answers(row: dict) -> Iterator[list[Message]]:
    """The messages of each question with an answer that a row has.

    As in TRL, answers inside a prompt are not learned.
    """
    if row.get("prompt") is not None and row.get("completion") is not None:
        asked = messages_of(row["prompt"], "prompt", "user")
        answer = messages_of(row["completion"], "completion", "assistant")
        if len(answer) > 1:
            raise RowProblem("completion has several messages: it is one answer")
        yield [unlearned(message) for message in asked] + answer
    if row.get("instruction") is not None and row.get("output") is not None:
        yield [*instruction_of(row), *messages_of(row["output"], "output", "assistant")]


def instruction_of(row: dict) -> list[Message]:
    """An Alpaca row's question: the instruction, an empty line, and the input, if
    any.
    """
    parts = [text_of(row["instruction"], "instruction", blank=True)]
    parts += [text_of(row.get("input") or "", "input", blank=True)]
    text = "\n\n".join(part for part in parts if part.strip())
    return messages_of(text, "instruction", "user")


def sides_of(row: dict) -> tuple[str, str] | None:
    """What a row calls its better and its worse answer, or None where one is
    missing.
    """
    there = (names for names in SIDES if all(row.get(n) is not None for n in names))
    return next(there, None)


def side_of(value: object, name: str) -> list[Message]:
    """One side of a pair as messages, the last of them the answer."""
    messages = messages_of(value, name, "assistant")
    if messages[-1]["role"] != "assistant":
        raise RowProblem(
            f"{name}: the last message is the {messages[-1]['role']}'s, and not an "
            "answer"
        )
    if messages[-1].get("weight") == 0:
        raise RowProblem(f"{name}: the answer has weight 0: it is to be compared")
    return [said(m["role"], m["content"]) for m in messages]


def asked_of(row: dict, names: tuple[str, ...]) -> list[Message]:
    """What a row asks, [] where that is nowhere but in its answers' own messages.

    names: columns of whole conversations to take it from, where there is no prompt.
    """
    found = []
    if row.get("prompt") is not None:
        found += [messages_of(row["prompt"], "prompt", "user")]
    if isinstance(row.get("input"), dict):
        inner = as_object(row["input"])
        refuse_extras(inner, EXTRAS)
        found += talks(inner)
    elif row.get("instruction") is not None:
        found += [instruction_of(row)]
    found = found or list(talks(row, names))
    refuse_ambiguous(found, "prompt, instruction or messages")
    return [said(m["role"], m["content"]) for m in found[0]] if found else []


def behind(asked: list[Message], before: list[Message], name: str) -> list[Message]:
    """All that stands before an answer: the prompt, and the messages of its own list.

    Those may go on from the prompt or repeat it. Raises RowProblem where they are
    another's.
    """
    if not asked or not before or before[0]["role"] == "assistant":
        return asked + before
    (system, asked), (own, before) = map(without_system, (asked, before))
    users = [m["content"].strip() for m in before if m["role"] == "user"]
    # Some name as the prompt the first question alone, or the last
    short = len(asked) == 1 and asked[0]["content"].strip() in users[:1] + users[-1:]
    if not (short or before[: len(asked)] == asked) or (own or system) != (
        system or own
    ):
        raise RowProblem(
            f"{name} does not begin with the row's prompt: keep one of them"
        )
    return [*(own or system), *before]


def without_system(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """A system turn at the beginning, if any, and the messages after it."""
    n = int(messages[:1] != [] and messages[0]["role"] == "system")
    return messages[:n], messages[n:]


def with_system(messages: list[Message], row: dict) -> list[Message]:
    """Messages with the system turn that a row has as a column, if any, before them."""
    for name in SYSTEM:
        if row.get(name) in NOTHING or not text_of(row[name], name, True).strip():
            continue
        turn = said("system", row[name])
        if messages[0]["role"] != "system":
            messages = [turn, *messages]
        elif messages[0] != turn:
            raise RowProblem(
                f"{name} and the messages have different system turns: keep one"
            )
    return messages


# Messages


def messages_of(value: object, name: str, speaker: str = "") -> list[Message]:
    """Messages of a list of them, of one alone, or of a text, which is the speaker's.

    Where a speaker is given, a text is allowed. Raises RowProblem.
    """
    if isinstance(value, str) and speaker:
        return [said(speaker, text_of(value, name))]
    if isinstance(value, dict) and speaker:
        return [message_of(value, name)]
    if not isinstance(value, list):
        texts = "a text or " if speaker else ""
        raise RowProblem(
            f"{name} is {kind_of(value)}, where {texts}a list of messages is expected"
        )
    if not value:
        raise RowProblem(f"{name}: there is no message in it")
    return [message_of(each, f"{name}[{i}]") for i, each in enumerate(value)]


def message_of(value: object, name: str) -> Message:
    """A message with its role and content alone, and with its weight, if that is 0."""
    value = as_object(value, f"{name}: ")
    refuse_extras(value, MESSAGE_EXTRAS, f"{name}: ")
    role = value.get(next((key for key in ROLE if key in value), "role"))
    speaker = SPEAKERS.get(role) if isinstance(role, str) else None
    if role in TOOLS:
        raise RowProblem(f"{name}: the role {role!r}: tools are not learned here")
    if speaker is None:
        raise RowProblem(f"{name}: the role {role!r} is none of {', '.join(SPEAKERS)}")
    content = value.get(next((key for key in CONTENT if key in value), "content"))
    message = said(speaker, text_of(joined(content, name), f"{name}.content"))
    return unlearned(message) if weight_of(value, speaker, name) == 0 else message


def joined(content: object, name: str) -> object:
    """A content that is a list of texts, as OpenAI has it, as one text."""
    if not isinstance(content, list):
        return content
    parts = [as_object(part, f"{name}.content: ") for part in content]
    other = next((p.get("type") for p in parts if p.get("type") != "text"), None)
    if other is not None or not all(isinstance(p.get("text"), str) for p in parts):
        raise RowProblem(f"{name}.content has a part {other!r}: only text is learned")
    return "".join(part["text"] for part in parts)


def weight_of(value: dict, speaker: str, name: str) -> int | None:
    """A message's weight, None where it says nothing or is not the assistant's."""
    weight = value.get("weight")
    if weight is None:
        return None
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowProblem(
            f"{name}.weight is {weight!r}: use 1 for an answer to learn, 0 for one to "
            "read alone"
        )
    if weight == 1 and speaker != "assistant":
        raise RowProblem(f"{name}.weight is 1: only the assistant's text is learned")
    return weight if speaker == "assistant" else None


def said(role: str, content: str) -> Message:
    """A message."""
    return dict(role=role, content=content)


def unlearned(message: Message) -> Message:
    """A message that is read and not learned: an answer has `weight` 0."""
    return message | dict(weight=0) if message["role"] == "assistant" else message


def text_of(value: object, name: str, blank: bool = False) -> str:
    """A text, unless it has no letters (blank: allowed) or none that can be encoded."""
    if not isinstance(value, str):
        raise RowProblem(f"{name} is {kind_of(value)}, where a text is expected")
    if not blank and not value.strip():
        raise RowProblem(f"{name}: there is no text in it")
    half = SURROGATE.search(value)
    if half:
        raise RowProblem(
            f"{name}: U+{ord(half[0]):04X} at position {half.start()} is half of a "
            "character: put in the other half, or take it out"
        )
    return value


# What cannot be used


def as_object(value: object, name: str = "") -> dict:
    """A JSON object, unless it is none or has a field twice. Raises RowProblem."""
    if isinstance(value, RowProblem):
        raise value
    if not isinstance(value, dict):
        raise RowProblem(f"{name}{kind_of(value)}, where an object is expected")
    if TWICE in value:
        raise RowProblem(f"{name}the field {value[TWICE]!r} stands in it twice")
    return value


def refuse_extras(row: dict, extras: tuple[str, ...], name: str = "") -> None:
    """Raise RowProblem where a row or message has something in one of these fields."""
    for extra in extras:
        if row.get(extra) not in NOTHING:
            raise RowProblem(
                f"{name}{extra!r} is not learned here: empty it where the rest is "
                "right without it, or leave the row out"
            )


def refuse_ambiguous(found: list[list[Message]], names: str) -> None:
    """Raise RowProblem where the forms of a row do not say the same."""
    if any(each != found[0] for each in found):
        raise RowProblem(f"{names} say different things in it: keep one of them")


def refuse_bad_turns(messages: list[Message], last: str) -> None:
    """Raise RowProblem for roles out of turn, or where the last is another's."""
    system, turns = without_system(messages)
    for i, message in enumerate(turns, start=len(system)):
        expected = ("user", "assistant")[(i - len(system)) % 2]
        if message["role"] != expected:
            raise RowProblem(
                f"messages[{i}] is the {message['role']}'s where it is the "
                f"{expected}'s turn"
            )
    if messages[-1]["role"] == last:
        return
    why = dict(
        assistant="without an answer there is nothing to learn",
        user="a prompt ends with the user's",
    )
    raise RowProblem(f"the last message is the {messages[-1]['role']}'s: {why[last]}")


def fields_of(row: dict) -> str:
    """The names of a row's fields, for a message."""
    return ", ".join(map(repr, row)) or "nothing"


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    names = {str: "a text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"{value!r}")
