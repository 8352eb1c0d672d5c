"""One run on a real model, from its folder and a data file to a folder with the
result.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from posttrain.data.row_files import RowFile
from posttrain.lora.adapters import LoRAConfig, Reference
from posttrain.optim import Descent
from posttrain.ppo import Models
from posttrain.real.adapter import (
    adapt,
    adapter_settings,
    merge_adapter,
    quantize_blocks,
    save_adapter,
)
from posttrain.real.checkpoint import (
    CHECKPOINT,
    append_metrics,
    cut_metrics,
    load_checkpoint,
    read_metrics,
    save_checkpoint,
    stored_state,
)
from posttrain.real.data import (
    CHATML_TOKENS,
    chat_encoder,
    encode,
    end_token,
    give_template,
    opening,
    pad_token,
    pair_encoder,
    refuse_excess,
    render_chat_prompt,
    settle_end,
)
from posttrain.real.files import refuse_broken_files
from posttrain.real.identity import contents
from posttrain.real.model import (
    LanguageModel,
    ModelError,
    ScoringModel,
    TokenValues,
    choose_device,
    context_of,
    fetch,
    frozen_copy,
    library,
    load_config,
    load_model,
    saved_with_score,
    start_scores,
)
from posttrain.real.peft_settings import chain_of
from posttrain.real.training import (
    RealConfig,
    Replay,
    build_descent,
    normalise_scores,
    real_dpo_steps,
    real_ppo_steps,
    real_reward_steps,
    real_sft_steps,
)
from posttrain.real.vocabulary import has_tokenizer, refuse_other_vocabulary

# Where things lie and how they are kept: a run goes on from what they hold
WHEREABOUTS = (
    "model",
    "data",
    "out",
    "reward_model",
    "replay",
    "save_every",
    "device",
)


@dataclass(frozen=True)
class Setup:
    """Which model, on which data, held in memory how."""

    # A folder, or a name on the hub; an adapter's folder is merged into its model
    model: str
    data: str  # conversations (sft), pairs (reward, dpo) or prompts (ppo), in JSON
    out: str  # the folder for the result
    rank: int = 8  # of the adapters; 0 to train all weights
    alpha: float = 16.0
    nf4: bool = False  # the frozen matrices in four bits (QLoRA)
    bf16: bool = False  # frozen weights and all products in bfloat16
    checkpointing: bool = False  # compute activations twice instead of keeping them
    device: str = "auto"
    reward_model: str = ""  # "ppo" alone: the folder of a run of "reward"
    replay: str = ""  # "sft" alone: a file of plain text, rehearsed beside the data
    save_every: int = 50  # steps between checkpoints
    skip_bad: bool = False  # leave out rows of the data that cannot be used


@dataclass(frozen=True)
class Session:
    """A run that has been set up: what is trained, and how it goes on from a step."""

    trained: nn.ModuleDict
    descent: Descent
    steps: Callable[[int, dict], Iterator[dict]]  # (first step, stored state)
    tokenizer: object
    adapters: LoRAConfig | None  # None where all weights are trained
    memory: dict  # numbers that a later part of the run must have, for its checkpoint


def base_of(name: str) -> str:
    """The model that an adapter's folder stands on, or the name itself."""
    return chain_of(name)[0]


def find_tokenizer(name: str):
    """A model's tokenizer: the adapter's own, or that of what it stands on.

    An adapter's may have tokens more. Raises ModelError where it reads otherwise than
    the one that it stands on.
    """
    named = [each for each in chain_of(name) if has_tokenizer(each)]
    found = [(each, fetch(library().AutoTokenizer, each)) for each in named or [name]]
    for base, own in zip(found, found[1:]):
        refuse_other_vocabulary(*base, *own, growing=True)
    return found[-1][1]


def refuse_broken_model(name: str, weights: bool = True) -> None:
    """`refuse_broken_files` for a model, and for all that its adapters stand on."""
    for folder in chain_of(name):
        refuse_broken_files(folder, weights)


def open_tokenizer(name: str) -> tuple[object, list[int]]:
    """A model's tokenizer with a chat template, whose eos is the end of an answer; and
    the tokens of it that are yet untrained.

    There are such tokens where the template is ChatML's, given for want of one.
    """
    tokenizer = find_tokenizer(name)
    if tokenizer.chat_template:
        settle_end(tokenizer)
        return tokenizer, []
    give_template(tokenizer)
    return tokenizer, tokenizer.convert_tokens_to_ids(list(CHATML_TOKENS))


