"""Rows in the forms that people have: read as the book's, or refused by name."""

import pytest

from posttrain.data.datasets import example
from posttrain.data.formats import as_messages, conversation_of, pair_of, prompt_of
from posttrain.data.json_rows import RowProblem, parse


def system(text):
    return dict(role="system", content=text)


def user(text):
    return dict(role="user", content=text)


def assistant(text, **fields):
    return dict(role="assistant", content=text, **fields)


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


Q, A, R = user("Who?"), assistant("I."), assistant("Thou.")
SYS, MORE, LAST = system("Be brief."), user("Why?"), assistant("So.")
UNGRADED = assistant("I.", weight=0)

CONVERSATIONS = {
    "messages": (dict(messages=[Q, A]), [Q, A]),
    "two turns": (dict(messages=[Q, A, MORE, LAST]), [Q, A, MORE, LAST]),
    "a system turn": (dict(messages=[SYS, Q, A]), [SYS, Q, A]),
    "other columns": (dict(messages=[Q, A], source="x", n=3, tags=[]), [Q, A]),
    "empty tools": (dict(messages=[Q, A], tools=[], functions=None), [Q, A]),
    "a message's other fields": (
        dict(messages=[Q | dict(name="x", tool_calls=None), A | dict(id=7)]),
        [Q, A],
    ),
    "weight 1": (dict(messages=[Q, A | dict(weight=1)]), [Q, A]),
    "weight 0": (
        dict(messages=[Q, A | dict(weight=0), MORE, LAST]),
        [Q, UNGRADED, MORE, LAST],
    ),
    "weight 0 of a question": (dict(messages=[Q | dict(weight=0), A]), [Q, A]),
    "no weight": (dict(messages=[Q, A | dict(weight=None)]), [Q, A]),
    "OpenAI's parts": (
        dict(messages=[user([dict(type="text", text="Who?")]), A]),
        [Q, A],
    ),
    "ShareGPT": (dict(conversations=[human("Who?"), gpt("I.")]), [Q, A]),
    "ShareGPT, system": (
        dict(
            conversations=[
                {"from": "system", "value": "Be brief."},
                human("Who?"),
                gpt("I."),
            ]
        ),
        [SYS, Q, A],
    ),
    "ShareGPT, a system column": (
        dict(conversations=[human("Who?"), gpt("I.")], system="Be brief."),
        [SYS, Q, A],
    ),
    "roles under conversations": (dict(conversations=[Q, A]), [Q, A]),
    "Alpaca": (dict(instruction="Who?", input="", output="I."), [Q, A]),
    "Alpaca, input": (
        dict(instruction="Add.", input="1, 2", output="3", text="### Instruction"),
        [user("Add.\n\n1, 2"), assistant("3")],
    ),
    "Alpaca, no input": (dict(instruction="Who?", output="I."), [Q, A]),
    "Alpaca, system": (
        dict(instruction="Who?", input=None, output="I.", system="Be brief."),
        [SYS, Q, A],
    ),
    "prompt and completion": (dict(prompt="Who?", completion="I."), [Q, A]),
    "both as messages": (dict(prompt=[SYS, Q], completion=[A]), [SYS, Q, A]),
    "an earlier answer in the prompt": (
        dict(prompt=[Q, A, MORE], completion=[LAST]),
        [Q, UNGRADED, MORE, LAST],
    ),
    "a prompt beside messages": (dict(prompt="Who?", messages=[Q, A]), [Q, A]),
    "the same twice": (
        dict(messages=[Q, A], conversations=[human("Who?"), gpt("I.")]),
        [Q, A],
    ),
}


@pytest.mark.parametrize("form", CONVERSATIONS)
def test_a_conversation_in_any_form_is_its_messages(form):
    row, messages = CONVERSATIONS[form]
    assert conversation_of(row) == dict(messages=messages)


