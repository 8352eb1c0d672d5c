"""The book's conversations, prompts and preferences, and a reader's own, checked."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jsonschema

from posttrain.chat import render, render_prompt
from posttrain.gpt import GPTConfig
from posttrain.tokenizer import CharTokenizer, UnknownCharacterError

FOLDER = Path(__file__).parent
SHOWN_PROBLEMS = 10  # of a bad file; the rest is counted
SHOWN_CHARACTERS = 400  # of a problem
ANSWER_TOKENS = 96  # that a policy may answer a pair's prompt with, while it practises
FEWEST_PROMPTS = 32  # to practise on; fewer are asked more than once

# What one of two kinds of files is recognised by, what it is called, and who takes it
KINDS = dict(
    conversations=(
        "messages",
        "conversations",
        "`train sft --data` (or `train dpo --conversations`)",
    ),
    preferences=(
        "chosen",
        "preference pairs",
        "`train reward --data` (or ppo, or dpo)",
    ),
)


class DatasetError(ValueError):
    """A data file cannot be used: the message names it, each bad line, and why."""


@dataclass(frozen=True)
class TrainingData:
    """What the models after the base model learn from, row by row."""

    conversations: list[dict]  # to fine-tune on
    pairs: list[dict]  # answers to prefer, and answers to prefer them to
    prompts: list[str]  # to practise on


def training_data(
    conversation_file: str | Path | None = None, pair_file: str | Path | None = None
) -> TrainingData:
    """The book's own data, or a reader's in its place where a file is named.

    Who brings pairs practises on their prompts. Raises DatasetError as `conversations`
    and `preferences` do, and for a line that the model's context cannot hold: none is
    cut.
    """
    context = GPTConfig.context
    data = TrainingData(conversations(), preferences(), training_prompts())
    if conversation_file is not None:
        data = replace(data, conversations=conversations(conversation_file, context))
    if pair_file is not None:
        pairs = preferences(pair_file, context)
        prompts = list(dict.fromkeys(pair["prompt"] for pair in pairs))
        times = -(-FEWEST_PROMPTS // len(prompts))
        data = replace(data, pairs=pairs, prompts=prompts * times)
    return data


def conversations(
    path: str | Path | None = None, context: int | None = None
) -> list[dict]:
    """The 40 conversations to fine-tune on, or those of another file.

    Each is a dictionary with an `id`, `messages` and, where known, a `manner`. Raises
    DatasetError for what the chat format, the alphabet or a context of so many tokens
    cannot take.
    """
    find_problem = partial(find_bad_turn, context=context)
    path = path or FOLDER / "conversations.jsonl"
    return read_jsonl(path, "conversations", find_problem)


def heldout_conversations() -> list[dict]:
    """20 conversations to choose between runs: on other things, never trained on."""
    return conversations(FOLDER / "conversations_heldout.jsonl")


def heldout_prompts(path: str | Path | None = None) -> list[str]:
    """The 64 questions and requests that no model is trained or chosen on."""
    path = path or FOLDER / "prompts_heldout.jsonl"
    rows = read_jsonl(path, "prompts", find_bad_prompt)
    return [row["prompt"] for row in rows]


def preferences(
    path: str | Path | None = None, context: int | None = None
) -> list[dict]:
    """The 18 preference pairs to learn from, or those of another file.

    Each is a dictionary with an `id`, a `prompt`, and two answers to it: `chosen`,
    which is preferred, and `rejected`. The book's are answers that SFT models of
    several seeds gave at temperature 0.8, decided by reading: each has its `ground`
    ("manner", "to the point", "finished") and where both answers come from. Raises
    DatasetError for what the chat format, the alphabet or a context of so many tokens
    cannot take, and for a pair whose answers are the same.
    """
    find_problem = partial(find_bad_pair, context=context)
    return read_jsonl(path or FOLDER / "preferences.jsonl", "preferences", find_problem)


def heldout_preferences() -> list[dict]:
    """76 pairs like `preferences`, on other prompts, never trained on."""
    return preferences(FOLDER / "preferences_heldout.jsonl")


def elsewhere_preferences() -> list[dict]:
    """18 pairs of answers that no model gave, to the prompts of `preferences`: written
    for the purpose.
    """
    return preferences(FOLDER / "preferences_elsewhere.jsonl")


def heldout_elsewhere_preferences() -> list[dict]:
    """72 pairs like `elsewhere_preferences`, on the other prompts, never trained on.

    Their `kind` says what is wrong with the rejected answer: `rude`, `broken` off,
    `rambling`.
    """
    return preferences(FOLDER / "preferences_elsewhere_heldout.jsonl")


def minimal_preferences() -> list[dict]:
    """18 pairs, to the prompts of `preferences`: one text in two manners."""
    return preferences(FOLDER / "preferences_minimal.jsonl")


def training_prompts() -> list[str]:
    """The 96 prompts, without answers, that policies practise on.

    None of them is in the conversations: there, the SFT model knows the answer by
    heart.
    """
    rows = read_jsonl(FOLDER / "prompts.jsonl", "prompts", find_bad_prompt)
    return [row["prompt"] for row in rows]


def find_bad_turn(row: dict, context: int | None = None) -> str | None:
    """Why a conversation cannot be learned, such as roles out of turn, or None."""
    for i, message in enumerate(row["messages"]):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            return (
                f"messages[{i}] is the {message['role']}'s where it is the "
                f"{expected}'s turn"
            )
        stranger = find_stranger(message["content"])
        if stranger:
            return f"messages[{i}].content: {stranger}"
    if len(row["messages"]) % 2:
        return (
            "the last message is the user's: without an answer there is nothing "
            "to learn"
        )
    return find_excess(row["messages"], context)


def find_bad_prompt(row: dict) -> str | None:
    """Why a prompt cannot be encoded, or None."""
    stranger = find_stranger(row["prompt"])
    return stranger and f"prompt: {stranger}"


def find_bad_pair(row: dict, context: int | None = None) -> str | None:
    """Why there is nothing to learn from a pair, or None."""
    for field in ("prompt", "chosen", "rejected"):
        stranger = find_stranger(row[field])
        if stranger:
            return f"{field}: {stranger}"
    if row["chosen"] == row["rejected"]:
        return "chosen and rejected are the same: there is no preference in it"
    asked = dict(role="user", content=row["prompt"])
    for field in ("chosen", "rejected"):
        answered = dict(role="assistant", content=row[field])
        excess = find_excess([asked, answered], context)
        if excess:
            return f"prompt and {field}: {excess}"
    # Leave room for the answers of the policy that practises on the prompt
    n = len(render_prompt([asked], CharTokenizer()))
    if context is not None and n > context - ANSWER_TOKENS:
        room = f"{ANSWER_TOKENS} of an answer in {context}"
        return f"prompt: {n} tokens leave no room for {room}: shorten it"
    return None


def find_excess(messages: list[dict], context: int | None) -> str | None:
    """How many tokens a conversation has, if too many for the context, or None."""
    if context is None:
        return None
    n = len(render(messages, CharTokenizer()))
    if n <= context:
        return None
    return (
        f"{n} tokens (the characters and the signs between the turns), "
        f"and the model reads {context}: shorten it"
    )


def find_stranger(text: str) -> str | None:
    """What is wrong with a text's first character outside the alphabet, or None."""
    try:
        CharTokenizer().encode(text)
    except UnknownCharacterError as error:
        return str(error)
    return None


