"""Substitution: the test loss of the tuned model after a window of its layers is put back to the base model's.

All windows, and whatever else is changed (interventions.py), go through the layers together, in one pass (schedule.py has
the order): at each layer every state takes the version of the layer that its change asks for, and changes that have not
differed so far are one state. States are stacked on the batch axis up to a token budget. Nothing here knows of tasks or
files.

Shapes: B examples of a batch, T tokens, D width, M labelled tokens, W windows; the streams of an architecture that has
several come before B.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from raysweep.data.batches import make_batches, pad
from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter, BlockCall, apply_block
from raysweep.models.alterations import altered_layers, altered_rest
from raysweep.models.same import Same, same_in_models
from raysweep.models.settings import check_settings
from raysweep.models.transfers import to_device, to_host
from raysweep.studies.call_memory import TokenBytes, fitting_tokens, room_on
from raysweep.studies.capture import Collector, Flight
from raysweep.studies.interventions import Change, labels
from raysweep.studies.labels import Labels, PlacedLabels
from raysweep.studies.passes import Pass, most_states
from raysweep.studies.schedule import Schedule, Step, schedule
from raysweep.studies.shelf import Branch, Branches, Shelf, open_shelf
from raysweep.studies.versions import version_of

if TYPE_CHECKING:
    import pandas as pd

LOGIT_BYTES = 64 * 2**20


@dataclass
class Work:
    """What a sweep did: layer applications (one decoder layer on the tokens of one batch), and token applications.

    What is captured on the way is not among them.
    """

    applications: int = 0
    token_applications: int = 0
    heads: int = 0
    bytes_on_disk: int = 0  # of states, written while they waited


@dataclass(frozen=True)
class Pair:
    """A base and a tuned model, both loaded.

    Raises InputError where depth, a block's shapes or a rotary setting differ, and where one predicts nothing.
    """

    base: Adapter
    tuned: Adapter

    def __post_init__(self) -> None:
        for adapter in (self.base, self.tuned):
            adapter.require_predictions()
        if self.base.n_layers != self.tuned.n_layers:
            raise InputError(
                f"base has {self.base.n_layers} decoder layers and tuned {self.tuned.n_layers}; a pair has the same"
            )
        theirs = {name: list(weight.shape) for name, weight in self.tuned.blocks.named_parameters()}
        for name, weight in self.base.blocks.named_parameters():
            if theirs.get(name) != list(weight.shape):
                raise InputError(
                    f"base and tuned differ in tensor {self.base.block_path}.{name}: {list(weight.shape)} and "
                    f"{theirs.get(name, 'none')}; a pair must be one model before and after fine-tuning"
                )
        check_settings(self.base.model.config, self.tuned.model.config, "base and tuned")

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.tuned.n_layers

    @property
    def in_memory(self) -> bool:
        """Whether both models are loaded whole."""
        return True

    @cached_property
    def same(self) -> Same:
        """What both models have in common, weight for weight; what has hooks in either is not in common."""
        same, models = same_in_models(self.base, self.tuned), (self.base, self.tuned)
        altered = frozenset[int]().union(*map(altered_layers, models))
        return Same(same.layers - altered, same.rest and not any(map(altered_rest, models)))

    @property
    def spill(self) -> Path | None:
        """The folder for states that wait on disk; None where all stay in memory."""
        return None

    def layers(self, steps: Sequence[Step], *, all_of_base: bool = False) -> Generator[tuple[nn.Module, nn.Module]]:
        """The base's and the tuned model's layer for each step; each may be used until the next is asked for.

        `all_of_base`: somebody else uses the base's, also where no state goes through it.
        """
        for step in steps:
            yield self.base.blocks[step.layer], self.tuned.blocks[step.layer]

    def room(self) -> int | None:
        """What states and calls may take on the GPUs that hold the models, bytes; None on a CPU."""
        return room_on(self.base, self.tuned)

    def passes(
        self, batches: Sequence[torch.Tensor], windows: Sequence[Change], beside: Sequence[int], batch_tokens: int = 0
    ) -> list[Pass]:
        """Which batches of tokens [B, T] go through the layers together: each alone, for its states are then few.

        `beside` are the tokens' states that are kept for each batch beside the sweep's own, and
        `batch_tokens` bounds a block call (0: to a batch).
        """
        return [Pass((index,)) for index in range(len(batches))]

    def frame(self, in_base: bool) -> Adapter:
        """The model whose embedding, norm and head surround the layers."""
        return self.base if in_base else self.tuned


@dataclass
class _Batch:
    """One batch on its way through the layers; `calls` holds the block calls for k stacked copies of it."""

    pair: Pair
    tokens: torch.Tensor
    stack: int
    work: Work
    calls: dict[tuple[int, bool], tuple[BlockCall, ...]] = field(default_factory=dict)

    def recorded(self, copies: int, in_base: bool) -> tuple[BlockCall, ...]:
        """Each block's call for so many stacked copies."""
        if (copies, in_base) not in self.calls:
            self.calls[copies, in_base] = self.pair.frame(in_base).record(self.tokens.repeat(copies, 1)).calls
        return self.calls[copies, in_base]

    def embedded(self, in_base: bool) -> torch.Tensor:
        """The states [..., B, T, D] that enter the first block."""
        recording = self.pair.frame(in_base).record(self.tokens)
        self.calls[1, in_base] = recording.calls
        return recording.states

    def apply(self, block: nn.Module, layer: int, branches: list[Branch], in_base: bool) -> list[Branch]:
        """The branches behind the block, at most `stack` of them in one call."""
        out: list[Branch] = []
        for first in range(0, len(branches), self.stack):
            slab = branches[first : first + self.stack]
            # Spread over devices, a layer of the base may stand elsewhere than the tuned one, and so may its states.
            device = slab[0].states.device
            together = _stacked([branch.states.to(device) for branch in slab], -3)
            shared = {
                name: tuple(
                    _stacked([branch.shared[name][item].to(device) for branch in slab], 0)
                    for item in range(len(tensors))
                )
                for name, tensors in slab[0].shared.items()
            }
            applied = apply_block(block, together, self.recorded(len(slab), in_base)[layer], shared)
            size = len(self.tokens)
            for at, states in enumerate(torch.split(applied, size, dim=-3)):
                rows = slice(at * size, (at + 1) * size)
                out.append(Branch(states, {n: tuple(t[rows] for t in tensors) for n, tensors in shared.items()}))
        self.work.applications += len(branches)
        self.work.token_applications += len(branches) * self.tokens.numel()
        return out


