"""LoRA: nothing at first, what is frozen, off and merged, new rows, and the state."""

import copy

import pytest
import torch
from tiny import CONFIG, PAD, close, moved, normal, pair, same, seeded, weights
from torch import nn

from posttrain.chat import grow_vocabulary
from posttrain.dpo import DPOConfig, dpo_steps
from posttrain.gpt import GPT
from posttrain.lora.adapters import (
    LoRAConfig,
    Reference,
    adapter_state,
    adapters_of,
    adapters_off,
    add_lora,
    load_adapter_state,
    low_rank,
    merge,
    parameter_counts,
    trainable_share,
    unmerge,
)
from posttrain.lora.nf4 import quantize_model
from posttrain.preference_pairs import encode_pairs
from posttrain.sft import SFTConfig, sft_steps
from posttrain.tokenizer import CharTokenizer

PLAIN = LoRAConfig(rank=3, alpha=6.0)
WITH_ROWS = LoRAConfig(rank=3, alpha=6.0, new_rows=4)
TOKENS = torch.randint(69, (2, 12), generator=seeded(3))


def adapted(config=PLAIN, seed=0, trained=True, dtype=torch.float64):
    """A model with adapters, none of whose numbers is zero where they are trained."""
    model = add_lora(moved(dtype=dtype), config, seeded(seed))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and trained:
                parameter += 0.2 * normal(*parameter.shape, seed=seed + 9).to(dtype)
    return model


# The addition


def test_the_addition_is_alpha_over_r_times_b_a_x():
    x, A, B = normal(2, 5, 7), normal(3, 7, seed=1), normal(4, 3, seed=2)
    close(low_rank(x, A, B, 6.0), x @ (2.0 * B @ A).mT)


def test_a_starts_uniform_as_a_linear_layer_does_and_b_at_zero():
    model = add_lora(moved(), LoRAConfig(rank=500, alpha=1.0), seeded())
    for name, adapter in adapters_of(model).items():
        bound = adapter.A.size(1) ** -0.5
        assert adapter.A.shape[0] == 500 and (adapter.B == 0).all(), name
        assert 0.99 * bound < adapter.A.abs().max() <= bound
        assert adapter.A.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("config", [PLAIN, WITH_ROWS], ids=["plain", "rows"])
def test_at_the_start_the_model_is_what_it_was_with_gradients_for_b_alone(config):
    plain, model = moved(), adapted(config, trained=False)
    assert torch.equal(model(TOKENS), plain(TOKENS))
    model(TOKENS).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (
            (parameter.grad is not None)
            == parameter.requires_grad
            == ("adapter" in name)
        ), name
        if name.endswith("adapter.A"):
            assert (parameter.grad == 0).all()
        elif "adapter" in name:
            assert (parameter.grad != 0).any()


def test_a_model_with_adapters_is_the_one_with_their_products_in_its_weights():
    model, plain = adapted(), moved()
    with torch.no_grad():
        for name, adapter in adapters_of(model).items():
            plain.get_submodule(name.removesuffix(".adapter")).weight += (
                6 / 3 * adapter.B @ adapter.A
            )
    close(model(TOKENS), plain(TOKENS), 1e-10)
    assert (model(TOKENS) - moved()(TOKENS)).abs().max() > 0.1


def test_weights_keep_their_names_and_their_bits_in_training():
    model = adapted(WITH_ROWS, trained=False, dtype=torch.float32)
    before, names = weights(model), set(moved().state_dict())
    assert names <= set(before)
    examples = [([65, 1, 2, 66, 3, 67], [-100, -100, -100, -100, 3, 67])]
    list(
        sft_steps(
            model, examples, None, SFTConfig(steps=3, batch_size=1, replay=0), PAD
        )
    )
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) == (name in names), name


def test_copies_have_adapters_of_their_own():
    model = adapted(WITH_ROWS)
    other = copy.deepcopy(model)
    assert torch.equal(other(TOKENS), model(TOKENS))
    with torch.no_grad():
        for adapter in adapters_of(other).values():
            for parameter in adapter.parameters():
                parameter.zero_()
    assert torch.equal(other(TOKENS), moved()(TOKENS)) and not torch.equal(
        model(TOKENS), moved()(TOKENS)
    )


