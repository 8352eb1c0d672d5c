"""The four stages on a real model's steps: by hand, from their first numbers, and taken
up again bit for bit.
"""

import copy
from dataclasses import replace

import pytest

pytest.importorskip("transformers")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from real_models import encoded_pairs, examples, folder, tokenizer  # noqa: E402
from torch import nn  # noqa: E402

from posttrain.chat import IGNORE  # noqa: E402
from posttrain.logprobs import pack, token_logprobs  # noqa: E402
from posttrain.lora.adapters import Reference  # noqa: E402
from posttrain.ppo import Models  # noqa: E402
from posttrain.real.adapter import adapt  # noqa: E402
from posttrain.real.checkpoint import take_averages  # noqa: E402
from posttrain.real.data import end_token, pad_token  # noqa: E402
from posttrain.real.model import (  # noqa: E402
    LanguageModel,
    ScoringModel,
    TokenValues,
    load_model,
    start_scores,
)
from posttrain.real.training import (  # noqa: E402
    RealConfig,
    Replay,
    build_descent,
    collect_real_rollout,
    normalise_scores,
    ppo_config,
    real_dpo_steps,
    real_ppo_steps,
    real_reward_steps,
    real_sft_steps,
    reseed,
    write_answers,
)

CONFIG = RealConfig(
    steps=4, batch_size=4, micro_batch_size=2, lr=1e-2, max_new_tokens=12
)
PAD, END = 0, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def policy(kind="llama", adapters=True, dtype=torch.float64, **options):
    inner = load_model(folder(kind)).to(dtype)
    if adapters:
        adapt(inner, 4, 8.0, generator())
    return LanguageModel(inner, **options)


def judge(kind="llama", adapters=True, dtype=torch.float64):
    inner = start_scores(load_model(folder(kind), scores=True), generator()).to(dtype)
    inner.score.weight.data *= 1000
    if adapters:
        adapt(inner, 4, 8.0, generator())
    inner.score.to(dtype)
    return ScoringModel(inner)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_special_tokens_are_those_that_these_tests_use():
    assert (pad_token(tokenizer()), end_token(tokenizer())) == (PAD, END)


