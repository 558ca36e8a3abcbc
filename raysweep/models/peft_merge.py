"""Merging a PEFT adapter into its base's weights, and comparing the result with what PEFT computes without merging.

Done in float32. The comparison is on a few fixed tokens: it finds a merge that is wrong, whatever the reason, before anything
is measured with it.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError
from raysweep.models.bin_weights import NOT_PLAIN
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.machine_errors import is_machine_error
from raysweep.models.made_up import made_up_model
from raysweep.models.peft_fit import lacking_tensors, misplaced
from raysweep.models.peft_types import ADAPTER_NAME, INSTEAD, described_type, one_line, quiet
from raysweep.models.tied_weights import merged_apart, record_in_config, shared_weights, untie

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

TOLERANCE = 1e-4  # relative difference of outputs in float32
_MADE_UP_TOLERANCE = 1e-2  # of made-up weights, which may amplify rounding
_SPECIAL = ("_token_id", "_token_index")  # settings that hold ids of tokens that stand for more than text
_ROWS, _LENGTH, _MOST_TRAINED = 2, 8, 8  # of the probe


def merge_adapter(adapter: Checkpoint, base: Checkpoint, config: PeftConfig, model: PreTrainedModel) -> PreTrainedModel:
    """Add the adapter's update to the weights of `model`, the base in float32; nothing of PEFT is left in it.

    Weights that the base ties (embedding and head) get a copy each if the adapter changes one of them, and the config then says
    that they are not tied. Raises InputError if a tensor of the adapter has no place or is lacking, and if the merged model's
    output differs from that of the adapter on the base by more than `TOLERANCE` on the probe.
    """
    from safetensors import SafetensorError

    try:
        merged, difference = _merged(adapter, base, config, model)
    except pickle.UnpicklingError as error:
        raise InputError(f"PEFT adapter '{adapter.source}' {NOT_PLAIN}") from error
    except (ValueError, TypeError, OSError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        if is_machine_error(error):
            raise
        raise InputError(f"{_unfit(adapter, base)}: {one_line(error)}") from error
    if not difference <= TOLERANCE:  # NaN is not either
        raise InputError(_wrong(adapter, base, config, difference))
    _refuse_leftovers(adapter, merged)
    return merged


def try_merging(adapter: Checkpoint, base: Checkpoint, config: PeftConfig) -> None:
    """Merge the adapter into made-up weights of a small base, and raise InputError if the result is not what PEFT computes.

    Finds what single layers do not show: models that read a layer's weight without calling the layer, so that the adapter has
    no effect until it is merged.
    """
    try:
        _, difference = _merged(adapter, base, config, made_up_model(base))
    except Exception:  # of weights that were never trained; the real ones will show
        return
    if difference > _MADE_UP_TOLERANCE:
        raise InputError(_wrong(adapter, base, config, difference))


def _merged(
    adapter: Checkpoint, base: Checkpoint, config: PeftConfig, model: PreTrainedModel
) -> tuple[PreTrainedModel, float]:
    """The merged model, and the relative difference of its output from the adapter's own."""
    probe, shared = probe_tokens(model, trained_tokens(config)), shared_weights(model)
    tuned = _loaded(adapter, base, copy.deepcopy(config), model)
    own = output_of(tuned, probe)
    untie(merged_apart(model, shared))
    merging: Any = tuned.base_model
    with quiet():
        merged: PreTrainedModel = merging.merge_and_unload(safe_merge=True).eval().requires_grad_(False)
    record_in_config(merged)
    return merged, relative_difference(own, output_of(merged, probe))


def _unfit(adapter: Checkpoint, base: Checkpoint) -> str:
    return f"PEFT adapter '{adapter.source}' does not fit its base '{base.source}'"


def _wrong(adapter: Checkpoint, base: Checkpoint, config: PeftConfig, difference: float) -> str:
    return (
        f"PEFT adapter '{adapter.source}' of type {described_type(config)} gives other outputs once it is merged into "
        f"'{base.source}': on a probe they differ by {difference:.2g}, relative, and {TOLERANCE:g} is allowed; {INSTEAD}, if "
        "that is correct"
    )


def _loaded(adapter: Checkpoint, base: Checkpoint, config: PeftConfig, model: PreTrainedModel) -> PeftModel:
    from peft import PeftModel

    device = _device(model)
    with quiet():
        tuned = PeftModel(model, config)
        placed = tuned.load_adapter(adapter.folder, ADAPTER_NAME, torch_device=device)
    if problem := misplaced(lacking_tensors(tuned, config, placed.missing_keys), placed.unexpected_keys):
        raise InputError(f"{_unfit(adapter, base)}: {problem}")
    return tuned.eval()


# The probe


def trained_tokens(config: PeftConfig) -> list[int]:
    """Ids of the tokens that the adapter trains one by one, if it trains any."""
    asked = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    lists = asked.values() if isinstance(asked, Mapping) else [asked]
    return sorted({int(token) for tokens in lists for token in tokens})


def probe_tokens(model: PreTrainedModel, trained: Iterable[int] = ()) -> torch.Tensor:
    """Fixed token ids, [2, 8 or more], without padding and special tokens; up to 8 of the `trained` ones are among them."""
    import torch

    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    settings = model.config.to_dict()
    special = {settings[name] for name in settings if name.endswith(_SPECIAL) and isinstance(settings[name], int)}
    usual = [token for token in range(vocabulary) if token not in special] or list(range(vocabulary))
    chosen = [token for token in trained if 0 <= token < vocabulary][:_MOST_TRAINED]
    spread = [usual[(7919 * place + 13) % len(usual)] for place in range(_ROWS * _LENGTH)]
    rows = [[*spread[row * _LENGTH : (row + 1) * _LENGTH], *chosen[:: 1 - 2 * row]] for row in range(_ROWS)]
    return torch.tensor(rows, device=_device(model))


def _device(model: PreTrainedModel) -> str:
    """Where the model takes its tokens; if its embedding is offloaded, hooks move them there from the CPU."""
    device = model.get_input_embeddings().weight.device
    return "cpu" if device.type == "meta" else str(device)


def output_of(model: PreTrainedModel | PeftModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (hidden states of a model without a head) of the tokens, on the CPU in float64."""
    import torch

    inner: Any = model
    with torch.no_grad(), quiet():
        out = inner(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    found: torch.Tensor = out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
    return found.double().cpu()


def relative_difference(own: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference relative to the largest value of `own`; NaN if there is one in either."""
    if own.shape != other.shape:
        return float("inf")
    return float((own - other).abs().max() / own.abs().max())


def _refuse_leftovers(adapter: Checkpoint, merged: PreTrainedModel) -> None:
    for name, module in merged.named_modules():
        if type(module).__module__.startswith("peft.") or hasattr(module, "parametrizations"):
            raise InputError(
                f"PEFT adapter '{adapter.source}' leaves {type(module).__name__} in {name} when it is merged, which is not a "
                "plain layer; give the merged checkpoint"
            )
