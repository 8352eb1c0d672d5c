"""Rejection sampling: keep the best of a policy's own answers, and fine-tune on
them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from posttrain.chat import build_labels, render_question
from posttrain.data.synthetic_pairs import Pool, judged_by
from posttrain.gpt import GPT
from posttrain.sft import SFTConfig, plain_sft, sft_steps
from posttrain.tokenizer import CharTokenizer

Choice = list[tuple[int, int]]  # (prompt, answer): places in a pool


def keep_best(pool: Pool, judge: str) -> Choice:
    """Each prompt's usable answer with the highest score; the first of equals.

    A prompt without a usable answer is left out. Sources: Dong et al. 2023 (RAFT),
    algorithm 1; Touvron et al. 2023 (Llama 2), section 3.2.3.
    """
    scores = judged_by(pool, judge).masked_fill(~pool.usable, -torch.inf)  # (B, n)
    best = scores.argmax(1).tolist()
    return [(row, best[row]) for row in range(len(best)) if pool.usable[row].any()]


def keep_any(pool: Pool, seed: int) -> Choice:
    """One usable answer of each prompt, all of them equally likely: the control.

    The same prompts as `keep_best`, as many answers, and no judge.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = pool.usable.any(1).nonzero().squeeze(1)  # (R,)
    drawn = torch.multinomial(
        pool.usable[rows].double(), 1, generator=generator
    )  # (R, 1)
    return list(zip(rows.tolist(), drawn.squeeze(1).tolist()))


def as_examples(pool: Pool, choice: Choice) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of the chosen answers, as fine-tuning takes them."""
    tokenizer, examples = CharTokenizer(), []
    for row, place in choice:
        prompt = render_question(pool.prompts[row], tokenizer)
        tokens = prompt + pool.answers[row][place]
        examples.append((tokens, build_labels(tokens, tokenizer)))
    return examples


def imitation(seed: int) -> SFTConfig:
    """Fine-tuning on a policy's own answers: short, at a fifth of the usual rates."""
    return plain_sft(
        steps=20,
        batch_size=8,
        micro_batch_size=8,
        muon_lr=2e-3,
        adamw_lr=1e-3,
        seed=seed,
    )


def imitate(
    policy: GPT, pool: Pool, choice: Choice, config: SFTConfig
) -> Iterator[dict[str, float]]:
    """Fine-tune the policy in place on the chosen answers; yield what `sft_steps`
    yields.
    """
    no_text = torch.empty(0, dtype=torch.long)
    examples = as_examples(pool, choice)
    return sft_steps(policy, examples, no_text, config, CharTokenizer().pad)
