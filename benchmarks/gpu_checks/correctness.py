"""Every path in float32 on the device against the same path on the CPU, and bfloat16 against float32.

The CPU computes in one large batch and the device in several small ones, so that with `--device cpu` both sides still
differ. torch computes float32 products in float32 on CUDA too, unless TF32 is turned on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_checks import models
from gpu_checks.record import Setup
from raysweep.models.adapter import Adapter
from raysweep.models.surgery import removed
from raysweep.numerics.cka import cka_matrix
from raysweep.studies.capture import POOLINGS, capture_states
from raysweep.studies.generation import generate_text, greedy_text
from raysweep.studies.gradient import estimate_losses
from raysweep.studies.interventions import Change, check_changes
from raysweep.studies.passes import Pass
from raysweep.studies.removal import Removal
from raysweep.studies.removal_effects import directions, removal_effects
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair, Work, sweep_losses
from raysweep.studies.windows import windows_of_widths

LOSS = 1e-4  # nats, as a share of the loss where that is above 1
STATE = 1e-4  # share of the layer's largest value
GRADIENT = 1e-3  # nats, as a share of the largest estimate
CKA = 1e-6
BF16_LOSS = 1e-2  # share of the loss
BF16_STATE = 3e-2  # norm of the difference as a share of the norm of all states of a layer

KINDS = ("window", "interpolated", "set", "attention", "mlp", "reverse")
PATHS = (
    *(f"sweep {kind}" for kind in KINDS),
    *(f"capture {pooling}" for pooling in POOLINGS),
    "streamed sweep",
    "streamed capture",
    "spilled sweep",
    "text",
    "gradient estimate",
)
REMOVAL_PATHS = ("removal loss", "removal KL", "text under removal")
BF16_FIGURES = ("bf16: sweep against float32", "bf16: capture against float32", "bf16: sweep against the CPU's bf16")
CKA_FIGURES = ("cka: float32 states", "cka: bfloat16 states", "cka: debiased")

_LARGE, _SMALL = 4096, 40  # padded tokens of a block call: all examples at once, and one or two at a time
_LENGTHS = (9, 17, 12, 24, 17, 14)
_NEW_TOKENS = 6


def names_of(architecture: str) -> tuple[str, ...]:
    """The figures of one architecture."""
    paths = (*PATHS, *REMOVAL_PATHS)
    if architecture in models.SEVERAL_STREAMS:
        paths = tuple(path for path in PATHS if path not in ("sweep attention", "sweep mlp"))
    return tuple(f"{architecture}: {path}" for path in paths)


@dataclass(frozen=True)
class SpilledPair(StreamedPair):
    """A streamed pair whose batches all go through the layers together, the states of all but the first on disk."""

    def passes(
        self, batches: Sequence[torch.Tensor], windows: Sequence[Change], beside: Sequence[int], batch_tokens: int = 0
    ) -> list[Pass]:
        places = range(len(batches))
        return [Pass(tuple(places), frozenset(places[1:]), 2**20)]


def check_architecture(setup: Setup, name: str) -> None:
    """Run every path of one architecture on the CPU and on the device, and record the largest difference of each."""
    made = models.tiny_models(name)
    examples = models.random_examples(_LENGTHS)
    here, there = models.pair_on("cpu", made), models.pair_on(setup.device, made)

    def add(path: str, difference: float, limit: float, unit: str = "") -> None:
        setup.add(f"{name}: {path}", difference, unit, limit=limit)

    widths = [2] if setup.tiny else [1, 2]
    windows = windows_of_widths(here.n_layers, widths)
    changes = check_changes(
        here.n_layers,
        widths,
        sets={"ends": [0, here.n_layers - 1]},
        modules=() if name in models.SEVERAL_STREAMS else ("attention", "mlp"),
        coefficients=(0.5,),
        reverse=True,
    )
    losses = sweep_losses(here, examples, changes, batch_tokens=_LARGE)
    of_windows = losses[: len(windows)]
    swept = sweep_losses(there, examples, changes, batch_tokens=_SMALL)
    for kind in KINDS:
        rows = [row for row, change in enumerate(changes) if _kind(change) == kind]
        if rows:
            add(f"sweep {kind}", _loss_apart(swept[rows], losses[rows]), LOSS, "nats")

    states: dict[str, torch.Tensor] = {}
    for pooling in POOLINGS:
        states[pooling] = capture_states(here.base, examples, pooling=pooling, batch_tokens=_LARGE).states
        captured = capture_states(there.base, examples, pooling=pooling, batch_tokens=_SMALL).states
        add(f"capture {pooling}", _state_apart(captured, states[pooling]), STATE)

    some = [windows[0], windows[1], windows[-2]]
    texts = [generate_text(pair, models.Digits(), examples[:2], some, new_tokens=_NEW_TOKENS) for pair in (here, there)]
    add("text", _differing(*texts), 0, "texts")

    estimates = estimate_losses(here, examples, windows, points=2, batch_tokens=_LARGE)
    estimated = estimate_losses(there, examples, windows, points=2, batch_tokens=_SMALL)
    scale = max(1.0, float(np.abs(estimates).max()))
    add("gradient estimate", float(np.abs(estimated - estimates).max()) / scale, GRADIENT, "nats")
    if name not in models.SEVERAL_STREAMS:
        _check_removal(setup, name, here.tuned, there.tuned, examples)

    checkpoints = models.save_pair(made, setup.folder / name)
    streamed = models.streamed_pair(checkpoints, "float32", setup.device)
    add(
        "streamed sweep",
        _loss_apart(sweep_losses(streamed, examples, windows, batch_tokens=_SMALL), of_windows),
        LOSS,
        "nats",
    )
    source = streamed.sources[0]
    captured = capture_states(source.adapter, examples, batch_tokens=_SMALL, layers=source.layers).states
    add("streamed capture", _state_apart(captured, states["last"]), STATE)
    add("spilled sweep", _loss_apart(_spilled(streamed, examples, windows, setup.folder), of_windows), LOSS, "nats")
    for each in streamed.sources:
        each.close()


def _check_removal(setup: Setup, name: str, here: Adapter, there: Adapter, examples: Sequence[Any]) -> None:
    removals = [Removal((0,)), Removal((0, 1), mode="paper", position="all", keep_mean=True)]
    ours, _ = removal_effects(there, examples, 1, removals, batch_tokens=_SMALL)
    theirs, _ = removal_effects(here, examples, 1, removals, batch_tokens=_LARGE)
    setup.add(f"{name}: removal loss", _loss_apart(ours.removed_loss, theirs.removed_loss), "nats", limit=LOSS)
    setup.add(f"{name}: removal KL", _loss_apart(ours.kl, theirs.kl), "nats", limit=LOSS)
    basis = directions(theirs.components, removals[0])
    texts = []
    for adapter in (here, there):
        with removed(adapter, 1, basis):
            texts.append(
                [[greedy_text(adapter.model, adapter.device, models.Digits(), e, _NEW_TOKENS) for e in examples[:2]]]
            )
    setup.add(f"{name}: text under removal", _differing(*texts), "texts", limit=0)


def _spilled(streamed: StreamedPair, examples: Sequence[Any], windows: Sequence[Change], folder: Path) -> np.ndarray:
    """Losses with the states of most batches on disk between two layers."""
    pair = SpilledPair(streamed.base, streamed.tuned, streamed.sources, None, folder)
    work = Work()
    losses = sweep_losses(pair, examples, windows, batch_tokens=_SMALL, work=work)
    if not work.bytes_on_disk:
        raise RuntimeError("no states were written to disk, so the spilled sweep checks nothing")
    return losses


def check_bf16(setup: Setup) -> None:
    """A model with weights of the usual scale in bfloat16 on the device, against float32 and bfloat16 on the CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=models.VOCABULARY)).eval()
    base = base.bfloat16()  # the same values in all three pairs
    made = base, models.with_noise(base, 0.02)
    exact: Pair = models.pair_on("cpu", (copy.deepcopy(made[0]).float(), copy.deepcopy(made[1]).float()))
    examples, windows = models.random_examples(_LENGTHS), windows_of_widths(exact.n_layers, [1])
    losses = sweep_losses(exact, examples, windows, batch_tokens=_LARGE)
    there = models.pair_on(setup.device, made)
    swept = sweep_losses(there, examples, windows, batch_tokens=_SMALL)
    setup.add(BF16_FIGURES[0], float((np.abs(swept - losses) / losses).max()), "share of the loss", limit=BF16_LOSS)
    states = capture_states(exact.tuned, examples, batch_tokens=_LARGE).states
    rounded = capture_states(there.tuned, examples, batch_tokens=_SMALL).states.float()
    apart = ((rounded - states).norm(dim=(1, 2)) / states.norm(dim=(1, 2))).max()
    setup.add(BF16_FIGURES[1], float(apart), "share of the norm", limit=BF16_STATE)
    other = sweep_losses(models.pair_on("cpu", made), examples, windows, batch_tokens=_LARGE)
    setup.add(BF16_FIGURES[2], float((np.abs(swept - other) / losses).max()), "share of the loss", limit=BF16_LOSS)


