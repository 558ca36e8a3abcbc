"""Calling a model's decoder layers one by one, on any architecture that transformers builds from a list of blocks.

The model's own forward is the only authority on what surrounds the blocks. It is run with its blocks swapped for stubs:
once to record what each block would be called with (masks, rotary tables, whatever the architecture passes), and once
with the last stub handing in finished states, so that the model's own norm, head and soft-capping make the logits. The
adapter alone knows whether a block returns a tensor or a tuple. Loading and checking are checkpoint.py's.

Shapes: B examples, T tokens, D width, M selected states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raysweep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_TOKENS = 8
_PROBE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class BlockCall:
    """What the model's own forward passes to one block beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """The states that enter the first block, [B, T, D], and the call of every block, for one batch of tokens."""

    states: torch.Tensor
    calls: tuple[BlockCall, ...]


class _Stub(nn.Module):
    """Stands where a block stood; looks like it (attributes are the block's) and returns what `act` makes."""

    def __init__(
        self, block: nn.Module, as_tuple: bool, act: Callable[[torch.Tensor, BlockCall], torch.Tensor]
    ) -> None:
        super().__init__()
        object.__setattr__(self, "block", block)  # not registered: the stub owns no parameters
        self.as_tuple = as_tuple
        self.act = act

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kwargs = dict(kwargs)
        states = args[0] if args else kwargs.pop("hidden_states")
        out = self.act(states, BlockCall(args[1:], kwargs))
        return (out,) if self.as_tuple else out


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's stack of decoder layers: the shallowest list of `num_hidden_layers` blocks below its decoder.

    Raises InputError where there is none, naming the model's class.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    decoder = model.get_decoder()
    config = model.config.get_text_config()
    names = set(model._no_split_modules or ())
    lists = [
        (path.count("."), module)
        for path, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == config.num_hidden_layers
        and all(isinstance(m, GradientCheckpointingLayer) or type(m).__name__ in names for m in module)
    ]
    if not lists:
        raise InputError(
            f"{type(model).__name__} has no list of {config.num_hidden_layers} decoder blocks that raysweep can find; "
            "use a decoder-only model of transformers' own classes"
        )
    return min(lists, key=lambda item: item[0])[1]


class Adapter:
    """A loaded causal language model whose blocks can be called one at a time; it is put into evaluation mode.

    On construction a few tokens go through the model's own forward and through the replay of its blocks; where the two
    differ, the architecture is refused (InputError) instead of being measured wrongly.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.blocks = find_blocks(model)
        self.device: torch.device = model.get_input_embeddings().weight.device
        if self.device.type == "meta":  # offloaded by accelerate, which moves inputs by itself
            self.device = torch.device("cpu")
        self._tuples: list[bool] = []
        self._probe()

    @property
    def block_path(self) -> str:
        """Where the blocks are in the model, as `named_parameters` writes it: `model.layers`, `transformer.h`, …"""
        return str(next(path for path, module in self.model.named_modules() if module is self.blocks))

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.blocks)

    @contextmanager
    def _stubbed(self, stubs: Sequence[nn.Module]) -> Iterator[None]:
        real = list(self.blocks)
        try:
            for index, stub in enumerate(stubs):
                self.blocks[index] = stub
            yield
        finally:
            for index, block in enumerate(real):
                self.blocks[index] = block

    def _forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=tokens.to(self.device), use_cache=False).logits
        return logits

    @torch.no_grad()
    def record(self, tokens: torch.Tensor) -> Recording:
        """Run the model's own forward on tokens [B, T] without any block's compute, and keep what each is called with."""
        states: list[torch.Tensor] = []
        calls: list[BlockCall] = []

        def note(entering: torch.Tensor, call: BlockCall) -> torch.Tensor:
            states.append(entering)
            calls.append(call)
            return entering

        stubs = [_Stub(block, as_tuple, note) for block, as_tuple in zip(self.blocks, self._tuples, strict=True)]
        with self._stubbed(stubs):
            self.model.get_decoder()(input_ids=tokens.to(self.device), use_cache=False)
        return Recording(states[0], tuple(calls))

    @torch.no_grad()
    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [M, V] of M states [M, D] that left the last block, by the model's own norm and head.

        Each state goes in as a sequence of its own; norm and head see no neighbours.
        """

        def keep(entering: torch.Tensor, call: BlockCall) -> torch.Tensor:
            return entering

        def hand_in(entering: torch.Tensor, call: BlockCall) -> torch.Tensor:
            return states[:, None].to(entering.device)

        acts = [keep] * (self.n_layers - 1) + [hand_in]
        parts = zip(self.blocks, self._tuples, acts, strict=True)
        with self._stubbed([_Stub(block, as_tuple, act) for block, as_tuple, act in parts]):
            return self._forward(torch.zeros(len(states), 1, dtype=torch.long))[:, 0]

    @torch.no_grad()
    def _probe(self) -> None:
        """Learn what each block returns, and check that replaying the blocks gives the model's own logits."""
        kinds: dict[int, bool] = {}
        hooks = [
            block.register_forward_hook(
                lambda module, args, output, index=index: kinds.__setitem__(index, isinstance(output, tuple))
            )
            for index, block in enumerate(self.blocks)
        ]
        vocabulary = self.model.config.get_text_config().vocab_size
        tokens = (torch.arange(2 * _PROBE_TOKENS) * 7919 % vocabulary).reshape(2, _PROBE_TOKENS)
        try:
            expected = self._forward(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        if not expected.isfinite().all():
            raise self._refusal(
                f"its own forward gives logits that are not finite in {expected.dtype}; its weights are damaged, or "
                "overflow in that dtype (then choose another)"
            )
        if len(kinds) != self.n_layers:
            raise self._refusal(f"its forward calls {len(kinds)} of its {self.n_layers} blocks")
        self._tuples = [kinds[index] for index in range(self.n_layers)]
        recording = self.record(tokens)
        if len(recording.calls) != self.n_layers:
            raise self._refusal(f"its forward makes {len(recording.calls)} block calls for {self.n_layers} blocks")
        states = recording.states
        for block, call in zip(self.blocks, recording.calls, strict=True):
            states = apply_block(block, states, call)
        found = self.logits(states.flatten(0, 1)).reshape(expected.shape)
        scale = float(expected.abs().max())
        apart = float((found.to(expected.device) - expected).abs().max())
        loose = 1.0 if expected.dtype == torch.float32 else 2**-7 / _PROBE_TOLERANCE
        if not apart <= _PROBE_TOLERANCE * loose * max(1.0, scale):
            raise self._refusal(f"replaying its blocks gives logits that are {apart:.2g} apart from its own forward's")

    def _refusal(self, reason: str) -> InputError:
        return InputError(f"{type(self.model).__name__} cannot be swept layer by layer: {reason}")


def apply_block(block: nn.Module, states: torch.Tensor, call: BlockCall) -> torch.Tensor:
    """One layer application: the block's output states [B, T, D] for states [B, T, D] and the recorded call."""
    out = block(states, *call.args, **call.kwargs)
    if isinstance(out, tuple):
        out = out[0]
    if not isinstance(out, torch.Tensor) or out.shape != states.shape:
        raise InputError(
            f"{type(block).__name__} returned {type(out).__name__} where states of shape {tuple(states.shape)} were expected; "
            "raysweep knows blocks that return a tensor or a tuple beginning with one"
        )
    return out
