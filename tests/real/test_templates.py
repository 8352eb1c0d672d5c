"""Chat templates and tokenizers as people publish them: what is graded is the answer
and its end, the tokens are those of apply_chat_template, or the row is refused.
"""

import copy
import importlib.util
import itertools
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")
from real_models import (  # noqa: E402
    SHAPES,
    STRIPPING,
    shaped_tokenizer,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

from posttrain.chat import IGNORE  # noqa: E402
from posttrain.real.data import (  # noqa: E402
    CHATML_TOKENS,
    encode,
    encode_chat_pairs,
    encode_chats,
    end_token,
    give_template,
    pad_token,
    render_chat,
    render_chat_prompt,
    render_chats,
    settle_end,
    special_tokens,
)
from posttrain.real.model import ModelError, library  # noqa: E402

TRL = importlib.util.find_spec("trl")
PLACE = Path(TRL.origin).parent / "chat_templates" if TRL else Path("none")
PUBLISHED = {path.stem: path.read_text("utf-8") for path in PLACE.glob("*.jinja")}
SPECIAL = re.compile(r"<\|[^<>|\s]+\|>|<\|\w+>|<\w+\|>|<｜[^<>｜]+｜>|<\w+_of_\w+>")
NAMES = tuple(sorted({n for text in PUBLISHED.values() for n in SPECIAL.findall(text)}))
# What ends an answer, by how the template's name begins: read off the templates by hand
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe_training": "<|user|>",
    "gptoss": "<|return|>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "muse": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi3": "<|end|>",
    "qwen": "<|im_end|>",
}
QUESTIONS = ("Who goes there?", " d\n", "a")
THOUGHT = "<think>\nhm\n</think>\n\nAye"
ANSWERS = (
    ("a", "d", " 1"),  # letters of every header
    ("\n user \n", "Zoë’s <|im_end|>, 你好!", THOUGHT),
)


def conversation(answers):
    """A question to each answer, and the answers."""
    turns = []
    for question, answer in zip(QUESTIONS, answers):
        turns += [dict(role="user", content=question)]
        turns += [dict(role="assistant", content=answer)]
    return turns


def expected_refusal(name, answers):
    """The reason for which a published template cannot train these, or None."""
    if name.startswith(("idefics3", "llava")):
        # They take contents as lists of parts, with images among them
        return "leaves it out" if name.startswith("idefics3") else "template fails"
    if name == "glm4moe":
        return "no special token"
    rewrites = ("deepseek_r1_distill", "deepseekv3", "glm4moe_training")
    drops = name in (*rewrites, "deepseekv3_training")
    return "changes the answer" if drops and THOUGHT in answers else None


def graded_runs(labels):
    """The tokens of each run of graded labels."""
    runs = itertools.groupby(labels, key=lambda label: label != IGNORE)
    return [list(run) for graded, run in runs if graded]


def templated(messages, own, **options):
    """The tokens that transformers itself makes of a conversation."""
    return own.apply_chat_template(messages, return_dict=True, **options)["input_ids"]


def check_rows(own, messages, end):
    """Hold the rows of a conversation against transformers' tokens and its answers."""
    rows, answers = render_chats(messages, own), messages[1::2]
    split = len(rows) > 1
    assert len(rows) in (1, len(answers))
    for i, (tokens, labels) in enumerate(rows):
        seen = messages[: 2 * i + 2] if split else messages
        assert tokens == templated(seen, own)
        assert all(label in (IGNORE, token) for label, token in zip(labels, tokens))
        runs, learned = graded_runs(labels), answers[i : i + 1] if split else answers
        assert len(runs) == len(learned)
        for run, answer in zip(runs, learned):
            said, content = own.decode(run), answer["content"]
            # Some kinds hang a space before the first word, and behind special tokens
            said = said.replace("<|im_end|> ,", "<|im_end|>,")
            text = said.removesuffix(end)
            assert said.endswith(end) and text.strip() == content.strip()
            assert text in content or text == f" {content}"
    return rows


