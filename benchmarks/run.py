"""Speed, side by side: `make bench` prints the tables that benchmarks/README.md keeps.

Each comparison runs both sides in one process, in turn, and reports the median ratio
over pairs, since a machine's speed drifts while a ratio of neighbours does not. Close
other programs first.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from posttrain import dpo, reward_model, sft
from posttrain.batches import epochs
from posttrain.chat import render_question
from posttrain.data import corpus, datasets
from posttrain.gpt import GPT, GPTConfig, count_parameters
from posttrain.lab.pretraining_trials import nanogpt_recipe, sprint
from posttrain.optim import adamw
from posttrain.ppo import PPOConfig, assemble, ppo_steps
from posttrain.preference_pairs import encode_pairs
from posttrain.pretrain import PretrainConfig, pretrain, training_steps
from posttrain.reward_model import RewardModel
from posttrain.sampling import generate
from posttrain.stages import encode_split
from posttrain.tokenizer import CharTokenizer

ROOT = Path(__file__).resolve().parent.parent
TARGET = 1.88  # nats per character, from nanoGPT's README


def seconds(work) -> float:
    """How long work() takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(ours, theirs, pairs: int) -> tuple[list[float], list[float]]:
    """Time two pieces of work in turn, after one warm-up each."""
    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    return [a for a, _ in times], [b for _, b in times]


def report(
    title: str, ours: list[float], theirs: list[float], peer: str, responses: int = 0
) -> None:
    """Print a comparison's row: medians, and the median, least and greatest ratio.

    responses: how many each run produces; given, the row says their number per second
    too.
    """
    ratios = sorted(b / a for a, b in zip(ours, theirs))
    mine, other = (
        f"{middle:.2f} s"
        + (f" ({responses / middle:.0f} responses/s)" if responses else "")
        for middle in (statistics.median(ours), statistics.median(theirs))
    )
    print(
        f"| {title} | {mine} | {peer} {other} | "
        f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) |",
        flush=True,
    )


def time_to_loss(pairs: int) -> None:
    """Seconds to a validation loss of 1.88: this book's recipe and nanoGPT's for a CPU.

    nanoGPT's 2,000 steps end a little above 1.88 on this split, so its schedule is
    given 2,400.
    """
    training, validation = encode_split(corpus.load())
    measured: dict[str, list[float]] = {"ours": [], "nanogpt": []}
    for seed in range(pairs):
        for name, config in (
            ("ours", sprint()),
            ("nanogpt", replace(nanogpt_recipe(), steps=2400, evaluations=48)),
        ):
            _, history = pretrain(
                replace(config, seed=seed), training, validation, stop_at=TARGET
            )
            if history["validation"][-1] > TARGET:
                print(
                    f"(seed {seed}: {name} ends at {history['validation'][-1]:.3f}, "
                    "not counted as reached)"
                )
            measured[name].append(history["seconds"][-1])
    report(
        f"training to {TARGET} nats/char",
        measured["ours"],
        measured["nanogpt"],
        "nanoGPT's CPU recipe",
    )


