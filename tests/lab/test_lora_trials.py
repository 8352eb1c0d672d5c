"""LoRA's trials: what is trained and measured, and the bytes that a step keeps."""

from dataclasses import replace

import pytest
import torch
from tiny import CONFIG, CORPUS, PAD, TOKENIZER, same, seeded, weights

from posttrain.chat import collate, grow_vocabulary
from posttrain.gpt import GPT
from posttrain.lab import lora_trials as module
from posttrain.lab.lora_trials import (
    LoRATrialConfig,
    lora_model,
    lora_sft,
    lora_trial,
    training_memory,
)
from posttrain.lora.adapters import LoRAConfig, adapter_state, adapters_of, adapters_off
from posttrain.lora.nf4 import NF4Linear
from posttrain.pretrain import validation_loss
from posttrain.sft import SFTConfig, conversation_loss, encode_conversations, sft_steps
from posttrain.stages import encode_split

TALKS = [
    dict(
        id=str(i),
        messages=[
            dict(role="user", content=question),
            dict(role="assistant", content=answer),
        ],
    )
    for i, (question, answer) in enumerate(
        [("Who?", "I, sir."), ("", "Ay"), ("Now", "No, no.")]
    )
]
SFT = SFTConfig(steps=4, batch_size=2, replay=0, evaluations=2, seed=3)
SMALL = LoRATrialConfig(SFT, LoRAConfig(rank=2, new_rows=4))
BASE = replace(CONFIG, vocab_size=65)
EXAMPLES = encode_conversations(TALKS, TOKENIZER, 64)


def base():
    """A base model of 65 tokens, none of whose weights are zero."""
    model = GPT(BASE, seeded())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=seeded(1))
    return model


def equal(some, others):
    return all(torch.equal(value, others[name]) for name, value in some.items())


# The model


def test_the_model_is_the_grown_base_with_adapters_of_the_runs_own_seed():
    model, again, other = (
        lora_model(base(), config)
        for config in (SMALL, SMALL, replace(SMALL, sft=replace(SFT, seed=4)))
    )
    tokens = torch.arange(20)[None]
    assert torch.equal(model(tokens), grow_vocabulary(base(), 69)(tokens))
    assert equal(adapter_state(model), adapter_state(again)) and not equal(
        adapter_state(model), adapter_state(other)
    )


def test_quantised_layers_are_those_with_adapters():
    quantised = lora_model(base(), replace(SMALL, quantized=True))
    layers = {
        name
        for name, layer in quantised.named_modules()
        if isinstance(layer, NF4Linear)
    }
    assert layers == {
        name.removesuffix(".adapter") for name in adapters_of(quantised)
    } - {"embedding", "head"}
    assert len(layers) == 4


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="4 steps cannot be cut into 3 equal parts"):
        LoRATrialConfig(replace(SFT, evaluations=3))


# A run


@pytest.mark.parametrize(
    "config", [SMALL, replace(SMALL, quantized=True)], ids=["lora", "qlora"]
)
def test_a_run_is_sft_steps_on_that_model_and_notes_what_it_says(config):
    model, history = lora_sft(
        base(),
        TALKS,
        None,
        config,
        lambda model: dict(seen=model.head.weight.sum().item()),
    )
    twin, losses, learned = lora_model(base(), config), [], []
    for noted in sft_steps(twin, EXAMPLES, None, SFT, PAD):
        losses.append(noted["loss"])
        learned.append(conversation_loss(twin, EXAMPLES, PAD))
    assert same(weights(twin), model)
    assert history["step"] == [2, 4] and history["learned"] == learned[1::2]
    assert history["train"] == pytest.approx(
        [sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-6
    )
    assert (
        len(history["seen"]) == 2 and 0 < history["seconds"][0] <= history["seconds"][1]
    )
    assert learned[-1] < losses[0]


def test_the_base_is_neither_changed_nor_trained():
    start = base()
    before = weights(start)
    model, _ = lora_sft(start, TALKS, None, SMALL)
    assert same(before, start)
    with adapters_off(model):
        assert torch.equal(
            model(torch.arange(9)[None]),
            grow_vocabulary(base(), 69)(torch.arange(9)[None]),
        )


# A trial


@pytest.mark.parametrize("seed", [0, 3])
def test_a_trial_is_a_run_of_its_seed_with_a_card_per_evaluation(monkeypatch, seed):
    judged, play = [], replace(CORPUS, text=CORPUS.text * 400)
    monkeypatch.setattr(module.datasets, "conversations", lambda: TALKS)
    monkeypatch.setattr(module, "base_model", lambda corpus: (base(), {}))

    def card(*given):
        judged.append(given)
        return dict(finished=0.5)

    monkeypatch.setattr(module, "sft_scorecard", card)
    history = lora_trial(play, replace(SMALL, sft=replace(SFT, seed=9)), seed)
    text, validation = encode_split(play)
    own = replace(SMALL, sft=replace(SFT, seed=seed))
    model, expected = lora_sft(base(), TALKS, text, own)
    loss = validation_loss(base(), validation, windows=32)
    for run in (history, expected):
        assert len(run.pop("seconds")) == 2
    assert history == expected | dict(finished=[0.5, 0.5], base_loss=loss)
    assert same(weights(model), judged[-1][0]) and len(judged) == 2
    for _, known, shown, drawn in judged:
        assert known == {"I, sir.", "Ay", "No, no."} and drawn == seed
        assert torch.equal(shown, validation)


# Memory


def test_the_bytes_of_weights_gradients_and_optimiser_are_those_worked_out():
    batch = collate(EXAMPLES, PAD)
    inside = 16 * (48 + 16 + 64 + 64)  # one block's four matrices
    rank2 = 2 * (16 + 48 + 16 + 16 + 16 + 64 + 64 + 16)
    rows, tables = 2 * 4 * 16, 2 * 69 * 16
    full = training_memory(grow_vocabulary(base(), 69), *batch)
    lora, qlora = (
        training_memory(lora_model(base(), config), *batch)
        for config in (SMALL, replace(SMALL, quantized=True))
    )
    assert full["weights"] == full["gradients"] == 4 * (inside + tables)
    assert lora["weights"] == 4 * (inside + tables + rank2 + rows)
    assert lora["gradients"] == qlora["gradients"] == 4 * (rank2 + rows)
    # Muon keeps one number per entry, AdamW two, and a counter for each tensor
    assert full["optimizer"] == 4 * (inside + 2 * tables) + 2 * 4
    assert lora["optimizer"] == 4 * (rank2 + 2 * rows) + 2 * 4
    # Codes at 4 bits, 48 scales padded to 256 for each matrix, their own scale and mean
    scales = 4 * (256 + 4 + 4)
    assert qlora["weights"] == inside // 2 + scales + 4 * (tables + rank2 + rows)


def test_a_frozen_model_puts_aside_as_much_as_a_trained_one_for_its_adapters():
    batch = collate(EXAMPLES, PAD)
    full, lora = (
        training_memory(model, *batch)["activations"]
        for model in (grow_vocabulary(base(), 69), lora_model(base(), SMALL))
    )
    assert 0.8 * full < lora < 1.5 * full