@pytest.mark.skipif(not PUBLISHED, reason="TRL is not installed: no templates to try")
@pytest.mark.parametrize("shape", [*SHAPES, STRIPPING])
def test_published_templates_grade_the_answer_and_its_end_or_refuse(shape):
    own, tried, trained = copy.deepcopy(shaped_tokenizer(shape, NAMES)), 0, 0
    for name, text in PUBLISHED.items():
        own.chat_template = text
        end = next((ENDS[k] for k in sorted(ENDS)[::-1] if name.startswith(k)), "")
        end = own.decode(encode(end, own))  # some show ▁ as a space
        for n, answers in itertools.product((1, 2, 3), ANSWERS):
            tried, messages = tried + 1, conversation(answers[:n])
            reason = expected_refusal(name, answers[:n])
            if reason:
                rows = [dict(id="r7", messages=messages)]
                with pytest.raises(ModelError, match=f"^conversation r7: .*{reason}"):
                    encode_chats(rows, own, 9999)
                continue
            rows, trained = check_rows(own, messages, end), trained + 1
            # What the model is asked with begins the row, and is not graded
            first = next(i for i, x in enumerate(rows[0][1]) if x != IGNORE)
            assert render_chat_prompt(QUESTIONS[0], own) == rows[0][0][:first]
    assert len(PUBLISHED) > 60 and tried == 6 * len(PUBLISHED)
    assert trained > 0.85 * tried


@pytest.mark.skipif(not PUBLISHED, reason="TRL is not installed: no templates to try")
def test_what_is_graded_lies_within_the_marks_of_trls_training_templates():
    own, held = copy.deepcopy(shaped_tokenizer("bytes", NAMES)), 0
    for name, text in PUBLISHED.items():
        own.chat_template = text
        if "{%- generation" not in text and "{% generation" not in text:
            continue
        if expected_refusal(name, ()):
            continue
        messages = conversation(ANSWERS[0])
        rows = render_chats(messages, own)
        for i, (tokens, labels) in enumerate(rows):
            theirs = own.apply_chat_template(
                messages[: 2 * i + 2] if len(rows) > 1 else messages,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            assert theirs["input_ids"] == tokens
            marks = theirs["assistant_masks"]
            assert all(mark for mark, x in zip(marks, labels) if x != IGNORE)
            held += 1
    assert held >= 25


# The kinds by hand

HEADERS = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
ONCE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% else %}{{ eos_token }}"
    "{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1].strip() }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADER_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def with_template(shape, text, special=()):
    own = copy.deepcopy(shaped_tokenizer(shape, special))
    own.chat_template = text
    return own


def said(own, labels):
    return [own.decode(run) for run in graded_runs(labels)]


@pytest.mark.parametrize("answer", ["a", "d", "user", "assistant", "Lima", "s"])
def test_an_answer_that_stands_in_its_header_too_is_found_behind_it(answer):
    own = with_template("bytes", HEADERS, HEADER_TOKENS)
    messages = conversation([answer, answer])
    tokens, labels = render_chat(messages, own)
    assert said(own, labels) == [answer + "<|eot_id|>"] * 2
    n = len(encode(f"{answer}<|eot_id|>", own))
    assert labels[-n:] == tokens[-n:] and end_token(own) == tokens[-1]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_text_is_encoded_once_and_the_space_hangs_on_the_answers_first_word(shape):
    own = with_template(shape, INST)
    tokens, labels = render_chat(conversation(["Lima", "1"]), own)
    assert tokens == templated(conversation(["Lima", "1"]), own)
    assert said(own, labels) == [" Lima</s>", " 1</s>"]
    assert tokens[: labels.index(tokens[-1])].count(own.bos_token_id) == 1
    prompt = render_chat_prompt(QUESTIONS[0], own)
    assert own.decode(prompt).endswith("[/INST]") and tokens[: len(prompt)] == prompt


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tokenizer_without_a_template_keeps_what_it_puts_before_a_text(shape):
    own = copy.deepcopy(shaped_tokenizer(shape))
    has_bos = own("a")["input_ids"][0] == own.bos_token_id
    assert has_bos == (shape == "bytes with bos") and give_template(own) == 2
    tokens, labels = render_chat(conversation(["Aye.", "a"]), own)
    assert tokens == templated(conversation(["Aye.", "a"]), own)
    assert tokens.count(own.bos_token_id) == has_bos
    assert (tokens[0] == own.bos_token_id) == has_bos
    assert said(own, labels) == ["Aye.<|im_end|>", "a<|im_end|>"]
    # The end is the eos, the old one fills rows
    assert own.eos_token == "<|im_end|>" and own.pad_token == "</s>"
    assert settle_end(own) == end_token(own) == own.eos_token_id != pad_token(own)


