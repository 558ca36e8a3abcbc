"""What a model predicts without some principal components of one layer's states: losses, divergences, and what is left.

One pass goes to the layer, and from there one for each removal. The same change is made by a hook on the block where text
is generated (surgery.removed); a test compares them.

Shapes: N examples, B of a batch, T tokens, D width, K components, M labelled tokens, R removals, S vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from raysweep.data.batches import make_batches, pad
from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter, Recording, Shared, apply_block
from raysweep.models.surgery import part_within
from raysweep.models.transfers import to_device, to_host
from raysweep.numerics.spectral import Decomposition, decompose
from raysweep.studies.labels import Labels
from raysweep.studies.removal import Removal
from raysweep.studies.substitution import LOGIT_BYTES

ENTRY_BYTES = 8  # logits are compared in float64


@dataclass(frozen=True)
class Effects:
    """What removals at one layer do to every example; float64, NaN for a removal of components that are not there.

    loss [N], nats: mean negative log likelihood over the response tokens with nothing removed; removed_loss [R, N] under each
    removal. kl [R, N], nats: Kullback-Leibler divergence of the next token's distribution from the one with nothing removed,
    mean over the response tokens; first_kl [R, N] that of the first of them. inner_product [R]: the largest of a changed state
    (or its difference from the mean, where that is kept) with a removed direction, relative to the state's norm before.
    """

    layer: int
    components: Decomposition
    loss: np.ndarray
    removed_loss: np.ndarray
    kl: np.ndarray
    first_kl: np.ndarray
    inner_product: np.ndarray


@dataclass(frozen=True)
class _Trunk:
    """A batch's states [B, T, D] behind the layer, nothing removed, and what the later blocks are called with."""

    indices: list[int]
    recording: Recording
    states: torch.Tensor
    shared: Shared
    last: torch.Tensor  # the places [B] of the prompts' last tokens


@torch.no_grad()
def _trunks(adapter: Adapter, examples: Sequence[Example], layer: int, batch_tokens: int) -> Iterator[_Trunk]:
    lengths = [example.length - 1 for example in examples]  # the last token predicts nothing
    for indices in make_batches(lengths, batch_tokens, [adapter.table(length) for length in lengths]):
        tokens = torch.from_numpy(pad([examples[i].tokens[:-1] for i in indices]))
        recording = adapter.record(tokens)
        states, shared = recording.states, Shared()
        for block, call in zip(adapter.blocks[: layer + 1], recording.calls, strict=False):
            states = apply_block(block, states, call, shared)
        if states.ndim != 3:
            raise InputError(
                f"{type(adapter.model).__name__} carries {tuple(states.shape[:-3])} parallel streams of states, and "
                "components can be removed only from one; remove studies.removal for it"
            )
        last = to_device(torch.tensor([examples[i].n_prompt - 1 for i in indices]), states.device)
        yield _Trunk(indices, recording, states, shared, last)


def states_at(adapter: Adapter, examples: Sequence[Example], layer: int, batch_tokens: int = 8192) -> torch.Tensor:
    """The layer's output [N, D] at each example's last prompt token, in the model's dtype, on the CPU.

    Raises InputError for a state that is not finite, naming layer and example.
    """
    states_ND: torch.Tensor | None = None
    for trunk in _trunks(adapter, examples, layer, batch_tokens):
        if states_ND is None:
            states_ND = torch.empty(len(examples), trunk.states.shape[-1], dtype=trunk.states.dtype)
        rows = torch.arange(len(trunk.indices), device=trunk.states.device)
        states_ND[trunk.indices] = trunk.states[rows, trunk.last].cpu()
    if states_ND is None:
        raise InputError("there are no examples to compute components from")
    bad_N = ~states_ND.isfinite().all(dim=1)
    if bad_N.any():
        raise InputError(
            f"the state of record {examples[int(bad_N.int().argmax())].id} at layer {layer} is not finite (so of {int(bad_N.sum())} of "
            f"{len(examples)}), so it has no components; the model overflows in {states_ND.dtype}, so use another dtype"
        )
    return states_ND


def lacking(found: Decomposition, removal: Removal) -> str | None:
    """Why the states have not all components that are to be removed, in words; None where they have."""
    asked = max(removal.chosen, default=-1) + 1
    return f"component {asked - 1} is requested, and {found.why_few(asked)}" if asked > found.rank else None


def directions(found: Decomposition, removal: Removal) -> torch.Tensor:
    """The directions [K, D] that are removed."""
    return torch.from_numpy(found.right[list(removal.chosen)])


def mean_kept(found: Decomposition, removal: Removal) -> torch.Tensor | None:
    """The mean state [D] that parts are taken from; None for the origin."""
    return torch.from_numpy(found.mean) if removal.keep_mean else None


