"""A published model through the whole pipeline, with adapters: what it learns, and what
it forgets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from posttrain.batches import turns
from posttrain.chat import collate
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.data.row_files import RowFile
from posttrain.dpo import pair_logprobs
from posttrain.evaluate import distinct_n, gold_parts, manner, words_of
from posttrain.keep import code
from posttrain.keep.store import lock, stages_folder
from posttrain.lab.reward_probes import count_of, word_votes
from posttrain.lab.rival_trials import CONSTANT
from posttrain.lab.scorecard import against
from posttrain.lab.sft_trials import answers_of
from posttrain.logprobs import (
    get_response_log_probs,
    pack,
    sequence_kl,
    token_logprobs,
)
from posttrain.real.adapter import quantize_blocks
from posttrain.real.checkpoint import read_metrics
from posttrain.real.data import (
    chat_encoder,
    end_token,
    pad_token,
    pair_encoder,
    render_chat_prompt,
)
from posttrain.real.graded import graded_sft_loss
from posttrain.real.model import (
    LanguageModel,
    ModelError,
    ScoringModel,
    library,
)
from posttrain.real.run import Setup, open_model, open_tokenizer, run
from posttrain.real.smollm import smollm2
from posttrain.real.training import RealConfig, write_answers
from posttrain.sft import count_graded
from posttrain.tokenizer import END

# The rubric's word list is Shakespeare's, and this model's English is not: all words
# count as words
ANY_WORD = type("AnyWord", (frozenset,), {"__contains__": lambda self, word: True})()
CONVERSATIONS = datasets.FOLDER / "conversations.jsonl"
PAIRS = datasets.FOLDER / "smollm2_preferences.jsonl"
HELDOUT_PAIRS = datasets.FOLDER / "smollm2_preferences_heldout.jsonl"
PROMPTS = datasets.FOLDER / "prompts.jsonl"
PLAIN_ENGLISH = datasets.FOLDER / "plain_english.txt"
REPLAYED = 8  # of its paragraphs, from the first; the others are held out
STAGES = ("sft", "replay", "qlora", "reward", "dpo", "ppo", "no penalty")
TEMPERATURE = 0.7  # of all answers
LONGEST = 40  # tokens of an answer; what has not ended by then is cut
PLACED = 32  # of the prompts, for what is asked about each answer twice
AT_ONCE, FEW = 32, 8  # rows that are read together: where scores or all logits are kept
SHOWN = 3  # prompts whose answers are shown
DRAWN = 4  # answers of which the best is taken
FREE = 1e-9  # a penalty's weight that is none


@dataclass(frozen=True)
class RealTrial:
    """The settings of every stage: all with adapters of rank 8, beside weights in
    float32 or, for "qlora", in four bits.
    """

    sft: RealConfig = RealConfig("sft", steps=30, micro_batch_size=8, lr=1e-3)
    reward: RealConfig = RealConfig(
        "reward", steps=20, batch_size=6, micro_batch_size=6, lr=1e-3
    )
    dpo: RealConfig = RealConfig(
        "dpo",
        steps=20,
        batch_size=6,
        micro_batch_size=6,
        lr=4e-4,
        beta=0.1,
        nll_weight=1.0,
    )
    ppo: RealConfig = RealConfig(
        "ppo",
        steps=16,
        batch_size=16,
        micro_batch_size=8,
        lr=1e-3,
        beta=0.1,
        max_new_tokens=LONGEST,
        temperature=TEMPERATURE,
    )


def plan(trial: RealTrial, seed: int) -> dict[str, tuple[RealConfig, dict]]:
    """Each stage by its name: settings, and what it starts from and reads, on the
    shelf.
    """
    names = ("sft", "reward", "dpo", "ppo")
    seeded = {name: replace(getattr(trial, name), seed=seed) for name in names}
    practice = dict(model="sft", data=PROMPTS, reward_model="reward")
    free = replace(seeded["ppo"], beta=FREE)
    return {
        "sft": (seeded["sft"], dict(data=CONVERSATIONS)),
        "replay": (seeded["sft"], dict(data=CONVERSATIONS, replay=True)),
        "qlora": (seeded["sft"], dict(data=CONVERSATIONS, nf4=True)),
        "reward": (seeded["reward"], dict(model="sft", data=PAIRS)),
        "dpo": (seeded["dpo"], dict(model="sft", data=PAIRS)),
        "ppo": (seeded["ppo"], practice),
        "no penalty": (free, practice),
    }


def train_stages(
    shelf: Path,
    trial: RealTrial,
    seed: int,
    names: tuple[str, ...] = STAGES,
    progress: Callable = lambda name, steps, total: steps,
) -> dict[str, list[dict]]:
    """Train the stages that are missing on the shelf; return all metrics, by name.

    Each has a folder of its name. One that was cut off goes on from its checkpoint.
    """
    shelf.mkdir(parents=True, exist_ok=True)
    todo, metrics = plan(trial, seed), {}
    for name in names:
        config, reads = todo[name]
        with lock(shelf / name):
            if not (shelf / name / "adapter_config.json").exists():
                setup = setup_of(shelf, name, **reads)
                run(setup, config, resume=True, progress=partial(progress, name))
        metrics[name] = read_metrics(shelf / name)
    return metrics


def setup_of(
    shelf: Path,
    name: str,
    data: Path,
    model: str = "",
    reward_model: str = "",
    replay: bool = False,
    nf4: bool = False,
) -> Setup:
    """A stage's setup: models by their names on the shelf, SmolLM2 where none is
    named.
    """
    text = shelf / "replayed.txt"
    if replay:
        text.write_text("\n\n".join(paragraphs()[:REPLAYED]), encoding="utf-8")
    return Setup(
        model=str(shelf / model if model else smollm2()),
        data=str(data),
        out=str(shelf / name),
        reward_model=str(shelf / reward_model) if reward_model else "",
        replay=str(text) if replay else "",
        nf4=nf4,
        save_every=10,
    )


def shelf_of(trial: RealTrial, seed: int) -> Path:
    """Where a trial's folders lie: by its settings, its code, its data, the versions
    of the libraries, and the number of threads, with which the last digits change.

    Raises ModelError where the code that runs is not what the files say.
    """
    if code.changed(train_stages):
        raise ModelError("the code was edited since it was imported: start again")
    parts = [json.dumps(asdict(trial), sort_keys=True)]
    parts += [code.code_key(train_stages, with_data=True)]
    parts += [torch.__version__, library().__version__]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    threads = torch.get_num_threads()
    return stages_folder() / f"real-{name}" / f"seed-{seed}-threads-{threads}"


@dataclass(frozen=True)
class Reader:
    """What all models of a trial share: the tokenizer, and what they are asked."""

    tokenizer: object
    prompts: list[str]
    seed: int

    @property
    def asked(self) -> list[list[int]]:
        """The prompts as the model's own template writes them."""
        return [render_chat_prompt(prompt, self.tokenizer) for prompt in self.prompts]

    def answers(self, model: LanguageModel, n: int = 1) -> list[list[list[int]]]:
        """n answers to each prompt, as tokens; by prompt."""
        generator = torch.Generator().manual_seed(self.seed)
        asked = [prompt for prompt in self.asked for _ in range(n)]
        stop, drawn = end_token(self.tokenizer), []
        for some, _ in turns(asked, AT_ONCE):
            drawn += write_answers(model, some, LONGEST, stop, generator, TEMPERATURE)
        return [drawn[i : i + n] for i in range(0, len(drawn), n)]

    def text(self, answer: list[int]) -> str:
        """An answer as the rubric reads it, <|end|> after it where it has ended."""
        ended = answer[-1] == end_token(self.tokenizer)
        told = self.tokenizer.decode(answer[:-1] if ended else answer).strip()
        return told + END * ended


