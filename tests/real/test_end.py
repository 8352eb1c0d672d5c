"""One end: the token that is graded last is what a model stops at, here and elsewhere,
and no padding hides it.
"""

import argparse
import json

import pytest

pytest.importorskip("transformers")
import torch  # noqa: E402
from real_models import (  # noqa: E402
    CONVERSATIONS,
    PAIRS,
    data_file,
    encoded_pairs,
    examples,
    folder,
    tokenizer,
)

from posttrain.chat import IGNORE  # noqa: E402
from posttrain.real.command import loading  # noqa: E402
from posttrain.real.data import end_token, pad_token, render_chat  # noqa: E402
from posttrain.real.model import LanguageModel, load_model  # noqa: E402
from posttrain.real.run import Setup, begin, open_tokenizer, run  # noqa: E402
from posttrain.real.training import (  # noqa: E402
    RealConfig,
    build_descent,
    real_dpo_steps,
    real_sft_steps,
)

ASKED = dict(role="user", content="Who?")
TALK = [dict(id="a", messages=[ASKED, dict(role="assistant", content="Aye.")])]
QUICK = RealConfig(steps=40, batch_size=1, micro_batch_size=1, lr=5e-3, max_length=64)
LATIN = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|im_end|>' }}"
PHIS = LATIN + (  # as Phi-3's: eos, whatever it is, ends the whole and no answer
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base model without a template, with all weights taught one answer."""
    place = tmp_path_factory.mktemp("end")
    data = data_file(place / "talk.jsonl", TALK)
    bare = folder("gpt2", chat=False)
    run(Setup(bare, data, str(place / "out"), rank=0, device="cpu"), QUICK)
    return place / "out"


def test_a_base_model_that_was_given_chatml_stops_in_generate(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(trained)
    own = AutoTokenizer.from_pretrained(trained)
    asked = own.apply_chat_template(
        [ASKED], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**asked, max_new_tokens=40, do_sample=False)[0]
    answer = own.decode(written[asked["input_ids"].size(1) :])
    assert answer == "Aye.<|im_end|>"


def test_the_end_is_in_every_file_that_says_where_to_stop(trained):
    own, _ = open_tokenizer(str(trained))
    end = own.convert_tokens_to_ids("<|im_end|>")
    assert end == end_token(own) == own.eos_token_id
    assert own.pad_token == "<|endoftext|>" and pad_token(own) != end
    for name in ("generation_config.json", "config.json"):
        assert json.loads((trained / name).read_text())["eos_token_id"] == end
    said = json.loads((trained / "tokenizer_config.json").read_text())
    assert said["eos_token"] == "<|im_end|>"
    options = dict(stage="sft", rank=0, model="gpt2", out=str(trained))
    last = loading(argparse.Namespace(**options))[-1]
    assert last == f"model.generation_config.eos_token_id = {end}  # <|im_end|>"


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_an_adapters_folder_and_loading_lines_say_the_end_too(stage, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, GenerationConfig

    rows = TALK if stage == "sft" else PAIRS[:2]
    data, out = data_file(tmp_path / "rows.jsonl", rows), str(tmp_path / "out")
    config = RealConfig(stage=stage, steps=1, batch_size=1, max_length=200)
    run(Setup(folder("gpt2", chat=False), data, out, rank=2, device="cpu"), config)
    end = open_tokenizer(out)[0].eos_token_id
    assert GenerationConfig.from_pretrained(out).eos_token_id == end
    model = folder("gpt2", chat=False)
    lines = loading(argparse.Namespace(stage=stage, rank=2, model=model, out=out))
    names = dict(AutoModelForCausalLM=AutoModelForCausalLM, PeftModel=peft.PeftModel)
    exec("\n".join(lines), names)
    assert names["model"].generation_config.eos_token_id == end
    # It is this that generate looks at
    assert names["model"].get_base_model().generation_config.eos_token_id == end


def test_a_generation_config_that_transformers_would_not_save_is_no_hindrance(
    tmp_path,
):
    model = load_model(folder("gpt2"))
    model.save_pretrained(tmp_path / "base")
    tokenizer("gpt2").save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps(dict(temperature=0.6, eos_token_id=[0, 1])))
    data, out = data_file(tmp_path / "talk.jsonl", TALK), tmp_path / "out"
    config = RealConfig(steps=1, batch_size=1, max_length=64)
    run(Setup(str(tmp_path / "base"), data, str(out), rank=0, device="cpu"), config)
    said = json.loads((out / "generation_config.json").read_text())
    assert said["eos_token_id"] == end_token(tokenizer("gpt2"))
    assert said["temperature"] == 0.6


def test_a_published_template_keeps_its_eos_text_and_gets_its_end(tmp_path):
    base = tmp_path / "base"
    load_model(folder("gpt2")).save_pretrained(base)
    own = open_tokenizer(folder("gpt2"))[0]
    own.eos_token, own.chat_template = "<|endoftext|>", PHIS
    before = render_chat(TALK[0]["messages"], own)
    own.save_pretrained(base)
    data, out = data_file(tmp_path / "talk.jsonl", TALK), str(tmp_path / "out")
    config = RealConfig(steps=1, batch_size=1, max_length=64)
    run(Setup(str(base), data, out, rank=0, device="cpu"), config)
    again = open_tokenizer(out)[0]
    assert again.eos_token == "<|im_end|>" and own.eos_token == "<|endoftext|>"
    assert render_chat(TALK[0]["messages"], again) == before
    assert again.decode(before[0]).endswith("Aye.<|im_end|>\n<|endoftext|>")


def test_ppo_stops_at_the_end_that_is_graded_and_saved(tmp_path):
    data = data_file(tmp_path / "pairs.jsonl", PAIRS[:2])
    judge = str(tmp_path / "judge")
    steps = dict(steps=1, batch_size=1, max_length=200, max_new_tokens=4)
    reward = RealConfig(stage="reward", **steps)
    run(Setup(folder(), data, judge, rank=2, device="cpu"), reward)
    options = dict(rank=2, device="cpu", reward_model=judge)
    setup = Setup(folder(), data, str(tmp_path / "out"), **options)
    session = begin(setup, RealConfig(stage="ppo", **steps))
    cells = dict(zip(session.steps.__code__.co_freevars, session.steps.__closure__))
    assert cells["stop"].cell_contents == session.tokenizer.eos_token_id == 2


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_padding_with_the_end_itself_hides_no_end_from_the_loss(stage):
    end = end_token(tokenizer())
    losses = []
    for pad in (end, 0):
        config = RealConfig(stage=stage, steps=2, batch_size=4, lr=1e-2)
        policy = LanguageModel(load_model(folder()))
        descent = build_descent(config, policy)
        if stage == "sft":
            rows = examples()[:4]
            assert len({len(tokens) for tokens, _ in rows}) > 1
            steps = real_sft_steps(policy, rows, config, pad, descent)
        else:
            reference = LanguageModel(load_model(folder()))
            pairs = encoded_pairs()[:4]
            steps = real_dpo_steps(policy, reference, pairs, config, pad, descent)
        losses.append([step["loss"] for step in steps])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for (_, labels), row in zip(examples(), CONVERSATIONS):
        ends = [label for label in labels if label == end]
        assert len(ends) == len(row["messages"]) // 2 and labels[-1] == IGNORE


def test_new_tokens_in_a_padded_vocabulary_are_trained_and_saved(tmp_path):
    """Published tables often have more rows than the tokenizer has tokens."""
    base = load_model(folder("gpt2", chat=False))
    base.resize_token_embeddings(448, mean_resizing=False)
    base.save_pretrained(tmp_path / "base")
    own = open_tokenizer(folder("gpt2", chat=False))[0]
    own.chat_template = None
    bare = tmp_path / "base"
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder("gpt2", chat=False)).save_pretrained(bare)
    data, out = data_file(tmp_path / "talk.jsonl", TALK), str(tmp_path / "out")
    config = RealConfig(steps=2, batch_size=1, lr=1e-2, max_length=64)
    run(Setup(str(bare), data, out, rank=0, device="cpu"), config)
    after, end = load_model(out), open_tokenizer(out)[0].eos_token_id
    assert end == 385 and len(after.get_input_embeddings().weight) == 448
    moved = after.get_input_embeddings().weight - base.get_input_embeddings().weight
    assert moved[end].abs().max() > 0.001
    lines = loading(argparse.Namespace(stage="sft", rank=0, model=str(bare), out=out))
    assert not any("resize" in line for line in lines)
    assert torch.equal(after.lm_head.weight, after.get_input_embeddings().weight)
