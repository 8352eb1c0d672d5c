""" "A real model" on a GPU: how fast it trains, and whether the computed memory holds.

    PYTHONPATH=code python benchmarks/real_gpu.py                          # all cases,
    about 8 minutes on an H100 PYTHONPATH=code python benchmarks/real_gpu.py --models
    Llama-3.2-1B    # about 2 minutes PYTHONPATH=code python benchmarks/real_gpu.py
    --only check             # the four stages, CPU against GPU PYTHONPATH=code python
    benchmarks/real_gpu.py --device cpu --models tiny --steps 1

The models have the shapes of the real ones and random weights, made on the device:
nothing is downloaded. What is timed and weighed does not depend on what the weights
are. Every case prints a JSON line; a table follows.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import platform
import sys
import time
import types
from dataclasses import dataclass, replace

import torch

# Do without what checks data files: here there are none
if importlib.util.find_spec("jsonschema") is None:
    sys.modules["jsonschema"] = types.ModuleType("jsonschema")

from posttrain.lora.adapters import LoRAConfig, Reference, add_lora  # noqa: E402
from posttrain.lora.nf4 import quantize_model  # noqa: E402
from posttrain.real.memory import (  # noqa: E402
    KNOWN,
    MEASURED_RANK,
    Architecture,
    memory,
    setting_of,
)
from posttrain.real.model import (
    LanguageModel,
    ScoringModel,
    TokenValues,
    frozen_copy,
    library,
)  # noqa: E402
from posttrain.real.training import (  # noqa: E402
    Models,
    RealConfig,
    build_descent,
    normalise_scores,
    real_dpo_steps,
    real_ppo_steps,
    real_reward_steps,
    real_sft_steps,
)

SHAPES = KNOWN | {"tiny": Architecture(512, 64, 2, 4, 2, 128)}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Case:
    """One way to train; `how`: full32 (bfloat16 products), full16, lora or qlora."""

    model: str
    stage: str
    how: str
    checkpointing: bool
    micro: int  # rows of a forward pass; for DPO pairs, of two rows each
    length: int


def cases(models: list[str], length: int) -> list[Case]:
    """What is measured, the small first."""
    chosen = []
    for model in models:
        large = model == "Llama-3.1-8B"
        micro = 1 if large else 4
        ways = (
            [("full16", True)]
            if large
            else [("full32", False), ("full32", True), ("full16", True)]
        )
        ways += [
            (how, checkpointing)
            for how in ("lora", "qlora")
            for checkpointing in (False, True)
        ]
        chosen += [
            Case(model, "sft", how, checkpointing, micro, length)
            for how, checkpointing in ways
        ]
        dpo = (
            [("lora", True), ("qlora", True)]
            if large
            else [("lora", False), ("lora", True)]
        )
        chosen += [
            Case(model, "dpo", how, checkpointing, micro, length // 2)
            for how, checkpointing in dpo
        ]
    return chosen


def config_of(shape: Architecture):
    """A transformers configuration of a Llama or a Qwen of this shape."""
    kind = library().Qwen2Config if shape.qkv_bias else library().LlamaConfig
    return kind(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_kv_head,
        intermediate_size=shape.mlp_width,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def build(case: Case, device: torch.device) -> LanguageModel:
    """The case's model, with its adapters, on the device."""
    dtype = torch.float32 if case.how == "full32" else torch.bfloat16
    with torch.device(device):
        inner = library().AutoModelForCausalLM.from_config(
            config_of(SHAPES[case.model]), dtype=dtype
        )
    if case.how == "qlora":
        quantize_model(inner, TARGETS)
    if case.how in ("lora", "qlora"):
        add_lora(
            inner,
            LoRAConfig(rank=MEASURED_RANK, alpha=2 * MEASURED_RANK, targets=TARGETS),
        )
    return LanguageModel(
        inner, bf16=case.how != "full16", checkpointing=case.checkpointing
    )


def steps_of(case: Case, model: LanguageModel, steps: int):
    """The steps of training on random tokens, two micro-batches each."""
    config = RealConfig(
        stage=case.stage,
        steps=steps,
        batch_size=2 * case.micro,
        micro_batch_size=case.micro,
        lr=1e-5,
    )
    rows = torch.randint(
        1, SHAPES[case.model].vocab_size, (8 * case.micro, 2, case.length)
    ).tolist()
    descent = build_descent(config, model)
    if case.stage == "sft":
        return real_sft_steps(
            model, [(row, row) for row, _ in rows], config, 0, descent
        )
    half = case.length // 2
    pairs = [(one[:half], one[half:], other[half:]) for one, other in rows]
    return real_dpo_steps(model, Reference(model), pairs, config, 0, descent)


