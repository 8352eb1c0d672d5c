"""What peft has written of an adapter: each entry understood, or refused by its
name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from torch import nn

from posttrain.lora.adapters import linear_kinds
from posttrain.real.model import ModelError

SETTINGS = "adapter_config.json"
# Says how an adapter was made, trained or filed; the loaded model does not depend on it
TOLD = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",  # peft, too, goes by the layer itself
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
}
# What decides which numbers are added to which, and is read below or in `merging`
READ = {
    "alpha_pattern",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "r",
    "rank_pattern",
    "target_modules",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}
# The only values that are understood; None, too, where it is not set
ALLOWED = {
    "alora_invocation_tokens": (),
    "arrow_config": (),
    "bias": ("none", "all", "lora_only"),
    "ensure_weight_tying": (False,),
    # Other ways to begin take something out of the frozen weights
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", "mica"),
    "kasa_config": (),
    "layer_replication": ([],),
    "megatron_config": (),
    "monteclora_config": (),
    "peft_type": ("LORA",),
    "revision": ("main",),
    "target_parameters": ([],),
    "task_type": ("CAUSAL_LM", "SEQ_CLS"),
    "use_bdlora": (False,),
    "use_qalora": (False,),
    "velora_config": (),
}
HEADS = ("classifier", "score")  # what peft saves of a scoring model unasked


def adapter_settings(folder: str | Path) -> dict | None:
    """The settings of the adapter in a folder, or None where it holds none.

    Raises ModelError where they cannot be read.
    """
    path = Path(folder).expanduser() / SETTINGS
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} cannot be read ({error}): copy it again") from None
    if not isinstance(settings, dict):
        raise ModelError(f"{path} holds no object of settings: copy it again")
    return settings


def base_named(folder: str | Path, settings: dict) -> str:
    """The model that an adapter stands on, as its settings name it.

    Raises ModelError where none is named, or where a folder is named that is not there.
    """
    base = settings.get("base_model_name_or_path")
    way_out = f"name its folder or hub name as base_model_name_or_path in {SETTINGS}"
    if not isinstance(base, str) or not base:
        raise ModelError(f"the adapter in {folder} names no base model: {way_out}")
    gone = Path(base).expanduser()
    if gone.is_absolute() and not gone.is_dir():
        raise ModelError(
            f"the adapter in {folder} stands on {base}, where there is no such folder: "
            f"{way_out}"
        )
    return base


def chain_of(name: str) -> list[str]:
    """A model's name, and before it those that it stands on, the base model first.

    Raises ModelError where an adapter's base is not there, or is the adapter itself.
    """
    chain = [name]
    while (settings := adapter_settings(chain[0])) is not None:
        base = base_named(chain[0], settings)
        if base in chain:
            raise ModelError(
                f"the adapter in {base} stands on itself: name the model that it was "
                "trained on as base_model_name_or_path in its adapter_config.json"
            )
        chain.insert(0, base)
    return chain


def refuse_unknown(folder: str | Path, settings: dict) -> None:
    """Raise ModelError for the first setting that is not understood, with its value."""
    for name in sorted(settings, key=lambda name: (name != "peft_type", name)):
        value = settings[name]
        known = name in TOLD or name in READ or value is None
        if not known and value not in ALLOWED.get(name, ()):
            raise ModelError(
                f"the adapter in {folder} has {name} = {json.dumps(value)}, which is "
                "not understood here: where peft can merge it (merge_and_unload), give "
                "the model that it saves then"
            )
    for name in ("peft_type", "r", "lora_alpha", "target_modules"):
        if settings.get(name) is None:
            raise ModelError(
                f"the adapter in {folder} does not say its {name}: write it into "
                f"{SETTINGS}, as it was when the adapter was trained"
            )


def listed(value) -> list:
    """A setting that is one thing, several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def saved_whole(settings: dict) -> list[str]:
    """The ends of the names of the modules that were trained and saved whole."""
    heads = HEADS if settings.get("task_type") == "SEQ_CLS" else ()
    return [*listed(settings.get("modules_to_save")), *heads]


def whole_modules(settings: dict, model: nn.Module) -> list[str]:
    """The names of the modules that were trained and saved whole.

    peft goes by how a name ends, wherever the end begins.
    """
    ends = tuple(saved_whole(settings))
    names = (name for name, _ in model.named_modules(remove_duplicate=False))
    return [name for name in names if name and name.endswith(ends)]


def targeted(settings: dict, model: nn.Module) -> list[str]:
    """The names of the modules that have an adapter, found as peft finds them."""
    targets = settings["target_modules"]
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets = all_linear(model)
    names = [name for name, _ in model.named_modules() if name]
    return [name for name in names if is_target(name, targets, settings)]


def all_linear(model: nn.Module) -> list[str]:
    """The names of all linear layers, but for the head's."""
    heads = model.get_output_embeddings(), getattr(model, "score", None)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, linear_kinds(model))
        and not any(module is head for head in heads)
    ]


def is_target(name: str, targets: str | list, settings: dict) -> bool:
    """Whether a module's name is one of the targets, and is not excluded."""
    excluded = settings.get("exclude_modules")
    if excluded and matches(name, excluded):
        return False
    for saved in saved_whole(settings):
        if re.match(rf"(^|.*\.){saved}($|\..*)", name):
            return False
    if isinstance(targets, str) or name in targets:
        return matches(name, targets)
    return matches(name, targets) and in_chosen_layer(name, settings)


def matches(name: str, ends: str | list) -> bool:
    """Whether a name fits an expression, or ends in one of several ends."""
    if isinstance(ends, str):
        return re.fullmatch(ends, name) is not None
    return any(f".{name}".endswith(f".{end}") for end in ends)


def in_chosen_layer(name: str, settings: dict) -> bool:
    """Whether a module stands in one of the layers that were to have adapters."""
    chosen = settings.get("layers_to_transform")
    if chosen is None or chosen == []:
        return True
    patterns = listed(settings.get("layers_pattern")) or [r"[^.]*"]
    first = r".*?\." if patterns == [r"[^.]*"] else r"(?:^|.*?\.)"
    found = (re.match(rf"{first}{each}\.(\d+)\.", name) for each in patterns)
    match = next((each for each in found if each), None)
    return match is not None and int(match.group(1)) in listed(chosen)


def scale_of(name: str, settings: dict) -> tuple[int, float]:
    """The rank of a module's adapter, and what its product is multiplied with.

    Source: Hu et al. 2021; with the root of the rank, Kalajdzievski 2023.
    """
    rank = by_pattern(name, settings.get("rank_pattern"), settings["r"])
    alpha = by_pattern(name, settings.get("alpha_pattern"), settings["lora_alpha"])
    return rank, alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def by_pattern(name: str, patterns: dict | None, value: float) -> float:
    """What the first expression says that a module's name ends in, or a value."""
    for pattern, said in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return said
    return value


def token_rows(settings: dict, model: nn.Module) -> dict[str, list[int]]:
    """The tokens whose rows were trained, by the full names of the tables."""
    chosen = settings.get("trainable_token_indices") or {}
    names = dict(model.named_modules(remove_duplicate=False))
    if isinstance(chosen, list):
        embedding = model.get_input_embeddings()
        return {name: chosen for name, m in names.items() if m is embedding}
    return {
        name: rows
        for end, rows in chosen.items()
        for name in names
        if name and name.endswith(end)
    }