@torch.no_grad()
def removal_effects(
    adapter: Adapter, examples: Sequence[Example], layer: int, removals: Sequence[Removal], *, batch_tokens: int = 8192
) -> tuple[Effects, torch.Tensor]:
    """What each removal at the layer does to the prediction of the examples' responses; and the states [N, D] stored for it.

    Raises InputError where the model predicts nothing or has several streams of states, and for states that are not finite;
    IndexError for a layer that is not there.
    """
    adapter.require_predictions()
    if not 0 <= layer < adapter.n_layers:
        raise IndexError(f"layer {layer} is not among {adapter.n_layers} layers")
    stored_ND = states_at(adapter, examples, layer, batch_tokens)
    found = decompose(stored_ND, 1 + max((max(r.chosen, default=-1) for r in removals), default=-1))
    shape = (len(removals), len(examples))
    effects = Effects(
        layer,
        found,
        np.full(len(examples), np.nan),
        np.full(shape, np.nan),
        np.full(shape, np.nan),
        np.full(shape, np.nan),
        np.full(len(removals), np.nan),
    )
    possible = [row for row, removal in enumerate(removals) if lacking(found, removal) is None]

    @cache  # copied to a device once, and not for every batch
    def taken_on(row: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        mean_D = mean_kept(found, removals[row])
        basis_KD = to_device(directions(found, removals[row]).double(), device)
        return basis_KD, None if mean_D is None else to_device(mean_D.double(), device)

    for trunk in _trunks(adapter, examples, layer, batch_tokens):
        labels = Labels([examples[i] for i in trunk.indices])
        stored_BD = to_device(stored_ND[trunk.indices], trunk.states.device)
        ends_MD = [_labelled(_to_the_end(adapter, trunk, trunk.states, layer), labels)]
        inner = []
        for row in possible:
            states, largest = _without(
                trunk, removals[row], *taken_on(row, trunk.states.device), stored_BD=stored_BD, labels=labels
            )
            inner.append(largest)
            ends_MD.append(_labelled(_to_the_end(adapter, trunk, states, layer), labels))
        nll_EM, kl_EM = _compared(adapter, ends_MD, labels)
        nll_EM, kl_EM, *inner = to_host([nll_EM, kl_EM, *inner])  # a batch leaves the device in one copy
        loss, kl, first_kl = _by_example(nll_EM, kl_EM, [examples[i].n_tokens for i in trunk.indices])
        effects.inner_product[possible] = np.fmax(effects.inner_product[possible], [float(each) for each in inner])
        effects.loss[trunk.indices] = loss[0]
        for place, row in enumerate(possible, 1):
            effects.removed_loss[row, trunk.indices] = loss[place]
            effects.kl[row, trunk.indices] = kl[place]
            effects.first_kl[row, trunk.indices] = first_kl[place]
    return effects, stored_ND


def _labelled(states: torch.Tensor, labels: Labels) -> torch.Tensor:
    """The states [M, D] that predict the labels, from states [B, T, D]."""
    placed = labels.on(states.device)
    return states[placed.rows, placed.cols]


def _without(
    trunk: _Trunk,
    removal: Removal,
    basis_KD: torch.Tensor,
    mean_D: torch.Tensor | None,
    *,
    stored_BD: torch.Tensor,
    labels: Labels,
) -> tuple[torch.Tensor, torch.Tensor]:
    """States [B, T, D] without the components, and the largest inner product, float64, that is left at labelled tokens."""
    states = trunk.states
    source = states if removal.mode == "project" else stored_BD[:, None]
    part = part_within(source, basis_KD, mean_D)
    everywhere = torch.arange(states.shape[1], device=states.device)[None] >= trunk.last[:, None]
    chosen_BT = everywhere if removal.position == "last" else torch.ones_like(everywhere)
    changed = torch.where(chosen_BT[..., None], (states.double() - part).to(states.dtype), states)
    if not len(basis_KD):
        return changed, part.new_zeros(())
    before, after = _labelled(states, labels).double(), _labelled(changed, labels).double()
    if mean_D is not None:
        after = after - mean_D
    inner_M = (after @ basis_KD.T).abs().amax(dim=1) / before.norm(dim=1)
    return changed, inner_M.max()


def _to_the_end(adapter: Adapter, trunk: _Trunk, states: torch.Tensor, layer: int) -> torch.Tensor:
    """States [B, T, D] behind the last block, from those behind the layer."""
    shared = dict(trunk.shared)
    for block, call in zip(adapter.blocks[layer + 1 :], trunk.recording.calls[layer + 1 :], strict=True):
        states = apply_block(block, states, call, shared)
    return states


def _compared(adapter: Adapter, ends_MD: Sequence[torch.Tensor], labels: Labels) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log likelihood of each label, and divergence from the first of `ends_MD`; float64 [E, M] for E of them, on their device."""
    targets = labels.on(ends_MD[0].device).targets
    vocabulary = adapter.model.config.get_text_config().vocab_size
    step = max(1, LOGIT_BYTES // (ENTRY_BYTES * vocabulary))
    nll = targets.new_empty(len(ends_MD), len(targets), dtype=torch.float64)
    kl = torch.empty_like(nll)
    for first in range(0, len(targets), step):
        part = slice(first, first + step)
        for place, end_MD in enumerate(ends_MD):
            log_MS = adapter.logits(end_MD[part]).double().log_softmax(dim=-1)
            if place == 0:
                before_MS, p_MS = log_MS, log_MS.exp()
            nll[place, part] = -log_MS.gather(1, targets[part, None].to(log_MS.device))[:, 0]
            # a token that had no probability adds nothing
            kl[place, part] = torch.where(p_MS > 0, p_MS * (before_MS - log_MS), 0.0).sum(dim=-1)
    return nll, kl


def _by_example(
    nll_EM: torch.Tensor, kl_EM: torch.Tensor, n_labels: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean loss and divergence by example, and the divergence at its first label; each float64 [E, B], of values on the CPU."""
    counts_B = torch.tensor(n_labels)
    rows_M = torch.repeat_interleave(counts_B)
    loss_EB, kl_EB = (
        torch.zeros(len(x), len(counts_B)).double().index_add_(1, rows_M, x) / counts_B for x in (nll_EM, kl_EM)
    )
    starts_B = counts_B.cumsum(0) - counts_B
    return loss_EB.numpy(), kl_EB.numpy(), kl_EM[:, starts_B].numpy()
