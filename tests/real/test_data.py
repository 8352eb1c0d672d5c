"""A real tokenizer's chat template: what is graded, and what is refused."""

import pytest

pytest.importorskip("transformers")
from real_models import CONVERSATIONS, PAIRS, folder, tokenizer  # noqa: E402

from posttrain.chat import IGNORE  # noqa: E402
from posttrain.real.data import (  # noqa: E402
    CHATML,
    encode,
    encode_chat_pairs,
    encode_chats,
    end_token,
    give_template,
    pad_token,
    render_chat,
    render_chat_prompt,
    rendered,
)
from posttrain.real.model import ModelError, fetch, library  # noqa: E402

TURNS = [
    dict(role="user", content="Who goes there?"),
    dict(role="assistant", content="A friend."),
    dict(role="user", content="Whose?\nSay it."),
    dict(role="assistant", content="Zoë’s, 你好!"),
]


def fresh(template=CHATML):
    """A tokenizer of one's own, to be changed."""
    own = fetch(library().AutoTokenizer, folder())
    own.chat_template = template
    return own


def test_two_turns_by_hand_the_answers_and_their_ends_are_graded_and_nothing_else():
    tokens, labels = render_chat(TURNS, tokenizer())
    user = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    assert tokenizer().decode(tokens) == "".join(
        user.format(a["content"], b["content"]) for a, b in zip(TURNS[::2], TURNS[1::2])
    )
    graded = [label for label in labels if label != IGNORE]
    assert tokenizer().decode(graded) == "A friend.<|im_end|>Zoë’s, 你好!<|im_end|>"
    assert all(label in (IGNORE, token) for label, token in zip(labels, tokens))


@pytest.mark.parametrize(
    "messages", [TURNS, *(row["messages"] for row in CONVERSATIONS)]
)
def test_the_mask_is_that_of_transformers_own_generation_marks(messages):
    theirs = tokenizer().apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens, labels = render_chat(messages, tokenizer())
    assert tokens == theirs["input_ids"]
    assert [int(label != IGNORE) for label in labels] == theirs["assistant_masks"]


def test_a_prompts_tokens_are_an_exact_prefix_of_prompt_and_answer():
    for pair, (prompt, chosen, rejected) in zip(
        PAIRS, encode_chat_pairs(PAIRS, tokenizer(), 256)
    ):
        asked = dict(role="user", content=pair["prompt"])
        for side, answer in (("chosen", chosen), ("rejected", rejected)):
            tokens, _ = render_chat(
                [asked, dict(role="assistant", content=pair[side])], tokenizer()
            )
            assert tokens[: len(prompt) + len(answer)] == prompt + answer
            assert (
                answer[-1] == end_token(tokenizer()) and answer.count(answer[-1]) == 1
            )
        assert prompt == render_chat_prompt(pair["prompt"], tokenizer())


def test_the_end_tokens_name_inside_an_answer_does_not_end_the_mask():
    told = [TURNS[0], dict(role="assistant", content="Write <|im_end|> and stop.")]
    _, labels = render_chat(told, tokenizer())
    graded = [label for label in labels if label != IGNORE]
    assert tokenizer().decode(graded) == "Write <|im_end|> and stop.<|im_end|>"


def test_a_template_that_puts_no_special_token_behind_an_answer_is_refused():
    plain = fresh(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor "
        "%}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(
        ModelError, match="no special token: the model could not learn to stop"
    ):
        render_chat(TURNS[:2], plain)