def test_where_earlier_turns_are_rewritten_each_answer_is_a_row_of_its_own():
    own = with_template("bytes", THINKING, CHATML_TOKENS)
    messages = conversation([THOUGHT, "Nay", THOUGHT])
    rows = encode_chats([dict(id="a", messages=messages)], own, 999)
    assert [tokens for tokens, _ in rows] == [
        templated(messages[:n], own) for n in (2, 4, 6)
    ]
    answers = [THOUGHT, "Nay", THOUGHT]
    assert [said(own, labels) for _, labels in rows] == [
        [f"{answer}<|im_end|>"] for answer in answers
    ]
    assert len(encode_chats([dict(id="a", messages=messages[:2])], own, 999)) == 1
    with pytest.raises(ModelError, match="rewrites earlier turns: make a row of each"):
        render_chat(messages, own)
    # Where nothing is rewritten after all, it is one row
    plain = conversation(["Aye", "Nay"])
    assert said(own, render_chat(plain, own)[1]) == ["Aye<|im_end|>", "Nay<|im_end|>"]


def test_a_template_that_writes_eos_once_trains_each_answer_up_to_it():
    own = with_template("bytes", ONCE)
    one = conversation(["a"])
    tokens, labels = render_chat(one, own)
    assert said(own, labels) == [" a\n</s>"] and tokens == templated(one, own)
    asked = render_chat_prompt(QUESTIONS[0], own)
    assert asked == templated(one[:1], own, add_generation_prompt=True)
    rows = render_chats(conversation(["a", "d"]), own)
    assert [said(own, labels) for _, labels in rows] == [[" a\n</s>"], [" d\n</s>"]]


def test_an_answer_that_the_template_changes_is_refused_by_row_and_reason():
    never = THINKING.replace(" and not loop.last", "")
    own = with_template("bytes", never, CHATML_TOKENS)
    rows = [
        dict(id="fine", messages=conversation(["Aye"])),
        dict(id="bad", messages=conversation(["Aye", THOUGHT])),
    ]
    assert len(encode_chats(rows[:1], own, 99)) == 1
    with pytest.raises(
        ModelError, match="^conversation bad: .* changes the answer '<think>"
    ):
        encode_chats(rows, own, 999)
    pair = dict(id="p1", prompt="Who?", chosen=THOUGHT, rejected="Nay")
    with pytest.raises(ModelError, match="^pair p1: .* changes the answer '<think>"):
        encode_chat_pairs([pair], own, 999)


@pytest.mark.parametrize("change", ["upper", "capitalize", "replace('a', 'b')"])
def test_letters_that_a_template_changes_are_not_taken_for_the_answer(change):
    own = with_template(
        "bytes", HEADERS.replace("trim", f"trim | {change}"), HEADER_TOKENS
    )
    for answer in ("  a lad", "a"):
        with pytest.raises(ModelError, match="changes the answer"):
            render_chat(conversation([answer]), own)


def qwens_lines():
    """A tokenizer that joins line breaks, as Qwen's and Llama-3's do."""
    vocab = {chr(i): i for i in range(128)} | {"\n\n": 128}
    core = Tokenizer(models.BPE(vocab, [("\n", "\n")]))
    lines = Regex(r"\s*[\r\n]+|[^\s]+|\s+")
    core.pre_tokenizer = pre_tokenizers.Split(lines, "isolated")
    core.decoder = decoders.Fuse()
    own = library().PreTrainedTokenizerFast(tokenizer_object=core)
    give_template(own)
    return own


def test_a_token_that_would_hold_prompt_and_answer_is_refused_by_row():
    own = qwens_lines()
    row = dict(id="c9", messages=conversation(["\nAye"]))
    assert 128 in templated(row["messages"], own)
    with pytest.raises(
        ModelError, match="^conversation c9: a token holds both .* begin the answer"
    ):
        encode_chats([row], own, 99)
    row["messages"][1]["content"] = "Aye\n\nSo"
    labels = encode_chats([row], own, 99)[0][1]
    assert own.decode([x for x in labels if x != IGNORE]) == "Aye\n\nSo<|im_end|>"


