"""A model without its layers' weights: embeddings, norm, head and tables in memory, the layers' parameters nowhere.

Built as transformers' from_pretrained builds a model, so that what is made up (tied heads, rotary tables, buffers that are
not stored) is made by its own code. Layers are filled in by stream.py. What cannot be built so is refused with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raysweep.errors import InputError
from raysweep.models.blocks import find_blocks
from raysweep.models.checkpoint import Checkpoint, predicts_tokens, standard_config
from raysweep.models.conversion import Recipe, find_recipes, missing_tensors, refuse_missing
from raysweep.models.loading import may_pool
from raysweep.models.model_limits import check_tables, limited_modules
from raysweep.models.quantisation import is_quantised
from raysweep.models.reading import TensorFiles
from raysweep.models.tensors import AGAIN
from raysweep.models.weights import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Skeleton:
    """The model, its list of layers (whose parameters have no memory), and each layer's recipes."""

    model: PreTrainedModel
    blocks: nn.ModuleList
    path: str
    files: TensorFiles
    recipes: tuple[tuple[Recipe, ...], ...]
    dtypes: dict[str, torch.dtype]  # of the layers' parameters and stored buffers, by full name


def refuse_if_not_streamable(checkpoint: Checkpoint) -> None:
    """Raise InputError, with the reason, for a checkpoint whose layers cannot be read one at a time; no weight is read.

    Also for what would be found only when a layer is read: weights that are lacking, have another shape than the model's, or
    are stored as what is no plain number.
    """
    if checkpoint.on_paper:
        if reason := _blocks_on_paper(checkpoint.folder)[2]:
            raise _refusal(checkpoint, type(model_on_paper(checkpoint.folder)).__name__, reason)
        return
    config = standard_config(checkpoint.folder) if not checkpoint.adapter else None
    name = (config.architectures or [config.model_type])[0] if config is not None else "PEFT adapter"
    reason = _reason(checkpoint)
    if reason is None:
        model = empty_model(checkpoint, torch.float32)
        reason = _shared_layers(model)
    if reason:
        raise _refusal(checkpoint, name, reason)
    files = TensorFiles(weight_files(checkpoint.folder, checkpoint.source), checkpoint)
    rest, layers = _recipes_of(checkpoint, model, files)
    refuse_missing(checkpoint.source, missing_tensors(model, [*rest, *(r for of_layer in layers for r in of_layer)]))


def _refusal(checkpoint: Checkpoint, name: str, reason: str) -> InputError:
    return InputError(
        f"checkpoint '{checkpoint.source}' ({name}) cannot be streamed: {reason}; set execution.residency to resident"
    )


def _recipes_of(
    checkpoint: Checkpoint, model: PreTrainedModel, files: TensorFiles
) -> tuple[list[Recipe], list[list[Recipe]]]:
    """(what makes everything outside the layers, what makes each layer).

    Raises InputError for a tensor of several layers, and for one that is stored as no plain number (float8), or as integers
    where the model has floating values.
    """
    blocks = find_blocks(model)
    path = _path(model, blocks)
    places, rest = model.state_dict(), list[Recipe]()
    layers: list[list[Recipe]] = [[] for _ in blocks]
    try:
        recipes = find_recipes(model, {name: tensor.shape for name, tensor in files.tensors.items()})
    except InputError as error:
        raise InputError(f"checkpoint '{checkpoint.source}': {error}") from error
    for recipe in recipes:
        for _, source in recipe.sources:
            if places[recipe.first].is_floating_point() and not files.dtype(source).is_floating_point:
                raise InputError(
                    f"{files.where(source)} is stored as {files.tensors[source].dtype}, but {type(model).__name__} has "
                    f"floating-point values; {AGAIN}"
                )
        inside = {_layer(name, path) for name in recipe.targets}
        if len(inside) > 1:
            reason = f"tensor {recipe.sources[0][1]} belongs to several layers"
            raise _refusal(checkpoint, type(model).__name__, reason)
        layer = next(iter(inside), None)
        (rest if layer is None else layers[layer]).append(recipe)
    return rest, layers


