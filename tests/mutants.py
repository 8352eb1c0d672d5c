"""The mutation check: break the package on purpose, one line at a time, and see that a
test notices.

Each mutant of the list below is one plausible mistake, made in a copy of the package in
a temporary folder, and names the test that has to fail because of it. A test that fails
for every mistake we could think of is the reason to believe it where it passes. The
named tests first run on the package as it is, where all have to pass.

    python tests/mutants.py [--jobs N] [--markdown FOLDER]

prints a table with a row per mutant, and ends with exit code 1 if any of them is not
caught. --markdown writes the table, without its last column, for the book, and the list
of the details, each with its source, its code and its tests; only where all were
caught.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "code"))

from posttrain.practice.patches import (  # noqa: E402
    Patch,
    broken_definition,
    patched_source,
)

PACKAGE = Path("code") / "posttrain"
TIMEOUT = 300  # seconds for one mutant's test, the start of Python and PyTorch included

# What has to be right, by number; every one has a mutant at least.
DETAILS = {
    "SFT 1": "Each position is graded by the token after it.",
    "SFT 2": "The loss is the mean over the graded tokens of the whole batch; a batch "
    "with "
    "none is refused.",
    "SFT 3": "Padding is on the right, has a token of its own, and is not graded.",
    "SFT 4": "The assistant's end token is graded; the user's text and the role tokens "
    "are "
    "not.",
    "SFT 5": "The prompt's tokens are an exact prefix of prompt and response.",
    "SFT 6": "Growing the vocabulary leaves the old tokens' logits as they were.",
    "Reward model 1": (
        "The score is read at the last real token; the end is appended alike in "
        "training and use."
    ),
    "Reward model 2": (
        "The head starts small, with bias 0; the rate falls to 0; nothing is dropped "
        "out."
    ),
    "Reward model 3": "Pairs that are the same after the cut to the context are left "
    "out.",
    "Reward model 4": "Scores have mean 0 and deviation 1 on the reference policy's "
    "own "
    "responses.",
    "Reward model 5": "Centring adds the mean of (chosen + rejected) squared.",
    "Rollouts 1": (
        "Padding on the left shifts positions and is not looked at: no row depends on"
        " its neighbours."
    ),
    "Rollouts 2": (
        "One temperature for samples and all log-probabilities; nothing is cut from "
        "the distribution."
    ),
    "Rollouts 3": "Nothing is dropped out in any of the four models.",
    "Rollouts 4": (
        "A response stops after its first end, which is an action; without one it "
        "gets the stated score."
    ),
    "Rollouts 5": "A value is read before its token is known.",
    "Rollouts 6": "Sampling with the KV cache gives the log-probabilities of one whole "
    "pass.",
    "PPO 1": "The reward is -beta times the KL at each token, and the score once, at "
    "the "
    "last.",
    "PPO 2": "k1, k2 and k3 are what they say, and k3 keeps its digits.",
    "PPO 3": "Whitening divides by n, and one value alone is no division by 0.",
    "PPO 4": "GAE goes backwards, with gamma 1, lambda 0.95 and nothing after the end.",
    "PPO 5": "Returns are advantages plus values, before the whitening.",
    "PPO 6": "Ratio and value are clipped, the larger loss counts, and means are over "
    "actions.",
    "PPO 7": "At first the ratio is 1, and the KL to the reference 0.",
    "PPO 8": "Beta follows the KL of whole responses, held at 20%.",
    "PPO 9": "A value model of its own, from zero where asked; Adam's eps 1e-5; the "
    "rate "
    "falls to 0; a new order per epoch.",
    "PPO 10": "Only policy and value model change.",
    "DPO 1": "A response's log-probability is the sum over its tokens, the end "
    "included, "
    "the prompt not.",
    "DPO 2": "Implicit rewards are beta times the log-ratio, without a gradient.",
    "DPO 3": "The loss starts at ln 2, and its gradient is the closed form.",
    "DPO 4": "Smoothing, the chosen answers' loss and the losses beside DPO's are "
    "their papers' formulas, on sums or means as there.",
    "DPO 5": "Both answers go through one pass, and what the reference said once is "
    "what "
    "it would say now.",
    "DPO 6": "A constant on both log-ratios changes nothing; a swapped pair turns the "
    "margin's sign.",
    "LoRA 1": "B starts at zero and A does not: nothing changes at first, and B has a "
    "gradient.",
    "LoRA 2": "The addition is scaled by alpha / r.",
    "LoRA 3": "The base is frozen: adapters alone are trained.",
    "LoRA 4": "New tokens' rows are trained in both tables, and no other row is.",
    "LoRA 5": "A merged adapter is not added beside the weight as well.",
    "LoRA 6": "NF4 takes the nearest level, and its scales are quantised around their "
    "mean.",
    "Pairs 1": "An answer without its end loses to any with one, and is never the "
    "chosen "
    "one.",
    "Pairs 2": "What is equally good gives no pair, and no text is preferred to "
    "itself.",
    "Pairs 3": "What is trained on is what was drawn: a file never adds an end to a "
    "cut "
    "answer.",
    "Pairs 4": "The control has the same prompts and as many answers, each usable one "
    "as "
    "likely.",
    "Pairs 5": "Exactly the stated share of labels is turned round, and each pair is "
    "as "
    "likely to be.",
    "Pairs 6": "Each round answers with its own policy, and has it for its reference.",
    "Real model 1": (
        "An answer is found by rendering, its text is encoded once, and the prompt's "
        "own tokens begin the row."
    ),
    "Real model 2": (
        "The end of an answer is graded, and what a template puts behind it is not."
    ),
    "Real model 3": (
        "Where a template rewrites earlier turns, each answer is a row of its own."
    ),
    "Real model 4": (
        "With adapters, the rows of new tokens are trained, one for embedding and "
        "head where these are tied."
    ),
    "Real model 5": "What is frozen may be in low precision, what is trained is in "
    "single.",
    "Real model 6": "All log-probabilities of a rollout come from one kind of pass.",
    "Real model 7": "A run that was cut off ends as the unbroken one, bit for bit.",
    "Processes 1": "The loss is divided by the graded tokens of all processes, and "
    "DDP's "
    "division by N undone.",
    "Processes 2": "Every row is read by one process, in the order of one process "
    "alone.",
    "Processes 3": "All processes take as many backward passes, those without a row "
    "too.",
    "Processes 4": "Parts add up locally, and the last one's backward pass talks.",
    "Processes 5": "What is drawn depends on what it is drawn for, not on who draws "
    "it.",
    "Tutorials 1": "DPO's log-probabilities averaged over tokens instead of summed.",
    "Tutorials 2": "Implicit rewards logged without beta.",
    "Tutorials 3": "Beta the wrong way round.",
    "Tutorials 4": "The end token never scored.",
    "Tutorials 5": "`F.kl_div` without `log_target=True`.",
    "Tutorials 6": "Samples from another distribution than their log-probabilities.",
    "Tutorials 7": "Returns from whitened advantages.",
    "Tutorials 8": "Whitening that adds the mean again.",
    "Tutorials 9": "A pointwise loss under the name of Bradley and Terry.",
    "Tutorials 10": "Padding and end are one token, so the end is never learnt.",
    "Tutorials 11": "The fine-tuning's mask is lost.",
    "Tutorials 12": "NaN from a batch with nothing to grade.",
}


# Who wrote a detail down, by keys of book/references.bib; the others are this book's.
SOURCES = {
    "Pairs 2": "dong2024rlhf",
    "Real model 4": "hewitt2021initializing",
    "Real model 5": "dettmers2023qlora",
    "Processes 1": "han2024gradient",
    "Processes 4": "li2020ddp",
    "SFT 2": "han2024gradient",
    "SFT 3": "huang2024nplus",
    "SFT 4": "huang2024nplus",
    "SFT 6": "hewitt2021initializing",
    "Reward model 1": "huang2024nplus",
    "Reward model 2": "stiennon2020summarize,huang2024nplus",
    "Reward model 4": "ziegler2019finetuning,huang2024nplus",
    "Reward model 5": "eisenstein2023helping",
    "Rollouts 3": "huang2024nplus",
    "Rollouts 4": "huang2024nplus",
    "PPO 1": "ziegler2019finetuning,huang2024nplus",
    "PPO 2": "schulman2020kl",
    "PPO 3": "huang2024nplus",
    "PPO 4": "schulman2016gae",
    "PPO 6": "schulman2017ppo,engstrom2020implementation",
    "PPO 8": "ziegler2019finetuning",
    "PPO 9": "stiennon2020summarize,engstrom2020implementation",
    "DPO 1": "rafailov2023dpo",
    "DPO 2": "rafailov2023dpo",
    "DPO 3": "rafailov2023dpo",
    "DPO 4": "mitchell2023cdpo,pang2024iterative,azar2023ipo,meng2024simpo,"
    "ethayarajh2024kto,hong2024orpo",
    "LoRA 1": "hu2022lora",
    "LoRA 2": "hu2022lora",
    "LoRA 3": "hu2022lora",
    "LoRA 5": "hu2022lora",
    "LoRA 6": "dettmers2023qlora",
    "Tutorials 1": "rafailov2023dpo",
    "Tutorials 2": "rafailov2023dpo",
    "Tutorials 3": "rafailov2023dpo",
    "Tutorials 9": "bradley1952rank",
    "Tutorials 10": "huang2024nplus",
}


@dataclass(frozen=True)
class Mutant:
    """One deliberate mistake, and the test that catches it."""

    detail: str  # a key of DETAILS, or the part of the package where none fits
    what: str  # the mistake, in a few words
    module: str  # the file in the package
    old: str  # what is there, once: as in `Patch`
    new: str  # what is there instead
    test: str  # file::name, in this folder

    @property
    def patch(self) -> Patch:
        """The mistake alone, by the module's name."""
        target = self.module.removesuffix(".py").replace("/", ".")
        return Patch(self.what, target, ((self.old, self.new),))

    @property
    def source(self) -> str:
        """The module as it is."""
        return (ROOT / PACKAGE / self.module).read_text(encoding="utf-8")