def measure(case: Case, device: torch.device, steps: int) -> dict:
    """Seconds and tokens per second of a median step, and its peak of memory."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    model = build(case, device)
    held = torch.cuda.memory_allocated() if gpu else 0
    run, seconds, losses = steps_of(case, model, steps + 1), [], []
    if gpu:
        # Quantising takes more than training, for a moment
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps + 1):
        started = time.perf_counter()
        losses.append(next(run)["loss"])
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if gpu else 0
    parts, setting = (
        memory(SHAPES[case.model], setting_of(vars(case))),
        setting_of(vars(case)),
    )
    step = sorted(seconds[1:])[len(seconds[1:]) // 2]
    return dict(
        seconds=round(step, 4),
        tokens_per_second=round(2 * setting.batch_size * case.length / step),
        peak=round(peak / 1e9, 2),
        computed=round(parts["total"] / 1e9, 2),
        model_held=round(held / 1e9, 2),
        model_computed=round((parts["weights"] + parts["adapters"]) / 1e9, 2),
        first_loss=round(losses[0], 4),
        last_loss=round(losses[-1], 4),
    ) | {
        f"part_{name}": round(size / 1e9, 3)
        for name, size in parts.items()
        if name != "total"
    }


def check(device: torch.device) -> dict:
    """The largest difference of a tiny model's losses from the CPU's, by stage."""
    shape = SHAPES["tiny"]
    config = RealConfig(
        steps=5, batch_size=4, micro_batch_size=2, lr=1e-3, max_new_tokens=16
    )
    torch.manual_seed(0)
    inner = library().AutoModelForCausalLM.from_config(
        config_of(shape), dtype=torch.float32
    )
    judging = config_of(shape)
    judging.num_labels = 1
    judge = library().AutoModelForSequenceClassification.from_config(
        judging, dtype=torch.float32
    )
    rows = torch.randint(1, shape.vocab_size, (8, 2, 24)).tolist()
    pairs = [(one[:8], one[8:], other[8:]) for one, other in rows]
    seen = {}
    for place in (torch.device("cpu"), device):
        copy, scores = (
            frozen_copy(inner).requires_grad_(True).to(place),
            frozen_copy(judge).to(place),
        )
        model, reference = (
            LanguageModel(copy, checkpointing=True),
            LanguageModel(frozen_copy(inner).to(place)),
        )
        judging_model = ScoringModel(scores.requires_grad_(True))
        run = dict(
            sft=real_sft_steps(
                model,
                [(a, a) for a, _ in rows],
                config,
                0,
                build_descent(config, model),
            ),
            dpo=real_dpo_steps(
                model, reference, pairs, config, 0, build_descent(config, model)
            ),
            reward=real_reward_steps(
                judging_model, pairs, config, 0, build_descent(config, judging_model)
            ),
        )
        seen[place.type] = {
            stage: [step["loss"] for step in steps] for stage, steps in run.items()
        }
        settings = replace(config, stage="ppo", steps=3)
        models = Models(
            model,
            TokenValues(frozen_copy(judging_model).requires_grad_(True)),
            reference,
            judging_model,
        )
        prompts = [prompt for prompt, _, _ in pairs]
        normalise_scores(models, prompts, settings, 0, 1)
        rounds = real_ppo_steps(
            models,
            prompts,
            settings,
            0,
            1,
            build_descent(settings, model, models.value_model),
        )
        seen[place.type]["ppo_first_ratio_error"] = [
            each["first_ratio_error"] for each in rounds
        ]
    largest = {
        f"{stage}_difference": max(
            abs(a - b) for a, b in zip(seen["cpu"][stage], seen[device.type][stage])
        )
        for stage in ("sft", "dpo", "reward")
    }
    return largest | dict(
        ppo_first_ratio_error=max(seen[device.type]["ppo_first_ratio_error"])
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["Llama-3.2-1B", "Llama-3.1-8B"], choices=SHAPES
    )
    parser.add_argument("--only", choices=("sft", "dpo", "check"))
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument(
        "--steps",
        type=int,
        default=4,
        help="timed steps, after a first one that is not",
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", help="a file to append the JSON lines to")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    )
    print(
        f"{name}, torch {torch.__version__}, transformers {library().__version__}",
        flush=True,
    )
    rows, lines = [], []

    def note(**values) -> None:
        lines.append(json.dumps(values))
        print(lines[-1], flush=True)
        if options.out:
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(lines[-1] + "\n")

    if options.only in (None, "check"):
        note(case="check", **check(device))
    for case in cases(options.models, options.length):
        if options.only not in (None, case.stage):
            continue
        try:
            result = measure(case, device, options.steps)
            rows.append((case, result))
            note(**vars(case), **result)
        except torch.cuda.OutOfMemoryError as error:
            note(**vars(case), failed=str(error).splitlines()[0])
        gc.collect()
    print(
        f"\n{'model':14} {'stage':5} {'how':7} {'ckpt':5} {'rows x T':>10} "
        f"{'tokens/s':>9} {'peak GB':>8} {'computed':>9}"
    )
    for case, result in rows:
        size = f"{setting_of(vars(case)).batch_size} x {case.length}"
        print(
            f"{case.model:14} {case.stage:5} {case.how:7} "
            f"{'yes' if case.checkpointing else 'no':5} {size:>10} "
            f"{result['tokens_per_second']:9,} {result['peak']:8.2f} "
            f"{result['computed']:9.2f}"
        )


if __name__ == "__main__":
    main()