def test_a_token_for_what_is_unknown_does_not_hide_an_answers_first_letter():
    # Without a token for the line break or for H, both become one <unk>
    core = Tokenizer(models.BPE({"<unk>": 0, "i": 1}, [], unk_token="<unk>"))
    core.model.fuse_unk = True
    own = library().PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    give_template(own)
    row = dict(id="c8", messages=conversation(["Hi"]))
    tokens = templated(row["messages"], own)
    asked = templated(row["messages"][:1], own, add_generation_prompt=True)
    assert tokens[: len(asked)] == asked
    with pytest.raises(ModelError, match="^conversation c8: a token holds both"):
        encode_chats([row], own, 99)
    # Nor is it graded further on, where no letter stands for itself
    row["messages"][1]["content"] = "ii, i"
    own.add_tokens(["b", "\n"])
    with pytest.raises(ModelError, match="^conversation c8: .* reads <unk> there"):
        encode_chats([row], own, 99)
    row["messages"][1]["content"] = "iii"
    assert said(own, encode_chats([row], own, 99)[0][1]) == ["i i i <|im_end|>"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_prompts_last_space_belongs_to_the_answer(shape):
    text = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}"
    asks = text + (
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    for each in (text + "{% endfor %}", asks):
        own = with_template(shape, each)
        tokens, labels = render_chat(conversation(["a", "1"]), own)
        assert tokens == templated(conversation(["a", "1"]), own)
        assert said(own, labels) == [" a</s>", " 1</s>"]
        prompt = render_chat_prompt(QUESTIONS[0], own)
        assert own.decode(prompt).endswith("assistant:")
        assert tokens[: len(prompt)] == prompt


def test_a_question_that_is_written_otherwise_once_it_is_answered_is_refused():
    # As Mistral's, which puts what the system says into the last turn that it writes
    text = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
        "{% if loop.last and messages[0]['role'] == 'system' %}"
        "{{ messages[0]['content'] + '\n\n' }}{% endif %}{{ m['content'] + '[/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
        "{% endif %}{% endfor %}"
    )
    own = with_template("bytes", text)
    plain = conversation(["a", "d"])
    assert said(own, render_chat(plain, own)[1]) == [" a</s>", " d</s>"]
    row = dict(id="c2", messages=[dict(role="system", content="Be brief."), *plain])
    with pytest.raises(ModelError, match="^conversation c2: .* question otherwise"):
        encode_chats([row], own, 99)
    # What stands behind the question alone is no matter: eos after every rendering
    own.chat_template = ONCE.partition("{% if add")[0] + "{{ eos_token }}"
    labels = render_chat(conversation(["a"]), own)[1]
    assert said(own, labels) == [" a\n</s>"]


def test_a_slow_tokenizer_is_refused_in_a_sentence():
    class Slow(library().PreTrainedTokenizer):
        vocab_size = 128

        def get_vocab(self):
            return {chr(i): i for i in range(128)}

        def _tokenize(self, text):
            return list(text)

        def _convert_token_to_id(self, token):
            return ord(token)

        def _convert_id_to_token(self, index):
            return chr(index)

    own = Slow()
    own.add_special_tokens(dict(additional_special_tokens=list(HEADER_TOKENS)))
    own.chat_template = HEADERS
    with pytest.raises(ModelError, match=r"a slow one \(Slow\) .* save it as a fast"):
        render_chat(conversation(["a"]), own)


def test_system_turns_are_read_and_answers_of_weight_0_too():
    system = dict(role="system", content="a: be d")
    for shape in SHAPES:
        own = copy.deepcopy(shaped_tokenizer(shape))
        give_template(own)
        messages = [system, *conversation(["a", "d", "Aye"])]
        tokens, labels = render_chat(messages, own)
        assert tokens == templated(messages, own)
        assert said(own, labels) == [f"{x}<|im_end|>" for x in ("a", "d", "Aye")]
        messages[4] = dict(messages[4], weight=0)
        again, labels = render_chat(messages, own)
        assert again == tokens
        assert said(own, labels) == ["a<|im_end|>", "Aye<|im_end|>"]
    with pytest.raises(ModelError, match="no answer in it to learn from"):
        render_chat([dict(each, weight=0) for each in messages], own)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pairs_sides_go_through_the_same_and_agree_with_the_template(shape):
    for text, special in ((INST, ()), (HEADERS, HEADER_TOKENS), (ONCE, ())):
        own = with_template(shape, text, special)
        rows = [dict(id="p", prompt="d", chosen="d", rejected=" a")]
        talk = [*conversation(["a"]), dict(role="user", content="d")]
        rows += [dict(id="q", prompt=talk, chosen="a", rejected="d")]
        for row, (prompt, *answers) in zip(rows, encode_chat_pairs(rows, own, 99)):
            asked = row["prompt"]
            if isinstance(asked, str):
                asked = [dict(role="user", content=asked)]
            assert prompt == render_chat_prompt(row["prompt"], own)
            for side, answer in zip(("chosen", "rejected"), answers):
                whole = [*asked, dict(role="assistant", content=row[side])]
                tokens = templated(whole, own)
                assert tokens[: len(prompt) + len(answer)] == prompt + answer
                assert answer[-1] == end_token(own)


