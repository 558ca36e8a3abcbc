"""Whether a PEFT adapter fits its base: its tensors' names and shapes, found out by putting it on the base without weights.

The base is built on the device `meta`, PEFT places its modules there as it would on the real model, and loads tensors that
have shapes and no values. So every rename and conversion of the installed PEFT counts, and no weight is read.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.machine_errors import is_machine_error
from raysweep.models.made_up import is_small, made_up_model
from raysweep.models.peft_types import ADAPTER_NAME, NOT_MERGEABLE, OF_MODULES, described_type, one_line, quiet
from raysweep.models.tensors import Shape
from raysweep.models.tied_weights import merged_apart, shared_weights

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

# Names that wrappers of a model put into its tensors' names.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class Fit:
    """The adapter on its weightless base, ready to be merged for a trial; `base` is the model inside.

    `adapted` are the names of the base's modules that it changes, `unties` says whether it changes a weight that is tied to
    another one.
    """

    tuned: PeftModel
    base: PreTrainedModel
    adapted: frozenset[str]
    unties: bool


def fit_adapter(adapter: Checkpoint, base: Checkpoint, config: PeftConfig) -> Fit | None:
    """Put the adapter on the base's shapes, and refuse (InputError) tensors without a place, lacking ones and other shapes.

    None if PEFT needs values of the base to place this type and the base is too large to make some up: then names alone were
    checked.
    """
    fit = _placed(adapter, base, config, "meta")
    if fit is not None and not _complaint(adapter, base, config, fit.tuned):
        return fit
    if is_small(base):  # with values it may go well, and if not, its complaint is the true one
        fit = _placed(adapter, base, config, "cpu")
    if fit is None:
        _refuse_unknown_modules(adapter, base)
        return None
    if complaint := _complaint(adapter, base, config, fit.tuned):
        raise InputError(f"PEFT adapter '{adapter.source}' does not fit its base '{base.source}': {complaint}")
    return fit


def _placed(adapter: Checkpoint, base: Checkpoint, config: PeftConfig, device: str) -> Fit | None:
    """The adapter's modules on the empty base; None if PEFT cannot do that on `meta`."""
    import torch
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    from raysweep.models.skeleton import empty_model

    model = empty_model(base, torch.float32) if device == "meta" else made_up_model(base)
    model.tie_weights()
    shared = shared_weights(model)
    try:
        with quiet(), torch.random.fork_rng(devices=[]), torch.device(device):
            tuned = PeftModel(model, copy.deepcopy(config))
    except Exception as error:
        if is_machine_error(error):
            raise
        if device == "meta" and "meta" in str(error).lower():
            return None
        raise InputError(
            f"PEFT adapter '{adapter.source}' does not fit its base '{base.source}': {one_line(error)}"
        ) from error
    wrapped = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    adapted = frozenset(name for name, module in model.named_modules() if isinstance(module, wrapped))
    return Fit(tuned, model, adapted, bool(merged_apart(model, shared)))


def _complaint(adapter: Checkpoint, base: Checkpoint, config: PeftConfig, tuned: PeftModel) -> str | None:
    """What does not fit, in words, or None."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    device = next(tuned.parameters()).device
    modules = {name for name, _ in tuned.get_base_model().named_modules()}
    if wrapper := _wrapper(adapter.shapes, modules):
        return wrapper
    try:
        with quiet():
            expected = get_peft_model_state_dict(tuned, save_embedding_layers=False)
            if unlike := _unlike_shape(adapter, base, tuned.state_dict() | expected):
                return unlike
            result = set_peft_model_state_dict(tuned, _weights(adapter, device), ADAPTER_NAME)
    except KeyError as error:  # of a module that is saved as a whole
        return f"it lacks tensor {error.args[0]}"
    except Exception as error:
        if is_machine_error(error):
            raise
        return one_line(error)
    lacking = lacking_tensors(tuned, config, result.missing_keys)
    lacking += sorted(name for name in expected.keys() - adapter.shapes.keys() if name.endswith(".bias"))
    return misplaced(lacking, result.unexpected_keys)


def misplaced(lacking: list[str], unexpected: list[str]) -> str | None:
    """Words for tensors that the adapter lacks, or that the base does not have; None if there are none."""
    for problem, names in (("it lacks", lacking), ("the base does not have", unexpected)):
        if names:
            return f"{problem} {len(names)} of its tensors, {sorted(names)[0]} among them"
    return None


def lacking_tensors(tuned: PeftModel, config: PeftConfig, missing: Iterable[str]) -> list[str]:
    """The adapter's own tensors among the `missing` ones that loading reports, without other names of tensors that are there."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefix, stored = PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type], tuned.state_dict(keep_vars=True)
    absent = set(missing)
    present = {id(value) for name, value in stored.items() if name not in absent}
    own = [name for name in absent if prefix in name and ADAPTER_NAME in name]
    return sorted(name for name in own if name not in stored or id(stored[name]) not in present)


