"""The names of TRL's settings, and examples/trl, run on two processes."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from parity.oracles import chat_tokenizer
from trl import DPOConfig, RewardConfig, SFTConfig
from trl.experimental.ppo import PPOConfig

from posttrain.scale import launch
from posttrain.scale.hand_over import NAMES

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "examples" / "trl" / "chatml.jinja"
TRL = {c.__name__: c for c in (SFTConfig, RewardConfig, DPOConfig, PPOConfig)}


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.trl], ids=lambda name: name.ours
)
def test_the_name_in_the_table_is_a_field_of_trls(name):
    config, _, field = name.trl.partition(".")
    assert field in {f.name for f in fields(TRL[config])}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a tiny Llama in two bytes, and a tokenizer without a template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("llama"), chat_tokenizer()
    tokenizer.chat_template = None  # as of a base model
    torch.manual_seed(0)
    shape = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    special = dict(
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=512, **shape, **special
        )
    ).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_the_script_trains_with_two_processes(llama, tmp_path, stage):
    from safetensors.torch import load_file

    command = [
        str(ROOT / "examples/trl/train.py"),
        stage,
        "--model",
        str(llama),
        "--out",
        str(tmp_path),
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--micro-batch-size",
        "1",
        "--cpu",
        "--chat-template",
        str(TEMPLATE),
    ]
    printed = launch.torchrun(2, command, seconds=500)
    assert "2 processes" in printed
    before, after = (
        load_file(folder / "model.safetensors") for folder in (llama, tmp_path)
    )
    shared = [name for name in before if name in after]
    assert shared and any(
        not torch.equal(before[name].float(), after[name]) for name in shared
    )
    assert {after[name].dtype for name in shared} == {torch.float32}


def test_the_template_grades_an_answer_and_its_end_and_may_be_chatml():
    from posttrain.real.data import CHATML

    tokenizer, talk = (
        chat_tokenizer(),
        [
            dict(role="user", content="Who?"),
            dict(role="assistant", content="A friend."),
        ],
    )
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    found = tokenizer.apply_chat_template(
        talk, return_dict=True, return_assistant_tokens_mask=True
    )
    graded = [
        token
        for token, chosen in zip(found["input_ids"], found["assistant_masks"])
        if chosen
    ]
    assert tokenizer.decode(graded).replace(" ", "") == "Afriend.<|end|>"
    for asked in (False, True):
        written = [
            tokenizer.apply_chat_template(
                talk,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=asked,
            )
            for template in (tokenizer.chat_template, CHATML)
        ]
        assert written[0].replace("<|end|>", "<|im_end|>") == written[1]


def test_the_accelerate_config_is_one_that_accelerate_reads():
    from accelerate.commands.config import load_config_from_file

    found = load_config_from_file(str(ROOT / "examples" / "trl" / "fsdp2.yaml"))
    assert (
        found.distributed_type == "FSDP"
        and found.num_processes == 8
        and found.mixed_precision == "bf16"
    )
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest for action in launch_command_parser()._actions}
    assert set(found.fsdp_config) <= known and found.fsdp_config["fsdp_version"] == 2