def test_a_wrapped_model_gives_the_models_logits_whatever_stands_right():
    model, rows = policy(adapters=False), [tokens for tokens, _ in examples()[:3]]
    padded, _ = pack([row[:1] for row in rows], [row[1:] for row in rows], PAD)
    for row, logits in zip(rows, model(padded)):
        alone = model.inner(input_ids=torch.tensor([row])).logits[0].float()
        torch.testing.assert_close(logits[: len(row)], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_the_first_steps_of_sft_are_those_of_adamw_on_the_graded_mean(kind):
    config = replace(CONFIG, steps=2, batch_size=10, max_gradient_norm=0.5)
    model = policy(kind, adapters=False, dtype=torch.float32)
    twin = copy.deepcopy(model.inner)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=config.lr, weight_decay=0.0)
    seen = list(
        real_sft_steps(model, examples(), config, PAD, build_descent(config, model))
    )
    for step in range(2):
        surprises = []
        for tokens, labels in examples():
            logits = twin(input_ids=torch.tensor([tokens])).logits[0]
            surprises.append(
                F.cross_entropy(
                    logits[:-1],
                    torch.tensor(labels[1:]),
                    ignore_index=IGNORE,
                    reduction="sum",
                )
            )
        n = sum(sum(label != IGNORE for label in labels) for _, labels in examples())
        (sum(surprises) / n).backward()
        assert (
            seen[step]["loss"] == pytest.approx(float(sum(surprises)) / n, abs=2e-5)
            and seen[step]["graded"] == n
        )
        norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        assert seen[step]["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / 2)
        optimizer.step()
        optimizer.zero_grad()


def test_replayed_text_is_learned_beside_the_conversations_with_its_weight():
    text = Replay(torch.arange(3, 63), [])
    config = replace(CONFIG, steps=1, replay_length=59, replay_weight=0.5)
    found = {}
    for name, replayed in {"none": None, "text": text}.items():
        model = policy(adapters=False)
        (seen,) = real_sft_steps(
            model, examples(), config, PAD, build_descent(config, model), 0, replayed
        )
        found[name] = seen
    twin = policy(adapters=False)
    # There is one excerpt of 59 tokens that leaves a last target: the first
    logits = twin(text.text[None, :59])[0]
    expected = F.cross_entropy(logits, text.text[1:60])
    assert found["text"]["replay"] == pytest.approx(float(expected.detach()), rel=1e-9)
    assert found["text"]["loss"] == found["none"]["loss"]
    rows = examples()
    order = torch.randperm(len(rows), generator=generator(config.seed)).tolist()
    batch = [rows[i] for i in order[:4]]
    n = sum(sum(label != IGNORE for label in labels[1:]) for _, labels in batch)
    loss = 0.5 * expected
    for tokens, labels in batch:
        logits = twin(torch.tensor([tokens]))[0, :-1]
        targets = torch.tensor(labels[1:])
        loss = (
            loss
            + F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum") / n
        )
    loss.backward()
    norm = nn.utils.clip_grad_norm_(twin.parameters(), 1e9)
    assert found["text"]["gradient_norm"] == pytest.approx(float(norm), rel=1e-6)


def test_what_a_tokenizer_puts_before_any_text_stands_before_an_excerpt_ungraded():
    model, text = policy(adapters=False), torch.arange(3, 63)
    part = Replay(text, [1, 2]).part(59, generator(), PAD)
    loss, noted = part(model)
    logits = model(torch.tensor([[1, 2, *text.tolist()]]))[0]  # (T, V)
    expected = F.cross_entropy(logits[2:61], text[1:60])
    assert noted["graded"] == 59
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_gradients_added_up_in_parts_give_the_run_of_one_pass_over_all(stage):
    runs = []
    for size in (1, 3, 4):
        runs.append(
            [
                step["loss"]
                for step in steps(stage, replace(CONFIG, micro_batch_size=size))[0]
            ]
        )
    for run in runs[1:]:
        assert run == pytest.approx(runs[0], abs=1e-5)


def steps(stage, config, first=0, before=None):
    """A stage's steps, with all that is trained in them; before: (weights, optimiser's
    state) to start from.
    """
    if stage == "ppo":
        return ppo(config, first, before)
    model = judge() if stage == "reward" else policy()
    descent = build_descent(config, model)
    restore(model, descent, before)
    if stage == "sft":
        return (
            real_sft_steps(model, examples(), config, PAD, descent, first),
            model,
            descent,
        )
    if stage == "reward":
        return (
            real_reward_steps(model, encoded_pairs(), config, PAD, descent, first),
            model,
            descent,
        )
    return (
        real_dpo_steps(
            model, Reference(model), encoded_pairs(), config, PAD, descent, first
        ),
        model,
        descent,
    )


def ppo(config, first=0, before=None):
    config, models = replace(config, stage="ppo", lr=1e-3), four()
    both = nn.ModuleList([models.policy, models.value_model])
    descent = build_descent(config, both)
    restore(both, descent, before)
    beta = before[2] if before else None
    return (
        real_ppo_steps(models, prompts(), config, PAD, END, descent, first, beta),
        both,
        descent,
    )


def restore(model, descent, before):
    if before is not None:
        model.load_state_dict(before[0])
        take_averages(descent.optimizers[0], before[1]["state"])


def four():
    one = policy()
    return Models(
        one, TokenValues(judge()), Reference(one), judge().requires_grad_(False)
    )


def prompts():
    return [prompt for prompt, _, _ in encoded_pairs()]


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_a_run_taken_up_in_the_middle_is_the_unbroken_run_bit_for_bit(stage):
    whole, model, _ = steps(stage, CONFIG)
    whole = list(whole)
    begun, other, descent = steps(stage, CONFIG)
    seen = [next(begun), next(begun)]
    before = (
        copy.deepcopy(other.state_dict()),
        copy.deepcopy(descent.optimizers[0].state_dict()),
        seen[-1].get("next_beta"),
    )
    rest, other, _ = steps(stage, CONFIG, 2, before)
    assert seen + list(rest) == whole
    assert len(whole) == 4 and all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters())
    )