def _reason(checkpoint: Checkpoint) -> str | None:
    if checkpoint.adapter:
        return "an adapter is merged into its base's weights with all of them in memory (merge and save it first)"
    if is_quantised(checkpoint):
        return "its weights are quantised, and are unpacked by their own code"
    bins = [path.name for path in weight_files(checkpoint.folder, checkpoint.source) if path.suffix != ".safetensors"]
    return f"{bins[0]} is not a safetensors file, and only safetensors files can be read in part" if bins else None


def _shared_layers(model: PreTrainedModel) -> str | None:
    blocks = find_blocks(model)
    path = _path(model, blocks)
    tied = next((name for name in model.all_tied_weights_keys if name.startswith(path)), None)
    seen: dict[int, int] = {}
    for layer, block in enumerate(blocks):
        for parameter in block.parameters():
            if seen.setdefault(id(parameter), layer) != layer:
                return f"its layers {seen[id(parameter)]} and {layer} share weights"
    return f"its layers share weights ({tied} is {model.all_tied_weights_keys[tied]})" if tied else None


def _path(model: PreTrainedModel, blocks: nn.ModuleList) -> str:
    return next(f"{path}." for path, module in model.named_modules() if module is blocks)


@lru_cache(maxsize=16)
def model_on_paper(config: Path) -> PreTrainedModel:
    """The model of the config in this file without weights, kept: a plan asks for it again and again. Not to be changed."""
    return empty_model(Checkpoint(str(config), config, {}, {}, 0, False, "", on_paper=True), torch.float32)


@lru_cache(maxsize=16)
def _blocks_on_paper(config: Path) -> tuple[str, int, str | None]:
    """(where its layers are, how many, why they cannot be read one at a time) of a model on paper."""
    model = model_on_paper(config)
    blocks = find_blocks(model)
    return _path(model, blocks), len(blocks), _shared_layers(model)