@torch.no_grad()
def grow(model: nn.Module, tokenizer) -> None:
    """Give a model's tables a row for each of the tokenizer's tokens, in place.

    As `chat.grow_vocabulary`: a new row is the mean of the old ones.
    """
    table = model.get_input_embeddings().weight
    n, V = len(tokenizer), len(table)
    if n <= V:
        return
    head = model.get_output_embeddings()
    means = [table.mean(0), None if head is None else head.weight.mean(0)]
    model.resize_token_embeddings(n, mean_resizing=False)
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    for module, mean in zip(tables, means):
        if module is not None:
            module.weight[V:] = mean


def open_model(name: str, tokenizer, scores: bool, dtype: torch.dtype) -> nn.Module:
    """A model on the CPU, with every adapter merged that its folder names, one upon
    another.
    """
    base, *adapters = chain_of(name)
    model = load_model(base, scores, dtype)
    grow(model, tokenizer)
    for adapter in adapters:
        merge_adapter(model, adapter)
    return model


def trainable(
    setup: Setup, name: str, tokenizer, new_tokens: list[int], scores: bool, seed: int
) -> tuple[LanguageModel | ScoringModel, LoRAConfig | None]:
    """A model ready to be trained, on its device, and its adapters' settings."""
    # Hold in low precision only what stays as it is
    half = setup.bf16 and setup.rank
    dtype = torch.bfloat16 if half else torch.float32
    inner, config = open_model(name, tokenizer, scores, dtype), None
    generator = torch.Generator().manual_seed(seed)
    if scores and not is_reward_model(name):
        start_scores(inner, generator)
    if setup.nf4:
        quantize_blocks(inner)
    if setup.rank:
        config = adapt(inner, setup.rank, setup.alpha, generator, new_tokens)
    inner.to(choose_device(setup.device))
    kind = ScoringModel if scores else LanguageModel
    return kind(inner, setup.bf16, setup.checkpointing), config


def is_reward_model(name: str) -> bool:
    """Whether a folder holds what a run of "reward" has written."""
    settings = adapter_settings(name)
    if settings is not None:
        return settings.get("task_type") == "SEQ_CLS"
    return saved_with_score(load_config(name))


def begin(setup: Setup, config: RealConfig) -> Session:
    """Read data and models; nothing is trained yet. Raises ModelError and
    DatasetError.
    """
    check_setup(setup, config)
    kinds = dict(sft="conversations", ppo="prompts")
    rows = RowFile(setup.data, kinds.get(config.stage, "preferences"))
    tokenizer, new_tokens = open_tokenizer(setup.model)
    if config.stage == "ppo":
        return begin_ppo(setup, config, rows, tokenizer)
    talks, pad = config.stage == "sft", pad_token(tokenizer)
    longest = min(config.max_length, context_of(base_of(setup.model)))
    rows.each((chat_encoder if talks else pair_encoder)(tokenizer, longest))
    data = rows.kept(setup.skip_bad)
    # A conversation may have become several rows
    data = [example for found in data for example in found] if talks else data
    text = read_replay(setup.replay, tokenizer, config) if setup.replay else None
    scores = config.stage == "reward"
    model, adapters = trainable(
        setup, setup.model, tokenizer, new_tokens, scores, config.seed
    )
    descent = build_descent(config, model)

    def steps(first: int, state: dict) -> Iterator[dict]:
        if config.stage == "dpo":
            return real_dpo_steps(model, reference, data, config, pad, descent, first)
        if scores:
            return real_reward_steps(model, data, config, pad, descent, first)
        return real_sft_steps(model, data, config, pad, descent, first, text)

    if config.stage == "dpo":
        reference = Reference(model) if adapters else frozen_copy(model)
    trained = nn.ModuleDict(dict(model=model))
    return Session(trained, descent, steps, tokenizer, adapters, {})


