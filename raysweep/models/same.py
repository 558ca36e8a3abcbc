"""Which decoder layers two models have in common, weights and settings: frozen in training, or left alone by an adapter.

Checkpoints are compared by the digests of their tensors, taken in the one pass that reads them; loaded models by value.
Two models with different settings have nothing in common here: equal weights compute other states then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep.models.checkpoint import standard_config
from raysweep.models.settings import differences, module_settings

if TYPE_CHECKING:
    import torch

    from raysweep.models.adapter import Adapter
    from raysweep.models.checkpoint import Checkpoint
    from raysweep.models.digest_cache import DigestCache

# Their layers use weights that are stored under another layer's name, so that names do not tell what a layer has.
_SHARING = ("zamba", "zamba2")


@dataclass(frozen=True)
class Same:
    """`layers` are identical in both models; `rest` tells whether embedding, norm and head (all that is no layer) are."""

    layers: frozenset[int] = frozenset()
    rest: bool = False


NOTHING = Same()


def same_in_checkpoints(base: Checkpoint, tuned: Checkpoint, cache: DigestCache | None = None) -> Same:
    """What the two have in common by their digests; of a PEFT adapter, the layers that it leaves alone.

    An adapter leaves a layer alone if none of its tensors belongs to the layer, or if all of its updates there are zero. With
    a `cache`, its file is not read again to find that out.

    In doubt a layer counts as different: a checkpoint that stores equal values in another dtype has no layer in common
    with the other, and what carries a layer's number counts to that layer (an image tower's layer 3 to layer 3).
    """
    if base.config.get("model_type") in _SHARING:
        return NOTHING
    n_layers = base.n_layers
    if tuned.adapter:
        touched = _touched(base, tuned, cache)
        if touched is None:
            return NOTHING
        return Same(frozenset(range(n_layers)) - touched, None not in touched)
    if not (base.digests and tuned.digests):  # of .bin files nothing is known to be alike
        return NOTHING
    if differences(standard_config(base.folder), standard_config(tuned.folder)):
        return NOTHING
    ours, theirs = _by_layer(base.digests), _by_layer(tuned.digests)
    alike = {layer for layer, digests in ours.items() if theirs.get(layer) == digests}
    layers = frozenset(layer for layer in alike if layer is not None and layer < n_layers)
    return Same(layers, None in alike)


def _touched(base: Checkpoint, adapter: Checkpoint, cache: DigestCache | None) -> set[int | None] | None:
    """Layers that an adapter changes (None: what is outside them); None if they cannot be told."""
    from raysweep.models.idle_updates import idle_tensors
    from raysweep.models.peft_check import adapted_modules
    from raysweep.models.peft_types import OF_MODULES

    if adapter.config.get("layer_replication"):  # its layers are copies of others
        return None
    touched = {layer_of(name) for name in adapter.shapes.keys() - idle_tensors(adapter, cache)}
    if all(name.startswith(OF_MODULES) for name in adapter.shapes):
        return touched
    modules = adapted_modules(adapter, base)  # tensors of no module serve several, which may have none of their own
    return None if modules is None else touched | {layer_of(name) for name in modules}


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to: the first number among the parts of its name; None without one."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _by_layer(digests: Mapping[str, str]) -> dict[int | None, dict[str, str]]:
    found: dict[int | None, dict[str, str]] = defaultdict(dict)
    for name, digest in digests.items():
        found[layer_of(name)][name] = digest
    return found


def same_in_models(base: Adapter, tuned: Adapter) -> Same:
    """What two loaded models have in common, by value: parameters, buffers and settings. NaN is like nothing, itself included."""
    if differences(base.model.config, tuned.model.config):
        return NOTHING
    layers = frozenset(
        index
        for index, (ours, theirs) in enumerate(zip(base.blocks, tuned.blocks, strict=True))
        if _equal(ours.state_dict(), theirs.state_dict(), ours.state_dict())
        and module_settings(ours) == module_settings(theirs)
    )
    ours, theirs = base.model.state_dict(), tuned.model.state_dict()
    paths = (f"{base.block_path}.", f"{tuned.block_path}.")
    outside = _equal(ours, theirs, (name for name in ours | theirs if not name.startswith(paths)))
    return Same(layers, outside and _outside(base, paths) == _outside(tuned, paths))


def _outside(adapter: Adapter, paths: tuple[str, ...]) -> dict[str, object]:
    found = module_settings(adapter.model)
    return {name: value for name, value in found.items() if not name.startswith(paths)}


def _equal(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], names: Iterable[str]) -> bool:
    """Whether the named tensors are in both and equal; what is offloaded (meta) cannot be looked at, and is not."""
    import torch

    for name in names:
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
            return False
        if one.is_meta or other.is_meta or not torch.equal(one, other.to(one.device)):
            return False
    return True
