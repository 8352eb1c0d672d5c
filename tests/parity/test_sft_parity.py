"""Fine-tuning's masks and losses: ours, transformers' chat templates and causal loss,
and TRL's chunked one.
"""

import copy

import pytest
import torch
from parity.oracles import (
    DTYPES,
    agree,
    as_gpt2,
    body_gradients,
    chat_tokenizer,
    in_float64,
    near,
    peer_gradients,
    policy_of,
    same_gradients,
    texts,
)
from tiny import PAD, TOKENIZER, normal
from transformers.loss.loss_utils import ForCausalLMLoss
from trl.trainer.sft_trainer import (
    DataCollatorForLanguageModeling,
    _chunked_cross_entropy_loss,
)

from posttrain.batches import add_gradients
from posttrain.chat import IGNORE, build_labels, collate, render, render_prompt
from posttrain.data import datasets
from posttrain.pretrain import next_token_loss
from posttrain.sft import (
    conversation_parts,
    count_graded,
    encode_conversations,
    sft_loss,
)


def examples(seed):
    """(tokens, labels) of unlike lengths: one label, several, and, in the last,
    none.
    """
    rows = [
        (prompt + response, [IGNORE] * len(prompt) + response)
        for prompt, response in zip(*texts(seed))
    ]
    return rows + [([1, 2, 3], [IGNORE] * 3)]


# The mask


def test_conversations_get_the_tokens_and_labels_of_transformers_template():
    peer, conversations = chat_tokenizer(), datasets.conversations()
    ours = encode_conversations(conversations, TOKENIZER, 10_000)
    for (tokens, labels), conversation in zip(ours, conversations):
        theirs = peer.apply_chat_template(
            conversation["messages"],
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        masked = [
            t if graded else -100
            for t, graded in zip(theirs["input_ids"], theirs["assistant_masks"])
        ]
        assert tokens == theirs["input_ids"] and labels == masked
    assert len(ours) > 20


def test_turns_an_empty_answer_and_a_prompt_are_rendered_as_by_transformers():
    peer, user, assistant = chat_tokenizer(), "Who goes\nthere?", "A friend."
    messages = [
        dict(role=role, content=text)
        for role, text in (
            ("user", user),
            ("assistant", ""),
            ("user", ""),
            ("assistant", assistant),
            ("user", user),
        )
    ]
    theirs = peer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens = render(messages, TOKENIZER)
    assert tokens == theirs["input_ids"]
    assert [label != IGNORE for label in build_labels(tokens, TOKENIZER)] == [
        *map(bool, theirs["assistant_masks"])
    ]
    asked = peer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )
    assert render_prompt(messages, TOKENIZER) == asked["input_ids"]


@pytest.mark.parametrize("seed", range(4))
def test_batches_are_padded_and_masked_as_by_trls_collator(seed):
    rows = examples(seed)
    theirs = DataCollatorForLanguageModeling(pad_token_id=PAD)(
        [dict(input_ids=t, labels=g) for t, g in rows]
    )
    tokens, labels = collate(rows, PAD)
    assert torch.equal(tokens, theirs["input_ids"]) and torch.equal(
        labels, theirs["labels"]
    )


# The loss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_transformers_causal_one_over_the_graded_tokens(seed, scale, dtype):
    tokens, labels = collate(examples(seed), PAD)

    def theirs(logits):
        return ForCausalLMLoss(logits, labels, 69)

    agree(
        lambda x: sft_loss(x, labels),
        theirs,
        [scale * normal(*tokens.shape, 69)],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [3, 64])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_trls_default_one_which_never_holds_all_logits_at_once(
    seed, chunk, dtype
):
    tokens, labels = collate(examples(seed), PAD)

    def theirs(hidden, head):
        return _chunked_cross_entropy_loss(hidden, head, chunk, labels)[0]

    inputs = [normal(*tokens.shape, 8), normal(69, 8, seed=1)]
    agree(
        lambda hidden, head: sft_loss(hidden @ head.mT, labels), theirs, inputs, dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_batch_in_parts_has_the_loss_and_gradients_of_transformers_on_the_whole(
    size, dtype
):
    model = policy_of(0, dtype)
    peer = as_gpt2(copy.deepcopy(model).double())
    tokens, labels = collate(examples(2), PAD)
    loss, _ = add_gradients(model, conversation_parts(examples(2), size, PAD))
    with in_float64():
        theirs = peer(tokens, attention_mask=(tokens != PAD).long(), labels=labels).loss
    theirs.backward()
    near(torch.tensor(loss, dtype=dtype), theirs, dtype)
    same_gradients(body_gradients(model), peer_gradients(peer.transformer), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_parts_loss_is_transformers_with_the_whole_batchs_graded_tokens(dtype):
    tokens, labels = collate(examples(1), PAD)
    n = count_graded(labels)
    assert n == (labels[:, 1:] != -100).sum() > count_graded(labels[:1]) > 0

    def theirs(logits):
        return ForCausalLMLoss(
            logits, labels[:1], 69, num_items_in_batch=torch.tensor(n)
        )

    agree(
        lambda x: sft_loss(x, labels[:1], n),
        theirs,
        [normal(1, tokens.size(1), 69)],
        dtype,
    )


def test_a_batch_without_graded_tokens_is_refused_where_transformers_says_nan():
    labels = torch.full((2, 4), IGNORE)
    assert ForCausalLMLoss(normal(2, 4, 69), labels, 69).isnan()
    with pytest.raises(ValueError, match="no token of this batch is graded"):
        sft_loss(normal(2, 4, 69), labels)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_of_plain_text_is_transformers_with_the_text_as_labels(dtype):
    model = policy_of(1, dtype)
    peer = as_gpt2(copy.deepcopy(model).double())
    text = torch.randint(69, (3, 21), generator=torch.Generator().manual_seed(0))
    loss = next_token_loss(model, text[:, :-1], text[:, 1:])
    loss.backward()
    with in_float64():
        theirs = peer(text, labels=text).loss
    theirs.backward()
    near(loss, theirs, dtype)
    same_gradients(body_gradients(model), peer_gradients(peer.transformer), dtype)