def read_replay(path: str, tokenizer, config: RealConfig) -> Replay:
    """A file of plain text to replay. Raises ModelError for one that is too short."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ModelError(f"{path} cannot be replayed: {reason}") from None
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tokens) <= config.replay_length:
        raise ModelError(
            f"{path} has {len(tokens)} tokens: replay needs more than "
            f"{config.replay_length}"
        )
    return Replay(torch.tensor(tokens), encode(opening(tokenizer), tokenizer))


def begin_ppo(setup: Setup, config: RealConfig, rows: RowFile, tokenizer) -> Session:
    """`begin` for PPO: the policy practises on the rows' prompts, paid by the reward
    model.
    """
    read_by_judge, _ = open_tokenizer(setup.reward_model)
    refuse_other_vocabulary(setup.model, tokenizer, setup.reward_model, read_by_judge)
    pad, stop = pad_token(tokenizer), end_token(tokenizer)
    longest = min(config.max_length, context_of(base_of(setup.model)))
    room = longest - config.max_new_tokens

    def encoded(row: dict) -> list[int]:
        prompt = render_chat_prompt(row["prompt"], tokenizer)
        refuse_excess(len(prompt), room)
        return prompt

    prompts = rows.each(encoded).kept(setup.skip_bad)
    policy, adapters = trainable(setup, setup.model, tokenizer, [], False, config.seed)
    judge, _ = trainable(setup, setup.reward_model, tokenizer, [], True, config.seed)
    value, _ = trainable(setup, setup.reward_model, tokenizer, [], True, config.seed)
    reference = Reference(policy) if adapters else frozen_copy(policy)
    judge.requires_grad_(False)
    models = Models(policy, TokenValues(value), reference, judge)
    descent, memory = build_descent(config, policy, value), {}

    def steps(first: int, state: dict) -> Iterator[dict]:
        if first:
            for model in (judge, value):
                model.shift, model.scale = state["shift"], state["scale"]
        else:
            normalise_scores(models, prompts, config, pad, stop)
        memory.update(shift=judge.shift, scale=judge.scale)
        beta = state.get("beta", config.beta)
        for step in real_ppo_steps(
            models, prompts, config, pad, stop, descent, first, beta
        ):
            memory.update(beta=step["next_beta"])
            yield step

    trained = nn.ModuleDict(dict(model=policy, value=value))
    return Session(trained, descent, steps, tokenizer, adapters, memory)


def check_setup(setup: Setup, config: RealConfig) -> None:
    """Raise ModelError for a setting that cannot work, naming it and the way out."""
    choose_device(setup.device)
    for name in filter(None, (setup.model, setup.reward_model)):
        refuse_broken_model(name)
    for name, least in dict(rank=0, save_every=1).items():
        if getattr(setup, name) < least:
            raise ModelError(f"{name} is {getattr(setup, name)}: use at least {least}")
    if setup.nf4 and not setup.rank:
        raise ModelError(
            "weights in four bits cannot be trained: give adapters a rank above 0"
        )
    if setup.replay and config.stage != "sft":
        raise ModelError(f"text is replayed in sft alone, not in {config.stage}")
    if config.stage == "ppo":
        if not setup.reward_model:
            raise ModelError(
                "ppo needs a judge: --reward-model FOLDER, of a run of reward"
            )
        if not is_reward_model(setup.reward_model):
            raise ModelError(
                f"{setup.reward_model} is no reward model: train one with reward"
            )
    elif setup.reward_model:
        raise ModelError(f"a reward model is for ppo, not for {config.stage}")


def run(
    setup: Setup,
    config: RealConfig,
    resume: bool = False,
    progress: Callable = lambda steps, total: steps,
    stop_after: int | None = None,
) -> list[dict]:
    """Train, and write the result; return the metrics, a dictionary per step.

    With `resume` a run that was cut off goes on from its last checkpoint, and ends as
    if it had not been. stop_after: steps after which to stop as if killed. Raises
    ModelError where the folder holds something else already.
    """
    out, settings = Path(setup.out), asdict(setup) | asdict(config)
    read = contents(setup.model, setup.data, setup.reward_model, setup.replay)
    state = open_folder(out, settings, read, resume)
    session, first = begin(setup, config), state.get("step", 0)
    if first:
        load_checkpoint(out, session.trained, *session.descent.optimizers)
    cut_metrics(out, first)
    todo = numbers_alone(session.steps(first, state), first, out)
    for step, seen in enumerate(
        progress(todo, total=config.steps - first), start=first + 1
    ):
        append_metrics(out, step, seen)
        if step % setup.save_every == 0 and step < config.steps:
            refuse_no_numbers(session.trained, step, out)
            kept = dict(settings=settings, contents=read)
            state = dict(step=step, **kept, **session.memory)
            save_checkpoint(out, session.trained, *session.descent.optimizers, state)
        if step == stop_after:
            return read_metrics(out)
    refuse_no_numbers(session.trained, config.steps, out)
    save_result(out, session, setup.model)
    return read_metrics(out)


def numbers_alone(steps: Iterator[dict], first: int, out: Path) -> Iterator[dict]:
    """The steps from `first` on, as long as losses and gradients are numbers.

    Raises ModelError where they are none, with the step, as the metrics count, and the
    way out.
    """
    done = first
    try:
        for seen in steps:
            done += 1
            yield seen
    except (ValueError, RuntimeError) as error:
        if not re.search(r"\b(nan|inf|infinite|overflow)\b", str(error), re.IGNORECASE):
            raise
        raise ModelError(
            f"step {done + 1} has a loss, gradient or score that is no number: the "
            f"run stops. {way_out(out)}"
        ) from error


def refuse_no_numbers(trained: nn.Module, step: int, out: Path) -> None:
    """Raise ModelError where a step has left weights that are no numbers."""
    weights = [p for p in trained.parameters() if p.requires_grad]
    if not all(torch.isfinite(weight).all() for weight in weights):
        raise ModelError(
            f"the weights are no numbers after step {step}. {way_out(out)}"
        )


def way_out(out: Path) -> str:
    """What to do after training has failed, and what is kept of it."""
    state = stored_state(out)
    kept = "No checkpoint was written"
    if state:
        kept = f"The checkpoint of step {state['step']} is kept in {out}"
    return f"{kept}: begin anew with a lower --lr, into another folder"


def open_folder(out: Path, settings: dict, read: dict[str, str], resume: bool) -> dict:
    """The state that a run goes on from, {} for its beginning; the folder is made.

    read: `contents` of what the run reads. Raises ModelError for a folder that holds
    another run, or a finished one.
    """
    if out.exists() and not out.is_dir():
        raise ModelError(f"{out} is a file: name a folder with --out")
    held = [path.name for path in out.iterdir()] if out.is_dir() else []
    if not resume or not held:
        if held:
            raise ModelError(
                f"{out} is not empty: --resume goes on with a run, or choose another "
                "folder"
            )
        out.mkdir(parents=True, exist_ok=True)
        return {}
    if {"adapter_config.json", "config.json"} & {*held}:
        raise ModelError(f"the run in {out} is finished")
    refuse_broken_files(out)
    state = stored_state(out) or {}
    told = {name: settings[name] for name in settings if name not in WHEREABOUTS}
    # What an older run did not know was as it is by default
    before = asdict(Setup("", "", "")) | asdict(RealConfig())
    before |= state.get("settings", told)
    differ = [name for name, value in told.items() if before[name] != value]
    if differ:
        raise ModelError(
            f"the run in {out} was begun with another {differ[0]}: give the same"
        )
    known = state.get("contents", {}) if state else read
    differ = [name for name, value in read.items() if known.get(name, "") != value]
    if differ:
        now, then = settings[differ[0]], before[differ[0]]
        held = f"{now or 'no file'} does not hold what {then or 'no file'} held"
        raise ModelError(
            f"the run in {out} was begun with another {differ[0].replace('_', ' ')}: "
            f"{held}; give the same, or begin anew in another --out"
        )
    return state


def save_result(out: Path, session: Session, base: str) -> None:
    """Write tokenizer and adapter, or the whole model; the checkpoint has done its
    work.
    """
    inner = session.trained["model"].inner
    end = session.tokenizer.eos_token_id
    session.tokenizer.save_pretrained(out)
    if session.adapters:
        save_end(out, inner, end)
        local = Path(base).expanduser()
        base = str(local.resolve()) if local.is_dir() else base
        save_adapter(out, inner, session.adapters, base)
    else:
        whole = out / "writing"
        inner.config.eos_token_id = end
        inner.save_pretrained(whole)
        save_end(whole, inner, end)
        # Move the configuration last: where it is, the weights are
        for path in sorted(
            whole.iterdir(), key=lambda path: path.name == "config.json"
        ):
            os.replace(path, out / path.name)
        shutil.rmtree(whole)
    (out / CHECKPOINT).unlink(missing_ok=True)


def save_end(folder: Path, inner: nn.Module, end: int) -> None:
    """Write how a language model generates, with the end of an answer as where it
    stops.
    """
    if not inner.can_generate():
        return
    # Leave the model's own as it is: transformers saves none that was changed and has
    # faults
    generation = copy.deepcopy(inner.generation_config)
    generation.eos_token_id = end
    generation.to_json_file(folder / "generation_config.json")