@torch.no_grad()
def scores_of(
    judge: ScoringModel, asked: list[list[int]], answers: list[list[int]], pad: int
) -> Tensor:
    """The judge's score of each answer: (B,)."""
    rows = list(zip(asked, answers))
    found = [
        judge(*pack(*map(list, zip(*some)), pad)) for some, _ in turns(rows, AT_ONCE)
    ]
    return torch.cat(found)


@torch.no_grad()
def kl_of(
    policy: LanguageModel,
    reference: LanguageModel,
    asked: list[list[int]],
    answers: list[list[int]],
    pad: int,
) -> Tensor:
    """KL(policy || reference) of each answer that the policy gave, in nats: (B,)."""
    rows = list(zip(asked, answers))
    packed = (pack(*map(list, zip(*some)), pad) for some, _ in turns(rows, FEW))
    return torch.cat(
        [sequence_kl(policy, reference, *each, TEMPERATURE) for each in packed]
    )


@torch.no_grad()
def to_the_point(
    model: LanguageModel, asked: list[list[int]], answers: list[list[int]], pad: int
) -> float:
    """The share of answers that a model finds likelier after their own prompt than
    after the next one's; by chance it is one half.
    """
    found = []
    for prompts in (asked, asked[1:] + asked[:1]):
        rows = list(zip(prompts, answers))
        packed = (pack(*map(list, zip(*some)), pad) for some, _ in turns(rows, FEW))
        parts = [get_response_log_probs(model, *each) for each in packed]
        found.append(torch.cat(parts))
    return (found[0] > found[1]).double().mean().item()


