"""One batch through the layers and back, a layer at a time: what each layer's step adds to the batch's losses.

Every layer is its own piece of graph, whose inputs are leaves; gradients are handed from one to the one before it, those by
keys and values that a layer left for a later one too. A piece is kept from the way there, or made anew on the way back.

Shapes: B examples, T tokens, D width; states are [..., B, T, D].
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import nn

from raysweep.data.examples import Example
from raysweep.models.adapter import Adapter, BlockCall, Shared, apply_block
from raysweep.models.directional import Shares, by_weights, goes_by_outputs, noted, row_of
from raysweep.models.transfers import to_device
from raysweep.studies.labels import Labels
from raysweep.studies.substitution import LOGIT_BYTES

_PROBE_TOKENS = 8

Key = tuple[str, int]  # layer type, and which of its keys and values


@dataclass(frozen=True)
class Piece:
    """One layer's graph: states first, then keys and values that went in (`taken`) and that the layer left (`left`)."""

    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    taken: list[Key]
    left: list[Key]
    shared: Shared


def piece(block: nn.Module, states: torch.Tensor, call: BlockCall, shared: Shared, *, track: bool = True) -> Piece:
    """Send states through a block; with `track`, so that gradients can be taken back through it."""
    with torch.set_grad_enabled(track):
        states = states.detach().requires_grad_(track)
        before = {name: tuple(t.detach().requires_grad_(track) for t in tensors) for name, tensors in shared.items()}
        after = dict(before)
        out = apply_block(block, states, call, after)
    taken = [(name, i) for name, tensors in before.items() for i in range(len(tensors))]
    left = [(n, i) for n, tensors in after.items() if tensors is not before.get(n) for i in range(len(tensors))]
    inputs = [states, *(before[name][i] for name, i in taken)]
    return Piece(inputs, [out, *(after[name][i] for name, i in left)], taken, left, after)


