"""The trained stages by their names: each with its parents, its data, and how it went.

A loader returns a trained model and its history; `config`, `data` and `progress` mean
the same to all of them. What is missing is trained, and its parents before it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from posttrain.chat import grow_vocabulary
from posttrain.data.corpus import Corpus
from posttrain.data.datasets import DatasetError, TrainingData, training_data
from posttrain.data.own import own_data
from posttrain.dpo import DPOConfig, dpo_steps
from posttrain.gpt import GPT
from posttrain.keep.store import Stage, obtain
from posttrain.logprobs import pack
from posttrain.ppo import Models, PPOConfig, assemble, ppo_steps
from posttrain.preference_pairs import encode_pairs
from posttrain.pretrain import PretrainConfig, pretrain, validation_loss
from posttrain.reward_model import (
    RewardConfig,
    RewardModel,
    normalise,
    sample_answers,
    train_reward_model,
)
from posttrain.sft import SFTConfig, sft
from posttrain.tokenizer import CharTokenizer

Progress = Callable[..., Iterable]
Trained = tuple[
    dict[str, Tensor], dict
]  # weights by name, and the history of the training


def unwatched(steps: Iterable, total: int | None = None) -> Iterable:
    """The steps as they are: the progress bar of one who does not watch."""
    return steps


# The stages on disk


def encode_split(corpus: Corpus) -> tuple[Tensor, Tensor]:
    """The token ids of a corpus's training and validation text, 1-d int64 each."""
    encode = CharTokenizer().encode
    return torch.tensor(encode(corpus.train)), torch.tensor(encode(corpus.validation))


def base_stage(
    corpus: Corpus,
    config: PretrainConfig | None = None,
    *,
    progress: Progress = unwatched,
) -> Stage:
    """The base model: learned from the corpus's training text."""
    config = config or PretrainConfig()

    def train() -> Trained:
        model, history = pretrain(config, *encode_split(corpus), progress=progress)
        return model.state_dict(), history

    reads = [corpus.sha256, len(corpus.train)]
    return obtain("base", config, train, reads=reads)


def sft_stage(
    corpus: Corpus,
    config: SFTConfig | None = None,
    *,
    data: TrainingData | None = None,
    progress: Progress = unwatched,
) -> Stage:
    """The SFT model: the base model, fine-tuned on the data's conversations.

    Every evaluation notes `shakespeare_loss`, on 32 windows of validation text, in nats
    per character.
    """
    config, data = config or SFTConfig(), data or training_data()
    base = base_stage(corpus, progress=progress)

    def train() -> Trained:
        text, validation = encode_split(corpus)

        def measure(model: GPT) -> dict:
            return dict(shakespeare_loss=validation_loss(model, validation, windows=32))

        start = language_model(base)
        model, history = sft(start, data.conversations, text, config, measure, progress)
        return model.state_dict(), history

    return obtain("sft", config, train, after=[base], reads=data.conversations)


def reward_stage(
    corpus: Corpus,
    config: RewardConfig | None = None,
    *,
    data: TrainingData | None = None,
    progress: Progress = unwatched,
) -> Stage:
    """The reward model of the data's pairs: it starts from the SFT model of its seed
    and data.

    Its scores are normalised on that model's answers to the data's prompts.
    """
    config, data = config or RewardConfig(), data or training_data()
    start = sft_stage(corpus, SFTConfig(seed=config.seed), data=data, progress=progress)

    def train() -> Trained:
        body = language_model(start)
        model, history = train_reward_model(body, data.pairs, config, progress)
        answers = sample_answers(body, data.prompts, config.seed)
        normalise(model, *pack(*answers, CharTokenizer().pad))
        return model.state_dict(), history

    return obtain(
        "reward", config, train, after=[start], reads=[data.pairs, data.prompts]
    )


