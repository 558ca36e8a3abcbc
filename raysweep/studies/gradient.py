"""First order in the weights: what every window, set and part of layers would cost, from one forward and one backward pass.

loss(layers S put back) ≈ loss + Σ_{ℓ ∈ S} ⟨∂loss/∂θ_ℓ, θ_base,ℓ − θ_tuned,ℓ⟩, for each example. With several points the gradient is its
mean over a part of the straight way from tuned to base, all layers moving together: as much of the way as S has of the layers,
for that moves the model about as far as S does. For all layers it is the path integral of integrated gradients
(Sundararajan et al. 2017), exact but for the rule's error. An estimate knows little of curvature, and nothing of how just
these layers act on each other; how good it is, only exact losses tell.

About three layer applications a layer and point, whatever the changes: forward, backward by the states, and the products of
the step (models/directional.py); a fourth where the forward is made anew, for memory or at a point between the models.

Shapes: B examples of a batch, T tokens, D width, L layers, W changes, N examples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from raysweep.data.batches import make_batches, pad
from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.directional import Shares, differing
from raysweep.models.memory import free_bytes, room_left
from raysweep.models.parts import parts_of
from raysweep.models.surgery import interpolated
from raysweep.models.transfers import to_host
from raysweep.studies.backward import Flow, Probe
from raysweep.studies.call_memory import TokenBytes, fitting_tokens
from raysweep.studies.interventions import Change
from raysweep.studies.passes import group_passes, states_of_a_way_back
from raysweep.studies.schedule import Group, Step
from raysweep.studies.streamed import StreamedPair, gigabytes
from raysweep.studies.substitution import LOGIT_BYTES, Pair, Work
from raysweep.studies.windows import BASE, TUNED, Part, Version, Window

GRAPH = 40  # values by token and width that a layer keeps for its backward pass (Korthikanti et al. 2022: 34 bytes of 16 bits, and scores)


@dataclass(frozen=True)
class FirstOrder:
    """Loss of each example, float64 [N], nats, and by part what a whole step of each layer adds to it, [L, N]."""

    losses: np.ndarray
    scores: dict[Part, np.ndarray]


def nodes(points: int, upto: float = 1.0) -> list[tuple[float, float]]:
    """(share of the way, weight) of each point, for the mean of a slope over the way from 0 to `upto`.

    One point is where the step starts. Several stand at (k/(points − 1))², closer where most changes end, the same for every
    `upto`; between them the slope is taken to be linear. Points of no weight are left out.
    """
    if points == 1:
        return [(0.0, 1.0)]
    at = (np.arange(points) / (points - 1)) ** 2
    weights = np.zeros(points)
    for k in range(points - 1):
        length = min(at[k + 1], upto) - at[k]
        if length > 0:  # a linear piece from at[k], as far as `upto`
            lean = length / (at[k + 1] - at[k]) / 2
            weights[k : k + 2] += length * np.array([1 - lean, lean])
    return [(float(x), float(w / upto)) for x, w in zip(at, weights, strict=True) if w]


def points_of(changes: Collection[Change], points: int, n_layers: int) -> set[tuple[bool, float]]:
    """Every (whether it starts from the base model, share of the way) at which these changes need a pass."""
    ways = {(c.in_base, c.coefficient * c.width / n_layers) for c in changes}
    found = {(in_base, share) for in_base, upto in ways if upto for share, _ in nodes(points, upto)}
    return found | {(in_base, 0.0) for in_base, _ in ways}


def estimate_losses(
    pair: Pair,
    examples: Sequence[Example],
    changes: Sequence[Change],
    *,
    points: int = 1,
    batch_tokens: int = 8192,
    work: Work | None = None,
) -> np.ndarray:
    """Estimated loss of every example under every change, float64 [W, N], in nats; that of an untouched model is exact.

    A change of coefficient c goes c times as far; a `reverse` one starts from the base model. Raises
    InputError where parts of a layer are asked for and cannot be told apart, or weights cannot be interpolated.
    """
    work = work if work is not None else Work()
    parts = {_part(change) for change in changes}
    found: dict[tuple[bool, float], FirstOrder] = {}

    def at(in_base: bool, share: float) -> FirstOrder:
        if (in_base, share) not in found:
            found[in_base, share] = first_order(
                pair, examples, parts, share=share, reverse=in_base, batch_tokens=batch_tokens, work=work
            )
        return found[in_base, share]

    estimates = np.empty((len(changes), len(examples)))
    for row, change in enumerate(changes):
        layers = list(range(*change)) if isinstance(change, Window) else list(change.chosen)
        step = np.zeros(len(examples))
        for share, weight in nodes(points, change.coefficient * len(layers) / pair.n_layers) if layers else []:
            step += weight * at(change.in_base, share).scores[_part(change)][layers].sum(axis=0)
        estimates[row] = at(change.in_base, 0.0).losses + change.coefficient * step
    return estimates


def first_order(
    pair: Pair,
    examples: Sequence[Example],
    parts: Collection[Part] = frozenset({"layer"}),
    *,
    share: float = 0.0,
    reverse: bool = False,
    batch_tokens: int = 8192,
    work: Work | None = None,
) -> FirstOrder:
    """Losses at `share` of the way from tuned to base (from base to tuned if `reverse`), and their slopes along the whole way.

    Embedding, norm and head stay those of where the way starts. Raises InputError as estimate_losses does.
    """
    work = work if work is not None else Work()
    frame = pair.frame(reverse)
    lengths = [e.length - 1 for e in examples]
    batch_tokens = _fitting_batch(pair, lengths, batch_tokens)
    groups = make_batches(lengths, batch_tokens, [frame.table(length) for length in lengths])
    padded = [torch.from_numpy(pad([examples[i].tokens[:-1] for i in g])) for g in groups]
    losses = np.full(len(examples), np.nan)
    scores = {part: np.zeros((pair.n_layers, len(examples))) for part in parts}
    probe = Probe(frame)
    ends = (BASE, TUNED) if reverse else (TUNED, BASE)
    needed = ends if 0 < share < 1 else ends[:1] if share == 0 else ends[1:]
    there = [_step(layer, *needed) for layer in range(pair.n_layers)]
    back = [_step(layer, TUNED, BASE) for layer in reversed(range(pair.n_layers))]
    length = 1 - share if share <= 0.5 else -share
    names: dict[int, frozenset[str]] = {}  # by layer: the modules that the step changes

    def changed(layer: int, block: nn.Module, target: nn.Module) -> frozenset[str]:
        if layer not in names:
            names[layer] = differing(block, target)
        return names[layer]

    for together in _passes(pair, padded, share):
        flows = [Flow(frame, padded[i], [examples[j] for j in groups[i]]) for i in together]
        keep = share == 0 and pair.in_memory and _fit(flows, pair)
        probe.start()
        with closing(pair.layers(there)) as layers:
            for step, (base, tuned) in zip(there, layers, strict=True):
                own, other = (base, tuned) if reverse else (tuned, base)
                block = _between(own, other, share)
                probe.take(step.layer, block)
                kept = keep and probe.by_outputs(block)
                for flow in flows:
                    if kept:
                        flow.take(step.layer, block, other, changed(step.layer, block, other))
                    else:
                        flow.take(step.layer, block)
                    _count(work, flow, 1)
        turned = [flow.turn() for flow in flows]
        work.heads += len(flows)
        slopes: list[dict[tuple[Part, int], torch.Tensor]] = [{} for _ in flows]  # by part and layer, [B]
        with closing(pair.layers(back)) as layers:
            for step, (base, tuned) in zip(back, layers, strict=True):
                own, other = (base, tuned) if reverse else (tuned, base)
                block = _between(own, other, share)
                # The step that is taken leads to the model further off, which in 16 bits says more.
                target = other if share <= 0.5 else own
                by_outputs = probe.by_outputs(block) or step.layer in pair.same.layers
                for flow, slope in zip(flows, slopes, strict=True):
                    moved = changed(step.layer, block, target) if by_outputs else None
                    shares = flow.go_back(step.layer, block, target, moved)
                    slope |= {(part, step.layer): total for part in parts for total in _sum(shares, part, own)}
                    _count(work, flow, 2 if keep and by_outputs else 3)
        for i, loss, slope in zip(together, turned, slopes, strict=True):  # a batch leaves the device in one copy
            losses[groups[i]], *totals = (tensor.numpy() for tensor in to_host([loss, *slope.values()]))
            for (part, layer), total in zip(slope, totals, strict=True):
                scores[part][layer, groups[i]] = total / length
    return FirstOrder(losses, scores)


def _between(own: nn.Module, other: nn.Module, share: float) -> nn.Module:
    """The layer at a share of the way."""
    return own if share == 0 else other if share == 1 else interpolated(own, other, share)


def _part(change: Change) -> Part:
    return "attention" if change.kind == "attention" else "mlp" if change.kind == "mlp" else "layer"


def _step(layer: int, *versions: Version) -> Step:
    """The versions of a layer that a pass reads."""
    return Step(layer, tuple(Group(version, False, ((0, 0),)) for version in versions))


def _sum(shares: Shares, part: Part, block: nn.Module) -> list[torch.Tensor]:
    """The shares [B] of a part's modules together; nothing if the step changes none of them."""
    if part == "layer":
        chosen = list(shares.values())
    else:
        names = parts_of(block)[part]
        chosen = [share for name, share in shares.items() if name.partition(".")[0] in names]
    return [torch.stack(chosen).sum(0)] if chosen else []


