"""Which tensors of a checkpoint make which parameters: transformers' own renamings and conversions, one parameter at a time.

transformers converts a whole model while loading it. Here the same rules, in the same order, are worked out from names
alone and kept as recipes, so that one layer's can be followed by themselves. No bytes are read here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from raysweep.errors import InputError
from raysweep.models.tensors import AGAIN

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter


@dataclass(frozen=True)
class Recipe:
    """How tensors of a checkpoint become parameters: one under another name, or several through a converter.

    `sources` are (the converter's pattern, the tensor's name); `targets` are the parameters (or stored buffers) made.
    """

    first: str
    sources: tuple[tuple[str, str], ...]
    converter: WeightConverter | None
    targets: tuple[str, ...]

    def convert(self, model: PreTrainedModel, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters by name, from the source tensors that `read` gives; temporary copies are the converter's."""
        if self.converter is None:
            return {self.first: read(self.sources[0][1])}
        converter = deepcopy(self.converter)
        for pattern, name in self.sources:
            converter.add_tensor(self.first, name, pattern, lambda name=name: read(name))
        made = converter.convert(self.first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def find_recipes(model: PreTrainedModel, shapes: Mapping[str, Iterable[int]]) -> list[Recipe]:
    """Recipes for everything in the checkpoint (tensor → shape) that the model, which may be without memory, has a place for.

    Converters are tried on tensors without memory, so that what they make is known beforehand. Raises InputError where one
    fails, or makes a shape that the model's parameter has not.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    places, prefix = model.state_dict(), model.base_model_prefix
    sources: dict[str, list[tuple[str, str]]] = {}
    used: dict[str, WeightConverter | None] = {}
    for name in sorted(shapes, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, places)
        if renamed not in places and name in places:
            renamed, pattern = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=places)
        if renamed in places:
            sources.setdefault(renamed, []).append((pattern if pattern is not None else name, name))
            used.setdefault(renamed, by_pattern[pattern] if pattern is not None else None)
    return [_tried(model, Recipe(first, tuple(s), used[first], ()), shapes, places) for first, s in sources.items()]


def missing_tensors(model: PreTrainedModel, recipes: Iterable[Recipe]) -> list[str]:
    """The model's parameters and stored buffers that no recipe makes; of two that are tied, either will do."""
    made = {name for recipe in recipes for name in recipe.targets}
    for name, other in model.all_tied_weights_keys.items():
        if name in made or other in made:
            made |= {name, other}
    return sorted(adjusted(model, missing=set(model.state_dict()) - made)[0])


def refuse_missing(source: str, missing: Collection[str]) -> None:
    """Raise InputError where tensors are missing."""
    if missing:
        raise InputError(
            f"checkpoint '{source}' lacks {len(missing)} weights, {min(missing)} among them; it would run with random "
            f"values; {AGAIN}"
        )


def adjusted(
    model: PreTrainedModel, missing: set[str] | None = None, unexpected: set[str] | None = None
) -> tuple[set[str], set[str]]:
    """Return (missing, unexpected) names without what transformers itself knows to be harmless for this architecture."""
    from transformers.modeling_utils import LoadStateDictInfo

    info = LoadStateDictInfo(missing or set(), unexpected or set(), set(), [], {}, set())
    model._adjust_missing_and_unexpected_keys(info)
    return info.missing_keys, info.unexpected_keys


def _tried(
    model: PreTrainedModel, recipe: Recipe, shapes: Mapping[str, Iterable[int]], places: Mapping[str, torch.Tensor]
) -> Recipe:
    def empty(name: str) -> torch.Tensor:
        return torch.empty(tuple(shapes[name]), device="meta", dtype=places[recipe.first].dtype)

    names = ", ".join(name for _, name in recipe.sources[:2]) + (", …" if len(recipe.sources) > 2 else "")
    try:
        made = recipe.convert(model, empty)
    except Exception as error:  # a converter raises whatever the tensors' shapes made it stumble over
        told = " ".join(str(error).split())[:200]
        raise InputError(
            f"transformers' conversion of {names} to {recipe.first} fails ({type(error).__name__}: {told}); save the "
            "checkpoint again"
        ) from error
    for name, value in made.items():
        if name in places and places[name].shape != value.shape:
            raise InputError(
                f"tensor {names}{'' if name == names else f' (as {name})'} has the shape {list(value.shape)}, but "
                f"{type(model).__name__} with this config has {list(places[name].shape)}; correct config.json, or save "
                "the checkpoint again"
            )
    return Recipe(recipe.first, recipe.sources, recipe.converter, tuple(name for name in made if name in places))
