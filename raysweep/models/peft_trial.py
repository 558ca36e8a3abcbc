"""A trial of a PEFT adapter's type on a few small layers with made-up weights.

It shows whether each reload gives the same model, and whether the merged layers compute what the adapter does. A type may start from random values that are not saved (PiSSA by subspace iterations takes another part out of the base in every process),
sample while it runs, or depend on the input. Configs do not say so; running the installed PEFT's own classes does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.peft_types import INSTEAD, NOT_MERGEABLE, described_type, quiet

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from raysweep.models.peft_fit import Fit

# Layers are cut down to about the first of these; to the next if a type's blocks or ranks do not fit.
WIDTHS = (128, 512, 2048)
TOLERANCE = 1e-4  # relative, of float32
_UNLIKE = 1e-3  # relative; the made-up weights make what is left to chance far larger than rounding
_LARGEST = 2**23  # values of a layer that cannot be cut down any more
# Settings that say where the adapter goes in the whole model, and what else is saved with it.
_ELSEWHERE = {
    "exclude_modules": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "layer_replication": None,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "task_type": None,
    "ensure_weight_tying": False,
}


def try_adapter(adapter: Checkpoint, config: PeftConfig, fit: Fit) -> None:
    """Refuse (InputError) an adapter whose type does not reload as it was saved, or does not merge into what it computes.

    One layer of each kind that the adapter changes is tried. A type that cannot be built on its own passes: the merged model
    is compared with the adapter's own when it is loaded.
    """
    who = f"PEFT adapter '{adapter.source}' of type {described_type(config)}"
    for width in WIDTHS:
        with torch.random.fork_rng(devices=[]), quiet():
            try:
                parts = _parts(fit, width)
                problem = _problem(parts, config) if parts else None
            except Exception:  # blocks that do not divide the width, layers that need the whole model, …
                continue
        if problem:
            raise InputError(f"{who} {problem}")
        return


def _problem(parts: Mapping[str, nn.Module], config: PeftConfig) -> str | None:
    """What is wrong with adapters of this config, in words, or None."""
    from peft import get_peft_model_state_dict

    saved = _moved(get_peft_model_state_dict(_built(parts, config, seed=1), save_embedding_layers=False))
    one, other = _built(parts, config, seed=2, state=saved), _built(parts, config, seed=3, state=saved)
    own, again, reloaded = _outputs(one), _outputs(one), _outputs(other)
    if _apart(own, again) > _UNLIKE:
        return f"draws random values each time it runs, so no merged weights can reproduce its output; {NOT_MERGEABLE}"
    if max(_apart(own, reloaded), _apart(_merged_weights(one), _merged_weights(other))) > _UNLIKE:
        return (
            "differs from the trained adapter when it is loaded again: PEFT starts it from random values that are not "
            "saved with it. Convert it to plain LoRA on the machine where it was trained "
            "(path_initial_model_for_weight_conversion of save_pretrained), or "
            f"{INSTEAD}"
        )
    if (difference := _apart(own, _outputs(one))) > TOLERANCE:  # merged by now
        return f"gives other outputs once it is merged: they differ by {difference:.1g}, relative; {NOT_MERGEABLE}"
    return None


def _built(parts: Mapping[str, nn.Module], config: PeftConfig, seed: int, state: Any = None) -> PeftModel:
    """The adapter on its own copy of the layers; the seed is that of whatever it draws."""
    from peft import PeftModel, set_peft_model_state_dict

    layers = nn.Module()
    for name, part in parts.items():
        _put(layers, name, copy.deepcopy(part))
    config = copy.deepcopy(config)
    for setting, value in _ELSEWHERE.items():
        if hasattr(config, setting):
            setattr(config, setting, value)
    config.target_modules = set(parts)
    torch.manual_seed(seed)
    tuned = PeftModel(layers, config)
    if state is not None:
        set_peft_model_state_dict(tuned, state)
    return tuned.eval()


def _put(root: nn.Module, name: str, part: nn.Module) -> None:
    *path, last = name.split(".")
    for step in path:
        if not hasattr(root, step):
            root.add_module(step, nn.Module())
        root = getattr(root, step)
    root.add_module(last, part)


def _moved(saved: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As if the adapter had been trained."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=draw) if value.is_floating_point() else value
        for name, value in saved.items()
    }


@torch.no_grad()
def _outputs(tuned: PeftModel) -> dict[str, torch.Tensor]:
    """What the layers make of a fixed input; of those that take more than one tensor, nothing."""
    found = {}
    for name, module in _layers(tuned):
        base: Any = module
        while hasattr(base, "base_layer"):
            base = base.base_layer
        if isinstance(base, nn.Embedding):
            found[name] = module(torch.arange(min(8, base.num_embeddings)))
        elif (size := _inputs(base)) is not None:
            found[name] = module(torch.randn(2, 3, size, generator=torch.Generator().manual_seed(0)))
    return found


def _layers(tuned: PeftModel) -> Iterator[tuple[str, nn.Module]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    model: Any = tuned.get_base_model()
    names = getattr(tuned, "tried", None)
    if names is None:
        names = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
        tuned.tried = names
    return ((name, model.get_submodule(name)) for name in names)


def _inputs(layer: nn.Module) -> int | None:
    from transformers.pytorch_utils import Conv1D

    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(weight, torch.Tensor) and (isinstance(layer, Conv1D) or weight.ndim == 1):
        return weight.shape[0]
    return None


def _merged_weights(tuned: PeftModel) -> dict[str, torch.Tensor]:
    """The layers' weights with the adapter merged into them; it is merged for good."""
    merging: Any = tuned.base_model
    return dict(merging.merge_and_unload(safe_merge=True).state_dict())