MUTANTS = (
    # SFT 1: the shift by one
    Mutant(
        "SFT 1",
        "each position graded by its own token",
        "sft.py",
        "logits, targets = logits[:, :-1], labels[:, 1:]",
        "logits, targets = logits, labels",
        "test_sft.py::test_each_position_is_graded_by_the_token_after_it",
    ),
    # SFT 2: the mean over graded tokens
    Mutant(
        "SFT 2",
        "mean over all tokens, graded or not",
        "sft.py",
        "return surprise / n_graded",
        "return surprise / targets.numel()",
        "test_sft.py::"
        "test_gradient_at_graded_logits_is_softmax_minus_onehot_over_n_else_0",
    ),
    Mutant(
        "SFT 2",
        "each micro-batch divided by its own count",
        "sft.py",
        "loss = sft_loss(model(tokens), labels, n_graded)",
        "loss = sft_loss(model(tokens), labels)",
        "test_sft.py::test_gradients_added_up_in_parts_are_those_of_one_pass_over_all",
    ),
    # SFT 3: padding
    Mutant(
        "SFT 3",
        "padding is graded",
        "chat.py",
        "labels = torch.full((len(examples), T), IGNORE)",
        "labels = torch.full((len(examples), T), pad)",
        "test_chat.py::"
        "test_padding_is_on_the_right_has_a_token_of_its_own_and_is_not_graded",
    ),
    Mutant(
        "SFT 3",
        "padded with the end token",
        "sft.py",
        "steps = sft_steps(model, examples, text, config, tokenizer.pad)",
        "steps = sft_steps(model, examples, text, config, tokenizer.end)",
        "test_sft.py::"
        "test_batches_of_sft_hold_the_padding_token_and_no_label_after_the_end",
    ),
    # SFT 4: what is graded
    Mutant(
        "SFT 4",
        "the assistant's role token is graded",
        "chat.py",
        "labels.append(token if answering else IGNORE)",
        "labels.append(token if answering or token == tokenizer.assistant else IGNORE)",
        "test_chat.py::"
        "test_no_user_token_no_user_text_and_no_assistant_token_is_graded",
    ),
    Mutant(
        "SFT 4",
        "grading goes on into the user's next turn",
        "chat.py",
        "elif token == tokenizer.end:",
        "elif token == tokenizer.pad:",
        "test_chat.py::test_labels_of_two_turns_by_hand",
    ),
    # SFT 5: prompts are prefixes
    Mutant(
        "SFT 5",
        "training has a space after the role token, the prompt none",
        "chat.py",
        "tokens += [tokenizer.assistant, *text, tokenizer.end]",
        "tokens += [tokenizer.assistant, tokenizer.ids[' '], *text, tokenizer.end]",
        "test_chat.py::test_a_conversation_of_two_turns_is_rendered_as_written_here",
    ),
    # SFT 6: growing the vocabulary
    Mutant(
        "SFT 6",
        "new tokens start at zero instead of the mean",
        "chat.py",
        "mean = weights[name].mean(0, keepdim=True)",
        "mean = torch.zeros_like(weights[name][:1])",
        "test_chat.py::test_growing_keeps_the_old_tokens_logits_and_adds_the_means",
    ),
    Mutant(
        "SFT 6",
        "new rows stand before the old ones",
        "chat.py",
        "torch.cat([weights[name], mean.expand(vocab_size - V, -1)])",
        "torch.cat([mean.expand(vocab_size - V, -1), weights[name]])",
        "test_chat.py::test_growing_keeps_the_old_tokens_logits_and_adds_the_means",
    ),
    # Reward model 1: where the score is read
    Mutant(
        "Reward model 1",
        "score read in the last column, padding or not",
        "reward_model.py",
        "return values.gather(1, last).squeeze(1)",
        "return values[:, -1]",
        "test_reward_model.py::"
        "test_the_score_is_read_at_the_last_real_token_of_prompt_and_response",
    ),
    Mutant(
        "Reward model 1",
        "no end token in use, one in training",
        "reward_model.py",
        "answer = encode_response(response, tokenizer)",
        "answer = tokenizer.encode(response)",
        "test_reward_model.py::"
        "test_the_score_of_an_answer_is_that_of_its_tokens_with_their_end",
    ),
    # Reward model 2: the start, and the rate
    Mutant(
        "Reward model 2",
        "the head starts large",
        "reward_model.py",
        "nn.init.normal_(self.head.weight, std=HEAD_STD, generator=generator)",
        "nn.init.normal_(self.head.weight, generator=generator)",
        "test_reward_model.py::"
        "test_the_first_loss_of_a_new_model_is_near_ln_2_per_comparison",
    ),
    Mutant(
        "Reward model 2",
        "the rate stays at its peak",
        "reward_model.py",
        "Descent([optimizer], linear_fall(config.steps))",
        "Descent([optimizer], lambda step: 1.0)",
        "test_reward_model.py::"
        "test_the_rate_falls_in_a_straight_line_to_zero_without_weight_decay",
    ),
    Mutant(
        "Reward model 2",
        "gradients add up from step to step",
        "optim.py",
        "optimizer.zero_grad(set_to_none=True)",
        "pass",
        "test_reward_model.py::"
        "test_every_step_is_one_of_adamws_down_the_gradient_of_its_own_batch_alone",
    ),
    Mutant(
        "Reward model 2",
        "dropout before the head",
        "reward_model.py",
        "raw = self.head(self.body.hidden(tokens)).squeeze(-1)",
        "raw = self.head(F.dropout(self.body.hidden(tokens), 0.1, "
        "self.training)).squeeze(-1)",
        "test_reward_model.py::test_nothing_is_dropped_out",
    ),
    # Reward model 3: pairs after the cut
    Mutant(
        "Reward model 3",
        "pairs compared before the cut",
        "preference_pairs.py",
        "if chosen == rejected:",
        'if pair["chosen"] == pair["rejected"]:',
        "test_reward_model.py::"
        "test_pairs_that_are_the_same_after_the_cut_are_left_out_with_a_warning",
    ),
    # Reward model 4: zero and unit
    Mutant(
        "Reward model 4",
        "normalised on answers to the pairs' prompts",
        "stages.py",
        "answers = sample_answers(body, data.prompts, config.seed)",
        'answers = sample_answers(body, [pair["prompt"] for pair in data.pairs], '
        "config.seed)",
        "test_stages.py::"
        "test_stored_scores_are_normalised_on_that_seeds_sft_models_answers",
    ),
    # Reward model 5: centring
    Mutant(
        "Reward model 5",
        "centring of the difference instead of the sum",
        "reward_model.py",
        "centring * (chosen + rejected).square().mean()",
        "centring * (chosen - rejected).square().mean()",
        "test_reward_model.py::test_centring_adds_the_mean_square_of_the_sums",
    ),
    # Rollouts 1: padding on the left
    Mutant(
        "Rollouts 1",
        "positions count the padding",
        "sampling.py",
        "positions = (mask.cumsum(1) - 1).clamp_min(0)",
        "positions = torch.arange(length).expand(B, -1)",
        "test_sampling.py::test_logprobs_equal_one_uncached_unpadded_forward_pass",
    ),
    Mutant(
        "Rollouts 1",
        "prompts look at their padding",
        "sampling.py",
        "allowed = visible(mask[:, :T]) if padded else None",
        "allowed = None",
        "test_sampling.py::test_greedy_rows_do_not_depend_on_their_neighbours",
    ),
    Mutant(
        "Rollouts 1",
        "new tokens look at the padding",
        "sampling.py",
        "allowed = mask[rows, None, None, : t + 1] if padded else None",
        "allowed = None",
        "test_sampling.py::test_rows_that_end_early_change_nothing_of_what_is_drawn",
    ),
    # Rollouts 2: one temperature everywhere
    Mutant(
        "Rollouts 2",
        "sampling forgets the temperature",
        "sampling.py",
        "logprobs = (logits / (temperature or 1.0)).log_softmax(-1)",
        "logprobs = logits.log_softmax(-1)",
        "test_sampling.py::test_draws_follow_the_distribution_at_every_temperature",
    ),
    Mutant(
        "Rollouts 2",
        "log-probabilities forget the temperature",
        "logprobs.py",
        "logprobs = (logits[:, :-1] / temperature).log_softmax(-1)",
        "logprobs = logits[:, :-1].log_softmax(-1)",
        "test_logprobs.py::test_logprobs_of_tokens_equal_a_loop_over_the_prefixes",
    ),
    Mutant(
        "Rollouts 2",
        "the reference is asked at temperature 1",
        "ppo.py",
        "said = [token_logprobs(models.reference(t), t, config.temperature) for t in "
        "pieces]",
        "said = [token_logprobs(models.reference(t), t) for t in pieces]",
        "test_ppo.py::test_a_rollouts_logprobs_are_those_of_one_forward_pass_per_row",
    ),
    Mutant(
        "Rollouts 2",
        "the update's log-probabilities at temperature 1",
        "ppo.py",
        "logprobs = token_logprobs(logits, rollout.tokens, config.temperature)",
        "logprobs = token_logprobs(logits, rollout.tokens)",
        "test_ppo.py::"
        "test_the_total_loss_is_the_sum_of_its_parts_under_the_models_of_now",
    ),
    # Rollouts 3: no dropout
    Mutant(
        "Rollouts 3",
        "dropout in the transformer",
        "gpt.py",
        "return self.down(h)",
        "return F.dropout(self.down(h), 0.1, self.training)",
        "test_ppo.py::test_nothing_is_dropped_out_in_any_of_the_four",
    ),
    # Rollouts 4: the end of a response
    Mutant(
        "Rollouts 4",
        "responses are not cut at their end",
        "sampling.py",
        "alive = alive & (token != stop) if stop is not None else alive",
        "alive = alive.clone()",
        "test_sampling.py::test_the_stop_token_ends_a_row_and_is_kept_and_scored",
    ),
    Mutant(
        "Rollouts 4",
        "the end token is no action",
        "sampling.py",
        "yield token, logprob, alive",
        "yield token, logprob, alive & (token != stop)",
        "test_sampling.py::test_the_stop_token_ends_a_row_and_is_kept_and_scored",
    ),
    Mutant(
        "Rollouts 4",
        "a response without its end keeps its score",
        "ppo.py",
        "scores = torch.where(ended, scores, config.no_end_score)",
        "scores = scores.clone()",
        "test_ppo.py::"
        "test_a_response_without_its_end_gets_the_stated_score_others_the_models",
    ),
    # Rollouts 5: values before their tokens
    Mutant(
        "Rollouts 5",
        "the rollout's values have read their tokens",
        "ppo.py",
        "expected = [models.value_model(t)[:, :-1] for t in pieces]",
        "expected = [models.value_model(t)[:, 1:] for t in pieces]",
        "test_ppo.py::test_a_value_is_read_before_its_token_is_known",
    ),
    Mutant(
        "Rollouts 5",
        "the update's values have read their tokens",
        "ppo.py",
        "values = models.value_model(rollout.tokens)[:, :-1]",
        "values = models.value_model(rollout.tokens)[:, 1:]",
        "test_ppo.py::"
        "test_the_total_loss_is_the_sum_of_its_parts_under_the_models_of_now",
    ),
    # Rollouts 6: the KV cache
    Mutant(
        "Rollouts 6",
        "positions start at 0 again after the cache",
        "gpt.py",
        "positions = torch.arange(start, end) if positions is None else positions",
        "positions = torch.arange(end - start) if positions is None else positions",
        "test_gpt.py::"
        "test_reading_token_by_token_through_the_cache_equals_reading_all_at_once",
    ),
    Mutant(
        "Rollouts 6",
        "the cache keeps the first rows, not those that go on",
        "sampling.py",
        "cache.keep(kept)",
        "cache.keep(torch.arange(len(rows)))",
        "test_sampling.py::test_rows_that_end_early_change_nothing_of_what_is_drawn",
    ),
    # PPO 1: rewards
    Mutant(
        "PPO 1",
        "the KL is paid for instead of charged",
        "ppo.py",
        "rewards = -beta * kl * actions",
        "rewards = beta * kl * actions",
        "test_ppo.py::test_rewards_by_hand",
    ),
    Mutant(
        "PPO 1",
        "the score at every token",
        "ppo.py",
        "return rewards.scatter_add(1, last, scores[:, None])",
        "return rewards + scores[:, None] * actions",
        "test_ppo.py::"
        "test_rewards_sum_to_the_score_less_the_kl_and_the_score_comes_last",
    ),
    Mutant(
        "PPO 1",
        "the score in the last column, padding or not",
        "ppo.py",
        "last = positions.masked_fill(~actions, -1).amax(-1, keepdim=True)",
        "last = positions.amax(-1, keepdim=True)",
        "test_ppo.py::test_rewards_by_hand",
    ),
    # PPO 2: KL estimators
    Mutant(
        "PPO 2",
        "k1 with the wrong sign",
        "logprobs.py",
        "return d",
        "return -d",
        "test_logprobs.py::test_kl_estimates_of_one_token_by_hand",
    ),
    Mutant(
        "PPO 2",
        "k2 without its half",
        "logprobs.py",
        "return 0.5 * d.square()",
        "return d.square()",
        "test_logprobs.py::"
        "test_the_expectations_of_k1_and_k3_are_the_exact_kl_and_that_of_k2_nearly",
    ),
    Mutant(
        "PPO 2",
        "k3 of the opposite direction",
        "logprobs.py",
        "return torch.expm1(-d) + d",
        "return torch.expm1(d) - d",
        "test_logprobs.py::"
        "test_the_expectations_of_k1_and_k3_are_the_exact_kl_and_that_of_k2_nearly",
    ),
    Mutant(
        "PPO 2",
        "k3 in the form that loses its digits",
        "logprobs.py",
        "return torch.expm1(-d) + d",
        "return torch.exp(-d) - 1 + d",
        "test_logprobs.py::test_k3_keeps_its_digits_near_zero_in_float32",
    ),
    # PPO 3: whitening
    Mutant(
        "PPO 3",
        "variance divided by n - 1",
        "ppo.py",
        "variance = masked_mean((values - mean).square(), mask)",
        "variance = values[mask].var()",
        "test_ppo.py::test_whitening_one_value_divides_by_no_zero",
    ),
    # PPO 4: GAE
    Mutant(
        "PPO 4",
        "GAE goes forwards",
        "ppo.py",
        "for t in reversed(range(values.size(1))):",
        "for t in range(values.size(1)):",
        "test_ppo.py::test_advantages_by_hand",
    ),
    Mutant(
        "PPO 4",
        "a value of the padding follows the end",
        "ppo.py",
        "values = values * actions",
        "values = values.clone()",
        "test_ppo.py::"
        "test_advantages_equal_the_sum_over_all_later_steps_within_the_mask",
    ),
    # PPO 5: returns
    Mutant(
        "PPO 5",
        "returns without the values",
        "ppo.py",
        "return advantages, advantages + values",
        "return advantages, advantages",
        "test_ppo.py::test_advantages_by_hand",
    ),
    # PPO 6: clipping, and means
    Mutant(
        "PPO 6",
        "the smaller of the two policy losses",
        "ppo.py",
        "masked_mean(torch.max(free, clipped), actions)",
        "masked_mean(torch.min(free, clipped), actions)",
        "test_ppo.py::test_clipping_by_hand_for_both_signs",
    ),
    Mutant(
        "PPO 6",
        "the policy's loss averaged over padding, too",
        "ppo.py",
        "masked_mean(torch.max(free, clipped), actions)",
        "torch.max(free, clipped).mean()",
        "test_ppo.py::test_losses_are_means_over_actions_whatever_stands_elsewhere",
    ),
    Mutant(
        "PPO 6",
        "values clipped around the returns",
        "ppo.py",
        "near = old_values + (values - old_values).clamp(-clip, clip)",
        "near = returns + (values - returns).clamp(-clip, clip)",
        "test_ppo.py::test_value_clipping_by_hand",
    ),
    Mutant(
        "PPO 6",
        "the smaller of the two value losses",
        "ppo.py",
        "error = torch.max(error, (near - returns).square())",
        "error = torch.min(error, (near - returns).square())",
        "test_ppo.py::"
        "test_the_value_loss_equals_a_loop_with_the_clip_around_the_old_values",
    ),
    # PPO 7: where the update starts
    Mutant(
        "PPO 7",
        "the ratio is taken to the reference",
        "ppo.py",
        "logprobs, rollout.logprobs, advantages, actions, config.clip_eps",
        "logprobs, rollout.reference_logprobs, advantages, actions, config.clip_eps",
        "test_ppo.py::"
        "test_the_first_minibatch_has_ratio_1_and_clips_nothing_and_later_ones_do_not",
    ),
    Mutant(
        "PPO 7",
        "the KL counts prompt and padding",
        "ppo.py",
        "reference_logprobs = torch.cat(said) * actions",
        "reference_logprobs = torch.cat(said)",
        "test_ppo.py::test_before_any_update_the_kl_to_the_reference_is_zero",
    ),
    # PPO 8: the controller
    Mutant(
        "PPO 8",
        "the controller's error is not held at 20%",
        "ppo.py",
        "error = min(0.2, max(-0.2, kl / target - 1))",
        "error = kl / target - 1",
        "test_ppo.py::test_betas_by_hand",
    ),
    Mutant(
        "PPO 8",
        "beta falls where the KL is too large",
        "ppo.py",
        "return beta * (1 + error * n / horizon)",
        "return beta * (1 - error * n / horizon)",
        "test_ppo.py::test_betas_by_hand",
    ),
    Mutant(
        "PPO 8",
        "the KL per token steers beta",
        "ppo.py",
        "kl = (rollout.logprobs - rollout.reference_logprobs).sum(-1)",
        "kl = (rollout.logprobs - rollout.reference_logprobs).mean(-1)",
        "test_ppo.py::test_what_is_yielded_are_the_means_over_the_rollout",
    ),
    # PPO 9: value model, optimiser, order
    Mutant(
        "PPO 9",
        "the value head starts at random",
        "ppo.py",
        "nn.init.zeros_(self.head.weight)",
        "nn.init.normal_(self.head.weight, std=0.02)",
        "test_ppo.py::"
        "test_a_value_model_of_its_own_starts_at_zero_on_the_body_it_is_given",
    ),
    Mutant(
        "PPO 9",
        "Adam with PyTorch's own eps",
        "ppo.py",
        "return torch.optim.Adam(groups, eps=1e-5)",
        "return torch.optim.Adam(groups)",
        "test_ppo.py::test_each_minibatch_is_one_step_of_adam_down_its_own_gradient",
    ),
    Mutant(
        "PPO 9",
        "the rate stays at its peak",
        "ppo.py",
        "linear_fall(config.iterations)",
        "lambda step: 1.0",
        "test_ppo.py::test_the_rates_fall_in_a_straight_line_to_zero",
    ),
    Mutant(
        "PPO 9",
        "the same order in every epoch",
        "ppo.py",
        "order = torch.randperm(len(rollout.tokens), generator=generator)",
        "order = torch.randperm(len(rollout.tokens), "
        "generator=torch.Generator().manual_seed(0))",
        "test_ppo.py::"
        "test_each_epoch_goes_over_every_response_once_in_an_order_of_its_own",
    ),
    # PPO 10: who is trained
    Mutant(
        "PPO 10",
        "policy and reference are one model",
        "ppo.py",
        "policy = copy.deepcopy(sft)",
        "policy = sft",
        "test_ppo.py::test_only_policy_and_value_model_change",
    ),
    Mutant(
        "PPO 10",
        "value model and reward model share a transformer",
        "ppo.py",
        "value_model = cls(copy.deepcopy(model.body))",
        "value_model = cls(model.body)",
        "test_ppo.py::test_only_policy_and_value_model_change",
    ),
    # DPO 1: log-probabilities of responses
    Mutant(
        "DPO 1",
        "the prompt is counted",
        "logprobs.py",
        "mask[row, len(prompt) : end] = True",
        "mask[row, :end] = True",
        "test_logprobs.py::"
        "test_a_responses_log_prob_does_not_count_its_prompt_however_unlikely",
    ),
    Mutant(
        "DPO 1",
        "the mask is one column off",
        "logprobs.py",
        "logprobs.masked_fill(~mask[:, 1:], 0.0)",
        "logprobs.masked_fill(~mask[:, :-1], 0.0)",
        "test_logprobs.py::"
        "test_the_probabilities_of_all_responses_of_three_tokens_add_up_to_1",
    ),
    # DPO 2: implicit rewards
    Mutant(
        "DPO 2",
        "rewards with a gradient",
        "dpo.py",
        "return beta * (logprobs - reference_logprobs).detach()",
        "return beta * (logprobs - reference_logprobs)",
        "test_dpo.py::"
        "test_implicit_rewards_are_beta_times_the_log_ratio_without_a_gradient",
    ),
    # DPO 3: the loss
    Mutant(
        "DPO 3",
        "no reference in the loss",
        "dpo.py",
        "h = beta * (chosen_ratio - rejected_ratio)",
        "h = beta * (chosen - rejected)",
        "test_dpo.py::test_a_policy_that_is_its_reference_loses_exactly_ln_2",
    ),
    # DPO 4: smoothing and the losses beside it
    Mutant(
        "DPO 4",
        "smoothing that is none",
        "dpo.py",
        "wrong * F.logsigmoid(-h)",
        "wrong * F.logsigmoid(h)",
        "test_dpo.py::"
        "test_smoothing_mixes_the_surprise_at_the_label_with_that_at_its_opposite",
    ),
    Mutant(
        "DPO 4",
        "the rejected answers are held up",
        "dpo.py",
        "config.nll_weight * means[0]",
        "config.nll_weight * means[1]",
        "test_dpo.py::test_each_loss_sees_sums_or_means_as_its_paper_says",
    ),
    Mutant(
        "DPO 4",
        "the chosen answers' sums are added",
        "dpo.py",
        "config.nll_weight * means[0]",
        "config.nll_weight * logprobs[0]",
        "test_dpo.py::test_each_loss_sees_sums_or_means_as_its_paper_says",
    ),
    Mutant(
        "DPO 4",
        "on fresh answers nothing is held up",
        "online_dpo.py",
        "config.nll_weight",
        "0.0",
        "test_online_dpo.py::"
        "test_a_round_is_adam_on_dpos_loss_with_the_reference_asked_anew",
    ),
    Mutant(
        "DPO 4",
        "IPO on means per token",
        "dpo.py",
        "ipo_loss(*logprobs, *reference_logprobs, config.beta)",
        "ipo_loss(*means, *(reference_logprobs / lengths), config.beta)",
        "test_dpo.py::test_each_loss_sees_sums_or_means_as_its_paper_says",
    ),
    Mutant(
        "DPO 4",
        "a gradient through KTO's baseline",
        "preference_losses.py",
        "baseline = baseline.detach().clamp_min(0.0)",
        "baseline = baseline.clamp_min(0.0)",
        "test_preference_losses.py::"
        "test_ktos_gradient_is_the_closed_form_and_none_goes_through_the_baseline",
    ),
    # DPO 5: one pass, one frozen reference
    Mutant(
        "DPO 5",
        "chosen and rejected answers take turns",
        "preference_pairs.py",
        "responses = [chosen for _, chosen, _ in pairs] + [rejected for _, _, "
        "rejected in pairs]",
        "responses = [answer for _, *answers in pairs for answer in answers]",
        "test_dpo.py::"
        "test_a_pairs_log_probs_are_sums_over_each_answer_and_its_end_read_one_by_one",
    ),
    Mutant(
        "DPO 5",
        "the policy is its own reference",
        "dpo.py",
        "batches = dpo_batches(reference, pairs, config, CharTokenizer().pad)",
        "batches = dpo_batches(policy, pairs, config, CharTokenizer().pad)",
        "test_dpo.py::test_only_the_policy_changes_and_the_reference_is_asked_once",
    ),
    Mutant(
        "DPO 5",
        "the reference's numbers of other pairs",
        "dpo.py",
        "torch.stack([known[i] for i in rows], dim=1)",
        "torch.stack([known[rows[0]] for i in rows], dim=1)",
        "test_dpo.py::test_each_step_is_the_optimisers_with_the_reference_asked_anew",
    ),
    # DPO 6: what must change nothing
    Mutant(
        "DPO 6",
        "the rejected answer's reference is added",
        "dpo.py",
        "rejected_ratio = rejected - reference_rejected",
        "rejected_ratio = rejected + reference_rejected",
        "test_dpo.py::test_the_same_constant_on_both_log_ratios_changes_nothing",
    ),
    Mutant(
        "DPO 6",
        "the margin has no sign",
        "dpo.py",
        "(chosen - rejected).mean().item()",
        "(chosen - rejected).mean().abs().item()",
        "test_dpo.py::"
        "test_swapping_the_pairs_swaps_the_rewards_and_turns_the_margins_sign",
    ),
    # LoRA and NF4
    Mutant(
        "LoRA 1",
        "B starts at one",
        "lora/adapters.py",
        "A, B = torch.empty(config.rank, n_in), torch.zeros(n_out, config.rank)",
        "A, B = torch.empty(config.rank, n_in), torch.ones(n_out, config.rank)",
        "lora/test_adapters.py::"
        "test_at_the_start_the_model_is_what_it_was_with_gradients_for_b_alone",
    ),
    Mutant(
        "LoRA 1",
        "A starts at zero, too",
        "lora/adapters.py",
        "A.uniform_(-(n_in**-0.5), n_in**-0.5, generator=generator)",
        "A.zero_()",
        "lora/test_adapters.py::"
        "test_a_starts_uniform_as_a_linear_layer_does_and_b_at_zero",
    ),
    Mutant(
        "LoRA 2",
        "alpha is not divided by the rank",
        "lora/adapters.py",
        "return F.linear(h, B) * (alpha / A.size(0))",
        "return F.linear(h, B) * alpha",
        "lora/test_adapters.py::test_the_addition_is_alpha_over_r_times_b_a_x",
    ),
    Mutant(
        "LoRA 3",
        "the base is trained along",
        "lora/adapters.py",
        "model.requires_grad_(False)",
        "model.requires_grad_(True)",
        "lora/test_adapters.py::"
        "test_weights_keep_their_names_and_their_bits_in_training",
    ),
    Mutant(
        "LoRA 4",
        "new rows in the head alone",
        "lora/adapters.py",
        "for table, hook in ((embedding, add_rows_embedded), (head, add_rows_scored)):",
        "for table, hook in ((head, add_rows_scored),):",
        "lora/test_adapters.py::"
        "test_rows_are_added_to_the_last_tokens_of_both_tables_and_to_no_other",
    ),
    Mutant(
        "LoRA 4",
        "the last old token's row is changed",
        "lora/adapters.py",
        "return F.embedding((tokens - self.first + 1).clamp_min(0), change)",
        "return F.embedding((tokens - self.first + 1).clamp_min(1), change)",
        "lora/test_adapters.py::"
        "test_rows_are_added_to_the_last_tokens_of_both_tables_and_to_no_other",
    ),
    Mutant(
        "LoRA 5",
        "a merged adapter is added as well",
        "lora/adapters.py",
        "return adapter.on and not adapter.merged",
        "return adapter.on",
        "lora/test_adapters.py::"
        "test_merged_it_computes_the_same_and_unmerged_it_is_what_it_was",
    ),
    Mutant(
        "LoRA 6",
        "the level above instead of the nearest",
        "lora/nf4.py",
        "midpoints = (levels[1:] + levels[:-1]) / 2",
        "midpoints = levels[:-1]",
        "lora/test_nf4.py::test_every_weight_gets_the_nearest_level_of_its_block",
    ),
    Mutant(
        "LoRA 6",
        "the scales' mean is left in",
        "lora/nf4.py",
        "mean = scales.mean()",
        "mean = scales.mean() * 0",
        "lora/test_nf4.py::"
        "test_scales_come_back_to_half_a_step_of_their_block_around_their_mean",
    ),
    # Tutorials: errors seen in respected ones
    Mutant(
        "Tutorials 1",
        "log-probabilities averaged over tokens",
        "logprobs.py",
        "logprobs.masked_fill(~mask[:, 1:], 0.0).sum(-1)",
        "logprobs.masked_fill(~mask[:, 1:], 0.0).sum(-1) / mask.sum(-1)",
        "test_logprobs.py::"
        "test_a_responses_log_prob_is_the_sum_over_its_tokens_and_its_end",
    ),
    Mutant(
        "Tutorials 2",
        "implicit rewards without beta",
        "dpo.py",
        "return beta * (logprobs - reference_logprobs).detach()",
        "return (logprobs - reference_logprobs).detach()",
        "test_dpo.py::test_the_report_by_hand",
    ),
    Mutant(
        "Tutorials 3",
        "beta divides",
        "dpo.py",
        "h = beta * (chosen_ratio - rejected_ratio)",
        "h = (chosen_ratio - rejected_ratio) / beta",
        "test_dpo.py::"
        "test_the_loss_is_the_mean_surprise_at_beta_times_the_gap_of_the_log_ratios",
    ),
    Mutant(
        "Tutorials 4",
        "the end token is not scored",
        "logprobs.py",
        "mask[row, len(prompt) : end] = True",
        "mask[row, len(prompt) : end - 1] = True",
        "test_logprobs.py::"
        "test_the_mask_holds_the_response_with_its_end_and_nothing_else",
    ),
    Mutant(
        "Tutorials 5",
        "F.kl_div of log-probabilities as if they were probabilities",
        "logprobs.py",
        "divergence = (p.exp() * (p - q)).sum(-1)",
        'divergence = nn.functional.kl_div(q, p, reduction="none").sum(-1)',
        "test_logprobs.py::test_sequence_kl_equals_a_loop_over_tokens_and_vocabulary",
    ),
    Mutant(
        "Tutorials 6",
        "top-50 samples with the whole distribution's log-probabilities",
        "sampling.py",
        "tokens = (logprobs - clocks).argmax(-1)",
        "tokens = (logprobs.masked_fill(logits < logits.topk(min(50, "
        "len(logits[0]))).values[:, -1:], -torch.inf) - clocks).argmax(-1)",
        "test_sampling.py::test_no_token_is_too_unlikely_to_be_drawn",
    ),
    Mutant(
        "Tutorials 7",
        "returns from whitened advantages",
        "ppo.py",
        "return whiten(advantages, rollout.actions), returns",
        "return whiten(advantages, rollout.actions), "
        "whiten(advantages, rollout.actions) + rollout.values",
        "test_ppo.py::"
        "test_estimated_advantages_are_gae_and_returns_come_before_whitening",
    ),
    Mutant(
        "Tutorials 8",
        "whitening adds the mean again",
        "ppo.py",
        "return (values - mean) * (variance + 1e-8).rsqrt() * mask",
        "return ((values - mean) * (variance + 1e-8).rsqrt() + mean) * mask",
        "test_ppo.py::"
        "test_whitened_values_have_mean_0_and_variance_1_over_n_within_the_mask",
    ),
    Mutant(
        "Tutorials 9",
        "chosen up and rejected down, each by itself",
        "reward_model.py",
        "loss = -F.logsigmoid(chosen - rejected).mean()",
        "loss = -(F.logsigmoid(chosen) + F.logsigmoid(-rejected)).mean()",
        "test_reward_model.py::"
        "test_equal_scores_cost_ln_2_and_other_differences_what_the_formula_says",
    ),
    Mutant(
        "Tutorials 10",
        "the end masked as if it were padding",
        "chat.py",
        "labels.append(token if answering else IGNORE)",
        "labels.append(token if answering and token != tokenizer.end else IGNORE)",
        "test_chat.py::test_graded_are_each_answers_text_and_its_end_and_nothing_else",
    ),
    Mutant(
        "Tutorials 11",
        "the mask is lost",
        "sft.py",
        "examples.append((tokens, labels if mask else list(tokens)))",
        "examples.append((tokens, list(tokens)))",
        "test_sft.py::"
        "test_without_the_mask_every_token_is_a_label_and_padding_still_is_none",
    ),
    Mutant(
        "Tutorials 12",
        "a batch with nothing to grade goes through",
        "sft.py",
        "if n_graded == 0:",
        "if n_graded < 0:",
        "test_sft.py::test_a_batch_without_graded_tokens_is_refused_and_never_nan",
    ),
    # The transformer and its cache
    Mutant(
        "Model",
        "attention looks into the future",
        "gpt.py",
        "causal = allowed is None and q.size(2) > 1",
        "causal = False",
        "test_gpt.py::test_no_token_sees_the_future",
    ),
    Mutant(
        "Model",
        "the MLP reads the stream as it is, not a normed copy",
        "gpt.py",
        "return x + self.mlp(self.mlp_norm(x))",
        "return x + self.mlp(x)",
        "test_gpt.py::test_a_block_adds_what_attention_and_mlp_make_of_a_normed_copy",
    ),
    Mutant(
        "KV cache",
        "keys where the values belong",
        "gpt.py",
        "values[:, :, self.length : end] = v",
        "values[:, :, self.length : end] = k",
        "test_gpt.py::"
        "test_what_a_cache_keeps_is_read_on_as_if_there_had_been_no_other_rows",
    ),
    # Pairs 1: answers without their end
    Mutant(
        "Pairs 1",
        "an unfinished answer is the best",
        "data/synthetic_pairs.py",
        "high, best = scores.masked_fill(~usable, -torch.inf).max(1)  # (B,)",
        "high, best = scores.max(1)  # (B,)",
        "data/test_synthetic_pairs.py::"
        "test_best_and_worst_are_those_that_brute_force_finds_in_every_small_case",
    ),
    Mutant(
        "Pairs 1",
        "an unfinished answer never loses",
        "data/synthetic_pairs.py",
        "low_end = torch.inf if leave_out else -torch.inf",
        "low_end = torch.inf",
        "data/test_synthetic_pairs.py::"
        "test_an_answer_without_its_end_loses_and_no_text_is_preferred_to_itself",
    ),
    # Pairs 2: no preference
    Mutant(
        "Pairs 2",
        "a pair of answers that are equally good",
        "data/synthetic_pairs.py",
        "none = high <= low  # (B,)",
        "none = high < low  # (B,)",
        "data/test_synthetic_pairs.py::"
        "test_best_and_worst_are_those_that_brute_force_finds_in_every_small_case",
    ),
    Mutant(
        "Pairs 2",
        "a text preferred to itself",
        "data/synthetic_pairs.py",
        "return row[pick.chosen] != row[pick.rejected]",
        "return pick.chosen != pick.rejected",
        "data/test_synthetic_pairs.py::"
        "test_an_answer_without_its_end_loses_and_no_text_is_preferred_to_itself",
    ),
    # Pairs 3: what was drawn
    Mutant(
        "Pairs 3",
        "a cut answer is written to a file",
        "data/synthetic_pairs.py",
        "if not all(pool.usable[place] for place in places):",
        "if not places:",
        "data/test_synthetic_pairs.py::"
        "test_a_cut_answer_keeps_its_tokens_and_is_refused_for_a_file",
    ),
    # Pairs 4: the control
    Mutant(
        "Pairs 4",
        "the control prefers what the judge likes",
        "lab/rejection_sampling.py",
        "drawn = torch.multinomial(pool.usable[rows].double(), 1, "
        "generator=generator)  # (R, 1)",
        "drawn = torch.multinomial(pool.usable[rows] * "
        "pool.scores['reward'][rows].exp(), 1, generator=generator)  # (R, 1)",
        "lab/test_rejection_sampling.py::"
        "test_the_control_keeps_as_many_answers_per_prompt_all_equally_likely",
    ),
    # Pairs 5: slips
    Mutant(
        "Pairs 5",
        "always the first pairs are turned round",
        "data/synthetic_pairs.py",
        "turned = set(order[: round(share * len(pairs))])",
        "turned = set(range(round(share * len(pairs))))",
        "data/test_synthetic_pairs.py::test_every_pair_is_as_likely_to_be_turned_round",
    ),
    # Pairs 6: rounds
    Mutant(
        "Pairs 6",
        "the SFT model answers in every round",
        "lab/pairs_trials.py",
        "draw_pool(policy, judge, asked, SAMPLES, words, seed + 1000 * round_)",
        "draw_pool(sft, judge, asked, SAMPLES, words, seed + 1000 * round_)",
        "lab/test_pairs_trials.py::"
        "test_each_round_draws_from_the_last_rounds_policy_its_reference",
    ),
    Mutant(
        "Pairs 6",
        "the reference moves with the policy",
        "lab/pairs_trials.py",
        "reference, pad = copy.deepcopy(policy), CharTokenizer().pad",
        "reference, pad = policy, CharTokenizer().pad",
        "lab/test_pairs_trials.py::"
        "test_the_policy_learns_the_flipped_labels_and_is_asked_for_the_true_ones",
    ),
    # Real models
    Mutant(
        "Real model 1",
        "the answer is looked for by its letters",
        "real/data.py",
        "start, kept_from = found(range(first + 1))",
        "start, kept_from = text.find(content.strip()), first",
        "real/test_templates.py::"
        "test_an_answer_that_stands_in_its_header_too_is_found_behind_it",
    ),
    Mutant(
        "Real model 1",
        "a token may hold letters of prompt and answer",
        "real/data.py",
        "if tokens[:first] != prompt or text[begins : ends[first - 1]].strip():",
        "if text[begins : ends[first - 1]].strip():",
        "real/test_templates.py::"
        "test_a_token_that_would_hold_prompt_and_answer_is_refused_by_row",
    ),
    Mutant(
        "Real model 2",
        "all of the answer's turn is graded",
        "real/data.py",
        "labels[first:last] = tokens[first:last]",
        "labels[first:] = tokens[first:]",
        "real/test_data.py::"
        "test_two_turns_by_hand_the_answers_and_their_ends_are_graded_and_nothing_else",
    ),
    Mutant(
        "Real model 2",
        "the end is not graded",
        "real/data.py",
        "labels[first:last] = tokens[first:last]",
        "labels[first : last - 1] = tokens[first : last - 1]",
        "real/test_data.py::test_the_mask_is_that_of_transformers_own_generation_marks",
    ),
    Mutant(
        "Real model 2",
        "the end is not saved where generate looks",
        "real/run.py",
        "generation.eos_token_id = end",
        "pass",
        "real/test_end.py::test_the_end_is_in_every_file_that_says_where_to_stop",
    ),
    Mutant(
        "Real model 3",
        "rewritten turns go through",
        "real/data.py",
        "if all(whole.startswith(each.text[: each.end]) for each in answers):",
        "if answers:",
        "real/test_data.py::"
        "test_a_template_that_rewrites_earlier_turns_makes_a_row_of_each_answer",
    ),
    Mutant(
        "Real model 4",
        "the new tokens' rows stay frozen",
        "real/adapter.py",
        "        train_rows(model, new_tokens)",
        "        pass",
        "real/test_run.py::"
        "test_a_model_without_a_template_gets_rows_for_the_new_tokens_and_learns_them",
    ),
    Mutant(
        "Real model 4",
        "a tied table is trained twice",
        "real/adapter.py",
        "head.adapter = embedding.adapter if tied else TokenRows(head, tokens)",
        "head.adapter = TokenRows(head, tokens)",
        "parity/test_real_parity.py::test_peft_loads_our_adapter_and_gives_our_logits",
    ),
    Mutant(
        "Real model 5",
        "all weights are trained in half precision, too",
        "real/run.py",
        "half = setup.bf16 and setup.rank",
        "half = setup.bf16",
        "real/test_run.py::test_in_half_precision_what_is_trained_stays_in_single",
    ),
    Mutant(
        "Real model 6",
        "the old log-probabilities are nearly those of the pass",
        "real/training.py",
        "logprobs = torch.cat(pieces) * mask[:, 1:]",
        "logprobs = 1.01 * torch.cat(pieces) * mask[:, 1:]",
        "real/test_training.py::"
        "test_ppo_starts_with_ratio_1_and_kl_0_and_leaves_the_frozen_models_alone",
    ),
    Mutant(
        "Real model 7",
        "a run taken up begins with the first batch again",
        "real/training.py",
        "islice(enumerate(batches), first, config.steps)",
        "islice(enumerate(batches), 0, config.steps - first)",
        "real/test_training.py::"
        "test_a_run_taken_up_in_the_middle_is_the_unbroken_run_bit_for_bit",
    ),
    # Processes 1: the denominator
    Mutant(
        "Processes 1",
        "each process divides by its own graded tokens",
        "sft.py",
        "return sum(count_graded(torch.tensor([labels])) for _, labels in examples)",
        "return sum(count_graded(torch.tensor([labels])) for _, labels in "
        "examples[crew.rank :: crew.size]) * crew.size",
        "scale/test_distributed.py::"
        "test_gradients_are_those_of_one_process_over_the_whole_batch",
    ),
    Mutant(
        "Processes 1",
        "the loss is not multiplied by N",
        "batches.py",
        "(crew.size * loss).backward()",
        "loss.backward()",
        "scale/test_distributed.py::test_dpo_ends_with_the_weights_of_one_process",
    ),
    # Processes 2: rows
    Mutant(
        "Processes 2",
        "all processes read the same rows",
        "scale/distributed.py",
        "return rows[dist.get_rank() :: dist.get_world_size()]",
        "return rows[0 :: dist.get_world_size()]",
        "scale/test_distributed.py::"
        "test_every_row_belongs_to_one_process_and_gathers_in_order",
    ),
    # Processes 3: uneven batches
    Mutant(
        "Processes 3",
        "a process without a row reads another's, graded",
        "sft.py",
        "labels = labels if share else torch.full_like(labels, IGNORE)",
        "labels = labels",
        "scale/test_distributed.py::test_sft_ends_with_the_weights_of_one_process",
    ),
    # Processes 4: accumulation
    Mutant(
        "Processes 4",
        "every part but the last talks",
        "batches.py",
        "with crew.turn(model, last=part is parts[-1]):",
        "with crew.turn(model, last=part is not parts[-1]):",
        "scale/test_distributed.py::test_sft_ends_with_the_weights_of_one_process",
    ),
    # Processes 5: random numbers
    Mutant(
        "Processes 5",
        "one stream for all chunks",
        "scale/distributed.py",
        "stream(seed, i)",
        "stream(seed, dist.get_rank())",
        "scale/test_distributed.py::"
        "test_samples_are_bit_for_bit_the_same_for_any_number_of_processes",
    ),
    # The ring
    Mutant(
        "Ring",
        "the finished chunks are passed on from the wrong place",
        "scale/ring.py",
        "exchange(chunks[(rank + 1 - turn) % size], chunks[(rank - turn) % size])",
        "exchange(chunks[(rank - turn) % size], chunks[(rank - turn - 1) % size])",
        "scale/test_distributed.py::"
        "test_the_rings_sum_is_that_of_pytorchs_all_reduce_whatever_the_size",
    ),
    # Estimates
    Mutant(
        "Estimates",
        "frozen weights' gradients are counted",
        "scale/estimate.py",
        'backward = 4 if run.method == "full" else 2',
        "backward = 4",
        "scale/test_estimate.py::test_operations_per_parameter_and_token",
    ),
    Mutant(
        "Estimates",
        "gradients are cut up from ZeRO-1 on",
        "scale/estimate.py",
        "dict(adam=1, gradients=2, weights=3, adapters=3, reference=3)",
        "dict(adam=1, gradients=1, weights=3, adapters=3, reference=3)",
        "scale/test_estimate.py::test_zeros_stages_need_what_its_paper_says",
    ),
    Mutant(
        "Estimates",
        "a pair takes the memory of one row",
        "scale/estimate.py",
        'run.sequences * (2 if run.stage == "dpo" else 1)',
        "run.sequences",
        "scale/test_estimate.py::test_activations_and_logits_by_hand",
    ),
    # The tokenizer
    Mutant(
        "Tokenizer",
        "unknown characters become line breaks",
        "tokenizer.py",
        "return [self.ids[character] for character in text]",
        "return [self.ids.get(character, 0) for character in text]",
        "test_tokenizer.py::test_no_text_can_spell_a_special_token",
    ),
    # The optimiser
    Mutant(
        "Optimiser",
        "momentum and gradient change places",
        "optim.py",
        'momentum.lerp_(gradients, 1 - group["momentum"])',
        'momentum.lerp_(gradients, group["momentum"])',
        "test_pretrain.py::test_muon_steps_along_the_orthogonalised_nesterov_momentum",
    ),
)


