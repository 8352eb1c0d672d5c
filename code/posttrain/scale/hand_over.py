"""What this book's settings are called in TRL and in OpenRLHF, for the day they take
over.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """One setting of ours, and its names elsewhere; "" where there is none."""

    ours: str  # Class.field
    trl: str  # Class.field, of TRL 1.12 (transformers' TrainingArguments included)
    openrlhf: str  # a flag of its train_sft, train_rm, train_dpo or train_ppo_ray
    differs: str = ""


NAMES = (
    Name(
        "SFTConfig.steps",
        "SFTConfig.max_steps",
        "--max_epochs",
        "OpenRLHF counts passes",
    ),
    Name(
        "SFTConfig.batch_size",
        "SFTConfig.gradient_accumulation_steps",
        "--train_batch_size",
        "TRL: rows per device, times accumulation, times processes",
    ),
    Name(
        "SFTConfig.micro_batch_size",
        "SFTConfig.per_device_train_batch_size",
        "--micro_train_batch_size",
    ),
    Name(
        "SFTConfig.adamw_lr",
        "SFTConfig.learning_rate",
        "--learning_rate",
        "of AdamW for all weights: start a hundred times lower",
    ),
    Name(
        "SFTConfig.mask",
        "SFTConfig.assistant_only_loss",
        "--input_template",
        "OpenRLHF grades the output, unless --pretrain_mode",
    ),
    Name(
        "SFTConfig.replay", "", "--ptx_coef", "OpenRLHF: in PPO; elsewhere mix the data"
    ),
    Name("SFTConfig.seed", "SFTConfig.seed", "--seed"),
    Name(
        "RewardConfig.centring",
        "RewardConfig.center_rewards_coefficient",
        "",
        "ours is the coefficient, too",
    ),
    Name("DPOConfig.beta", "DPOConfig.beta", "--beta", "0.1 is usual; ours is 0.05"),
    Name(
        "DPOConfig.label_smoothing",
        "DPOConfig.label_smoothing",
        "--label_smoothing",
        "TRL 1.12: for some losses alone",
    ),
    Name("DPOConfig.loss", "DPOConfig.loss_type", "--ipo", '"dpo" is TRL\'s "sigmoid"'),
    Name(
        "DPOConfig.nll_weight",
        "DPOConfig.loss_weights",
        "--nll_loss_coef",
        'TRL: loss_type ["sigmoid", "sft"]',
    ),
    Name(
        "PPOConfig.iterations",
        "PPOConfig.total_episodes",
        "--num_episodes",
        "TRL counts answers, OpenRLHF passes over the prompts",
    ),
    Name(
        "PPOConfig.batch_size",
        "PPOConfig.batch_size",
        "--rollout_batch_size",
        "TRL computes its own; OpenRLHF counts prompts",
    ),
    Name("PPOConfig.max_new_tokens", "PPOConfig.response_length", "--generate_max_len"),
    Name("PPOConfig.temperature", "PPOConfig.temperature", "--temperature"),
    Name(
        "PPOConfig.no_end_score",
        "PPOConfig.missing_eos_penalty",
        "",
        "ours replaces the score, TRL's is taken off it",
    ),
    Name(
        "PPOConfig.group",
        "",
        "--n_samples_per_prompt",
        "TRL: GRPOConfig.num_generations",
    ),
    Name("PPOConfig.gamma", "PPOConfig.gamma", "--gamma"),
    Name("PPOConfig.gae_lambda", "PPOConfig.lam", "--lambd", "OpenRLHF's default is 1"),
    Name(
        "PPOConfig.epochs",
        "PPOConfig.num_ppo_epochs",
        "--max_epochs",
        "TRL's default is 4",
    ),
    Name(
        "PPOConfig.minibatches",
        "PPOConfig.num_mini_batches",
        "--train_batch_size",
        "OpenRLHF: the size, not the number",
    ),
    Name("PPOConfig.clip_eps", "PPOConfig.cliprange", "--eps_clip"),
    Name(
        "PPOConfig.value_clip",
        "PPOConfig.cliprange_value",
        "--value_clip",
        "OpenRLHF's default is 0.5",
    ),
    Name("PPOConfig.lr", "PPOConfig.learning_rate", "--actor_learning_rate"),
    Name(
        "PPOConfig.value_lr",
        "PPOConfig.learning_rate",
        "--critic_learning_rate",
        "TRL has one rate for both",
    ),
    Name(
        "PPOConfig.beta",
        "PPOConfig.kl_coef",
        "--init_kl_coef",
        "what a nat of KL costs",
    ),
    Name("PPOConfig.kl_target", "", "--kl_target", "TRL's beta is fixed"),
    Name("PPOConfig.kl_horizon", "", "--kl_horizon"),
)