def card_of(texts: list[str]) -> dict:
    """What the rubric and plain counts say of answers, one to each prompt."""
    parts = [gold_parts(text, ANY_WORD) for text in texts]
    gold, n = [sum(part.values()) for part in parts], len(texts)
    known = answers_of(datasets.conversations())
    return dict(
        answers=texts,
        gold=gold,
        gold_score=sum(gold) / n,
        finished=sum(text.endswith(END) for text in texts) / n,
        courteous=sum(manner(text) == 1 for text in texts) / n,
        blunt=sum(manner(text) == -1 for text in texts) / n,
        different=len(set(texts)) / n,
        distinct=distinct_n(texts, 2),
        recited=sum(text.removesuffix(END) in known for text in texts) / n,
        words=sum(len(words_of(text)) for text in texts) / n,
    )


@torch.no_grad()
def english_loss(model: LanguageModel, tokenizer) -> float:
    """Mean surprise at the held-out paragraphs of plain English, in nats per token."""
    sums, n = 0.0, 0
    for text in paragraphs()[REPLAYED:]:
        tokens = torch.tensor([tokenizer(text)["input_ids"]])  # (1, T)
        sums -= token_logprobs(model(tokens), tokens).sum().item()
        n += tokens.size(1) - 1
    return sums / n


@torch.no_grad()
def talk_loss(model: LanguageModel, tokenizer) -> float:
    """Mean surprise at the graded tokens of the 20 held-out conversations, in nats."""
    encode, sums, n = chat_encoder(tokenizer, 1024), 0.0, 0
    rows = [each for row in datasets.heldout_conversations() for each in encode(row)]
    for some, _ in turns(rows, FEW):
        tokens, labels = collate(some, pad_token(tokenizer))
        n += count_graded(labels)
        sums += graded_sft_loss(model, tokens, labels, 1).item()
    return sums / n


@torch.no_grad()
def continued(model: LanguageModel, tokenizer, prompts: list[str]) -> list[str]:
    """What a model writes after bare prompts, without a chat template."""
    asked = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    stop, generator = end_token(tokenizer), torch.Generator().manual_seed(0)
    drawn = write_answers(model, asked, LONGEST, stop, generator, TEMPERATURE)
    return [tokenizer.decode(tokens) for tokens in drawn]


def losses_of(shelf: Path, tokenizer) -> dict[str, dict[str, float]]:
    """What each model loses on plain English and on held-out conversations, in nats.

    "packed": SmolLM2 with its blocks in four bits (NF4), and "qlora" what was trained
    on them, its adapters merged into the whole weights.
    """
    losses = {}
    for name in ("instruct", "packed", "sft", "replay", "qlora"):
        own = shelf / name if name in STAGES else smollm2()
        model = opened(own, tokenizer)
        if name == "packed":
            quantize_blocks(model.inner)
        losses[name] = dict(
            english=english_loss(model, tokenizer),
            conversations=talk_loss(model, tokenizer),
        )
    return losses


def paragraphs() -> list[str]:
    """The paragraphs of plain English: nothing in them is Shakespeare's, or a chat."""
    return PLAIN_ENGLISH.read_text(encoding="utf-8").strip().split("\n\n")


@torch.no_grad()
def pair_scores(judge: ScoringModel, tokenizer, path: Path) -> Tensor:
    """The scores of a file's chosen and rejected answers: (2, N)."""
    pairs = RowFile(path, "preferences").each(pair_encoder(tokenizer, 1024)).kept()
    pad, asked = pad_token(tokenizer), [prompt for prompt, _, _ in pairs]
    sides = ([pair[side] for pair in pairs] for side in (1, 2))
    return torch.stack([scores_of(judge, asked, side, pad) for side in sides])


@torch.no_grad()
def implicit_accuracy(
    policy: LanguageModel, reference: LanguageModel, tokenizer, path: Path
) -> float:
    """The share of a file's pairs that the policy ranks right, as its own judge."""
    pairs = RowFile(path, "preferences").each(pair_encoder(tokenizer, 1024)).kept()
    moved = []
    for model in (policy, reference):
        parts = [
            pair_logprobs(model, some, pad_token(tokenizer))
            for some, _ in turns(pairs, FEW)
        ]
        moved.append(torch.cat(parts, dim=1))  # (2, N)
    chosen, rejected = moved[0] - moved[1]  # (N,)
    return (chosen > rejected).double().mean().item()


