"""What is found out about a PEFT adapter before anything runs: whether it can be merged into its base, and what to warn of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep.errors import InputError, shown
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.made_up import is_small
from raysweep.models.peft_base_name import base_warning
from raysweep.models.peft_fit import fit_adapter, refuse_if_not_mergeable
from raysweep.models.peft_merge import try_merging
from raysweep.models.peft_patterns import check_patterns
from raysweep.models.peft_types import INSTEAD, read_peft_config, unknown_settings
from raysweep.models.quantisation import is_quantised

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class AdapterFacts:
    """What a check found: warnings in words, and whether weights that the base ties are untied for the merge."""

    warnings: tuple[str, ...] = ()
    unties: bool = False


def check_adapter(adapter: Checkpoint, base: Checkpoint, *, dry_run: bool = True) -> AdapterFacts:
    """Check a PEFT adapter against its base, from its config and the shapes of both; no weight of the base is read.

    With `dry_run`, an adapter of a small base is also merged into made-up weights. Raises InputError for an adapter that
    cannot be merged, that a reload does not reproduce, or whose tensors do not fit.
    """
    import torch

    from raysweep.models.peft_trial import try_adapter
    from raysweep.models.skeleton import empty_model

    config = read_peft_config(adapter)
    check_patterns(adapter, lambda: [name for name, _ in empty_model(base, torch.float32).named_modules()])
    _refuse_replicated_layers(adapter, base)
    _refuse_quantised(adapter, base)
    with torch.random.fork_rng(devices=[]):  # whatever PEFT draws, what is drawn next is the same
        fit = fit_adapter(adapter, base, config)
        if fit is not None:
            try_adapter(adapter, config, fit)
            refuse_if_not_mergeable(adapter, config, fit)
        if dry_run and is_small(base):
            try_merging(adapter, base, config)
    return AdapterFacts(tuple(_warnings(adapter, base, config)), fit is not None and fit.unties)


def _warnings(adapter: Checkpoint, base: Checkpoint, config: PeftConfig) -> Iterator[str]:
    """What may make the numbers mislead, in words."""
    if warning := base_warning(adapter, base):
        yield warning
    if ignored := unknown_settings(adapter, config):
        values = ", ".join(f"{name}={shown(value)}" for name, value in sorted(ignored.items()))
        yield (
            f"adapter '{adapter.source}' has settings that the installed PEFT does not know and ignores: {values}; update PEFT if "
            "they matter"
        )
    if getattr(config, "save_projection", True) is False:
        yield (
            f"adapter '{adapter.source}' was saved without its random projections (save_projection=False); PEFT draws them again "
            "from the seed in its config, and another version of PyTorch may draw other values than those it was "
            "trained with"
        )


def adapted_modules(adapter: Checkpoint, base: Checkpoint) -> frozenset[str] | None:
    """Names of the base's modules that the adapter changes; None if they cannot be found without the base's weights."""
    fit = fit_adapter(adapter, base, read_peft_config(adapter))
    return None if fit is None else fit.adapted


def _refuse_quantised(adapter: Checkpoint, base: Checkpoint) -> None:
    if is_quantised(base):
        raise InputError(
            f"base '{base.source}' is quantised, and PEFT adapter '{adapter.source}' cannot be merged into packed weights without "
            "rounding them again; dequantise the base and save it in bfloat16 or float32"
        )


def _refuse_replicated_layers(adapter: Checkpoint, base: Checkpoint) -> None:
    """Refuse layers that are stacked anew: a window of such a model has no counterpart in the base."""
    ranges = adapter.config.get("layer_replication")
    if not ranges:
        return
    try:
        layers = [layer for start, stop in ranges for layer in range(start, stop)]
    except (TypeError, ValueError):
        layers = []
    if layers != list(range(base.n_layers)):
        raise InputError(
            f"PEFT adapter '{adapter.source}' repeats or drops layers of its base (layer_replication {shown(ranges)}, "
            "of "
            f"{base.n_layers} layers), so its layers have no counterpart in '{base.source}' and share weights; "
            f"{INSTEAD}, "
            "with that model's own base"
        )
