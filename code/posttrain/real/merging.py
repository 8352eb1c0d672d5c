"""An adapter's tensors, added to the weights that they were trained beside."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from posttrain.lora.adapters import is_transposed, linear_kinds
from posttrain.real.model import ModelError, build_empty, size_of, some_of, untie
from posttrain.real.peft_settings import scale_of, targeted, token_rows, whole_modules

PREFIX = "base_model.model."  # of every name in peft's files
# The name of a table's trained rows there
ROWS = ".token_adapter.trainable_tokens_delta"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
INSIDE = (".base_layer", ".token_adapter")  # what peft puts into a wrapped layer's name


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of the adapter in a folder, under the names in its model.

    Raises ModelError where there are none, or where they cannot be read.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise ModelError(f"{folder} has no {WEIGHTS[0]}: copy it beside the settings")
    try:
        if path.suffix == ".bin":
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            state = safetensors.torch.load_file(path)
    except Exception as error:  # each reader has errors of its own
        reason = (str(error).strip().splitlines() or ["no reason was given"])[0]
        raise ModelError(f"{path} cannot be read ({reason}): copy it again") from None
    return {name.removeprefix(PREFIX): value for name, value in state.items()}


class Pile:
    """An adapter's tensors, of which each has to be taken once.

    Raises ModelError for one that is asked for and not there.
    """

    def __init__(self, folder: Path, tensors: dict[str, Tensor]):
        self.folder, self.left = folder, dict(tensors)

    def take(self, name: str) -> Tensor:
        """A tensor by its name."""
        if name not in self.left:
            raise ModelError(
                f"the adapter in {self.folder} does not fit: its settings ask for "
                f"{name}, which is not in its file: copy the folder again, whole"
            )
        return self.left.pop(name)

    def refuse_rest(self) -> None:
        """Raise ModelError for tensors that nothing has taken."""
        if self.left:
            raise ModelError(
                f"the adapter in {self.folder} does not fit: neither its settings nor "
                f"the model have a place for {some_of(self.left)}: give the model "
                "that it was trained on, or merge it with peft"
            )


@torch.no_grad()
def merge_tensors(
    model: nn.Module, settings: dict, tensors: dict[str, Tensor], folder: Path
) -> None:
    """Add an adapter to a model's weights, in place, as peft adds it when it runs.

    Raises ModelError where a tensor is missing, too many or of another size, and where
    only one of two tied tables is to change.
    """
    pile, modules = Pile(folder, tensors), dict(model.named_modules())
    whole, chosen = whole_modules(settings, model), targeted(settings, model)
    rows = token_rows(settings, model)
    drop_head(pile, model)
    replace_plain(pile, model, {*whole}, {*chosen, *rows})
    for name in whole:
        replace_module(pile, model, name)
    for name in chosen:
        refuse_tied(folder, model, name)
        add_product(pile, modules[name], name, settings)
    for name, tokens in rows.items():
        replace_rows(pile, model, name, tokens)
    pile.refuse_rest()


def drop_head(pile: Pile, model: nn.Module) -> None:
    """Leave out what belongs to a language model's head where a model has none."""
    if model.get_output_embeddings() is not None:
        return
    own = dict(model.named_modules())
    whole = build_empty(model.config).named_modules(remove_duplicate=False)
    heads = tuple(f"{name}." for name, _ in whole if name and name not in own)
    pile.left = {
        name: value for name, value in pile.left.items() if not name.startswith(heads)
    }


def replace_plain(
    pile: Pile, model: nn.Module, whole: set[str], wrapped: set[str]
) -> None:
    """Take over the model's own numbers where the file has them: biases, a table.

    peft finds those of a layer that has an adapter under a name with "base_layer".
    """
    own = model.state_dict(keep_vars=True)
    for name in list(pile.left):
        path, _, kind = name.rpartition(".")
        inside = path.removesuffix(INSIDE[0]).removesuffix(INSIDE[1])
        named = f"{inside}.{kind}"
        if named in own and (inside in wrapped) == (inside != path):
            if not any(f"{inside}.".startswith(f"{each}.") for each in whole):
                put(pile, own[named], pile.take(name), name)


def replace_module(pile: Pile, model: nn.Module, name: str) -> None:
    """Take over a module that was trained whole; a tied table becomes one of its
    own.
    """
    module = model.get_submodule(name)
    if module in tables_of(model) and is_tied(model):
        module.weight = nn.Parameter(module.weight.clone())
        untie(model)
    for key, value in module.state_dict(keep_vars=True).items():
        put(pile, value, pile.take(f"{name}.{key}"), f"{name}.{key}")