def test_pairs_without_one_prompt_or_without_a_difference_are_refused():
    own = with_template("bytes", HEADERS, HEADER_TOKENS)
    same = dict(id="p3", prompt="d", chosen="a", rejected=" a\n")
    with pytest.raises(ModelError, match="^pair p3: .* the same tokens"):
        encode_chat_pairs([same], own, 99)
    empty = "{{ '<think></think>' if '<think>' not in m['content'] }}"
    text = HEADERS.replace("{% endfor %}", "{% endfor %}").replace(
        "'<|end_header_id|>\n\n' + m['content'] | trim",
        "'<|end_header_id|>' }}" + empty + "{{ m['content']",
    )
    own = with_template("bytes", text, HEADER_TOKENS)
    half = dict(id="p4", prompt="d", chosen="<think>hm</think>a", rejected="d")
    with pytest.raises(ModelError, match="^pair p4: .* a thought, or neither"):
        encode_chat_pairs([half], own, 99)


def test_a_template_whose_own_prompt_differs_is_asked_with_what_was_trained():
    own = with_template(
        "bytes",
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        CHATML_TOKENS,
    )
    tokens, labels = render_chat(conversation(["Aye"]), own)
    prompt = render_chat_prompt(QUESTIONS[0], own)
    assert own.decode(prompt).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokens[: len(prompt)] == prompt and said(own, labels) == ["Aye<|im_end|>"]


# One end


def test_the_end_becomes_the_eos_and_the_template_writes_what_it_wrote(tmp_path):
    text = (
        "\n{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + "
        "'<|end|>\n' }}{% endfor %}{% if not add_generation_prompt %}{{ eos_token }}"
        "{% endif %}"
    )
    for shape in ("bytes", STRIPPING):
        own = with_template(shape, text, ("<|user|>", "<|assistant|>", "<|end|>"))
        messages = conversation(["Aye", "a"])
        before = templated(messages, own)
        assert before[-1] == own.eos_token_id == own.convert_tokens_to_ids("</s>")
        end = settle_end(own)
        assert own.eos_token == "<|end|>" and end == end_token(own) == own.eos_token_id
        own.save_pretrained(tmp_path / shape)
        again = library().AutoTokenizer.from_pretrained(tmp_path / shape)
        for each in (own, again):
            assert templated(messages, each) == before
            assert said(each, render_chat(messages, each)[1]) == [
                "Aye<|end|>",
                "a<|end|>",
            ]
        assert again.eos_token_id == end and settle_end(again) == end


def test_special_tokens_are_those_that_were_added_too():
    own = shaped_tokenizer("bytes", HEADER_TOKENS)
    found = special_tokens(own)
    assert {*own.convert_tokens_to_ids(list(HEADER_TOKENS))} < found.ids
    assert found.pattern.match("<|eot_id|>") and not found.pattern.match("<|eot")
    bare = Tokenizer(models.BPE({"a": 0}, []))
    none = library().PreTrainedTokenizerFast(tokenizer_object=bare)
    assert not special_tokens(none).ids and not special_tokens(none).pattern.search("a")


def test_an_answer_with_two_ends_in_one_conversation_is_refused_by_row():
    text = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{{ '<|eom|>' if 'd' in m['content'] else '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    own = with_template("bytes", text, ("<|eom|>", "<|eot|>"))
    rows = [dict(id="c4", messages=conversation(["a", "d"]))]
    with pytest.raises(ModelError, match=r"^conversation c4: .* ends with '<\|eom\|>'"):
        encode_chats(rows, own, 99)