def opened(folder: str | Path, tokenizer, scores: bool = False):
    """A model of the shelf to be asked, its adapters merged."""
    inner = open_model(str(folder), tokenizer, scores, torch.float32)
    kind = ScoringModel if scores else LanguageModel
    model = kind(inner).requires_grad_(False)
    model.inner.eval()
    return model


def judge_policy(
    reader: Reader,
    model: LanguageModel,
    instruct: LanguageModel,
    sft: LanguageModel,
    judge: ScoringModel,
) -> dict:
    """The card of a policy: with its KL to the SFT model, the judge's mean score,
    and how often the instruct model finds an answer to the point.
    """
    asked, pad = reader.asked, pad_token(reader.tokenizer)
    answers = [row[0] for row in reader.answers(model)]
    card = card_of([reader.text(answer) for answer in answers])
    return card | dict(
        kl=kl_of(model, sft, asked, answers, pad).mean().item(),
        score=scores_of(judge, asked, answers, pad).mean().item(),
        to_the_point=to_the_point(instruct, asked[:PLACED], answers[:PLACED], pad),
    )


def rivals(reader: Reader, sft: LanguageModel, judge: ScoringModel) -> dict[str, dict]:
    """Cards without training: the best of a few draws of the SFT model, by the judge
    and by a count of words; and one sentence for all.
    """
    pad = pad_token(reader.tokenizer)
    drawn = reader.answers(sft, DRAWN)
    asked = [prompt for prompt in reader.asked for _ in range(DRAWN)]
    flat = [answer for row in drawn for answer in row]
    scores = scores_of(judge, asked, flat, pad).view(-1, DRAWN)  # (B, n)
    rows = RowFile(PAIRS, "preferences").kept()
    votes, texts = word_votes(rows), [list(map(reader.text, row)) for row in drawn]
    counts = torch.tensor([[count_of(text, votes) for text in row] for row in texts])
    cards = {}
    for name, values in {"best of 4": scores, "count of 4": counts}.items():
        places = values.max(-1).indices.tolist()
        cards[name] = card_of([row[i] for row, i in zip(texts, places)])
    return cards | {"constant": card_of([CONSTANT + END] * len(texts))}


def real_trial(
    corpus: Corpus | None,
    trial: RealTrial,
    seed: int,
    progress: Callable = lambda name, steps, total: steps,
) -> dict:
    """The whole pipeline on SmolLM2-135M-Instruct, and what becomes of it.

    `cards`: of each model and rival on the 64 held-out prompts, with `win_rate` and
    `tied` against the SFT model's. `metrics`: of each stage. `losses`: as `losses_of`.
    `continued`: SmolLM2's own words after some bare prompts. `learned`, `ranked`: the
    shares of the 18 and of the 40 held-out pairs that the reward model ranks right;
    `dpo_ranked`: of the latter by DPO's policy. The corpus is not read. Raises
    ModelError where SmolLM2 is not installed.
    """
    shelf = shelf_of(trial, seed)
    metrics = train_stages(shelf, trial, seed, progress=progress)
    tokenizer, _ = open_tokenizer(str(shelf / "sft"))
    reader = Reader(tokenizer, datasets.heldout_prompts(), seed)
    sft = opened(shelf / "sft", tokenizer)
    judge = opened(shelf / "reward", tokenizer, scores=True)
    ranked = {}
    for name, path in {"learned": PAIRS, "ranked": HELDOUT_PAIRS}.items():
        chosen, rejected = pair_scores(judge, tokenizer, path)  # (N,)
        ranked[name] = (chosen > rejected).double().mean().item()
    instruct, cards = opened(smollm2(), tokenizer), {}
    for name in ("instruct", "sft", "dpo", "ppo", "no penalty"):
        model = instruct if name == "instruct" else opened(shelf / name, tokenizer)
        cards[name] = judge_policy(reader, model, instruct, sft, judge)
    cards |= rivals(reader, sft, judge)
    first = cards["sft"]
    for card in cards.values():
        card |= against(card, first)
    dpo = opened(shelf / "dpo", tokenizer)
    return dict(
        cards=cards,
        metrics=metrics,
        losses=losses_of(shelf, tokenizer),
        continued=continued(instruct, tokenizer, reader.prompts[:SHOWN]),
        dpo_ranked=implicit_accuracy(dpo, sft, tokenizer, HELDOUT_PAIRS),
        **ranked,
    )
