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
from posttrain.real.data import encode_chat_pairs, encode_chats, pad_token
from posttrain.real.model import fetch, library, load_model, start_scores
from posttrain.real.training import RealConfig


def have_peers() -> bool:
    """Whether TRL and peft are installed: not on an Intel Mac, nor with Python 3.10."""
    return all(importlib.util.find_spec(name) is not None for name in ("trl", "peft"))


def rows_for_trl(rows: list[dict], config: RealConfig, tokenizer) -> list[dict]:
    """Conversations or pairs in TRL's forms, in the order in which our run goes through
    them.

    Conversations go in as they are where the template marks its answers as TRL asks,
    else as our tokens and labels. Pairs go in as the text of our tokens, with their
    end, so that TRL's own template code has nothing to add.
    """
    order = torch.Generator().manual_seed(config.seed)
    batches = epochs(len(rows), min(config.batch_size, len(rows)), order)
    taken = [rows[i] for batch in islice(batches, config.steps) for i in batch]
    if config.stage == "sft" and marks_answers(tokenizer):
        return [dict(messages=row["messages"]) for row in taken]
    if config.stage == "sft":
        rendered = encode_chats(taken, tokenizer, config.max_length)
        return [dict(zip(("input_ids", "labels"), each)) for each in rendered]
    pairs = encode_chat_pairs(taken, tokenizer, config.max_length)
    names = ("prompt", "chosen", "rejected")
    return [dict(zip(names, map(tokenizer.decode, pair))) for pair in pairs]


def marks_answers(tokenizer) -> bool:
    """Whether the chat template says which of its tokens are the assistant's."""
    return "{% generation %}" in (tokenizer.chat_template or "")


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


def trl_trainer(
    folder: str | Path,
    rows: list[dict],
    config: RealConfig,
    out: str,
    adapter: str | Path = "",
    **changes,
):
    """TRL's trainer for the same run: of all weights, or of an adapter by peft.

    out: a folder for what it writes. adapter: a folder in peft's form, from which its
    training begins. changes: of the trainer's arguments.
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
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    options = trainer_options(config, out) | changes
    if config.stage == "sft":
        options |= dict(assistant_only_loss=marks_answers(tokenizer))
        kind, settings = trl.SFTTrainer, trl.SFTConfig(**options)
    elif config.stage == "dpo":
        kind, settings = trl.DPOTrainer, trl.DPOConfig(**options, beta=config.beta)
    else:
        start_scores(model, torch.Generator().manual_seed(config.seed))
        model.config.pad_token_id = pad_token(tokenizer)
        centring = dict(center_rewards_coefficient=config.centring)
        kind, settings = trl.RewardTrainer, trl.RewardConfig(**options, **centring)
    trainer = kind(
        model=model, args=settings, train_dataset=data, processing_class=tokenizer
    )
    trainer.remove_callback(library().PrinterCallback)
    return trainer


def trl_losses(folder: str | Path, rows: list[dict], config: RealConfig) -> list[float]:
    """The loss of each step of the same full fine-tuning by TRL's trainer, as it logs
    it.
    """
    with tempfile.TemporaryDirectory() as out:
        trainer = trl_trainer(folder, rows, config, out)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def peft_logits(base: torch.nn.Module, folder: str | Path, tokens: Tensor) -> Tensor:
    """The logits (B, T, V) that peft's loading of an adapter's folder gives."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder)).eval()(input_ids=tokens).logits
