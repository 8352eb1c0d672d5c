"""Data files: a good one is read, and a bad one is refused by file, line and reason."""

import json

import pytest

from posttrain.data import datasets
from posttrain.data.datasets import (
    ANSWER_TOKENS,
    FEWEST_PROMPTS,
    DatasetError,
    conversations,
    example,
    heldout_conversations,
    heldout_preferences,
    heldout_prompts,
    preferences,
    training_data,
    training_prompts,
)
from posttrain.gpt import GPTConfig
from posttrain.ppo import PPOConfig

MANY = 100_000  # characters, more than any message should repeat


def user(text):
    return dict(role="user", content=text)


def assistant(text):
    return dict(role="assistant", content=text)


def row(*messages, id="a", **fields):
    return dict(
        id=id,
        messages=list(messages) or [user("Who goes there?"), assistant("A friend.")],
        **fields,
    )


def line(*messages, **fields):
    return json.dumps(row(*messages, **fields), ensure_ascii=False)


GOOD = line()


@pytest.fixture
def file(tmp_path):
    """Writes lines into a file, and returns its path."""

    def write(*lines, name="mine.jsonl"):
        path = tmp_path / name
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        return path

    return write


def refusal(path, read=conversations):
    with pytest.raises(DatasetError) as refused:
        read(path)
    message = str(refused.value)
    assert message.startswith(str(path)) and "Traceback" not in message
    return message.partition("\nA line ")[0]


def test_the_books_own_files_load():
    assert (
        len(conversations()) == 40
        and len(heldout_conversations()) == 20
        and len(heldout_prompts()) == 64
    )
    assert all(
        isinstance(prompt, str) and prompt.strip() for prompt in heldout_prompts()
    )
    assert (
        len(preferences()) == 18
        and len(heldout_preferences()) == 76
        and len(training_prompts()) == 96
    )
    own = [
        json.loads(text)
        for text in (datasets.FOLDER / "conversations.jsonl")
        .read_text("utf-8")
        .splitlines()
    ]
    assert conversations() == own


def test_what_is_read_is_what_was_written_with_a_manner_or_without(file):
    rows = [
        row(),
        row(
            user("Ho!"),
            assistant("Ay?"),
            user("No."),
            assistant("So."),
            id="b",
            manner="blunt",
        ),
    ]
    assert conversations(file(*map(json.dumps, rows))) == rows
    assert conversations(str(file(*map(json.dumps, rows)))) == rows
    asked = file('{"id": "p", "prompt": "Who?"}', '{"id": "q", "prompt": "What?"}')
    assert heldout_prompts(asked) == ["Who?", "What?"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["no mark", "byte order mark"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "not ended"])
def test_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(
    tmp_path, end, start, last
):
    lines = [
        "",
        line(id="a"),
        "",
        "  \t ",
        line(id="b"),
        line(id="c"),
        *([""] if last else []),
    ]
    path = tmp_path / "mine.jsonl"
    path.write_bytes((start + end.join(lines)).encode())
    assert conversations(path) == [row(id="a"), row(id="b"), row(id="c")]
    # And lines are counted as an editor counts them
    path.write_bytes((start + end.join([*lines, "oops"])).encode())
    assert f"line {len(lines) + 1}: not JSON" in refusal(path)