def add_product(pile: Pile, layer: nn.Module, name: str, settings: dict) -> None:
    """Add the scaled product of a layer's two matrices to its weight.

    With DoRA each output's weights are then brought to the length that was trained (Liu
    et al. 2024, equation 5). All is computed in float32.
    """
    rank, scale = scale_of(name, settings)
    embeds = isinstance(layer, nn.Embedding)
    kinds = ("lora_embedding_A", "lora_embedding_B")
    kinds = kinds if embeds else ("lora_A.weight", "lora_B.weight")
    A, B = (pile.take(f"{name}.{kind}").float() for kind in kinds)
    if A.dim() != 2 or len(A) != rank:
        raise ModelError(
            f"the adapter in {pile.folder} does not fit: {name} has a matrix A of "
            f"{size_of(A.shape)} and the rank {rank} in the settings: copy it again"
        )
    turned = embeds or is_transposed(layer)
    weight = layer.weight.float()
    weight = weight.mT if turned else weight  # (out, in)
    refuse_size(pile, name, A[0], weight[0])
    refuse_size(pile, name, B[:, 0], weight[:, 0])
    weight = weight + scale * B @ A  # (out, in)
    if settings.get("use_dora"):
        length = pile.take(f"{name}.lora_magnitude_vector").float()  # (out,)
        refuse_size(pile, name, length, weight[:, 0])
        weight = weight * (length / weight.norm(dim=1))[:, None]  # (out, in)
    layer.weight.copy_(weight.mT if turned else weight)
    if settings.get("lora_bias"):
        add_bias(pile, layer, name, scale)


def add_bias(pile: Pile, layer: nn.Module, name: str, scale: float) -> None:
    """Add the bias of a layer's matrix B to its own. Raises ModelError without one."""
    bias = pile.take(f"{name}.lora_B.bias")  # (out,)
    if layer.bias is None:
        raise ModelError(
            f"the adapter in {pile.folder} has lora_bias = true, and {name} no bias "
            "to add to: peft cannot merge it either; use another adapter"
        )
    refuse_size(pile, name, bias, layer.bias)
    layer.bias += scale * bias.to(layer.bias.dtype)


def replace_rows(pile: Pile, model: nn.Module, name: str, tokens: list[int]) -> None:
    """Take over some tokens' rows of a table; of tied tables the embedding has
    them.
    """
    module, key = model.get_submodule(name), f"{name}{ROWS}"
    embedding = model.get_input_embeddings()
    if key not in pile.left and is_tied(model) and module is not embedding:
        return
    if module is not embedding:
        refuse_tied(pile.folder, model, name)
    rows = pile.take(key)
    refuse_size(pile, name, rows, module.weight[: len(tokens)])
    if len(tokens) != len(rows) or not all(0 <= t < len(module.weight) for t in tokens):
        raise ModelError(
            f"the adapter in {pile.folder} does not fit: trainable_token_indices names "
            f"rows that {name} or the file does not have: give the model and the "
            "tokenizer that it was trained with"
        )
    module.weight[tokens] = rows.to(module.weight.dtype)


def put(pile: Pile, old: Tensor, new: Tensor, name: str) -> None:
    """Write numbers over others. Raises ModelError where their sizes differ."""
    refuse_size(pile, name, new, old)
    old.copy_(new)


def refuse_size(pile: Pile, name: str, given: Tensor, own: Tensor) -> None:
    """Raise ModelError where a tensor's size is not that of the model's."""
    if given.shape != own.shape:
        raise ModelError(
            f"the adapter in {pile.folder} does not fit: {name} has "
            f"{size_of(given.shape)} numbers in the file and {size_of(own.shape)} in "
            "the model: give the model and the tokenizer that it was trained with"
        )


def tables_of(model: nn.Module) -> list[nn.Module]:
    """The modules that have a row per token: the embedding, and a head."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return [table for table in tables if table is not None]


def is_tied(model: nn.Module) -> bool:
    """Whether embedding and head are one weight."""
    return len({id(t.weight) for t in tables_of(model)}) < len(tables_of(model))


def refuse_tied(folder: Path, model: nn.Module, name: str) -> None:
    """Raise ModelError for an adapter on one of two tables that are one weight, or on
    what is no layer.

    peft adds it to one of them while it runs, and to both when it merges.
    """
    module = model.get_submodule(name)
    if module in tables_of(model) and is_tied(model):
        raise ModelError(
            f"the adapter in {folder} changes {name}, whose weight the model uses in "
            "two places: use an adapter without it"
        )
    if not isinstance(module, (*linear_kinds(model), nn.Embedding)):
        raise ModelError(
            f"the adapter in {folder} has target_modules that fit {name}, which is a "
            f"{type(module).__name__}: only linear layers and embeddings are "
            "understood; merge it with peft"
        )
