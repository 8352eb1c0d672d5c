"""Logits where a token is graded alone: the losses and gradients of all logits, for
less.
"""

import copy
from dataclasses import replace

import pytest

pytest.importorskip("transformers")
import torch  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from real_models import encoded_pairs, examples, folder  # noqa: E402
from torch import nn  # noqa: E402

from posttrain.batches import follow  # noqa: E402
from posttrain.chat import IGNORE  # noqa: E402
from posttrain.dpo import DPOConfig, dpo_batches  # noqa: E402
from posttrain.logprobs import get_response_log_probs  # noqa: E402
from posttrain.lora.adapters import Reference  # noqa: E402
from posttrain.real.adapter import adapt  # noqa: E402
from posttrain.real.graded import (  # noqa: E402
    graded_columns,
    graded_log_probs,
    graded_sft_loss,
    head_reads,
    logits_at,
)
from posttrain.real.model import (  # noqa: E402
    LanguageModel,
    frozen_copy,
    library,
    load_model,
)
from posttrain.real.training import (  # noqa: E402
    RealConfig,
    build_descent,
    real_dpo_steps,
    real_sft_steps,
)
from posttrain.sft import SFTConfig, count_graded, sft_batches, sft_loss  # noqa: E402

V, T = 97, 14
LLAMA = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=0,
)
GPT2 = dict(vocab_size=V, n_positions=64, n_embd=32, n_layer=2, n_head=4)
GPT2 |= dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
MPT = dict(vocab_size=V, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)
# What a model does behind its head is done to the few logits as well
KINDS = {
    "llama": ("LlamaConfig", LLAMA),
    "gpt2": ("GPT2Config", GPT2),
    "capped": ("Gemma2Config", LLAMA | dict(final_logit_softcapping=0.5)),
    "scaled": ("CohereConfig", LLAMA | dict(logit_scale=0.25)),
    "divided": ("GraniteConfig", LLAMA | dict(logits_scaling=3.0)),
    "scaled head": ("MptConfig", MPT | dict(logit_scale=0.5)),
}


def random_model(kind="llama", dtype=torch.float64):
    name, options = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(library(), name)(**options)
        return library().AutoModelForCausalLM.from_config(config).to(dtype)


def language_model(kind="llama", **options):
    return LanguageModel(random_model(kind), **options)


def rows():
    """Tokens and labels (4, T): one to three turns, unequal lengths, and a row without
    an answer. The first row's first token has a label, which grades nothing.
    """
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, V, (4, T), generator=generator)
    graded = torch.zeros(4, T, dtype=torch.bool)
    for row, (begin, end) in [(0, (0, 1)), (0, (4, 6)), (0, (7, 9)), (0, (10, 14))] + [
        (1, (3, 7)),
        (2, (1, 2)),
        (2, (5, 6)),
    ]:
        graded[row, begin:end] = True
    return tokens, torch.where(graded, tokens, IGNORE), graded


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(one, other, rtol=1e-6, atol=1e-9):
    assert one.keys() == other.keys() and one
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=rtol, atol=atol)


class Watched:
    """The shapes of what a model's head is given."""

    def __init__(self, model):
        self.shapes = []
        head = getattr(model, "inner", model).get_output_embeddings()
        head.register_forward_hook(
            lambda module, inputs, output: self.shapes.append(tuple(inputs[0].shape))
        )


def test_the_columns_by_hand():
    _, labels, graded = rows()
    columns, kept = graded_columns(graded)
    # Before each graded token and at it; a label at the first token counts for nothing
    assert columns[0].tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert columns[1, :5].tolist() == [2, 3, 4, 5, 6] and not kept[1, 5:].any()
    assert columns[2, :4].tolist() == [0, 1, 4, 5]
    assert kept[2].tolist() == [False, True, False, True] + [False] * 7
    assert not kept[3].any() and columns.shape == (4, 11)
    shorter = labels.gather(1, columns).masked_fill(~kept, IGNORE)
    assert count_graded(shorter) == count_graded(labels) == int(graded.sum()) - 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1))
