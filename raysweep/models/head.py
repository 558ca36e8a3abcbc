"""The logits of states that left the last block, without the model's embedding, masks and blocks.

A causal model's forward has two parts: a stem (its decoder), which returns the last hidden states, and the model's own code
behind it, which makes logits of them (head, bias, scaling, soft-capping). Behind its last block, the stem of nearly every
architecture applies modules only: a norm, or nothing. One forward shows which. Then these modules are called directly, and the
model's own forward runs with a stand-in for the stem. No formula is repeated here.

Some stems do more behind the last block (Gemma 3n merges its streams), or somebody has hooks on one. Then there is no such
way, and the adapter replays the whole forward.

Shapes: M states, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raysweep.models.alterations import is_altered
from raysweep.models.blocks import StandIn


class _Ready(StandIn):
    """Stands where the stem stood and returns finished states."""

    def __init__(self, stem: nn.Module, output: Any) -> None:
        super().__init__(stem)
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


@dataclass(frozen=True)
class Head:
    """What computes logits behind the last block: the stem's modules there (paths in `tail`), then the model's code behind the stem.

    `parent` has the stem under `name`; the stem returns an `output`. `passed` are the modules from the stem to the blocks: they
    are not called, so their hooks do not run. States are expected on `device`.
    """

    parent: nn.Module
    name: str
    output: type
    tail: tuple[str, ...]
    passed: tuple[nn.Module, ...]
    device: torch.device

    @property
    def usable(self) -> bool:
        """Whether no module that is skipped has somebody's hooks or a replaced forward."""
        return not any(is_altered(module) for module in self.passed)

    def logits(self, states: torch.Tensor, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Logits [M, V] of states [M, D]; `run` is the model's own forward of M texts of one token, to logits [M, 1, V]."""
        stem = self.parent._modules[self.name]
        assert stem is not None
        ending = states[:, None].to(self.device)
        for path in self.tail:
            ending = stem.get_submodule(path)(ending)
        self.parent._modules[self.name] = _Ready(stem, self.output(last_hidden_state=ending))
        try:
            return run()[:, 0]
        finally:
            self.parent._modules[self.name] = stem


class _Watch:
    """Follows the states from the last block to the end of the stem while a forward lasts."""

    def __init__(self, last: nn.Module, stems: Sequence[nn.Module]) -> None:
        self.stem: nn.Module | None = None
        self.result: Any = None
        self.tail: list[nn.Module] = []
        self.device: torch.device | None = None
        self._last, self._stems = last, stems
        self._states: torch.Tensor | None = None
        self._open: nn.Module | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module is called."""
        if self.stem is None and any(module is stem for stem in self._stems):
            self.stem = module
        elif self._open is None and self._states is not None and args and args[0] is self._states:
            self._open = module

    def behind(self, module: nn.Module, args: Any, output: Any) -> None:
        """A module has returned."""
        if module is self._last:
            found = output[0] if isinstance(output, tuple | list) else output
            self._states, self.tail = found, []
            self.device = found.device
        elif module is self._open:
            self._open = None
            if isinstance(output, torch.Tensor):
                self._states = output
                self.tail.append(module)
        elif module is self.stem:
            ended = getattr(output, "last_hidden_state", None)
            if self._states is not None and _alike(self._states, ended):
                self.result = output
            self._states = None


def _alike(ours: torch.Tensor, theirs: Any) -> bool:
    return ours is theirs or (
        isinstance(theirs, torch.Tensor)
        and (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
        and torch.equal(ours, theirs)
    )


class HeadSearch:
    """Looks for a model's head while its own forward runs inside `watching`; `found` is None if there is none of its own."""

    def __init__(self, model: nn.Module, path: str, blocks: nn.ModuleList) -> None:
        self.found: Head | None = None
        self._model, self._blocks = model, blocks
        parts = path.split(".")[:-1]
        self._paths = [".".join(parts[: n + 1]) for n in range(len(parts))]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The forward inside the context is watched."""
        stems = [self._model.get_submodule(path) for path in self._paths]
        inside = {id(module) for block in self._blocks for module in block.modules()}
        last = self._blocks[-1]
        watch = _Watch(last, stems)
        hooks: list[Any] = []
        try:
            for module in self._model.modules():
                if module is last or id(module) not in inside:
                    hooks += [
                        module.register_forward_pre_hook(watch.before),
                        module.register_forward_hook(watch.behind),
                    ]
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if watch.result is None or watch.device is None:
            return
        place = next(n for n, stem in enumerate(stems) if stem is watch.stem)
        names = {id(module): path for path, module in stems[place].named_modules()}
        if any(id(module) not in names for module in watch.tail):
            return
        parent, _, name = self._paths[place].rpartition(".")
        self.found = Head(
            parent=self._model.get_submodule(parent),
            name=name,
            output=type(watch.result),
            tail=tuple(names[id(module)] for module in watch.tail),
            passed=tuple(stems[place:]),
            device=watch.device,
        )