def sampling_speed(pairs: int) -> None:
    """64 samples of 96 tokens after 32: ours against a GPT-2 of transformers'."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPTConfig()
    model, prompts = GPT(config), torch.randint(65, (64, 32))
    sizes = dict(
        n_embd=config.width,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_positions=config.context,
    )
    peer = GPT2LMHeadModel(
        GPT2Config(vocab_size=65, eos_token_id=None, bos_token_id=None, **sizes)
    ).eval()
    options = dict(
        do_sample=True, top_k=0, max_new_tokens=96, min_new_tokens=96, pad_token_id=0
    )
    mask, lists = torch.ones_like(prompts), prompts.tolist()
    ours, theirs = in_turn(
        lambda: generate(model, lists, 96),
        lambda: peer.generate(prompts, attention_mask=mask, **options),
        pairs,
    )
    report("sampling 64 x 96 tokens", ours, theirs, "transformers generate")


def trl_trainer(
    prompts: list[list[int]], shape: GPTConfig, config: PPOConfig, folder: str
):
    """TRL's PPOTrainer on GPT-2s of our size and settings: float32, nothing reported.

    A round is one device batch, so that every minibatch of it is a step of the
    optimiser, as it is with us.
    """
    import transformers
    from datasets import Dataset
    from trl.experimental import ppo

    # Four models: the reference is the trainer's own copy of the policy
    sizes = dict(
        n_embd=shape.width,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_positions=shape.context,
    )
    special = dict(eos_token_id=None, bos_token_id=None)
    peer = transformers.GPT2Config(
        vocab_size=shape.vocab_size, num_labels=1, **special, **sizes
    )
    policy = transformers.GPT2LMHeadModel(peer)
    judge, critic = (
        transformers.GPT2ForSequenceClassification(peer),
        transformers.GPT2ForSequenceClassification(peer),
    )
    arguments = ppo.PPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        num_sample_generations=0,
        total_episodes=config.iterations * config.batch_size,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=config.batch_size,
        num_ppo_epochs=config.epochs,
        num_mini_batches=config.minibatches,
        response_length=config.max_new_tokens,
        stop_token=None,
        missing_eos_penalty=None,
        temperature=config.temperature,
        learning_rate=config.lr,
        kl_coef=config.beta,
    )
    return ppo.PPOTrainer(
        args=arguments,
        processing_class=twins().chat_tokenizer(),
        model=policy,
        ref_model=None,
        reward_model=judge,
        value_model=critic,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
    )


def ppo_step(pairs: int) -> None:
    """A round of PPO, 32 prompts of 32 tokens and 64 new ones: ours against TRL's.

    A callback of TRL's train() takes the time at the end of each of its rounds, and
    runs one of ours before the next; the first round of each, with its set-up, is not
    counted. The vocabulary of all models stops short of <|end|> and <|pad|>, so that
    neither can be drawn: every response has 64 tokens.
    """
    from transformers import TrainerCallback

    tokenizer, draws = CharTokenizer(), random.Random(0)
    config = PPOConfig(iterations=pairs + 1, max_new_tokens=64)
    shape = GPTConfig(vocab_size=tokenizer.end, zero_init=False)
    texts = [
        "".join(draws.choices(tokenizer.alphabet, k=30))
        for _ in range(config.batch_size)
    ]
    prompts = [render_question(text, tokenizer) for text in texts]
    rounds = ppo_steps(assemble(GPT(shape), RewardModel(GPT(shape))), texts, config)
    ours, theirs, our_lengths, their_lengths = [], [], [], []

    class InTurn(TrainerCallback):
        """Note how long TRL's round took, and run one of ours before its next."""

        def on_train_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            theirs.append(time.perf_counter() - self.start)
            ours.append(seconds(lambda: our_lengths.append(next(rounds)["length"])))
            self.start = time.perf_counter()

    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        trainer = trl_trainer(prompts, shape, config, folder)
        trainer.add_callback(InTurn())
        # Note how many tokens each row has that TRL's reward model reads
        trainer.reward_model.base_model.register_forward_pre_hook(
            lambda _, __, inputs: their_lengths.extend(
                inputs["attention_mask"].sum(-1).tolist()
            ),
            with_kwargs=True,
        )
        trainer.train()
    # Compare equal work only
    assert our_lengths == [64] * (pairs + 1), our_lengths
    assert their_lengths == [32 + 64] * config.batch_size * (pairs + 1), their_lengths
    report(
        "PPO, a round of 32 x 64 tokens",
        ours[1:],
        theirs[1:],
        "TRL PPOTrainer",
        config.batch_size,
    )


def twins():
    """The parity tests' module that makes transformers' twins of our models."""
    sys.path.insert(0, str(ROOT / "tests"))
    from parity import oracles

    return oracles


def plain_adamw(model, rates: PretrainConfig) -> list[torch.optim.AdamW]:
    """One AdamW for all weights, at one rate."""
    return [
        adamw(
            [dict(params=list(model.parameters()))], lr=rates.adamw_lr, weight_decay=0.0
        )
    ]


def in_order(rows: list, config) -> list:
    """The rows of all batches of a run, in the order in which our loops draw them."""
    drawn = epochs(
        len(rows), config.batch_size, torch.Generator().manual_seed(config.seed)
    )
    return [rows[i] for _ in range(config.steps) for i in next(drawn)]