def empty_model(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The model as from_pretrained begins with it: every parameter on the device `meta`."""
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.auto_factory import _get_model_class
    from transformers.utils.generic import ContextManagers

    config = standard_config(checkpoint.folder)
    predicts = predicts_tokens(checkpoint)
    extra: dict[str, Any] = {} if predicts or not may_pool(checkpoint) else {"add_pooling_layer": False}
    made: Any = _get_model_class(config, (AutoModelForCausalLM if predicts else AutoModel)._model_mapping)
    if made.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()
    config.dtype = dtype
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None:
            inner.dtype = dtype
    with ContextManagers(made.get_init_context(dtype, False, False, False)), limited_modules(checkpoint.source):
        model: PreTrainedModel = made(config, **extra)
    check_tables(model, checkpoint.source)
    return model


def build_skeleton(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> Skeleton:
    """The model with everything but its layers' weights on the device.

    Raises InputError for what cannot be streamed, where the checkpoint lacks weights, and for weights that are not the planned
    ones.
    """
    refuse_if_not_streamable(checkpoint)
    with closing(TensorFiles(weight_files(checkpoint.folder, checkpoint.source), checkpoint)) as files:
        return _filled(checkpoint, dtype, device, files)


def _filled(checkpoint: Checkpoint, dtype: torch.dtype, device: str, files: TensorFiles) -> Skeleton:
    from transformers.core_model_loading import set_param_for_module
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils.loading_report import LoadStateDictInfo

    model = empty_model(checkpoint, dtype)
    blocks = find_blocks(model)
    path = _path(model, blocks)
    rest, layers = _recipes_of(checkpoint, model, files)
    dtypes = _dtypes(model, dtype)
    made = {name for recipe in (*rest, *(r for of_layer in layers for r in of_layer)) for name in recipe.targets}
    lacking = set(model.state_dict()) - made
    info = LoadStateDictInfo(set(), set(), set(), [], {}, set())
    for recipe in rest:
        for name, value in recipe.convert(model, _reader(files, dtypes[recipe.first])).items():
            if name in dtypes:
                set_param_for_module(model, name, value.to(device), info, None)
    files.check()
    of_layers = {name for name in lacking if name.startswith(path)}
    for stored in [*blocks.parameters(), *blocks.buffers()]:
        setattr(stored, "_is_hf_initialized", True)  # noqa: B010  # transformers' own mark: leave it as it is
    info.missing_keys = lacking - of_layers
    type(model)._finalize_model_loading(model, LoadStateDictConfig(dtype=dtype, device_map={"": device}), info)
    info.missing_keys |= of_layers
    model._adjust_missing_and_unexpected_keys(info)
    refuse_missing(checkpoint.source, info.missing_keys - set(model.all_tied_weights_keys))
    _share_equal_tables(blocks)
    model = model.eval().requires_grad_(False)
    return Skeleton(
        model,
        blocks,
        path,
        files,
        tuple(map(tuple, layers)),
        {n: dtypes[n] for n in dtypes if _layer(n, path) is not None},
    )


def _layer(name: str, path: str) -> int | None:
    return int(name.removeprefix(path).partition(".")[0]) if name.startswith(path) else None


def _reader(files: TensorFiles, dtype: torch.dtype) -> Any:
    def read(name: str) -> torch.Tensor:
        target = torch.empty(files.tensors[name].shape, dtype=dtype)
        files.read_into(name, target)
        return target

    return read


def _dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of every stored parameter: the model's own, but for those that an architecture keeps in float32."""
    from transformers.core_model_loading import build_glob_alternation

    dtypes = {name: value.dtype for name, value in model.state_dict().items()}
    plan = model._get_dtype_plan(dtype)
    if plan:
        pattern, groups, _ = build_glob_alternation(list(plan))
        for name in dtypes:
            if (found := pattern.search(name)) is not None and found.lastgroup is not None:
                dtypes[name] = plan[groups[found.lastgroup]]
    return dtypes


def _share_equal_tables(blocks: Iterable[nn.Module]) -> None:
    """Buffers that are not stored (masks, tables) are mostly the same in every layer: keep one of each."""
    kept: list[torch.Tensor] = []
    for block in blocks:
        for module in block.modules():
            for name in module._non_persistent_buffers_set:
                buffer = module._buffers[name]
                if buffer is None or buffer.is_meta:
                    continue
                same = next(
                    (other for other in kept if other.dtype == buffer.dtype and torch.equal(other, buffer)), None
                )
                if same is None:
                    kept.append(buffer)
                else:
                    module._buffers[name] = same


@dataclass(frozen=True)
class Reads:
    """Bytes on disk that are read for each layer, and once for everything else."""

    layers: tuple[int, ...]
    rest: int


def read_sizes(checkpoint: Checkpoint) -> Reads:
    """What streaming reads of the checkpoint, from its headers alone; no weight is read or given memory.

    Of one on paper, what its shapes take in the dtype that it says it is stored in.

    Raises InputError for what cannot be streamed.
    """
    refuse_if_not_streamable(checkpoint)
    if checkpoint.on_paper:
        return _sizes_on_paper(checkpoint)
    model = empty_model(checkpoint, torch.float32)
    blocks = find_blocks(model)
    path = _path(model, blocks)
    tensors = TensorFiles(weight_files(checkpoint.folder, checkpoint.source)).tensors
    layers, rest = [0] * len(blocks), 0
    for recipe in find_recipes(model, {name: tensor.shape for name, tensor in tensors.items()}):
        size = sum(tensors[name].stop - tensors[name].start for _, name in recipe.sources)
        layer = _layer(recipe.targets[0], path)
        if layer is None:
            rest += size
        else:
            layers[layer] += size
    return Reads(tuple(layers), rest)


def _sizes_on_paper(checkpoint: Checkpoint) -> Reads:
    each = checkpoint.bytes // max(1, checkpoint.n_parameters)
    path, n_layers, _ = _blocks_on_paper(checkpoint.folder)
    layers, rest = [0] * n_layers, 0
    for name, shape in checkpoint.shapes.items():
        layer = _layer(name, path)
        if layer is None:
            rest += each * math.prod(shape)
        else:
            layers[layer] += each * math.prod(shape)
    return Reads(tuple(layers), rest)