def _ends(
    block: nn.Module, states: torch.Tensor, shared: Shared, call: BlockCall
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What goes into a piece, and what comes out."""
    sent = piece(block, states, call, shared)
    return sent.inputs, sent.outputs


def _example(states: torch.Tensor, shared: Shared, index: int) -> tuple[torch.Tensor, Shared]:
    """One example's states, keys and values."""
    theirs = {name: tuple(row_of(t, index, of_states=False) for t in tensors) for name, tensors in shared.items()}
    return row_of(states, index, of_states=True), theirs


def _detached(shared: Shared) -> Shared:
    return {name: tuple(tensor.detach() for tensor in tensors) for name, tensors in shared.items()}


@dataclass
class Flow:
    """A batch on its way: the states that entered each layer, and on the way back the gradients by them."""

    frame: Adapter
    tokens: torch.Tensor
    examples: Sequence[Example]
    _entering: list[torch.Tensor] = field(default_factory=list)
    _shared: list[Shared] = field(default_factory=lambda: [{}])
    _kept: dict[int, tuple[Piece, Shares]] = field(default_factory=dict)
    _gradient: torch.Tensor = field(init=False)
    _by_shared: dict[Key, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = to_device(self.tokens, self.frame.device)
        recording = self.frame.record(self.tokens)
        self._calls = recording.calls
        self._entering.append(recording.states)

    @property
    def size(self) -> int:
        """Bytes of the batch's states at one layer."""
        return self._entering[0].numel() * self._entering[0].element_size()

    @cached_property
    def _alone(self) -> list[tuple[BlockCall, ...]]:
        """The calls of each example by itself."""
        return [self.frame.record(row[None]).calls for row in self.tokens]

    def take(self, layer: int, block: nn.Module, other: nn.Module | None = None, names: Collection[str] = ()) -> None:
        """Through a layer. With `other`, where its step leads, the layer's piece is kept for the way back.

        `names` are the modules that the step changes (`differing`).
        """
        shares: Shares = {}
        states, call, shared = self._entering[layer], self._calls[layer], self._shared[layer]
        if other is None:
            sent = piece(block, states, call, shared, track=False)
        else:
            with noted(block, other, len(self.tokens), shares, names):
                sent = piece(block, states, call, shared)
            self._kept[layer] = (sent, shares)
        self._entering.append(sent.outputs[0].detach())
        self._shared.append(_detached(sent.shared))

    def turn(self) -> torch.Tensor:
        """The losses [B], float64, nats, of what left the last layer; their gradient is where the way back begins."""
        states = self._entering.pop()
        self._shared.pop()
        losses, self._gradient = losses_and_gradient(self.frame, states, self.examples)
        return losses

    def go_back(self, layer: int, block: nn.Module, other: nn.Module, names: Collection[str] | None) -> Shares:
        """Back through a layer; what the step block → `other` adds to each example's loss, by module, [B].

        From the outputs of the modules called `names`, which the step changes; where it is None, from the gradients by weights.
        """
        states, shared = self._entering.pop(), self._shared.pop()
        if layer in self._kept:
            sent, shares = self._kept.pop(layer)
            self._take_back(
                sent, torch.autograd.grad(sent.outputs, sent.inputs, self._gradients(sent), allow_unused=True)
            )
            return shares
        if names is not None:
            shares = {}
            with noted(block, other, len(self.tokens), shares, names):
                sent = piece(block, states, self._calls[layer], shared)
            self._take_back(
                sent, torch.autograd.grad(sent.outputs, sent.inputs, self._gradients(sent), allow_unused=True)
            )
            return shares
        return self._go_back_one_by_one(layer, block, other, states, shared)

    def _go_back_one_by_one(
        self, layer: int, block: nn.Module, other: nn.Module, states: torch.Tensor, shared: Shared
    ) -> Shares:
        whole = piece(block, states, self._calls[layer], shared, track=False)
        gradients = self._gradients(whole)
        rows, shares = [], []
        for index, calls in enumerate(self._alone):
            own = [row_of(g, index, of_states=not place) for place, g in enumerate(gradients)]
            run = partial(_ends, block, *_example(states, shared, index), calls[layer])
            row, share = by_weights(block, other, run, own)
            rows.append(row)
            shares.append(share)
        columns = zip(*rows, strict=True)
        axis = states.ndim - 3
        self._take_back(
            whole,
            [
                None if column[0] is None else torch.cat(column, axis if not place else 0)
                for place, column in enumerate(columns)
            ],
        )
        return {name: torch.cat([share[name] for share in shares]) for name in shares[0]}

    def _gradients(self, sent: Piece) -> list[torch.Tensor]:
        """By the piece's outputs; nothing for keys and values that no later layer used."""
        by_left = [
            self._by_shared.pop(key, torch.zeros_like(tensor))
            for key, tensor in zip(sent.left, sent.outputs[1:], strict=True)
        ]
        return [self._gradient, *by_left]

    def _take_back(self, sent: Piece, found: Sequence[torch.Tensor | None]) -> None:
        self._gradient = found[0] if found[0] is not None else torch.zeros_like(sent.inputs[0])
        for key, gradient in zip(sent.taken, found[1:], strict=True):
            if gradient is not None:
                self._by_shared[key] = self._by_shared[key] + gradient if key in self._by_shared else gradient


def losses_and_gradient(
    frame: Adapter, states: torch.Tensor, examples: Sequence[Example]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean negative log likelihood in nats of each example's response, float64 [B], and its gradient by the states [..., B, T, D].

    Norm and head see the labelled positions only, some of them at a time.
    """
    labels = Labels(examples).on(states.device)
    rows, cols = labels.rows, labels.cols
    chosen = states[..., rows, cols, :].detach()
    step = max(1, LOGIT_BYTES // (4 * frame.model.config.get_text_config().vocab_size))
    nll: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    for part, target, n in zip(
        torch.split(chosen, step, dim=-2),
        torch.split(labels.targets, step),
        torch.split(labels.counts[rows], step),
        strict=True,
    ):
        with torch.enable_grad():
            leaf = part.requires_grad_(True)
            logits = frame.logits(leaf).float()
            each = nn.functional.cross_entropy(logits, target.to(logits.device), reduction="none").double()
        gradients += torch.autograd.grad(each, leaf, 1.0 / n.to(each.device))
        nll.append(each.detach().to(rows.device))
    gradient = torch.zeros_like(states)
    gradient[..., rows, cols, :] = torch.cat(gradients, dim=-2).to(states.dtype)
    return labels.means(torch.cat(nll)), gradient


class Probe:
    """Learns for each kind of layer whether its modules' shares can be told from their outputs, with two short texts on their way."""

    def __init__(self, frame: Adapter) -> None:
        self._known: dict[tuple[tuple[str, str], ...], bool] = {}
        vocabulary = frame.model.config.get_text_config().vocab_size
        tokens = (torch.arange(2 * _PROBE_TOKENS) * 7919 % vocabulary).reshape(2, _PROBE_TOKENS)
        self._recorded = [frame.record(t) for t in (tokens, tokens[:1], tokens[1:])]
        self.start()

    def start(self) -> None:
        """Before the first layer."""
        self._states = self._recorded[0].states
        self._shared: Shared = {}

    def take(self, layer: int, block: nn.Module) -> None:
        """Through a layer, tried if its kind is new."""
        whole, *alone = (recording.calls[layer] for recording in self._recorded)
        states, shared = self._states, self._shared
        kind = _kind(block)
        if kind not in self._known:
            run = partial(_ends, block, states, shared, whole)
            each = [partial(_ends, block, *_example(states, shared, i), call) for i, call in enumerate(alone)]
            self._known[kind] = goes_by_outputs(block, run, each)
        sent = piece(block, states, whole, shared, track=False)
        self._states, self._shared = sent.outputs[0], _detached(sent.shared)

    def by_outputs(self, block: nn.Module) -> bool:
        """What was learnt of the layer's kind."""
        return self._known[_kind(block)]


def _kind(block: nn.Module) -> tuple[tuple[str, str], ...]:
    return tuple((name, type(module).__name__) for name, module in block.named_modules())