def test_each_graded_token_stands_behind_the_one_it_stood_behind(masks):
    graded = torch.tensor(masks)
    columns, kept = graded_columns(graded)
    found = set()
    for row in range(len(graded)):
        assert len(set(columns[row].tolist())) == columns.size(1)
        for j in kept[row].nonzero().flatten().tolist():
            assert j > 0 and columns[row, j - 1] == columns[row, j] - 1
            found.add((row, int(columns[row, j])))
    assert found == {(i, p) for i, p in graded.nonzero().tolist() if p > 0}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_of_sft_are_those_of_all_logits(kind):
    tokens, labels, _ = rows()
    one, other = language_model(kind), language_model(kind)
    n = count_graded(labels)
    loss = graded_sft_loss(one, tokens, labels, n)
    whole = sft_loss(other(tokens), labels, n)
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    loss.backward()
    whole.backward()
    same(gradients(one), gradients(other))


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_and_their_gradients_are_those_of_all_logits(kind):
    tokens, _, graded = rows()
    one, other = language_model(kind), language_model(kind)
    mine = graded_log_probs(one, tokens, graded)
    theirs = get_response_log_probs(other, tokens, graded)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    assert mine[3] == 0 and (mine[:3] < 0).all()
    weights = torch.tensor([1.0, -2.0, 3.0, 5.0])
    (weights * mine).sum().backward()
    (weights * theirs).sum().backward()
    same(gradients(one), gradients(other))


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_reads_the_kept_columns_and_no_other(kind):
    tokens, _, graded = rows()
    model, columns = random_model(kind), graded_columns(graded)[0]
    seen = Watched(model)
    few = logits_at(model, tokens, columns)
    assert seen.shapes == [(4, 11, 32)] and few.shape == (4, 11, V)
    whole = model(input_ids=tokens).logits
    assert seen.shapes[1:] == [(4, T, 32)]
    torch.testing.assert_close(few, torch.take_along_dim(whole, columns[..., None], 1))


def test_columns_that_are_all_of_a_row_give_all_logits():
    tokens = rows()[0]
    columns, _ = graded_columns(torch.ones_like(tokens, dtype=torch.bool))
    assert torch.equal(columns, torch.arange(T).expand(4, T))
    model = language_model()
    torch.testing.assert_close(model(tokens, columns), model(tokens))


def test_rows_without_an_answer_have_a_loss_of_0_and_gradients_of_0():
    tokens, labels, graded = (x[3:] for x in rows())
    model = language_model()
    loss = graded_sft_loss(model, tokens, labels, 7)
    loss.backward()
    assert loss == 0 and all((g == 0).all() for g in gradients(model).values())
    assert graded_log_probs(model, tokens, graded).tolist() == [0.0]


def test_the_hook_is_gone_afterwards_and_after_an_error():
    tokens, _, graded = rows()
    model, columns = random_model(), graded_columns(graded)[0]
    hooks = model.get_output_embeddings()._forward_pre_hooks
    logits_at(model, tokens, columns)
    assert not hooks
    with pytest.raises(RuntimeError, match="cut off"), head_reads(model, columns, T):
        assert len(hooks) == 1
        raise RuntimeError("cut off")
    assert not hooks
    with pytest.raises(IndexError):
        logits_at(model, tokens + V, columns)
    assert not hooks


class Odd(nn.Module):
    """A model whose head is nowhere to be found, or is given rows without a batch."""

    def __init__(self, hidden):
        super().__init__()
        self.inside, self.hidden = random_model(), hidden

    def get_output_embeddings(self):
        return None if self.hidden else self.inside.lm_head

    def forward(self, input_ids, use_cache):
        states = self.inside.model(input_ids=input_ids).last_hidden_state  # (B, T, C)
        logits = self.inside.lm_head(states.flatten(0, 1))
        made = type("Output", (), {})()
        made.logits = logits.view(*input_ids.shape, -1)
        return made