def check_cka(setup: Setup) -> None:
    """CKA of states on the device against CKA of the same states as float64 arrays on the CPU."""
    torch.manual_seed(0)
    layers, examples, width = (4, 70, 24) if setup.tiny else (8, 300, 512)
    states = torch.randn(layers, examples, width).cumsum(0) + 3
    for name, given, debiased in (
        (CKA_FIGURES[0], states, False),
        (CKA_FIGURES[1], states.bfloat16(), False),
        (CKA_FIGURES[2], states, True),
    ):
        exact = cka_matrix(given.double().numpy(), debiased=debiased)
        found = cka_matrix(given.to(setup.device), debiased=debiased)
        setup.add(name, float(np.abs(found - exact).max()), limit=CKA)


def _kind(change: Change) -> str:
    return "interpolated" if change.coefficient != 1 else change.kind


def _loss_apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, as a share of the loss where that is above 1. NaN on one side only counts as infinite."""
    if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
        return float("inf")
    return float(np.nanmax(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))))


def _state_apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference in any layer, as a share of the layer's largest value."""
    apart = (ours.double() - theirs.double()).abs().amax(dim=(1, 2))
    return float((apart / theirs.double().abs().amax(dim=(1, 2))).max())


def _differing(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> int:
    return sum(a != b for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))