def _weights(adapter: Checkpoint, device: torch.device) -> dict[str, torch.Tensor]:
    """The adapter's tensors; on `meta` their shapes alone."""
    import torch
    from peft import load_peft_weights

    if device.type != "meta":
        loaded: dict[str, torch.Tensor] = load_peft_weights(str(adapter.folder), device="cpu")
        return loaded
    return {name: torch.empty(shape, device=device) for name, shape in adapter.shapes.items()}


def _unlike_shape(adapter: Checkpoint, base: Checkpoint, expected: Mapping[str, torch.Tensor]) -> str | None:
    for name, shape in sorted(adapter.shapes.items(), key=lambda item: (len(item[0]), item[0])):
        if name not in expected or tuple(expected[name].shape) == tuple(shape):
            continue
        theirs = tuple(expected[name].shape)
        found = f"its tensor {name} has shape {list(shape)}, and the base needs {list(theirs)}"
        return f"{found}; {_more_rows(base, shape, theirs)}" if _more_rows(base, shape, theirs) else found
    return None


def _more_rows(base: Checkpoint, shape: Shape, expected: Shape) -> str | None:
    """What to do about an embedding or head of another number of rows."""
    from raysweep.models.checkpoint import limits

    _, vocabulary = limits(base)
    if len(shape) != 2 or len(expected) != 2 or shape[1] != expected[1] or expected[0] != vocabulary:
        return None
    return (
        f"the vocabulary was resized from {expected[0]} to {shape[0]} tokens before training; give a base that was "
        "resized in the same way (resize_token_embeddings, then save_pretrained)"
    )


def _wrapper(names: Iterable[str], modules: set[str]) -> str | None:
    """Words for a prefix that torch.compile, DistributedDataParallel or FSDP left in the names, or None."""
    known = {part for module in modules for part in module.split(".")}
    for name in names:
        for part in name.split("."):
            if part in _WRAPPERS and part not in known:
                return (
                    f"its tensor names carry '{part}.', which a wrapper of the model left there ({name}); unwrap the model "
                    "before it is saved, or remove that part from the names"
                )
    return None


def _refuse_unknown_modules(adapter: Checkpoint, base: Checkpoint) -> None:
    """Refuse tensors of modules that the base has not, by names alone."""
    import torch

    from raysweep.models.skeleton import empty_model

    modules = {name for name, _ in empty_model(base, torch.float32).named_modules()}
    problem = _wrapper(adapter.shapes, modules)
    strange = [name for name in adapter.shapes if name.startswith(OF_MODULES) and not _module_of(name, modules)]
    problem = problem or misplaced([], strange)
    if problem:
        raise InputError(f"PEFT adapter '{adapter.source}' does not fit its base '{base.source}': {problem}")


def _module_of(name: str, modules: set[str]) -> str | None:
    """The base's module that a tensor belongs to: all of its name but the adapter's own parts at the end."""
    parts = name.removeprefix(OF_MODULES).split(".")
    leaves = {module for module in modules if not any(other.startswith(f"{module}.") for other in modules)}
    return next((found for n in range(len(parts), 0, -1) if (found := ".".join(parts[:n])) in leaves), None)


def refuse_if_not_mergeable(adapter: Checkpoint, config: PeftConfig, fit: Fit) -> None:
    """Run and merge the weightless model, and raise InputError with PEFT's reason if it cannot be run or merged."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    who = f"PEFT adapter '{adapter.source}' of type {described_type(config)} cannot be"
    layers = [module for module in fit.base.modules() if isinstance(module, BaseTunerLayer)]
    if any(type(layer).merge is BaseTunerLayer.merge for layer in layers):
        raise InputError(f"{who} merged into its base: PEFT has no way to merge this type; {NOT_MERGEABLE}")
    merging: Any = fit.tuned.base_model
    for step, act in (("run on", lambda: _run(fit)), ("merged into", merging.merge_and_unload)):
        try:
            with quiet():
                act()
        except Exception as error:
            if is_machine_error(error):
                raise
            if not _for_want_of_weights(error):
                raise InputError(f"{who} {step} its base: {one_line(error)}; {NOT_MERGEABLE}") from error


def _run(fit: Fit) -> None:
    import torch

    with torch.no_grad():
        fit.tuned.eval()(input_ids=torch.zeros(2, 4, dtype=torch.long, device=next(fit.base.parameters()).device))


def _for_want_of_weights(error: Exception) -> bool:
    """Whether an error is of the weightless model rather than of the adapter: it is not PEFT's own, or speaks of `meta`."""
    import peft

    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(peft.__file__).parent)
    return "meta" in str(error).lower() or not frames[-1].filename.startswith(ours)