def ppo_stage(
    corpus: Corpus,
    config: PPOConfig | None = None,
    *,
    data: TrainingData | None = None,
    progress: Progress = unwatched,
) -> Stage:
    """What PPO trains, policy and value model: from the SFT model and the reward model
    of its seed and data, on the data's prompts.
    """
    config, data = config or PPOConfig(), data or training_data()
    scores = RewardConfig(seed=config.seed)
    judge = reward_stage(corpus, scores, data=data, progress=progress)
    (start,) = judge.after

    def train() -> Trained:
        began = time.perf_counter()
        models = assemble(language_model(start), scoring_model(judge))
        steps = ppo_steps(models, data.prompts, config)
        rounds = list(progress(steps, total=config.iterations))
        history = dict(rounds=rounds, seconds=time.perf_counter() - began)
        return trained_models(models).state_dict(), history

    return obtain("ppo", config, train, after=[start, judge], reads=data.prompts)


def dpo_stage(
    corpus: Corpus,
    config: DPOConfig | None = None,
    *,
    data: TrainingData | None = None,
    progress: Progress = unwatched,
) -> Stage:
    """DPO's policy: the SFT model of its seed and data, trained on the data's pairs."""
    config, data = config or DPOConfig(), data or training_data()
    start = sft_stage(corpus, SFTConfig(seed=config.seed), data=data, progress=progress)

    def train() -> Trained:
        began, reference = time.perf_counter(), language_model(start)
        policy = copy.deepcopy(reference)
        run = train_dpo(policy, reference, config, data)
        steps = list(progress(run, total=config.steps))
        return policy.state_dict(), dict(
            steps=steps, seconds=time.perf_counter() - began
        )

    return obtain("dpo", config, train, after=[start], reads=data.pairs)


# The models


def language_model(stage: Stage, model: PretrainConfig | None = None) -> GPT:
    """A stage's language model: its weights, in the shape of the base model's
    configuration.

    The size of its vocabulary is that of its weights.
    """
    vocab_size = stage.weights["embedding.weight"].size(0)
    found = GPT(replace((model or PretrainConfig()).model, vocab_size=vocab_size))
    found.load_state_dict(stage.weights)
    return found


def scoring_model(stage: Stage) -> RewardModel:
    """A stage's reward model."""
    config = replace(PretrainConfig().model, vocab_size=CharTokenizer().vocab_size)
    model = RewardModel(GPT(config))
    model.load_state_dict(stage.weights)
    return model


def base_model(
    corpus: Corpus,
    config: PretrainConfig | None = None,
    *,
    progress: Progress = unwatched,
) -> tuple[GPT, dict]:
    """The base model that every later stage starts from, and its history."""
    stage = base_stage(corpus, config, progress=progress)
    return language_model(stage, config), stage.history


def sft_model(
    corpus: Corpus,
    config: SFTConfig | None = None,
    *,
    data: TrainingData | None = None,
    progress: Progress = unwatched,
) -> tuple[GPT, dict]:
    """The model fine-tuned on the data's conversations, the book's 40 unless given; its
    history.
    """
    stage = sft_stage(corpus, config, data=data, progress=progress)
    return language_model(stage), stage.history


def reward_model(
    corpus: Corpus,
    config: RewardConfig | None = None,
    *,
    data: TrainingData | None = None,
    progress: Progress = unwatched,
) -> tuple[RewardModel, dict]:
    """The reward model of the data's pairs, the book's 18 unless given, and its
    history.
    """
    stage = reward_stage(corpus, config, data=data, progress=progress)
    return scoring_model(stage), stage.history


def ppo_models(
    corpus: Corpus,
    config: PPOConfig | None = None,
    *,
    data: TrainingData | None = None,
    progress: Progress = unwatched,
) -> tuple[Models, dict]:
    """The four models as PPO leaves them, and its history.

    The book's prompts to practise on are 96. The history has `rounds`, what each round
    noted, and `seconds`.
    """
    config = config or PPOConfig()
    stage = ppo_stage(corpus, config, data=data, progress=progress)
    start, judge = stage.after
    models = assemble(language_model(start), scoring_model(judge))
    trained_models(models).load_state_dict(stage.weights)
    return models, stage.history


def trained_models(models: Models) -> nn.ModuleDict:
    """Those of the four that PPO trains, as one module."""
    return nn.ModuleDict(dict(policy=models.policy, value_model=models.value_model))


def ppo_model(
    corpus: Corpus,
    config: PPOConfig | None = None,
    *,
    data: TrainingData | None = None,
    progress: Progress = unwatched,
) -> tuple[GPT, dict]:
    """The policy that PPO makes of the SFT model, and its history."""
    models, history = ppo_models(corpus, config, data=data, progress=progress)
    return models.policy, history