MISFITS = {
    "truncated": (GOOD[:30], "not JSON"),
    "trailing comma": ('{"id": "a",}', "not JSON", "column 1"),
    "single quotes": ("{'id': 'a'}", "not JSON", "column 2"),
    "two objects": (GOOD + GOOD, "not JSON", f"column {len(GOOD) + 1}"),
    "a NUL": ("\0", "not JSON", "column 1"),
    "a raw control character": (GOOD.replace("friend", "fri\x01end"), "not JSON"),
    "array": ("[1]", "[1] is not of type 'object'"),
    "number": ("3", "3 is not of type 'object'"),
    "null": ("null", "None is not of type 'object'"),
    "no id": ('{"messages": []}', "id", "required"),
    "no messages": ('{"id": "a"}', "'messages' is a required property"),
    "empty id": (line(id=""), "id: "),
    "id a number": (line(id=1), "id: 1 is not of type 'string'"),
    "extra field": (line(note="x"), "'note'"),
    "misspelt field": (GOOD.replace('"messages"', '"mesages"'), "messages"),
    "misspelt content": (
        GOOD.replace('"content"', '"contents"', 1),
        "messages[0]",
        "content",
    ),
    "wrong manner": (
        line(manner="polite"),
        "manner: 'polite' is not one of ['courteous', 'blunt']",
    ),
    "wrong role": (
        line(dict(role="system", content="x"), assistant("y")),
        "messages[0].role: 'system'",
    ),
    "messages a string": (
        '{"id": "a", "messages": "Hi"}',
        "messages: 'Hi' is not of type 'array'",
    ),
    "no turns": ('{"id": "a", "messages": []}', "messages: []"),
    "one turn": (line(user("Hi")), "the last message is the user's"),
    "null content": (
        line(user("Hi"), assistant(None)),
        "messages[1].content: None is not of type 'string'",
    ),
    "empty content": (line(user(""), assistant("x")), "messages[0].content: "),
    "blank content": (line(user("x"), assistant(" \t\n ")), "messages[1].content: "),
    "assistant first": (
        line(assistant("a"), user("b")),
        "(id a)",
        "messages[0] is the assistant's",
        "the user's turn",
    ),
    "user twice": (
        line(user("a"), user("b")),
        "messages[1] is the user's",
        "the assistant's turn",
    ),
    "assistant twice": (
        line(user("a"), assistant("b"), assistant("c")),
        "messages[2] is the assistant's",
    ),
    "user last": (
        line(user("a"), assistant("b"), user("c")),
        "the last message is the user's",
    ),
    "accent": (
        line(user("a"), assistant("caf\u00e9")),
        "messages[1].content: 'é' (U+00E9, at position 3)",
    ),
    "digit": (
        line(user("Act 2"), assistant("b")),
        "messages[0].content: '2' (U+0032, at position 4)",
    ),
    "emoji": (line(user("\U0001f600"), assistant("b")), "U+1F600"),
    "special token": (
        line(user("<|end|>"), assistant("b")),
        "'<' (U+003C, at position 0)",
    ),
    "half a surrogate pair": (GOOD.replace("friend", "fri\\ud83dend"), "U+D83D"),
    "line separator": (
        line(user("a\u2028b"), assistant("c")),
        "(U+2028, at position 1)",
    ),
    "next line": (
        line(user("a"), assistant("b\u0085c")),
        "messages[1].content",
        "(U+0085, at position 1)",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_bad_line_is_named_with_its_reason(file, misfit):
    text, *reasons = MISFITS[misfit]
    message = refusal(file(line(id="first"), text, line(id="last"), "oops"))
    # The second and the fourth line are bad, the others are not
    assert [
        part.split(":")[0].split(" (")[0] for part in message.split("\n  ")[1:]
    ] == ["line 2", "line 4"]
    for reason in reasons:
        assert reason in message.split("\n  ")[1]


def test_a_prompts_file_is_checked_as_well(file):
    rows = [
        '{"id": "p", "prompt": "Who?"}',
        '{"id": "p", "prompt": "What?"}',
        '{"id": "r", "prompt": "\u00e9"}',
        GOOD,
    ]
    message = refusal(file(*rows, '{"id": "s", "prompt": " "}'), heldout_prompts)
    _, twice, stranger, conversation, blank = message.split("\n")
    assert "line 2" in twice and "'p' is that of line 1" in twice
    assert "line 3 (id r): prompt: 'é' (U+00E9" in stranger
    assert "line 4" in conversation and "prompt" in conversation
    assert "line 5: prompt: " in blank


def pair(**fields):
    return (
        dict(id="a", prompt="Who goes there?", chosen="A friend.", rejected="Begone.")
        | fields
    )


def test_preferences_are_read_as_they_are_written_with_a_kind_or_without(file):
    rows = [
        pair(),
        *[pair(id=kind, kind=kind) for kind in ("rude", "broken", "rambling")],
    ]
    assert (
        preferences(file(*map(json.dumps, rows)))
        == preferences(str(file(*map(json.dumps, rows))))
        == rows
    )


def without(field):
    return {name: text for name, text in pair().items() if name != field}


BAD_PAIRS = {
    "no id": (without("id"), ": 'id' is a required property"),
    "no prompt": (without("prompt"), ": 'prompt' is a required property"),
    "no chosen": (without("chosen"), ": 'chosen' is a required property"),
    "no rejected": (without("rejected"), ": 'rejected' is a required property"),
    "empty prompt": (pair(prompt=""), ": prompt: there is no text in it"),
    "empty chosen": (pair(chosen=""), ": chosen: there is no text in it"),
    "blank rejected": (pair(rejected=" \t"), ": rejected: there is no text in it"),
    "a list": (
        pair(chosen=["A friend."]),
        ": chosen: ['A friend.'] is not of type 'string'",
    ),
    "wrong kind": (
        pair(kind="dull"),
        ": kind: 'dull' is not one of ['rude', 'broken', 'rambling']",
    ),
    "extra field": (pair(note="x"), "'note' was unexpected"),
    "stranger in the prompt": (
        pair(prompt="caf\u00e9"),
        " (id a): prompt: '\u00e9' (U+00E9, at position 3)",
    ),
    "stranger in chosen": (
        pair(chosen="Act 2"),
        " (id a): chosen: '2' (U+0032, at position 4)",
    ),
    "special token in rejected": (
        pair(rejected="No.<|end|>"),
        " (id a): rejected: '<' (U+003C, at position 3)",
    ),
    "the same answers": (
        pair(rejected="A friend."),
        " (id a): chosen and rejected are the same: there is no preference",
    ),
}


@pytest.mark.parametrize("bad", BAD_PAIRS)
def test_a_bad_pair_is_named_with_its_reason(file, bad):
    row, reason = BAD_PAIRS[bad]
    path = file(*map(json.dumps, [pair(id="first"), row, pair(id="last")]))
    header, shown = refusal(path, preferences).split("\n")
    assert header == f"{path}:" and shown.startswith("  line 2") and reason in shown


def test_a_pair_whose_id_was_used_and_a_file_without_pairs_are_refused(file):
    rows = [json.dumps(pair(rejected=text)) for text in ("Begone.", "Away.")]
    assert refusal(file(*rows), preferences).endswith(
        "line 2 (id a): the id 'a' is that of line 1"
    )
    assert "holds no lines: it needs at least one preference" in refusal(
        file(""), preferences
    )


def test_an_id_used_again_names_the_line_that_had_it_first(file):
    message = refusal(
        file("", line(id="a"), line(id="b"), line(id="a"), line(id="a"), line(id="B"))
    )
    assert message.split("\n")[1:] == [
        f"  line {n} (id a): the id 'a' is that of line 2" for n in (4, 5)
    ]


@pytest.mark.parametrize("n", [1, 9, 10, 11, 12, 250])
def test_ten_bad_lines_are_shown_and_the_rest_counted(file, n):
    shown = refusal(file(GOOD, *["oops"] * n)).split("\n")[1:]
    assert [text.split(":")[0].strip() for text in shown[:10]] == [
        f"line {i}" for i in range(2, min(n, 10) + 2)
    ]
    assert shown[10:] == ([f"  and {n - 10} more bad lines"] if n > 10 else [])


@pytest.mark.parametrize(
    "lines", [[], ["", "  ", "\t"], ["\ufeff"]], ids=["empty", "blank", "only a mark"]
)
def test_a_file_without_lines_is_refused(file, lines):
    assert "holds no lines: it needs at least one conversation" in refusal(file(*lines))
    assert "holds no lines: it needs at least one prompt" in refusal(
        file(*lines), heldout_prompts
    )


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "nowhere.jsonl")
    assert "cannot be read: " in refusal(tmp_path)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_refused_with_what_to_do(tmp_path, encoding):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(line(user("caf\u00e9"), assistant("x")).encode(encoding))
    message = refusal(path)
    assert (
        "is not UTF-8" in message
        and "save it as UTF-8" in message
        and len(message) < 300 + len(str(path))
    )


def test_a_huge_good_row_is_read_and_a_huge_stranger_is_named_in_short(file):
    assert (
        conversations(file(line(user("x" * MANY), assistant("y"))))[0]["messages"][0][
            "content"
        ]
        == "x" * MANY
    )
    assert len(refusal(file(line(user("x" * MANY + "\u00e9"), assistant("y"))))) < 500
    assert len(refusal(file(line(user("x" * MANY), assistant("y"))[:-2]))) < 300


HUGE = {
    "one long turn": line(user("x" * MANY)),
    "long blank": line(user(" " * MANY), assistant("y")),
    "messages a long string": json.dumps(dict(id="a", messages="x" * MANY)),
    "long array": json.dumps(["x" * MANY]),
    "long field name": line(**{"x" * MANY: 1}),
    "long role": line(dict(role="x" * MANY, content="x"), assistant("y")),
    "long id": line(user("\u00e9"), assistant("y"), id="x" * MANY),
}


@pytest.mark.parametrize("huge", HUGE)
def test_a_huge_bad_row_is_not_repeated_in_the_message(file, huge):
    assert len(refusal(file(HUGE[huge]))) < 1000


@pytest.mark.parametrize(
    "text", ["[" * MANY, '{"id": ' + "1" * 5000 + "}"], ids=["deep", "5000 digits"]
)
def test_json_that_python_cannot_read_is_a_bad_line(file, text):
    assert "line 2: " in refusal(file(GOOD, text))


# What models learn from


READERS = dict(
    conversations=conversations, preferences=preferences, prompts=heldout_prompts
)


@pytest.mark.parametrize("kind", READERS)
def test_the_line_that_is_shown_as_an_example_is_a_good_one(file, kind):
    assert READERS[kind](file(example(kind), name="mine.jsonl"))
    row = json.loads(example(kind))
    assert row.pop("id") and row
    with pytest.raises(DatasetError) as refused:
        READERS[kind](file(example(kind), json.dumps(row)))
    assert str(refused.value).splitlines()[1:] == [
        "  line 2: 'id' is a required property",
        f"A line looks like this: {example(kind)}",
    ]


def test_no_example_is_shown_where_the_form_is_right(file):
    for text in (line(user("caf\u00e9"), assistant("b")), line(user("a"), user("b"))):
        with pytest.raises(DatasetError) as refused:
            conversations(file(text))
        assert "line 1" in str(refused.value) and "looks like" not in str(refused.value)


def test_what_models_learn_from_is_the_books_own_unless_a_file_is_named(file):
    own = training_data()
    assert (own.conversations, own.pairs, own.prompts) == (
        conversations(),
        preferences(),
        training_prompts(),
    )
    talks = training_data(conversation_file=file(GOOD))
    assert (talks.conversations, talks.pairs, talks.prompts) == (
        [row()],
        own.pairs,
        own.prompts,
    )
    pairs = training_data(pair_file=file(json.dumps(pair())))
    assert (pairs.conversations, pairs.pairs) == (own.conversations, [pair()])


def test_who_brings_pairs_practises_on_their_prompts_on_few_more_than_once(file):
    few = [
        pair(id=str(i), prompt=prompt)
        for i, prompt in enumerate(["Who?", "Why?", "Who?"])
    ]
    assert training_data(pair_file=file(*map(json.dumps, few))).prompts == [
        "Who?",
        "Why?",
    ] * (FEWEST_PROMPTS // 2)
    many = [pair(id="x" * i, prompt="x" * i) for i in range(1, FEWEST_PROMPTS + 2)]
    assert training_data(pair_file=file(*map(json.dumps, many))).prompts == [
        row["prompt"] for row in many
    ]


PAIR = json.dumps(pair())


@pytest.mark.parametrize(
    "lines", [[PAIR], [PAIR, "oops"], ["", PAIR, json.dumps(without("id"))]], ids=len
)
def test_pairs_in_the_place_of_conversations_are_told_by_name(file, lines):
    with pytest.raises(DatasetError) as refused:
        training_data(conversation_file=file(*lines))
    first, second = str(refused.value).splitlines()
    assert (
        "this looks like preference pairs, and conversations are expected" in first
        and "`train reward --data`" in first
    )
    assert second.endswith(example("conversations"))


def test_conversations_in_the_place_of_pairs_are_told_by_name(file):
    with pytest.raises(DatasetError) as refused:
        training_data(pair_file=file(GOOD))
    first, second = str(refused.value).splitlines()
    assert (
        "this looks like conversations, and preference pairs are expected" in first
        and "`train sft --data`" in first
    )
    assert second.endswith(example("preferences"))


def test_a_file_with_a_line_of_the_right_kind_is_not_mixed_up(file):
    message = refusal(file(GOOD, PAIR))
    assert (
        "line 2: " in message
        and "line 1" not in message
        and "this looks like" not in message
    )
    # And a text that speaks of a field is no field
    assert "this looks like" not in refusal(
        file(json.dumps(dict(id="a", text='what is "chosen"')))
    )


def test_a_conversation_fits_the_context_to_the_last_token_or_is_refused(file):
    # Beside the three signs, and an answer of one letter
    longest = GPTConfig.context - 4
    assert training_data(
        conversation_file=file(line(user("x" * longest), assistant("a")))
    ).conversations
    path = file(GOOD, line(user("x" * (longest + 1)), assistant("a"), id="long"))
    with pytest.raises(
        DatasetError,
        match=r"line 2 \(id long\): 257 tokens .* the model reads 256: shorten it$",
    ):
        training_data(conversation_file=path)
    assert len(conversations(path)) == 2  # another model may read more


@pytest.mark.parametrize("field", ["chosen", "rejected"])
def test_an_answer_is_refused_and_not_cut_where_it_does_not_fit_behind_its_prompt(
    file, field
):
    room = GPTConfig.context - len("Who goes there?") - 3
    assert training_data(pair_file=file(json.dumps(pair(**{field: "x" * room}))))
    with pytest.raises(
        DatasetError, match=rf"line 2 \(id b\): prompt and {field}: 257 tokens"
    ):
        training_data(
            pair_file=file(PAIR, json.dumps(pair(id="b", **{field: "x" * (room + 1)})))
        )


def test_a_prompt_leaves_room_for_an_answer_of_the_policy_that_practises_on_it(file):
    assert ANSWER_TOKENS == PPOConfig().max_new_tokens
    longest = GPTConfig.context - ANSWER_TOKENS - 2
    assert training_data(pair_file=file(json.dumps(pair(prompt="x" * longest))))
    with pytest.raises(
        DatasetError,
        match=r"line 1 \(id a\): prompt: 161 tokens leave no room for 96 of an answer",
    ):
        training_data(pair_file=file(json.dumps(pair(prompt="x" * (longest + 1)))))


def test_pairs_that_would_be_the_same_after_a_cut_are_refused_one_by_one(file):
    rows = [
        pair(id=id, chosen="x" * 300 + "a", rejected="x" * 300 + "b") for id in "uv"
    ]
    message = refusal(
        file(*map(json.dumps, rows)), lambda path: training_data(pair_file=path)
    )
    assert "line 1 (id u)" in message and "line 2 (id v)" in message