def clip(text: str) -> str:
    """A text with its middle left out, where it is longer than a message should be."""
    half = SHOWN_CHARACTERS // 2
    short = len(text) <= SHOWN_CHARACTERS
    return text if short else f"{text[:half]} ... {text[-half:]}"


def read_jsonl(path: str | Path, schema: str, find_problem) -> list[dict]:
    """The objects of a JSON Lines file, one per line; blank lines are skipped.

    Each must fit `data/SCHEMA.schema.json` and have an `id` of its own, and
    find_problem(object) must return None. Otherwise DatasetError names every bad line,
    and shows a good one where the form is what is wrong.
    """
    validator = jsonschema.Draft202012Validator(read_schema(schema))
    rows, problems, line_of, advice = [], [], {}, ""
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row, problem = parse_line(line, validator)
        if row is None:
            problems.append(f"line {number}: {problem}")
            advice = f"\nA line looks like this: {example(schema)}"
            continue
        first = line_of.setdefault(row["id"], number)
        problem = find_problem(row)
        if first != number:
            problem = f"the id {row['id']!r} is that of line {first}"
        if problem:
            problems.append(f"line {number} (id {row['id']}): {problem}")
        rows.append(row)
    if problems and not rows:
        refuse_mixed_up(path, schema, lines)
    refuse_problems(path, problems, advice)
    if not rows:
        raise DatasetError(
            f"{path} holds no lines: it needs at least one {schema[:-1]}"
        )
    return rows


def read_schema(schema: str) -> dict:
    """The JSON schema of a line of conversations, preferences or prompts."""
    return json.loads((FOLDER / f"{schema}.schema.json").read_text(encoding="utf-8"))


def example(schema: str) -> str:
    """A line as a file of this kind should have it."""
    return json.dumps(read_schema(schema)["examples"][0])


def refuse_mixed_up(path: str | Path, schema: str, lines: list[str]) -> None:
    """Raise DatasetError where pairs are given as conversations, or the reverse."""
    _, expected, _ = KINDS.get(schema, (None, schema, None))
    for field, name, use in KINDS.values():
        # Look for the field with its quotation marks: inside a text they would be
        # escaped
        if name != expected and any(f'"{field}"' in line for line in lines):
            raise DatasetError(
                f"{path}: this looks like {name}, and {expected} are expected. "
                f"{name.capitalize()} are for {use}.\n"
                f"A line of {expected} looks like this: {example(schema)}"
            )


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path} is not UTF-8 text ({error}): save it as UTF-8"
        ) from None
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read: {error.strerror or error}"
        ) from None


def parse_line(line: str, validator) -> tuple[dict | None, str | None]:
    """A line's object, or None and why it does not fit the schema."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg}, at column {error.colno})"
    except (ValueError, RecursionError) as error:
        # Say what is wrong where a number is too long or brackets are too deep
        return None, f"Python cannot read this JSON ({error})"
    misfit = jsonschema.exceptions.best_match(validator.iter_errors(row))
    if misfit is None:
        return row, None
    where = misfit.json_path.removeprefix("$").removeprefix(".")
    # Say of an empty text that it is empty, not that it does not match a pattern
    blank = misfit.validator == "pattern"
    reason = "there is no text in it" if blank else misfit.message
    return None, f"{where + ': ' if where else ''}{reason}"


def refuse_problems(path: str | Path, problems: list[str], advice: str) -> None:
    """Raise DatasetError where there are any: the first ten, then the advice."""
    if not problems:
        return
    shown = "\n".join(f"  {clip(problem)}" for problem in problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    rest = f"\n  and {more} more bad lines" if more > 0 else ""
    raise DatasetError(f"{path}:\n{shown}{rest}{advice}")
