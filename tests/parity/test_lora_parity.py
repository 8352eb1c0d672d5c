"""LoRA: ours, and peft's, on a tiny Llama and a tiny GPT-2 of transformers."""

import copy

import pytest
import torch
from parity.oracles import seeded
from tiny import close as near
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from posttrain.lora.adapters import (
    LoRAConfig,
    adapters_of,
    adapters_off,
    add_lora,
    merge,
    unmerge,
)

peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")

TOKENS = torch.randint(40, (2, 9), generator=seeded(1))
ATTENTION = ("q_proj", "v_proj")
EVERYWHERE = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config).double().eval()


def gpt2():
    torch.manual_seed(0)
    return (
        GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2)
        )
        .double()
        .eval()
    )


def both(make, targets, rank=3, alpha=12.0):
    """Our model and peft's with the same base and the same adapters, B not 0."""
    ours = add_lora(
        make(), LoRAConfig(rank=rank, alpha=alpha, targets=targets), seeded()
    )
    options = dict(
        r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0
    )
    peer = (
        peft.get_peft_model(
            make(), peft.LoraConfig(**options), autocast_adapter_dtype=False
        )
        .double()
        .eval()
    )
    theirs = dict(peer.base_model.model.named_modules())
    for name, adapter in adapters_of(ours).items():
        layer = theirs[name.removesuffix(".adapter")]
        with torch.no_grad():
            adapter.B.normal_(std=0.3, generator=seeded(len(name)))
            layer.lora_A["default"].weight.copy_(adapter.A)
            layer.lora_B["default"].weight.copy_(adapter.B)
    return ours, peer


def logits(model):
    return model(TOKENS).logits


CASES = pytest.mark.parametrize(
    ("make", "targets"),
    [
        (llama, ATTENTION),
        (llama, EVERYWHERE),
        (gpt2, ("c_attn",)),
        (gpt2, ("attn.c_proj",)),
    ],
    ids=["attention", "everywhere", "conv1d", "square conv1d"],
)


@CASES
def test_equal_outputs_and_as_many_adapters(make, targets):
    ours, peer = both(make, targets)
    near(logits(ours), logits(peer), 1e-12)
    assert (logits(ours) - logits(make())).abs().max() > 1e-3
    wanted = sum("lora_A" in name for name, _ in peer.named_parameters())
    assert len(adapters_of(ours)) == wanted
    trained = [
        sum(p.numel() for p in model.parameters() if p.requires_grad)
        for model in (ours, peer)
    ]
    assert trained[0] == trained[1]


@CASES
def test_equal_gradients_of_a_and_b(make, targets):
    ours, peer = both(make, targets)
    for model in (ours, peer):
        logits(model).log_softmax(-1)[..., 0].sum().backward()
    theirs = dict(peer.base_model.model.named_modules())
    for name, adapter in adapters_of(ours).items():
        layer = theirs[name.removesuffix(".adapter")]
        assert adapter.A.grad.abs().max() > 0
        near(adapter.A.grad, layer.lora_A["default"].weight.grad, 1e-11)
        near(adapter.B.grad, layer.lora_B["default"].weight.grad, 1e-11)


@CASES
def test_equal_merged_weights_and_equal_models_with_adapters_off(make, targets):
    ours, peer = both(make, targets)
    with adapters_off(ours), peer.disable_adapter():
        near(logits(ours), logits(peer), 0)
    before = copy.deepcopy(ours.state_dict())
    theirs = copy.deepcopy(peer).merge_and_unload()
    merged = dict(merge(ours).named_parameters())
    for name, parameter in theirs.named_parameters():
        near(merged[name], parameter, 1e-13)
    unmerge(ours)
    for name, parameter in ours.state_dict().items():
        near(parameter, before[name], 1e-14)


def test_a_starts_in_the_same_range_as_pefts():
    options = dict(r=200, lora_alpha=1, target_modules=["q_proj"])
    peer = peft.get_peft_model(llama(), peft.LoraConfig(**options))
    ours = add_lora(
        llama(), LoRAConfig(rank=200, alpha=1.0, targets=("q_proj",)), seeded()
    )
    theirs = [p for name, p in peer.named_parameters() if "lora_A" in name]
    for adapter, other in zip(adapters_of(ours).values(), theirs, strict=True):
        for A in (adapter.A, other):
            assert 0.97 * 16**-0.5 < A.abs().max() <= 16**-0.5
            assert A.std().item() == pytest.approx((16 * 3) ** -0.5, rel=0.05)