def trainer_of(
    kind,
    settings,
    folder: str,
    model,
    rows: list[dict],
    config,
    rate: float,
    reference=None,
    **changes,
):
    """One of TRL's trainers on the same rows in order, with AdamW and a falling rate.

    No checkpoints, no reports, no clipping, no recomputed activations, no bfloat16.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    (optimizer,) = plain_adamw(model, PretrainConfig(adamw_lr=rate))
    fall = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 - step / config.steps
    )
    arguments = settings(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=1,
        train_sampling_strategy="sequential",
        max_length=None,
        max_grad_norm=0.0,
        **changes,
    )
    others = {} if reference is None else dict(ref_model=reference)
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        **others,
        processing_class=twins().chat_tokenizer(),
        optimizers=(optimizer, fall),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def timed(
    ours: Callable[[], list[float]], trainer: Callable
) -> tuple[float, float, float]:
    """Seconds of a run of ours and of TRL's, and the largest difference of losses.

    ours: trains and returns each step's loss. trainer(folder): TRL's, made before its
    time starts.
    """
    losses: list[float] = []
    mine = seconds(lambda: losses.extend(ours()))
    out, err = (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    )
    with tempfile.TemporaryDirectory() as folder, out, err:
        peer = trainer(folder)
        theirs = seconds(peer.train)
    noted = [entry["loss"] for entry in peer.state.log_history if "loss" in entry]
    assert len(noted) == len(losses) == peer.args.max_steps, (len(noted), len(losses))
    return mine, theirs, max(abs(a / b - 1) for a, b in zip(losses, noted))


def report_runs(
    title: str, peer: str, pairs: int, once: Callable[[], tuple[float, float, float]]
) -> None:
    """Print the row of a run that both sides make, and how far their losses differ."""
    ours, theirs, apart = zip(*(once() for _ in range(pairs + 1)))
    report(title, ours[1:], theirs[1:], peer)
    print(f"(the losses of a step differ by {max(apart):.1e} of TRL's at most)")
    assert max(apart) < 1e-5, apart


def sft_run(pairs: int) -> None:
    """A run of SFT, 40 steps of 4 conversations: `sft_steps` against SFTTrainer.

    Both train the same GPT-2 from the same weights, at a tenth of the book's rate (see
    `dpo_run`). The first run of each is not counted.
    """
    from trl import SFTConfig, SFTTrainer

    tokenizer, config = CharTokenizer(), replace(sft.SFTConfig(replay=0), steps=40)
    config = replace(config, adamw_lr=config.adamw_lr / 10)
    model = GPT(
        GPTConfig.gpt2(vocab_size=tokenizer.vocab_size),
        torch.Generator().manual_seed(0),
    )
    examples = sft.encode_conversations(
        datasets.conversations(), tokenizer, model.config.context
    )
    rows = in_order(
        [dict(zip(("input_ids", "labels"), example)) for example in examples], config
    )

    def ours() -> list[float]:
        with mock.patch.object(sft, "build_optimizers", plain_adamw):
            steps = sft.sft_steps(
                copy.deepcopy(model), examples, torch.zeros(0), config, tokenizer.pad
            )
            return [noted["loss"] for noted in steps]

    def theirs(folder: str):
        return trainer_of(
            SFTTrainer,
            SFTConfig,
            folder,
            twins().as_gpt2(model),
            rows,
            config,
            config.adamw_lr,
        )

    title = f"SFT, {config.steps} steps of {config.batch_size} conversations"
    report_runs(title, "TRL SFTTrainer", pairs, lambda: timed(ours, theirs))


def reward_run(pairs: int) -> None:
    """A run of reward modelling, 20 steps of 18 pairs: ours against RewardTrainer.

    The comparison token by token, which TRL has not, is left out on our side. Same
    weights, at a tenth of the book's rate. The first run of each is not counted.
    """
    from trl import RewardConfig, RewardTrainer

    tokenizer, config = (
        CharTokenizer(),
        reward_model.RewardConfig(steps=20, token_weight=0.0),
    )
    config = replace(config, lr=config.lr / 10)
    body = GPT(
        GPTConfig.gpt2(vocab_size=tokenizer.vocab_size),
        torch.Generator().manual_seed(0),
    )
    model = RewardModel(body, torch.Generator().manual_seed(0))
    encoded = encode_pairs(datasets.preferences(), tokenizer, body.config.context)
    rows = [
        dict(chosen_ids=prompt + a, rejected_ids=prompt + b)
        for prompt, a, b in in_order(encoded, config)
    ]

    def ours() -> list[float]:
        steps = reward_model.reward_steps(
            copy.deepcopy(model), encoded, config, tokenizer.pad
        )
        return [noted["loss"] for noted in steps]

    def theirs(folder: str):
        peer, centring = (
            twins().as_scoring_gpt2(model),
            dict(center_rewards_coefficient=config.centring),
        )
        return trainer_of(
            RewardTrainer,
            RewardConfig,
            folder,
            peer,
            rows,
            config,
            config.lr,
            **centring,
        )

    title = f"reward model, {config.steps} steps of {config.batch_size} pairs"
    report_runs(title, "TRL RewardTrainer", pairs, lambda: timed(ours, theirs))


@contextlib.contextmanager
def float64():
    """Make new tensors float64 for a while."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def dpo_run(pairs: int) -> None:
    """A run of DPO, 40 steps of 6 pairs: `dpo_steps` against DPOTrainer.

    Both train the same GPT-2. The first run of each is not counted. Ours asks the
    reference once, within its time. TRL asks it in every step or, in the second row,
    once and before its time starts. The losses of each step are compared too, in
    float32 and in float64.
    """
    from trl import DPOConfig, DPOTrainer

    class FromTokens(DPOTrainer):
        """TRL's trainer, for pairs that are token ids already."""

        def _prepare_dataset(self, dataset, *_):
            return dataset

    tokenizer = CharTokenizer()
    config = dpo.DPOConfig(
        batch_size=6, lr=3e-4, beta=0.02, label_smoothing=0.0, nll_weight=0.0
    )
    model = GPT(
        GPTConfig.gpt2(vocab_size=tokenizer.vocab_size),
        torch.Generator().manual_seed(0),
    )
    encoded = encode_pairs(datasets.preferences(), tokenizer, model.config.context)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, pair)) for pair in in_order(encoded, config)]

    def once(model: GPT, precompute: bool) -> tuple[float, float, float]:
        def ours() -> list[float]:
            policy = copy.deepcopy(model)
            steps = dpo.dpo_steps(policy, model, encoded, config)
            return [noted["loss"] for noted in steps]

        def theirs(folder: str):
            reference = None if precompute else twins().as_gpt2(model)
            asked = dict(
                precompute_ref_log_probs=precompute,
                precompute_ref_batch_size=len(encoded),
            )
            return trainer_of(
                FromTokens,
                DPOConfig,
                folder,
                twins().as_gpt2(model),
                rows,
                config,
                config.lr,
                reference,
                beta=config.beta,
                **asked,
            )

        return timed(ours, theirs)

    for peer, precompute in (
        ("TRL DPOTrainer", False),
        ("TRL DPOTrainer, precompute_ref_log_probs", True),
    ):
        title = f"DPO, {config.steps} steps of {config.batch_size} pairs"
        report_runs(
            title, peer, pairs, lambda precompute=precompute: once(model, precompute)
        )
    with float64():
        *_, apart = once(copy.deepcopy(model).double(), False)
    print(f"(in float64 by {apart:.1e})")
    assert apart < 1e-12, apart