def test_a_template_that_rewrites_earlier_turns_makes_a_row_of_each_answer():
    forgetful = fresh(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{{ m['content'] if loop.last or m['role'] == 'user' else 'gone' }}{{ "
        "'<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert render_chat(TURNS[:2], forgetful)[0]
    with pytest.raises(ModelError, match="rewrites earlier turns: make a row of each"):
        render_chat(TURNS, forgetful)
    rows = encode_chats([dict(id="a", messages=TURNS)], forgetful, 256)
    texts = [forgetful.decode(tokens) for tokens, _ in rows]
    assert ["gone" in text for text in texts] == [False, True]
    ends = [[label for label in labels if label != IGNORE] for _, labels in rows]
    assert forgetful.decode(ends[1]) == "Zoë’s, 你好!<|im_end|>"


def test_a_template_that_changes_the_answer_or_fails_is_refused():
    loud = fresh(
        CHATML.replace(
            "message['content'] + '<|im_end|>' }}",
            "message['content'] | upper + '<|im_end|>' }}",
        )
    )
    with pytest.raises(ModelError, match="changes the answer 'A friend.'"):
        render_chat(TURNS[:2], loud)
    with pytest.raises(ModelError, match="chat template fails .*no such role"):
        render_chat(TURNS[:2], fresh("{{ raise_exception('no such role') }}"))


def test_a_tokenizer_without_a_template_gets_chatml_and_two_special_tokens():
    bare = fetch(library().AutoTokenizer, folder("gpt2", chat=False))
    before = len(bare)
    assert (
        bare.chat_template is None
        and give_template(bare) == 2
        and len(bare) == before + 2
    )
    assert encode("<|im_end|>", bare) == [before + 1] == [end_token(bare)]
    assert rendered(TURNS[:1], bare, prompt=True).endswith("<|im_start|>assistant\n")
    # Nothing is added where there is a template
    assert give_template(tokenizer()) == 0


def test_rows_are_filled_with_the_padding_token_or_any_but_the_end():
    assert pad_token(tokenizer()) == tokenizer().pad_token_id == 0
    bare = fresh()
    bare.pad_token = "<|im_start|>"
    assert pad_token(bare) == 1
    for pad in (None, bare.eos_token):
        bare.pad_token = pad
        assert pad_token(bare) == 0
    bare.eos_token = "<|endoftext|>"
    assert pad_token(bare) == bare.pad_token_id == end_token(bare)
    bare.pad_token = None
    assert pad_token(bare) == 1


def test_what_is_too_long_is_named_and_not_cut():
    longest = max(
        len(render_chat(row["messages"], tokenizer())[0]) for row in CONVERSATIONS
    )
    assert len(encode_chats(CONVERSATIONS, tokenizer(), longest)) == len(CONVERSATIONS)
    with pytest.raises(
        ModelError,
        match=rf"conversation c\d+: it has {longest} tokens and the longest allowed is",
    ):
        encode_chats(CONVERSATIONS, tokenizer(), longest - 1)
    with pytest.raises(ModelError, match=f"pair {PAIRS[0]['id']}: it has"):
        encode_chat_pairs(PAIRS, tokenizer(), 5)


def graded(labels):
    return tokenizer().decode([label for label in labels if label != IGNORE])


def test_an_answer_of_weight_0_is_read_and_not_graded():
    unlearned = TURNS[1] | dict(weight=0)
    whole, all_labels = render_chat(TURNS, tokenizer())
    for messages, expected in [
        (TURNS, "A friend.<|im_end|>Zoë’s, 你好!<|im_end|>"),
        ([TURNS[0], unlearned, *TURNS[2:]], "Zoë’s, 你好!<|im_end|>"),
        ([*TURNS[:3], TURNS[3] | dict(weight=0)], "A friend.<|im_end|>"),
    ]:
        tokens, labels = render_chat(messages, tokenizer())
        assert tokens == whole and graded(labels) == expected
        assert all(label in (IGNORE, own) for label, own in zip(labels, all_labels))
    (example,) = encode_chats([dict(id="a", messages=messages)], tokenizer(), 256)
    assert example == (tokens, labels)


def test_a_pairs_prompt_may_be_messages_and_none_of_their_answers_is_compared():
    system = dict(role="system", content="Be brief.")
    prompt = [system, *TURNS[:3]]
    row = dict(id="a", prompt=prompt, chosen="The duke's.", rejected="Mine.")
    ((asked, chosen, rejected),) = encode_chat_pairs([row], tokenizer(), 256)
    text = tokenizer().apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer().decode(asked) == text and "Be brief." in text
    assert tokenizer().decode(chosen) == "The duke's.<|im_end|>"
    assert tokenizer().decode(rejected) == "Mine.<|im_end|>"
    # A question alone is the text
    texts, lists = ("Who?", [dict(role="user", content="Who?")])
    assert render_chat_prompt(texts, tokenizer()) == render_chat_prompt(
        lists, tokenizer()
    )