def test_dpo_starts_at_log_2_and_its_reference_is_the_model_without_adapters():
    model, twin = policy(), policy(adapters=False)
    twin.requires_grad_(False)
    descent = build_descent(CONFIG, model)
    seen = list(
        real_dpo_steps(model, Reference(model), encoded_pairs(), CONFIG, PAD, descent)
    )
    assert seen[0]["loss"] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)
    assert seen[0]["margin"] == 0 and seen[-1]["loss"] < 0.65
    again = policy()
    theirs = list(
        real_dpo_steps(
            again, twin, encoded_pairs(), CONFIG, PAD, build_descent(CONFIG, again)
        )
    )
    for mine, other in zip(seen, theirs):
        assert mine == pytest.approx(other, abs=1e-5)


def test_a_reward_model_learns_to_rank_its_pairs_from_the_number_at_the_last_token():
    model = judge()
    config = replace(CONFIG, steps=30, batch_size=8, lr=5e-3)
    seen = list(
        real_reward_steps(
            model, encoded_pairs(), config, PAD, build_descent(config, model)
        )
    )
    assert seen[-1]["accuracy"] == 1.0 and seen[-1]["loss"] < seen[0]["loss"]
    prompt, chosen, _ = encoded_pairs()[0]
    tokens, mask = pack([prompt], [chosen], PAD)
    padded, wider = F.pad(tokens, (0, 3)), F.pad(mask, (0, 3))
    last = model.token_scores(tokens)[0, len(prompt) + len(chosen) - 1]
    torch.testing.assert_close(model(padded, wider)[0], last, rtol=0, atol=1e-5)


def test_answers_ignore_neighbours_and_have_the_probabilities_of_one_pass():
    model, asked = policy(adapters=False, dtype=torch.float32), prompts()[:3]
    assert len({len(prompt) for prompt in asked}) > 1
    # Make the first token that is drawn certain, at each place, so that no randomness
    # is left
    with torch.no_grad():
        model.inner.get_output_embeddings().weight.mul_(200)
    together = write_answers(model, asked, 10, END, generator())
    alone = [
        write_answers(model, [prompt], 10, END, generator(5))[0] for prompt in asked
    ]
    assert together == alone
    tokens, mask = pack(asked, together, PAD)
    likeliest = model(tokens).argmax(-1)[:, :-1]
    assert torch.equal(likeliest[mask[:, 1:]], tokens[:, 1:][mask[:, 1:]])


def test_answers_stop_after_their_end_and_are_drawn_from_the_whole_distribution():
    model, asked = policy(adapters=False, dtype=torch.float32), prompts()[:1]
    drawn = write_answers(model, asked * 3000, 1, END, generator())
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=384) / 3000
    with torch.no_grad():
        odds = model(torch.tensor(asked))[0, -1].softmax(-1)
    assert 0.5 * (counts - odds).abs().sum() < 0.2 and (counts > 0).sum() > 200
    answers = write_answers(model, asked * 200, 12, END, generator())
    assert all(END not in answer[:-1] for answer in answers) and any(
        answer[-1] == END for answer in answers
    )
    assert all(len(answer) == 12 or answer[-1] == END for answer in answers)


def test_a_rollout_holds_what_each_model_says_of_the_policys_answers():
    models = four()
    with torch.no_grad():
        for name, parameter in models.policy.named_parameters():
            if name.endswith("adapter.B"):
                parameter.normal_(std=0.3, generator=generator(1))
    rollout = collect_real_rollout(
        models, prompts()[:4], ppo_config(CONFIG, 8), PAD, END, generator(), 3
    )
    tokens, actions = rollout.tokens, rollout.actions
    with torch.no_grad():
        base = LanguageModel(load_model(folder()).double())
        for theirs, model in (
            (rollout.logprobs, models.policy),
            (rollout.reference_logprobs, base),
        ):
            torch.testing.assert_close(
                theirs,
                token_logprobs(model(tokens), tokens) * actions,
                rtol=0,
                atol=1e-5,
            )
        mask = F.pad(actions, (1, 0))
        scores = torch.where(rollout.ended, models.reward_model(tokens, mask), -2.0)
        torch.testing.assert_close(rollout.scores, scores, rtol=0, atol=1e-5)
        values = models.value_model(tokens)[:, :-1] * actions
        torch.testing.assert_close(rollout.values, values, rtol=0, atol=1e-5)
    assert rollout.ended.tolist() == [
        bool(row[mask[i]][-1] == END) for i, row in enumerate(tokens)
    ]
    assert not torch.equal(rollout.logprobs, rollout.reference_logprobs)