def faults() -> list[str]:
    """What is wrong with the list itself: details without a mutant, and code that does
    not occur once.
    """
    covered = {mutant.detail for mutant in MUTANTS}
    found = [f"{detail} has no mutant" for detail in DETAILS if detail not in covered]
    for mutant in MUTANTS:
        try:
            patched_source(mutant.source, mutant.patch)
        except ValueError as error:
            found.append(str(error))
    return found


def run_tests(tests: list[str], mutant: Mutant | None = None) -> str:
    """Run tests on a copy of the package, with a mutant in it if given: "passed",
    "failed" or what went wrong.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("code", "tests", "book/_ext"):
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        for part in ("pyproject.toml", "conftest.py"):
            shutil.copy(ROOT / part, folder / part)
        if mutant:
            path = folder / PACKAGE / mutant.module
            path.write_text(
                patched_source(mutant.source, mutant.patch), encoding="utf-8"
            )
        options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=short", "--color=no"]
        command = [
            sys.executable,
            "-m",
            "pytest",
            *options,
            *(f"tests/{test}" for test in tests),
        ]
        single = dict(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1", PYTHONUTF8="1")
        try:
            found = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, **single},
                timeout=TIMEOUT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
            )
        except subprocess.TimeoutExpired:
            return f"not done after {TIMEOUT} s"
    # A test has failed, or what it is about could not be made; a file that cannot be
    # read as tests ends with another code
    signs = ("\nFAILED tests/", "\nERROR tests/")
    if found.returncode == 1 and any(sign in found.stdout for sign in signs):
        return "failed"
    return (
        "passed"
        if found.returncode == 0
        else f"exit code {found.returncode}:\n{found.stdout}"
    )


def sentence(test: str) -> str:
    """A test's file and what its name says, in words: names of functions are too long
    for a column.
    """
    file, name = test.split("::")
    return f"{file}: {name.removeprefix('test_').replace('_', ' ')}"


def markdown() -> str:
    """The table of mutants as the book shows it."""
    rows = [
        f"| {mutant.detail} | {mutant.what} | {mutant.module} | "
        f"{sentence(mutant.test)} |"
        for mutant in MUTANTS
    ]
    return "\n".join(
        [
            "| detail | what was broken | in | the test that turns red |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def place(mutant: Mutant) -> str:
    """module.name of the function or class that a mutant breaks."""
    return (
        f"{mutant.patch.target}.{broken_definition(mutant.source, mutant.patch).name}"
    )


def legend() -> str:
    """The numbered details as the book lists them: what has to be right, its source,
    its code, its tests.
    """
    lines, groups = [], set()
    for detail, what in DETAILS.items():
        group = detail.rpartition(" ")[0]
        if group not in groups:
            groups.add(group)
            lines += [f"## {group}", ""]
        broken = [mutant for mutant in MUTANTS if mutant.detail == detail]
        source = f"{{cite}}`{SOURCES[detail]}`" if detail in SOURCES else "this book"
        code = dict.fromkeys(f"{{listing}}`{place(mutant)}`" for mutant in broken)
        tests = dict.fromkeys(f"`tests/{mutant.test}`" for mutant in broken)
        lines += [
            f"{detail}. {what}",
            f": Source: {source}",
            f": Code: {', '.join(code)}",
        ]
        lines += [f": Turns red: {test}" for test in tests] + [""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="how many run at a time"
    )
    parser.add_argument(
        "--markdown", type=Path, help="a folder to write mutants.md and details.md to"
    )
    arguments, started = parser.parse_args(), time.perf_counter()
    if faults():
        print(*faults(), sep="\n")
        return 1
    tests = sorted({mutant.test for mutant in MUTANTS})
    unbroken = run_tests(tests)
    print(f"{len(tests)} tests on the package as it is: {unbroken}", flush=True)
    if unbroken != "passed":
        return 1
    caught = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = pool.map(lambda mutant: run_tests([mutant.test], mutant), MUTANTS)
        for mutant, outcome in zip(MUTANTS, outcomes):
            caught += outcome == "failed"
            verdict = "caught" if outcome == "failed" else f"NOT CAUGHT ({outcome})"
            row = (
                f"{mutant.detail:14}",
                f"{mutant.what:68}",
                f"{mutant.module:20}",
                mutant.test,
                verdict,
            )
            print(*row, sep=" | ", flush=True)
    print(
        f"{caught} of {len(MUTANTS)} caught, in {time.perf_counter() - started:.0f} s"
    )
    if caught == len(MUTANTS) and arguments.markdown:
        (arguments.markdown / "mutants.md").write_text(markdown(), encoding="utf-8")
        (arguments.markdown / "details.md").write_text(legend(), encoding="utf-8")
    return 0 if caught == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