def share_of_peak(pairs: int) -> None:
    """Training arithmetic (6 x parameters x tokens) as a share of a large product's."""
    training, _ = encode_split(corpus.load())
    config = PretrainConfig(steps=60)
    model, (a, b) = GPT(config.model), torch.randn(2, 2048, 2048)
    work = 6 * count_parameters(model) * config.tokens
    rates, peaks = [], []
    for pair in range(pairs + 1):
        trained = work / seconds(lambda: list(training_steps(model, training, config)))
        peak = 20 * 2 * 2048**3 / seconds(lambda: [a @ b for _ in range(20)])
        if pair:
            rates.append(trained), peaks.append(peak)
    shares = sorted(rate / peak for rate, peak in zip(rates, peaks))
    print(
        f"| training arithmetic | {statistics.median(rates) / 1e9:.0f} GFLOP/s | 2048 "
        "x 2048 product "
        f"{statistics.median(peaks) / 1e9:.0f} GFLOP/s | "
        f"{statistics.median(shares):.0%} "
        f"({shares[0]:.0%} to {shares[-1]:.0%}) |",
        flush=True,
    )


SCALES = {
    "width": (64, 128, 256),
    "layers": (2, 4, 8),
    "context": (64, 128, 256, 512),
    "sequences": (2, 4, 8),
    "cores": (1, 2),
}