BAD_CONVERSATIONS = {
    "no form": (dict(text="Who? I."), "none of messages, .* but 'text'"),
    "tools": (dict(messages=[Q, A], tools=[dict(name="f")]), "'tools' is not learned"),
    "tools as text": (dict(messages=[Q, A], tools='[{"a": 1}]'), "'tools'"),
    "a tool's role": (
        dict(messages=[Q, dict(role="tool", content="3"), A]),
        r"messages\[1\]: the role 'tool': tools are not learned",
    ),
    "a call": (
        dict(messages=[Q, A | dict(tool_calls=[dict(id="c")])]),
        r"messages\[1\]: 'tool_calls' is not learned",
    ),
    "an observation": (
        dict(conversations=[human("Who?"), {"from": "observation", "value": "x"}]),
        "'observation': tools",
    ),
    "reasoning": (dict(messages=[Q, A | dict(thinking="hm")]), "'thinking'"),
    "another role": (
        dict(messages=[dict(role="developer", content="x"), Q, A]),
        r"'developer' is none of system, user",
    ),
    "no role": (dict(messages=[dict(content="x"), A]), "the role None is none of"),
    "system in the middle": (
        dict(messages=[Q, SYS, A]),
        r"messages\[1\] is the system's where it is the assistant's turn",
    ),
    "two questions": (dict(messages=[Q, MORE, A]), r"messages\[1\] is the user's"),
    "assistant first": (
        dict(conversations=[gpt("I."), human("Who?")]),
        r"messages\[0\] is the assistant's where it is the user's turn",
    ),
    "user last": (dict(messages=[Q, A, MORE]), "the last message is the user's"),
    "system alone": (dict(messages=[SYS]), "the last message is the system's"),
    "weight 0.5": (dict(messages=[Q, A | dict(weight=0.5)]), "weight is 0.5: use 1"),
    "weight true": (dict(messages=[Q, A | dict(weight=True)]), "weight is True"),
    "weight as text": (dict(messages=[Q, A | dict(weight="0")]), "weight is '0'"),
    "weight 1 of a question": (
        dict(messages=[Q | dict(weight=1), A]),
        "only the assistant's text is learned",
    ),
    "all of weight 0": (dict(messages=[Q, UNGRADED]), "every answer has weight 0"),
    "an image": (
        dict(messages=[user([dict(type="image_url", image_url="x")]), A]),
        "a part 'image_url': only text",
    ),
    "null content": (
        dict(messages=[Q, assistant(None)]),
        r"messages\[1\].content is null, where a text is expected",
    ),
    "blank": (dict(messages=[Q, assistant(" ")]), "there is no text in it"),
    "half a character": (
        dict(messages=[Q, assistant("a\ud83d")]),
        r"U\+D83D at position 1 is half of a character",
    ),
    "no messages": (dict(messages=[]), "there is no message in it"),
    "messages a text": (dict(messages="Hi"), "messages is a text, where a list"),
    "two forms": (
        dict(messages=[Q, A], prompt="Who?", completion="Thou."),
        "say different things in it: keep one",
    ),
    "two systems": (
        dict(messages=[SYS, Q, A], system="Be long."),
        "different system turns",
    ),
    "a history": (
        dict(instruction="Why?", output="So.", history=[["Who?", "I."]]),
        "'history' is not learned",
    ),
    "a bad answer of KTO": (
        dict(prompt="Who?", completion="I.", label=False),
        "label is false",
    ),
    "several completions": (
        dict(prompt=[Q], completion=[A, MORE, LAST]),
        "completion has several messages",
    ),
    "a list": ([1], "a list, where an object is expected"),
    "a field twice": (
        parse('{"prompt": "a", "prompt": "b", "completion": "c"}'),
        "the field 'prompt' stands in it twice",
    ),
}


@pytest.mark.parametrize("bad", BAD_CONVERSATIONS)
def test_what_is_no_conversation_is_refused_by_name(bad):
    from posttrain.data.formats import as_object

    row, reason = BAD_CONVERSATIONS[bad]
    with pytest.raises(RowProblem, match=reason):
        conversation_of(as_object(row))


PAIRS = {
    "texts": (dict(prompt="Who?", chosen="I.", rejected="Thou."), "Who?"),
    "answers as messages": (dict(prompt="Who?", chosen=[A], rejected=[R]), "Who?"),
    "TRL, explicit": (dict(prompt=[Q], chosen=[A], rejected=[R]), "Who?"),
    "TRL, implicit": (dict(chosen=[Q, A], rejected=[Q, R]), "Who?"),
    "UltraFeedback": (
        dict(prompt="Who?", messages=[Q, A], chosen=[Q, A], rejected=[Q, R]),
        "Who?",
    ),
    "an empty prompt column": (
        dict(prompt="", chosen=[Q, A], rejected=[Q, R]),
        "Who?",
    ),
    "several turns": (
        dict(chosen=[Q, LAST, MORE, A], rejected=[Q, LAST, MORE, R]),
        [Q, LAST, MORE],
    ),
    "the prompt is its first question": (
        dict(
            prompt="Who?",
            chosen=[Q, LAST, MORE, A],
            rejected=[Q, LAST, MORE, R],
        ),
        [Q, LAST, MORE],
    ),
    "the messages go on from the prompt": (
        dict(prompt=[Q], chosen=[LAST, MORE, A], rejected=[LAST, MORE, R]),
        [Q, LAST, MORE],
    ),
    "a system turn": (dict(chosen=[SYS, Q, A], rejected=[SYS, Q, R]), [SYS, Q]),
    "a system column": (
        dict(prompt="Who?", system="Be brief.", chosen="I.", rejected="Thou."),
        [SYS, Q],
    ),
    "a system turn in the prompt alone": (
        dict(prompt=[SYS, Q], chosen=[Q, A], rejected=[Q, R]),
        [SYS, Q],
    ),
    "ShareGPT": (
        dict(conversations=[human("Who?")], chosen=gpt("I."), rejected=gpt("Thou.")),
        "Who?",
    ),
    "Alpaca": (
        dict(instruction="Add.", input="1", chosen="I.", rejected="Thou."),
        "Add.\n\n1",
    ),
    "OpenAI": (
        dict(
            input=dict(messages=[Q], tools=[], parallel_tool_calls=True),
            preferred_output=[A],
            non_preferred_output=[R],
        ),
        "Who?",
    ),
}