def test_ppo_starts_with_ratio_1_and_kl_0_and_leaves_the_frozen_models_alone():
    models = four()
    before = weights(models.reward_model), weights(models.policy)
    config = replace(CONFIG, stage="ppo", lr=1e-3)
    normalise_scores(models, prompts(), config, PAD, END)
    descent = build_descent(config, models.policy, models.value_model)
    seen = list(real_ppo_steps(models, prompts(), config, PAD, END, descent))
    assert seen[0]["kl"] == 0 and all(step["first_ratio_error"] == 0 for step in seen)
    assert seen[-1]["kl"] != 0 and seen[-1]["beta"] != seen[0]["beta"]
    assert (
        descent.optimizers[0].defaults["eps"] == 1e-5 and "gradient_norm" not in seen[0]
    )
    for name, value in weights(models.reward_model).items():
        assert torch.equal(value, before[0][name])
    for name, value in weights(models.policy).items():
        assert torch.equal(value, before[1][name]) == ("adapter" not in name)


def test_normalised_scores_have_mean_0_and_deviation_1_on_the_policys_own_answers():
    models, config = four(), replace(CONFIG, batch_size=8)
    normalise_scores(models, prompts(), config, PAD, END)
    answers = write_answers(
        models.policy, prompts(), 12, END, reseed(generator(), config, -1)
    )
    with torch.no_grad():
        scores = models.reward_model(*pack(prompts(), answers, PAD))
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std().item() == pytest.approx(1, abs=1e-3)
    assert models.value_model.model.scale == models.reward_model.scale


def test_checkpointing_and_bf16_leave_the_loss_what_it_is_or_nearly():
    plain, saved, half = (
        list(
            real_sft_steps(model, examples(), CONFIG, PAD, build_descent(CONFIG, model))
        )
        for model in (
            policy(dtype=torch.float32),
            policy(dtype=torch.float32, checkpointing=True),
            policy(dtype=torch.float32, bf16=True),
        )
    )
    assert [step["loss"] for step in saved] == pytest.approx(
        [step["loss"] for step in plain], abs=1e-5
    )
    for a, b in zip(plain, half):
        assert 0 < abs(a["loss"] - b["loss"]) < 0.05


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(stage="grpo"), "stage is 'grpo': use one of \\('sft'"),
        (dict(steps=0), "steps is 0: use at least 1"),
        (dict(lr=0.0), "lr is 0.0: use a number above 0"),
        (dict(beta=float("nan")), "beta is nan"),
        (dict(nll_weight=-1.0), "nll_weight is -1.0: use at least 0"),
        (dict(label_smoothing=0.5), "label_smoothing is 0.5: use less than 0.5"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_a_loss_that_is_no_number_stops_the_run():
    model = policy(dtype=torch.float32)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(ValueError, match="the loss of step 0 is nan: lower the rate"):
        next(
            real_sft_steps(model, examples(), CONFIG, PAD, build_descent(CONFIG, model))
        )


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_moves_no_weight(broken):
    model = policy(dtype=torch.float32)
    descent, before = build_descent(CONFIG, model), weights(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, broken)
    with pytest.raises(
        ValueError, match=f"the gradient of step 3 is {broken}: lower the rate"
    ):
        descent.step(3)
    assert all(
        torch.equal(before[name], value) for name, value in weights(model).items()
    )


def test_a_score_that_is_no_number_is_refused():
    models, config = four(), replace(CONFIG, stage="ppo")
    with torch.no_grad():
        models.reward_model.inner.score.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="score of an answer is NaN or infinite"):
        next(
            real_ppo_steps(
                models,
                prompts(),
                config,
                PAD,
                END,
                build_descent(config, models.policy),
            )
        )


def test_the_same_score_for_all_answers_has_no_unit():
    models = four()
    with torch.no_grad():
        models.reward_model.inner.score.weight.zero_()
    with pytest.raises(ValueError, match="all responses have the same score"):
        normalise_scores(models, prompts(), CONFIG, PAD, END)
    assert (models.reward_model.shift, models.reward_model.scale) == (0.0, 1.0)