def sized(
    width=128, layers=4, context=256, sequences=4, cores=2
) -> dict[str, Callable[[], None]]:
    """What is timed at a size: three steps of pre-training, and filling a context.

    A head has 64 features, as in the book. sequences: of the training batch; four times
    as many are sampled.
    """
    shape = GPTConfig(
        width=width, n_layer=layers, n_head=max(1, width // 64), context=context
    )
    model, data = (
        GPT(shape, torch.Generator().manual_seed(0)),
        torch.arange(10_000) % 65,
    )
    config = PretrainConfig(
        shape, steps=3, batch_size=sequences, sequence_length=context
    )
    prompts = [list(range(8))] * 4 * sequences

    def with_cores(work: Callable) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(cores)
            work()

        return run

    return {
        "pre-training step": with_cores(
            lambda: list(training_steps(model, data, config))
        ),
        "sampling": with_cores(lambda: generate(model, prompts, context - 8)),
    }


def scaling(pairs: int) -> None:
    """How a step's cost grows with each size, against the book's own.

    Each other size runs in turn with the book's. Draws benchmarks/scaling.png beside
    printing its numbers.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    standard = dict(
        width=128, layers=4, context=256, sequences=4, cores=min(2, os.cpu_count() or 1)
    )
    threads, usual = torch.get_num_threads(), sized(**standard)
    print("| | " + " | ".join(["size", *usual]) + " |\n|---|---|" + "---|" * len(usual))
    figure, axes = plt.subplots(1, len(SCALES), figsize=(13, 3.2), sharey=True)
    for axis, (name, sizes) in zip(axes, SCALES.items()):
        ratios: dict[str, list[float]] = {work: [] for work in usual}
        for size in sizes:
            other = sized(**{**standard, name: size})
            for work in usual:
                times = (
                    ([1.0], [1.0])
                    if size == standard[name]
                    else in_turn(usual[work], other[work], pairs)
                )
                ratios[work].append(statistics.median(b / a for a, b in zip(*times)))
            print(
                f"| {name} | {size} | "
                + " | ".join(f"{ratios[work][-1]:.2f}" for work in usual)
                + " |",
                flush=True,
            )
        for (work, found), marker in zip(ratios.items(), "os"):
            axis.loglog(sizes, found, marker=marker, label=work)
        slope = -1 if name == "cores" else 1
        axis.loglog(
            sizes,
            [(size / standard[name]) ** slope for size in sizes],
            ":",
            color="grey",
            label="in proportion",
        )
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
        axis.minorticks_off()
        axis.set_xlabel(name)
    torch.set_num_threads(threads)
    axes[0].set_ylabel("time, against the book's size")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(ROOT / "benchmarks" / "scaling.png", dpi=110)


def distributed(pairs: int) -> None:
    """One step of SFT on two cores in three ways; ratios to one process and thread."""
    from posttrain.scale.throughput import WAYS, throughput

    widths = (64, 128, 256, 512)
    speeds = throughput(widths, rounds=pairs)
    print("| width | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS))
    for width in widths:
        print(
            f"| {width} | "
            + " | ".join(f"{speeds[width][way]:.2f}" for way in WAYS)
            + " |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--pairs", type=int, default=5, help="how often each pair is run (default 5)"
    )
    parser.add_argument(
        "only", nargs="*", choices=[*BENCHMARKS, []], help="which to run (default: all)"
    )
    arguments = parser.parse_args()
    # Talk with no server while a clock runs
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    print(
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, Python "
        f"{platform.python_version()}, "
        f"{platform.system()} {platform.machine()}\n"
    )
    print(
        "| what | this book | peer | ratio: median (least to greatest) "
        "|\n|---|---|---|---|",
        flush=True,
    )
    for name in arguments.only or BENCHMARKS:
        BENCHMARKS[name](arguments.pairs)


BENCHMARKS = {
    "sampling": sampling_speed,
    "peak": share_of_peak,
    "time-to-loss": time_to_loss,
    "sft": sft_run,
    "reward": reward_run,
    "ppo": ppo_step,
    "dpo": dpo_run,
    "scaling": scaling,
    "distributed": distributed,
}

if __name__ == "__main__":
    main()