@pytest.mark.parametrize("hidden", [True, False])
def test_a_model_that_hides_its_head_computes_all_and_gives_the_columns(hidden):
    tokens, _, graded = rows()
    columns, _ = graded_columns(graded)
    expected = logits_at(random_model(), tokens, columns)
    torch.testing.assert_close(logits_at(Odd(hidden), tokens, columns), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "capped"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_and_new_tokens_rows_get_the_same_gradients(kind, checkpointing):
    tokens, labels, graded = rows()
    tokens[0, 5] = labels[0, 5] = 7
    models = []
    for _ in range(2):
        inner = random_model(kind)
        adapt(inner, 4, 8.0, torch.Generator().manual_seed(3), [7, 11])
        for name, p in inner.named_parameters():
            if p.requires_grad:
                generator = torch.Generator().manual_seed(len(name))
                p.data.normal_(std=0.2, generator=generator)
        models.append(LanguageModel(inner, checkpointing=checkpointing))
    one, other = models
    seen = Watched(one)
    loss = graded_sft_loss(one, tokens, labels, 9)
    whole = sft_loss(other(tokens), labels, 9)
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    loss.backward()
    whole.backward()
    same(gradients(one), gradients(other), rtol=1e-5, atol=1e-8)
    assert any(name.endswith("adapter.rows") for name in gradients(one))
    assert seen.shapes == [(4, 11, 32)]
    said = graded_log_probs(Reference(one), tokens, graded)
    plain = get_response_log_probs(language_model(kind), tokens, graded)
    torch.testing.assert_close(said, plain, rtol=1e-6, atol=1e-6)


def test_in_bfloat16_the_losses_are_as_near_as_that_precision_is():
    tokens, labels, _ = rows()
    model = LanguageModel(random_model(dtype=torch.float32), bf16=True)
    loss = graded_sft_loss(model, tokens, labels, 12)
    loss.backward()
    mine = gradients(model)
    model.zero_grad()
    whole = sft_loss(model(tokens), labels, 12)
    whole.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, whole, rtol=2e-3, atol=0)
    same(mine, gradients(model), rtol=0.05, atol=2e-3)


CONFIG = RealConfig(steps=5, batch_size=4, micro_batch_size=3, lr=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_run_of_sft_is_the_books_run(kind):
    one = LanguageModel(load_model(folder(kind)).double())
    other, rows = copy.deepcopy(one), examples()
    seen = Watched(one)
    mine = list(real_sft_steps(one, rows, CONFIG, 0, build_descent(CONFIG, one)))
    plain = SFTConfig(steps=5, batch_size=4, micro_batch_size=3, replay=0)
    batches = sft_batches(rows, torch.empty(0), plain, 0)
    theirs = list(follow(other, batches, build_descent(CONFIG, other)))
    assert [step["graded"] for step in mine] == [step["graded"] for step in theirs]
    for step, expected in zip(mine, theirs, strict=True):
        assert step == pytest.approx(expected, rel=1e-5)
    longest = max(len(tokens) for tokens, _ in rows)
    assert len(seen.shapes) == 10 and all(k < longest for _, k, _ in seen.shapes)


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("smoothing, weight", [(0.0, 0.0), (0.2, 0.0), (0.0, 3.0)])
def test_a_run_of_dpo_is_the_books_run(size, adapters, smoothing, weight):
    brakes = dict(label_smoothing=smoothing, nll_weight=weight)
    sizes = dict(micro_batch_size=size, batch_size=6)
    config = replace(CONFIG, stage="dpo", **sizes, **brakes)
    runs, pairs = [], encoded_pairs()
    plain = DPOConfig(steps=5, beta=config.beta, **sizes, **brakes)
    for ours in (True, False):
        inner = load_model(folder()).double()
        if adapters:
            adapt(inner, 4, 8.0, torch.Generator().manual_seed(3))
        policy = LanguageModel(inner)
        reference = Reference(policy) if adapters else frozen_copy(policy)
        descent = build_descent(config, policy)
        if ours:
            steps = real_dpo_steps(policy, reference, pairs, config, 0, descent)
        else:
            steps = follow(policy, dpo_batches(reference, pairs, plain, 0), descent)
        runs.append(list(steps))
    for step, expected in zip(*runs, strict=True):
        assert step.keys() == expected.keys()
        assert step == pytest.approx(expected, rel=1e-4, abs=2e-6)


def test_the_reference_is_asked_once_a_pair_and_in_the_answers_alone():
    policy = LanguageModel(load_model(folder()))
    reference, pairs = frozen_copy(policy), encoded_pairs()
    config = replace(CONFIG, stage="dpo", batch_size=4, steps=6)
    seen = Watched(reference)
    descent = build_descent(config, policy)
    list(real_dpo_steps(policy, reference, pairs, config, 0, descent))
    assert sum(rows for rows, _, _ in seen.shapes) == 2 * len(pairs)
    longest = max(len(answer) for _, *answers in pairs for answer in answers)
    assert all(k <= longest + 1 for _, k, _ in seen.shapes)
