"""The same training by TRL, and the same adapter in peft: what ours is compared
with.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from posttrain.batches import epochs
from posttrain.real.data import encode_chat_pairs, pad_token
from posttrain.real.model import fetch, library, load_model, start_scores
from posttrain.real.training import RealConfig


def have_peers() -> bool:
    """Whether TRL and peft are installed: not on an Intel Mac, nor with Python 3.10."""
    return all(importlib.util.find_spec(name) is not None for name in ("trl", "peft"))


def rows_for_trl(rows: list[dict], config: RealConfig, tokenizer) -> list[dict]:
    """Conversations or pairs in TRL's forms, in the order in which our run goes through
    them.

    Pairs go in as the text of our tokens, with their end, so that TRL's own template
    code has nothing to add.
    """
    order = torch.Generator().manual_seed(config.seed)
    batches = epochs(len(rows), min(config.batch_size, len(rows)), order)
    taken = [rows[i] for batch in islice(batches, config.steps) for i in batch]
    if config.stage == "sft":
        return [dict(messages=row["messages"]) for row in taken]
    pairs = encode_chat_pairs(taken, tokenizer, config.max_length)
    names = ("prompt", "chosen", "rejected")
    return [dict(zip(names, map(tokenizer.decode, pair))) for pair in pairs]


def trainer_options(config: RealConfig, folder: str) -> dict:
    """Our settings under the names of transformers' trainer: plain AdamW, no
    warm-up.
    """
    return dict(
        output_dir=folder,
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.lr,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        optim="adamw_torch",
        max_grad_norm=config.max_gradient_norm,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        seed=config.seed,
        max_length=config.max_length,
        dataloader_pin_memory=False,
    )


def trl_losses(folder: str | Path, rows: list[dict], config: RealConfig) -> list[float]:
    """The loss of each step of the same full fine-tuning by TRL's trainer, as it logs
    it.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import trl
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    tokenizer = fetch(library().AutoTokenizer, str(folder))
    # Fill rows with what ends no answer, so that none loses its end
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token(tokenizer))
    data = Dataset.from_list(rows_for_trl(rows, config, tokenizer))
    model = load_model(str(folder), scores=config.stage == "reward")
    common = dict(model=model, processing_class=tokenizer, train_dataset=data)
    with tempfile.TemporaryDirectory() as out:
        options = trainer_options(config, out)
        if config.stage == "sft":
            arguments = trl.SFTConfig(**options, assistant_only_loss=True)
            trainer = trl.SFTTrainer(args=arguments, **common)
        elif config.stage == "dpo":
            arguments = trl.DPOConfig(**options, beta=config.beta)
            trainer = trl.DPOTrainer(args=arguments, **common)
        else:
            start_scores(model, torch.Generator().manual_seed(config.seed))
            model.config.pad_token_id = pad_token(tokenizer)
            arguments = trl.RewardConfig(
                **options, center_rewards_coefficient=config.centring
            )
            trainer = trl.RewardTrainer(args=arguments, **common)
        trainer.remove_callback(library().PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def peft_logits(base: torch.nn.Module, folder: str | Path, tokens: Tensor) -> Tensor:
    """The logits (B, T, V) that peft's loading of an adapter's folder gives."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder)).eval()(input_ids=tokens).logits