def _stacked(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _take(batch: _Batch, step: Step, states: Branches, base: nn.Module, tuned: nn.Module) -> dict[int, Branch]:
    """The states behind one layer from those before it, both by their numbers in the schedule."""
    behind: dict[int, Branch] = {}
    for group in step.groups:
        with version_of(tuned, base, group.version) as block:
            applied = batch.apply(block, step.layer, [states[before] for before, _ in group.moves], group.in_base)
        behind |= {number: branch for (_, number), branch in zip(group.moves, applied, strict=True)}
    return behind


@torch.no_grad()
def _run_layers(
    pair: Pair, batches: Sequence[_Batch], plan: Schedule, shelf: Shelf, flight: Flight | None
) -> Generator[tuple[int, dict[int, Branch]]]:
    """For each batch of one pass, by its place: its states behind the last layer, by their numbers in the schedule.

    Layers are outermost, so that each is needed once; the base's are handed to `flight` as well.
    """
    with closing(pair.layers(plan.steps, all_of_base=flight is not None)) as layers:
        for step, (base, tuned) in zip(plan.steps, layers, strict=True):
            if flight is not None:
                flight.take(step.layer, base)
            for place, batch in enumerate(batches):
                if step is plan.steps[0]:
                    before: Branches = {n: Branch(batch.embedded(in_base)) for n, in_base in plan.roots.items()}
                else:
                    before = shelf.take(place)
                behind = _take(batch, step, before, base, tuned)
                del before
                if place in shelf.on_disk:
                    batch.calls.clear()  # they hold masks, and are recorded again
                if step is plan.steps[-1]:
                    yield place, behind
                else:
                    shelf.put(place, behind)


@torch.no_grad()
def _losses(adapter: Adapter, chosen: list[torch.Tensor], labels: PlacedLabels, budget: int) -> torch.Tensor:
    """Mean negative log likelihood in nats over each example's response tokens, float64 [E, B], of E ended states.

    `chosen` are the states [..., M, D] at the labels. They pass norm and head together, with at most `budget` bytes of float32
    logits at a time. The result stays on the states' device, so that the host can go on.
    """
    vocabulary = adapter.model.config.get_text_config().vocab_size
    step = max(1, budget // (4 * vocabulary))
    ended, device = len(chosen), chosen[0].device
    together = _stacked(chosen, -2)
    chosen.clear()
    nll = torch.cat(
        [
            nn.functional.cross_entropy(logits.float(), target.to(logits.device), reduction="none").double().to(device)
            for part, target in zip(
                torch.split(together, step, dim=-2), torch.split(labels.targets.repeat(ended), step), strict=True
            )
            for logits in [adapter.logits(part)]
        ]
    )
    return labels.means(nll.view(ended, len(labels.targets)))


def _ended_losses(
    pair: Pair, states: dict[int, Branch], ends: Sequence[tuple[int, bool]], response: Labels, budget: int
) -> list[torch.Tensor]:
    """The losses [B] of a batch's ended states, in the order of `ends`: their numbers, and whether the base's head is theirs.

    Each branch is taken out of `states` and only its labels are kept, so that its memory is given back before the head needs some.
    """
    found: dict[int, torch.Tensor] = {}
    for in_base in (False, True):
        numbers = [number for number, of_base in ends if of_base == in_base]
        if not numbers:
            continue
        device = states[numbers[0]].states.device
        chosen = [_labelled(states.pop(number).states, response).to(device) for number in numbers]
        losses = _losses(pair.frame(in_base), chosen, response.on(device), budget)
        found |= dict(zip(numbers, losses, strict=True))
    return [found[number] for number, _ in ends]


def _labelled(states: torch.Tensor, response: Labels) -> torch.Tensor:
    """A copy of the states [..., M, D] at the labels."""
    placed = response.on(states.device)
    return states[..., placed.rows, placed.cols, :]


def fitting_batch(pair: Pair, lengths: Sequence[int], windows: Sequence[Change], batch_tokens: int) -> int:
    """The padded tokens of a batch of a sweep: on a GPU no more than fit into the memory that is left, else `batch_tokens`."""
    room = pair.room()
    if room is None:
        return batch_tokens
    token, states = TokenBytes.of_model(pair.tuned), most_states(pair.n_layers, windows, pair.same)
    longest = max(lengths, default=0)

    def need(tokens: int, of_call: int) -> int:
        waiting = tokens * (states * token.state + longest * token.mask)
        return waiting + token.at_work(tokens, longest, states, of_call) + 3 * LOGIT_BYTES

    return fitting_tokens(batch_tokens, lengths, room, need)


def _spare_for_logits(pair: Pair, windows: Sequence[Change], batch_tokens: int) -> Callable[[int, int], int]:
    """Bytes of float32 logits beyond LOGIT_BYTES that a batch's head may compute at a time, by its padded tokens and their length.

    On a GPU they take what the last block call has left free: logits need three times their bytes, with their copies and
    those of the loss. On a CPU larger parts are no faster.
    """
    if pair.room() is None:
        return lambda tokens, length: 0
    token, states = TokenBytes.of_model(pair.tuned), most_states(pair.n_layers, windows, pair.same)
    return lambda tokens, length: token.block_call(tokens, length, states, batch_tokens) // 3


def sweep_losses(
    pair: Pair,
    examples: Sequence[Example],
    windows: Sequence[Change],
    *,
    batch_tokens: int = 8192,
    work: Work | None = None,
    collector: Collector | None = None,
) -> np.ndarray:
    """Loss of every example under every window (or other change), float64 [W, N], in nats; all in the order given.

    Windows are distinct; those that differ in identical layers only (`Pair.same`) are computed once.

    `batch_tokens` bounds the padded tokens of one block call (a single longer example goes alone); it does not change the
    result beyond rounding. A `collector` on the base, of some of the examples, gathers its states in the same pass.
    """
    work = work if work is not None else Work()
    if len(set(windows)) < len(windows):
        raise ValueError("windows must be distinct")
    plan = schedule(pair.n_layers, windows, pair.same)
    losses = np.full((len(windows), len(examples)), np.nan)
    lengths = [e.length - 1 for e in examples]
    batch_tokens = fitting_batch(pair, lengths, windows, batch_tokens)
    spare = _spare_for_logits(pair, windows, batch_tokens)
    groups = make_batches(lengths, batch_tokens, [pair.tuned.table(length) for length in lengths])
    padded = [torch.from_numpy(pad([examples[i].tokens[:-1] for i in g])) for g in groups]  # the last predicts nothing
    beside = [collector.tokens_kept({examples[i].id for i in g}) if collector else 0 for g in groups]
    for each in pair.passes(padded, windows, beside, batch_tokens):
        batches = [
            _Batch(pair, to_device(padded[i], pair.tuned.device), max(1, batch_tokens // padded[i].numel()), work)
            for i in each.batches
        ]
        ids = {examples[i].id for index in each.batches for i in groups[index]}
        flight = collector.flight(ids, batch_tokens) if collector and ids & collector.ids else None
        on_disk = [place for place, index in enumerate(each.batches) if index in each.on_disk]
        with (
            open_shelf(pair.spill, on_disk, each.bytes_on_disk) as shelf,
            closing(_run_layers(pair, batches, plan, shelf, flight)) as ended,
        ):
            for place, states in ended:
                group = groups[each.batches[place]]
                response = Labels([examples[i] for i in group])
                numbers = list(states)
                length = padded[each.batches[place]].shape[1]
                budget = LOGIT_BYTES + spare(len(group) * length, length)
                found = _ended_losses(pair, states, [(n, plan.ends[n][0]) for n in numbers], response, budget)
                work.heads += len(numbers)
                for number, loss in zip(numbers, to_host(found), strict=True):
                    losses[np.ix_(plan.ends[number][1], group)] = loss.numpy()
        work.bytes_on_disk += shelf.bytes_written
    return losses


def loss_table(
    losses: np.ndarray, windows: Sequence[Change], examples: Sequence[Example], estimator: str = "exact"
) -> pd.DataFrame:
    """Losses [W, N] as rows of the substitution table, windows outermost (without model and dataset)."""
    import pandas as pd

    tables = []
    for row, window in enumerate(windows):
        told = {name: np.nan if value is None else value for name, value in labels(window, estimator).items()}
        told["example_id"] = np.array([e.id for e in examples], dtype=np.int64)
        told["n_tokens"] = np.array([e.n_tokens for e in examples], dtype=np.int64)
        tables.append(pd.DataFrame({**told, "loss": losses[row]}).astype({"centre": float}))
    rows = pd.concat(tables, ignore_index=True)
    return rows.astype(dict.fromkeys(("start", "stop"), "Int64" if rows["start"].hasnans else np.int64))