def dpo_model(
    corpus: Corpus,
    config: DPOConfig | None = None,
    *,
    data: TrainingData | None = None,
    progress: Progress = unwatched,
) -> tuple[GPT, dict]:
    """The policy that DPO makes of the SFT model, and its history.

    The history has `steps`, what each step noted, and `seconds`. There is no reward
    model.
    """
    stage = dpo_stage(corpus, config, data=data, progress=progress)
    return language_model(stage), stage.history


def train_dpo(
    policy: GPT, reference: GPT, config: DPOConfig, data: TrainingData | None = None
) -> Iterable[dict[str, float]]:
    """`dpo_steps` on the data's pairs, the book's 18 unless given."""
    data = data or training_data()
    pairs = encode_pairs(data.pairs, CharTokenizer(), policy.config.context)
    return dpo_steps(policy, reference, pairs, config)


def starting_point(corpus: Corpus, start: str, seed: int) -> GPT:
    """The language model that a reward model starts from: "sft", of this seed, or
    "base".
    """
    if start == "sft":
        return sft_model(corpus, SFTConfig(seed=seed))[0]
    if start == "base":
        return grow_vocabulary(base_model(corpus)[0], CharTokenizer().vocab_size)
    raise ValueError(f"{start!r} is no start for a reward model: use 'sft' or 'base'")


# By name


STAGES = dict(
    base=base_model, sft=sft_model, reward=reward_model, ppo=ppo_model, dpo=dpo_model
)
CONFIGS = dict(
    base=PretrainConfig,
    sft=SFTConfig,
    reward=RewardConfig,
    ppo=PPOConfig,
    dpo=DPOConfig,
)


def data_for(
    stage: str,
    data: Path | None,
    conversations: Path | None,
    skip_bad: bool = False,
) -> TrainingData:
    """What a stage learns from: `data` is its own file, `conversations` that of the SFT
    model.

    The book's own where there is no file. Raises DatasetError for a file that cannot be
    used, or that the stage has no use for; with skip_bad rows that cannot be used are
    left out.
    """
    if stage == "base" and (data or conversations):
        raise DatasetError(
            "The base model learns from a text, not from conversations or pairs: "
            "choose that "
            "with POSTTRAIN_CORPUS=path/to/text.txt"
        )
    if stage == "sft" and conversations:
        raise DatasetError(
            "The SFT model learns from one file alone: name it with --data"
        )
    own = (data, None) if stage == "sft" else (conversations, data)
    return own_data(*own, skip_bad=skip_bad)


def rows_of(stage: str, data: TrainingData) -> str:
    """What a stage has learned from, in words."""
    n, n_pairs = len(data.conversations), len(data.pairs)
    conversations = f"{n} conversation{'s' * (n != 1)}"
    pairs = (
        f"{n_pairs} pair{'s' * (n_pairs != 1)}, after the SFT model's {conversations}"
    )
    return dict(base="the corpus", sft=conversations).get(stage, pairs)


def course_of(stage: str, history: dict) -> str:
    """How a stage's training went, from its first steps to its last, and how long it
    took.
    """
    seconds = history["seconds"]
    if stage == "ppo":
        first, last = history["rounds"][0], history["rounds"][-1]
        course = (
            f"score {first['score']:+.2f} -> {last['score']:+.2f}, "
            f"KL to the SFT model {first['kl']:.1f} -> {last['kl']:.1f} nats per answer"
        )
    elif stage == "dpo":
        first, last = history["steps"][0], history["steps"][-1]
        course = (
            f"loss {first['loss']:.3f} -> {last['loss']:.3f} nats per pair, "
            f"{last['accuracy']:.0%} of the last batch's pairs ranked right"
        )
    else:
        course = f"loss {history['train'][0]:.3f} -> {history['train'][-1]:.3f}"
        if stage == "reward":
            course += f", {history['train_accuracy']:.0%} of the pairs ranked right"
        else:
            unit, seconds = (
                dict(base="character", sft="graded token")[stage],
                seconds[-1],
            )
            course += f" nats per {unit} (means of {history['step'][0]} steps)"
    return f"{course}; {seconds:.0f} s of training"