def test_in_half_precision_adapters_are_in_single_and_the_output_in_half():
    model = add_lora(
        nn.Sequential(nn.Linear(8, 4, dtype=torch.bfloat16)),
        LoRAConfig(targets=("0",)),
        seeded(),
    )
    assert all(
        adapter.A.dtype == adapter.B.dtype == torch.float32
        for adapter in adapters_of(model).values()
    )
    assert model(torch.ones(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_what_cannot_be_is_refused_by_name():
    for wrong, words in (
        (dict(rank=0), "rank is 0"),
        (dict(alpha=0.0), "alpha is 0.0"),
        (dict(new_rows=-1), "new_rows is -1"),
    ):
        with pytest.raises(ValueError, match=words):
            LoRAConfig(**wrong)
    with pytest.raises(ValueError, match="ends in 'q_proj'"):
        add_lora(moved(), LoRAConfig(targets=("q_proj",)))
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(adapted(), PLAIN)
    tied = GPT(
        CONFIG.gpt2(vocab_size=69, context=64, n_layer=1, n_head=1, width=16), seeded()
    )
    with pytest.raises(ValueError, match="share one weight"):
        add_lora(tied, WITH_ROWS)


# New tokens


def test_without_rows_of_their_own_new_tokens_have_one_logit_for_ever():
    old = moved(config=CONFIG)
    base = grow_vocabulary(old, 73)  # four tokens more
    model = add_lora(base, PLAIN, seeded())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += normal(*parameter.shape, seed=4)
    logits = model(TOKENS)
    close(logits[..., 69:], logits[..., 69:70].expand(-1, -1, 4), 1e-12)
    # So none of the four can have more than a quarter
    assert logits.softmax(-1)[..., 69:].max() <= 0.25 + 1e-12


def test_rows_are_added_to_the_last_tokens_of_both_tables_and_to_no_other():
    model, plain = adapted(WITH_ROWS), moved()
    assert [
        name for name, adapter in adapters_of(model).items() if hasattr(adapter, "rows")
    ] == ["embedding.adapter", "head.adapter"]
    with torch.no_grad():
        for name, adapter in adapters_of(model).items():
            layer = plain.get_submodule(name.removesuffix(".adapter"))
            if hasattr(adapter, "rows"):
                layer.weight[65:] += adapter.rows
            else:
                layer.weight += 2 * adapter.B @ adapter.A
    assert (TOKENS >= 65).any() and (TOKENS < 65).any()
    close(model(TOKENS), plain(TOKENS), 1e-10)


# Off, and merged


@pytest.mark.parametrize("config", [PLAIN, WITH_ROWS], ids=["plain", "rows"])
def test_with_adapters_off_the_model_is_the_frozen_one_bit_for_bit(config):
    model = adapted(config)
    on = model(TOKENS)
    with adapters_off(model) as frozen:
        assert torch.equal(frozen(TOKENS), moved()(TOKENS))
    assert torch.equal(model(TOKENS), on) and not torch.equal(on, moved()(TOKENS))
    with pytest.raises(ZeroDivisionError), adapters_off(model):
        raise ZeroDivisionError
    assert torch.equal(model(TOKENS), on)
    assert torch.equal(Reference(model)(TOKENS), moved()(TOKENS)) and torch.equal(
        model(TOKENS), on
    )


@pytest.mark.parametrize("config", [PLAIN, WITH_ROWS], ids=["plain", "rows"])
def test_merged_it_computes_the_same_and_unmerged_it_is_what_it_was(config):
    model = adapted(config)
    before, on = weights(model), model(TOKENS)
    assert merge(model) is model
    close(model(TOKENS), on, 1e-10)
    assert not torch.equal(
        model.blocks[0].mlp.up.weight, before["blocks.0.mlp.up.weight"]
    )
    with pytest.raises(ValueError, match="nothing to merge"):
        merge(model)
    with pytest.raises(ValueError, match="unmerge them first"):
        Reference(model)(TOKENS)
    unmerge(model)
    close(model(TOKENS), on, 1e-10)
    for name, value in weights(model).items():
        close(value, before[name], 1e-14)
    with pytest.raises(ValueError, match="nothing to take out"):
        unmerge(model)


def test_nothing_is_merged_into_a_plain_or_a_quantised_model():
    with pytest.raises(ValueError, match="nothing to merge"):
        merge(moved())
    model = add_lora(quantize_model(moved(dtype=torch.float32), PLAIN.targets), PLAIN)
    with pytest.raises(ValueError, match="quantised layer cannot take"):
        merge(model)


def test_adapters_beside_quantised_layers_are_trained():
    model = add_lora(
        quantize_model(moved(dtype=torch.float32), PLAIN.targets), PLAIN, seeded()
    )
    with adapters_off(model):
        frozen = model(TOKENS)
    assert torch.equal(model(TOKENS), frozen)
    model(TOKENS).square().sum().backward()
    assert all((adapter.B.grad != 0).any() for adapter in adapters_of(model).values())


# The state


def test_the_state_is_the_trained_numbers_and_makes_the_same_model_again():
    model, other = adapted(WITH_ROWS), adapted(WITH_ROWS, seed=5)
    state = adapter_state(model)
    assert set(state) == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert sum(value.numel() for value in state.values()) == parameter_counts(model)[0]
    load_adapter_state(other, state)
    assert torch.equal(other(TOKENS), model(TOKENS))
    # A copy: what is trained later is not in it
    with torch.no_grad():
        next(iter(adapters_of(model).values())).rows += 1
    assert torch.equal(other(TOKENS), adapted(WITH_ROWS)(TOKENS))


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    model = adapted(PLAIN)
    before = weights(model)
    with pytest.raises(ValueError, match="is only in the state"):
        load_adapter_state(model, adapter_state(adapted(WITH_ROWS)))
    with pytest.raises(ValueError, match="is only in the model"):
        load_adapter_state(adapted(WITH_ROWS), adapter_state(model))
    with pytest.raises(
        ValueError, match=r"\(3, 16\) in the model and \(4, 16\) in the state"
    ):
        load_adapter_state(model, adapter_state(adapted(LoRAConfig(rank=4))))
    assert same(before, model)


def test_the_share_counts_each_number_once_and_quantised_ones_too():
    model = adapted(WITH_ROWS)
    pairs = [(3 * 16, 16), (16, 16), (64, 16), (16, 64)]
    trained = sum(3 * (n_out + n_in) for n_out, n_in in pairs) + 2 * 4 * 16
    total = sum(n_out * n_in for n_out, n_in in pairs) + 2 * 69 * 16 + trained
    assert (
        parameter_counts(model) == (trained, total)
        and trainable_share(model) == trained / total
    )
    quantised = add_lora(
        quantize_model(moved(dtype=torch.float32), PLAIN.targets), WITH_ROWS
    )
    assert parameter_counts(quantised) == (trained, total)


# One model for policy and reference


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_dpo_with_its_own_adapters_off_as_the_reference_is_dpo_with_a_second_model(
    loss,
):
    rows = [
        pair("a", "Who?", "I am.", "You"),
        pair("b", "Where?", "At sea.", "At"),
        pair("c", "Why", "No.", "No, no"),
    ]
    pairs, config = (
        encode_pairs(rows, CharTokenizer(), 64),
        DPOConfig(steps=4, batch_size=2, beta=0.1, loss=loss),
    )
    runs = []
    for second in (False, True):
        policy = adapted(trained=False, dtype=torch.float32)
        reference = moved(dtype=torch.float32) if second else Reference(policy)
        runs.append(
            (list(dpo_steps(policy, reference, pairs, config)), adapter_state(policy))
        )
    assert runs[0][0] == runs[1][0] and runs[0][0][-1]["margin"] != 0
    assert all(
        torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items()
    )


def test_a_reference_knows_the_configuration_and_gives_no_gradient():
    model = adapted()
    logits = Reference(model)(TOKENS)
    assert Reference(model).config is model.config and not logits.requires_grad
    assert isinstance(Reference(model), nn.Module)