def _passes(pair: Pair, batches: Sequence[torch.Tensor], share: float) -> list[list[int]]:
    """Which batches go together: each alone where that costs nothing, else as many as the budget (a quarter of what is free) holds."""
    if pair.in_memory and share == 0:
        return [[index] for index in range(len(batches))]
    if not batches:
        return []
    one = pair.tuned.record(batches[0][:1, :1]).states
    size = one.numel() * one.element_size()
    needs = [tokens.numel() * size * states_of_a_way_back(pair.n_layers) for tokens in batches]
    if not isinstance(pair, StreamedPair) or pair.memory is None:
        return group_passes(needs, free_bytes(str(pair.tuned.device)) // 4)
    left = room_left(str(pair.tuned.device), pair.memory)
    at_work = max(tokens.numel() for tokens in batches) * GRAPH * size + 3 * LOGIT_BYTES
    if at_work + max(needs) > left:
        raise InputError(
            f"a memory budget of {gigabytes(pair.memory)} is too small: two layers of each checkpoint, what stays in memory, and "
            "the states of one batch in a forward and backward pass need "
            f"{gigabytes(pair.memory - left + at_work + max(needs))}; set execution.memory to that or more, or lower "
            "execution.batch_tokens"
        )
    return group_passes(needs, left - at_work)


def _fitting_batch(pair: Pair, lengths: Sequence[int], batch_tokens: int) -> int:
    """The padded tokens of a batch: on a GPU no more than fit into the memory that is left, one layer's graph at a time."""
    room = pair.room()
    if room is None:
        return batch_tokens
    token, longest = TokenBytes.of_model(pair.tuned), max(lengths, default=0)
    each = (states_of_a_way_back(pair.n_layers) + GRAPH) * token.state + 4 * token.widest + longest * token.seen
    return fitting_tokens(batch_tokens, lengths, room, lambda tokens, _: tokens * each + 3 * LOGIT_BYTES)


def _fit(flows: Sequence[Flow], pair: Pair) -> bool:
    """Whether all layers' pieces of graph can be kept: a quarter of what is free, by a rough estimate."""
    size = sum(flow.size for flow in flows) * GRAPH * pair.n_layers
    return size <= free_bytes(str(pair.tuned.device)) // 4


def _count(work: Work, flow: Flow, applications: int) -> None:
    work.applications += applications
    work.token_applications += applications * flow.tokens.numel()