def _apart(ones: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> float:
    """The largest difference among tensors of the same name, relative to the largest value of its tensor."""
    found = [
        float((ones[name] - others[name]).abs().max() / ones[name].abs().max().clamp(min=1e-9))
        for name in ones.keys() & others.keys()
        if ones[name].is_floating_point() and ones[name].shape == others[name].shape
    ]
    return max(found, default=0.0)


def _parts(fit: Fit, width: int) -> dict[str, nn.Module]:
    """The smallest layer of each kind that the adapter changes, by name, cut down to the width and with made-up weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    smallest: dict[tuple[object, ...], tuple[int, str, nn.Module]] = {}
    for name, module in fit.base.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        base = module.get_base_layer()
        size = sum(value.numel() for value in base.parameters())
        kind = (type(module), type(base), getattr(base, "bias", None) is None)
        if kind not in smallest or size < smallest[kind][0]:
            smallest[kind] = (size, name, base)
    parts = {name: _cut_down(base, width) for _, name, base in smallest.values()}
    return {name: part for name, part in parts.items() if part is not None}


def _cut_down(layer: nn.Module, width: int) -> nn.Module | None:
    """A layer of the same kind and at most about the width, with made-up weights; None for one too large to be tried."""
    part = _narrower(layer, width)
    if sum(value.numel() for value in part.parameters()) > _LARGEST:
        return None
    part = part.to_empty(device="cpu")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in part.parameters():
            weight.copy_(_flat(weight.shape, draw) if weight.ndim == 2 else torch.randn(weight.shape, generator=draw))
        for table in part.buffers():
            table.fill_(1)
    return part.requires_grad_(False).eval()


def _narrower(layer: Any, width: int) -> nn.Module:
    """The layer without weights, cut down if it is of a type that can be."""
    from transformers.pytorch_utils import Conv1D

    narrower: nn.Module = copy.deepcopy(layer)
    with torch.device("meta"):
        if type(layer) is nn.Linear:
            inputs, outputs = _cut(layer.in_features, width), _cut(layer.out_features, width)
            narrower = nn.Linear(inputs, outputs, bias=layer.bias is not None)
        elif type(layer) is nn.Embedding:
            narrower = nn.Embedding(_cut(layer.num_embeddings, width), _cut(layer.embedding_dim, width))
        elif type(layer) is Conv1D:
            inputs, outputs = (_cut(size, width) for size in layer.weight.shape)
            narrower = Conv1D(outputs, inputs)
    return narrower


def _cut(size: int, most: int) -> int:
    """The size divided by the smallest power of two that makes it at most `most`; as it is if it cannot be divided."""
    while size > most and size % 2 == 0:
        size //= 2
    return size


def _flat(shape: torch.Size, draw: torch.Generator) -> torch.Tensor:
    """A matrix with singular values from 1 down to 0.9, which an approximation from a random start never tells apart."""
    small = min(shape)
    left, right = (torch.linalg.qr(torch.randn(size, small, generator=draw))[0] for size in shape)
    made: torch.Tensor = left @ torch.diag(torch.linspace(1, 0.9, small)) @ right.T
    return made