@pytest.mark.parametrize("form", PAIRS)
def test_a_pair_in_any_form_is_a_prompt_and_two_answers(form):
    row, prompt = PAIRS[form]
    assert pair_of(row) == dict(prompt=prompt, chosen="I.", rejected="Thou.")
    assert prompt_of(row) == dict(prompt=prompt)


BAD_PAIRS = {
    "no answers": (dict(prompt="Who?"), "lacks chosen or rejected, and has 'prompt'"),
    "one answer": (dict(prompt="Who?", chosen="I."), "lacks chosen or rejected"),
    "no prompt": (dict(chosen="I.", rejected="Thou."), "there is no prompt in it"),
    "the same": (dict(prompt="Who?", chosen="I.", rejected=[A]), "are the same"),
    "other histories": (
        dict(chosen=[Q, A], rejected=[MORE, R]),
        "the messages before the two answers differ",
    ),
    "another prompt": (
        dict(prompt="What?", chosen=[Q, A], rejected=[Q, R]),
        "chosen does not begin with the row's prompt",
    ),
    "another system": (
        dict(prompt=[system("x"), Q], chosen=[SYS, Q, A], rejected=[SYS, Q, R]),
        "chosen does not begin with the row's prompt",
    ),
    "ends with a question": (
        dict(chosen=[Q, A, MORE], rejected=[Q, R, MORE]),
        "chosen: the last message is the user's, and not an answer",
    ),
    "ends with an answer": (
        dict(prompt=[Q, A], chosen="I.", rejected="Thou."),
        "the last message is the assistant's: a prompt ends with the user's",
    ),
    "two prompts": (
        dict(prompt="Who?", instruction="Why?", chosen="I.", rejected="Thou."),
        "say different things",
    ),
    "tools": (
        dict(prompt="Who?", tools=[1], chosen="I.", rejected="Thou."),
        "'tools' is not learned",
    ),
    "OpenAI's tools": (
        dict(
            input=dict(messages=[Q], tools=[1]),
            preferred_output=[A],
            non_preferred_output=[R],
        ),
        "'tools' is not learned",
    ),
    "an answer of weight 0": (
        dict(prompt="Who?", chosen=[UNGRADED], rejected=[R]),
        "chosen: the answer has weight 0",
    ),
    "a number": (dict(prompt="Who?", chosen=3, rejected="I."), "chosen is 3, where"),
    "blank": (dict(prompt="Who?", chosen="I.", rejected=" "), "rejected: there is no"),
}


@pytest.mark.parametrize("bad", BAD_PAIRS)
def test_what_is_no_pair_is_refused_by_name(bad):
    row, reason = BAD_PAIRS[bad]
    with pytest.raises(RowProblem, match=reason):
        pair_of(row)


PROMPTS = {
    "a text": (dict(prompt="Who?"), "Who?"),
    "messages": (dict(prompt=[SYS, Q]), [SYS, Q]),
    "one message": (dict(prompt=[Q]), "Who?"),
    "messages by name": (dict(messages=[Q, A, MORE]), [Q, A, MORE]),
    "ShareGPT": (dict(conversations=[human("Who?")]), "Who?"),
    "an instruction": (dict(instruction="Who?", output="I."), "Who?"),
    "before a completion": (dict(prompt="Who?", completion="I."), "Who?"),
}


@pytest.mark.parametrize("form", PROMPTS)
def test_a_prompt_in_any_form_is_a_text_or_messages(form):
    row, prompt = PROMPTS[form]
    assert prompt_of(row) == dict(prompt=prompt)
    assert as_messages(prompt)[-1]["role"] == "user"


@pytest.mark.parametrize(
    "row, reason",
    [
        (dict(messages=[Q, A]), "a prompt ends with the user's"),
        (dict(text="Who?"), "none of prompt, messages"),
        (dict(prompt=" "), "prompt: there is no text in it"),
        (dict(prompt="\udc00"), "half of a character"),
    ],
)
def test_what_is_no_prompt_is_refused_by_name(row, reason):
    with pytest.raises(RowProblem, match=reason):
        prompt_of(row)


def test_the_books_own_rows_are_one_of_the_forms():
    assert conversation_of(parse(example("conversations")))
    assert pair_of(parse(example("preferences")))["chosen"] == "A friend, good sir."
    assert prompt_of(parse(example("prompts"))) == dict(prompt="Who goes there?")
