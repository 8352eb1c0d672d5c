"""The book's SFT, reward model and DPO in TRL: the same data, a model of any size.

    accelerate launch --config_file examples/trl/fsdp2.yaml examples/trl/train.py sft \\
        --model meta-llama/Llama-3.1-8B --chat-template examples/trl/chatml.jinja \\
        --out sft --bf16
    accelerate launch --config_file examples/trl/fsdp2.yaml examples/trl/train.py dpo \\
        --model sft --out dpo --bf16

To try it on two processes of a processor: torchrun --standalone --nproc-per-node 2
examples/trl/train.py ... --cpu.

The tokenizer needs a chat template with a {% generation %} block, which says what SFT
grades. A base model has no template, and few others have the block: --chat-template
examples/trl/chatml.jinja gives one. --lora 16 trains adapters.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from posttrain.data import datasets


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("sft", "reward", "dpo"))
    parser.add_argument("--model", required=True, help="a folder, or a name on the hub")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--data",
        type=Path,
        help="your own JSONL, in the format of `python -m posttrain train`",
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--batch-size",
        type=int,
        default=32,
        help="rows per step, of all processes together",
    )
    parser.add_argument(
        "--micro-batch-size",
        type=int,
        default=1,
        help="rows per forward pass and process",
    )
    parser.add_argument(
        "--lr",
        type=float,
        help="default: 1e-5 for sft and reward, 5e-7 for dpo; with --lora ten times "
        "that",
    )
    parser.add_argument(
        "--beta",
        type=float,
        default=0.1,
        help="dpo: how much a nat of log-ratio counts",
    )
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument(
        "--lora",
        type=int,
        metavar="RANK",
        help="train adapters of this rank (needs peft)",
    )
    parser.add_argument(
        "--chat-template",
        type=Path,
        metavar="FILE",
        help="a template in Jinja, in place of the tokenizer's own",
    )
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "auto"),
        help="of the weights; auto: as stored",
    )
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="no GPU; without this, processes on a CPU do not find each other",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def turn(role: str, text: str) -> list[dict]:
    return [dict(role=role, content=text)]


def rows(stage: str, path: Path | None) -> Dataset:
    """Conversations for SFT, else pairs: the book's, unless a file is given."""
    if path:
        given = [
            json.loads(line)
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    else:
        given = datasets.conversations() if stage == "sft" else datasets.preferences()
    if stage == "sft":
        return Dataset.from_list([dict(messages=row["messages"]) for row in given])
    return Dataset.from_list(
        [
            dict(
                prompt=turn("user", pair["prompt"]),
                chosen=turn("assistant", pair["chosen"]),
                rejected=turn("assistant", pair["rejected"]),
            )
            for pair in given
        ]
    )


def settings(options: argparse.Namespace, processes: int) -> dict:
    """What all three stages have in common."""
    accumulation, rest = divmod(
        options.batch_size, options.micro_batch_size * processes
    )
    if rest or not accumulation:
        raise SystemExit(
            f"--batch-size {options.batch_size} is no multiple of {processes} "
            "processes times "
            f"--micro-batch-size {options.micro_batch_size}: choose one that is"
        )
    rate = options.lr or (5e-7 if options.stage == "dpo" else 1e-5) * (
        10 if options.lora else 1
    )
    return dict(
        output_dir=str(options.out),
        max_steps=options.steps,
        learning_rate=rate,
        lr_scheduler_type="linear",
        per_device_train_batch_size=options.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        max_length=options.max_length,
        bf16=options.bf16,
        use_cpu=options.cpu,
        seed=options.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )


def main() -> None:
    options = parse()
    state = PartialState(cpu=options.cpu)
    state.print(f"{options.stage}, {state.num_processes} processes, {state.device}")
    kind = (
        AutoModelForSequenceClassification
        if options.stage == "reward"
        else AutoModelForCausalLM
    )
    head = dict(num_labels=1) if options.stage == "reward" else {}
    # In bfloat16, as most are stored, small steps would round to nothing
    model = kind.from_pretrained(options.model, dtype=options.dtype, **head)
    tokenizer, data = (
        AutoTokenizer.from_pretrained(options.model),
        rows(options.stage, options.data),
    )
    if options.chat_template:
        tokenizer.chat_template = options.chat_template.read_text(encoding="utf-8")
    common = settings(options, state.num_processes)
    adapters = None
    if options.lora:
        from peft import LoraConfig

        task = "SEQ_CLS" if options.stage == "reward" else "CAUSAL_LM"
        adapters = LoraConfig(
            r=options.lora,
            lora_alpha=2 * options.lora,
            target_modules="all-linear",
            task_type=task,
        )
    # average_tokens_across_devices: the mean over the graded tokens of the whole batch
    trainer, config = dict(
        sft=lambda: (
            SFTTrainer,
            SFTConfig(
                assistant_only_loss=True, average_tokens_across_devices=True, **common
            ),
        ),
        reward=lambda: (
            RewardTrainer,
            RewardConfig(center_rewards_coefficient=0.01, **common),
        ),
        dpo=lambda: (DPOTrainer, DPOConfig(beta=options.beta, **common)),
    )[options.stage]()
    run = trainer(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=adapters,
    )
    run.train()
    # Put the slices together, and write them once
    run.save_model(str(options.out))
    # Let go of the wrapped model first: it holds the group, whose end would otherwise
    # wait for itself
    run.accelerator.free_memory()
    del run, trainer, config, model
    gc.collect()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
