"""Calling a model's decoder layers one by one, on any architecture that transformers builds from a list of blocks.

The model's own forward is the only authority on what surrounds the blocks. It is run with its blocks swapped for stubs to
record what each block would be called with (masks, rotary tables, whatever the architecture passes). The model's own norm,
head and soft-capping make the logits: called directly (head.py) if the probe finds that this gives the same bits, else in
another run whose last stub hands in finished states. The adapter alone knows whether a block returns a tensor or a tuple.
Loading is loading.py's.

Some blocks hand more than states on: keys and values that later blocks attend to (Gemma 3n and 4). Who sends several
states through one recording keeps these apart (`shared` of apply_block). Any other way in which blocks could reach each
other is found by the probe, and refused.

Shapes: B examples, T tokens, D width, M selected states, V vocabulary. Where an architecture carries several streams side
by side (Gemma 3n), they come before B: a state is [..., B, T, D].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raysweep.errors import InputError
from raysweep.models.alterations import altered_modules
from raysweep.models.blocks import StandIn, block_path, find_blocks, find_body, layers_pattern
from raysweep.models.borrowed import configs_of, plain_outputs, without_compilation
from raysweep.models.given import dtypes_in_words, plain_model
from raysweep.models.head import Head, HeadSearch
from raysweep.models.kinds import model_predicts
from raysweep.models.kv_sharing import sharing_class
from raysweep.models.machine_errors import is_machine_error
from raysweep.models.rotary import rotary_table
from raysweep.models.transfers import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_TOKENS = 8
_PROBE_CUT = 5
_PROBE_TOLERANCE = 1e-5
_LEAK_TOLERANCE = 1e-3  # what a token sees of others moves it by far more, products of another shape by far less
_LEAK_OF_HOOKS = 2**-4  # in less than float32: beyond rounding, which somebody's hook on the last token exceeds

_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)  # what a forward may end in

Shared = dict[str, tuple[torch.Tensor, ...]]  # layer type → keys and values, batch first


@dataclass(frozen=True)
class BlockCall:
    """What the model's own forward passes to one block beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """The states that enter the first block, [..., B, T, D], and the call of every block, for one batch of tokens."""

    states: torch.Tensor
    calls: tuple[BlockCall, ...]


class _Stub(StandIn):
    """Returns what `act` makes of the states and the call."""

    def __init__(
        self, block: nn.Module, items: int | None, act: Callable[[torch.Tensor, BlockCall], torch.Tensor]
    ) -> None:
        super().__init__(block)
        self.items = items  # of the tuple that the block returns; None for a bare tensor
        self.act = act

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kwargs = dict(kwargs)
        states = args[0] if args else kwargs.pop("hidden_states")
        out = self.act(states, BlockCall(args[1:], kwargs))
        return out if self.items is None else (out, *[None] * (self.items - 1))


class Adapter:
    """A loaded model whose decoder layers can be called one at a time. It is put into evaluation mode and stays in it.

    It is a causal language model (`predicts`), or a model of states only: an encoder, or a decoder without its head. On
    construction a few tokens go through the model's own forward and through its blocks one by one.

    Raises:
        InputError: The two differ, a token's state depends on padding after it, or this is not a complete transformers model (an
            unmerged PEFT adapter, FSDP shards).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        model = plain_model(model)
        self.predicts = model_predicts(model)
        self.model = model.eval()
        self._configs = configs_of(model)
        with without_compilation(model):
            self.blocks = find_blocks(model)
            self._body = find_body(model)
            self.device: torch.device = model.get_input_embeddings().weight.device
            if self.device.type == "meta":  # offloaded by accelerate, which moves inputs by itself
                self.device = torch.device("cpu")
            self._items: list[int | None] = []
            self._head: Head | None = None
            self._probe()

    def __repr__(self) -> str:
        what = "predicts tokens" if self.predicts else "states only"
        return (
            f"Adapter({type(self.model).__name__}, {self.n_layers} layers, {what}, {self.model.dtype}, {self.device})"
        )

    @property
    def block_path(self) -> str:
        """The path of the blocks in the model, as `named_parameters` writes it: `model.layers`, `transformer.h`, and so on."""
        return block_path(self.model)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.blocks)

    def table(self, length: int) -> int:
        """Return which rotary table a text of `length` tokens uses. Texts that use different ones must not share a batch."""
        return rotary_table(self.model.config.get_text_config(), length)

    @property
    def layers_pattern(self) -> str:
        """The part of a module's path by which PEFT recognises a layer: mostly `layers`."""
        return layers_pattern(self.model)

    def names_elsewhere(self, layers: Sequence[int]) -> tuple[str, ...]:
        """Return the parameters of these layers that `named_parameters` lists under an earlier layer, which shares them."""
        prefixes = tuple(f"{self.block_path}.{layer}." for layer in layers)
        own = {id(parameter) for layer in layers for parameter in self.blocks[layer].parameters()}
        named = ((name, id(parameter)) for name, parameter in self.model.named_parameters())
        return tuple(name for name, identity in named if identity in own and not name.startswith(prefixes))

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

    def _run(self, module: nn.Module, tokens: torch.Tensor, lengths: Sequence[int] | None) -> Any:
        """A forward of the model, or of its body. Without a head it may see what follows, so that padding is masked."""
        inputs: dict[str, Any] = {"input_ids": to_device(tokens, self.device)}
        if not self.predicts:
            real = torch.tensor(lengths or [tokens.shape[1]] * len(tokens))
            mask = (torch.arange(tokens.shape[1])[None] < real[:, None]).long()
            inputs["attention_mask"] = to_device(mask, self.device)
        if "use_cache" in signature(module.forward).parameters:  # encoders do not know it
            inputs["use_cache"] = False
        with plain_outputs(self._configs):
            return module(**inputs)

    def _forward(self, tokens: torch.Tensor, lengths: Sequence[int] | None = None) -> torch.Tensor:
        """Logits [B, T, V] of a model that predicts, the last hidden states [B, T, D] of another."""
        out: torch.Tensor
        if self.predicts:
            out = self._run(self.model, tokens, lengths).logits
        else:
            out = self._run(self._body, tokens, lengths).last_hidden_state
        return out

    @torch.no_grad()
    def record(self, tokens: torch.Tensor, lengths: Sequence[int] | None = None) -> Recording:
        """Run the model's own forward on tokens [B, T] without any block's compute, and keep what each is called with.

        `lengths` [B] are the rows' tokens that are no padding. Only a model without a head looks at them: its blocks
        may see what follows; those of a causal one need no mask for padding at the end.
        """
        states: list[torch.Tensor] = []
        calls: list[BlockCall] = []

        def note(entering: torch.Tensor, call: BlockCall) -> torch.Tensor:
            states.append(entering)
            calls.append(call)
            return entering

        stubs = [_Stub(block, items, note) for block, items in zip(self.blocks, self._items, strict=True)]
        with self._stubbed(stubs):
            self._run(self._body, tokens, lengths)
        return Recording(states[0], tuple(calls))

    def _finish(self, states: torch.Tensor, tokens: torch.Tensor, lengths: Sequence[int] | None = None) -> torch.Tensor:
        """What the model's own forward makes of states [..., B, T, D] that left the last block."""

        def keep(entering: torch.Tensor, call: BlockCall) -> torch.Tensor:
            return entering

        def hand_in(entering: torch.Tensor, call: BlockCall) -> torch.Tensor:
            return states.to(entering.device)

        acts = [keep] * (self.n_layers - 1) + [hand_in]
        parts = zip(self.blocks, self._items, acts, strict=True)
        with self._stubbed([_Stub(block, items, act) for block, items, act in parts]):
            return self._forward(tokens, lengths)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Compute logits [M, V] of states [..., M, D] that left the last block, with the model's own norm and head.

        Each state is a sequence of its own. Gradients flow through.

        Raises:
            InputError: The model does not predict tokens.
        """
        self.require_predictions()
        tokens = torch.zeros(states.shape[-2], 1, dtype=torch.long, device=self.device)
        if self.calls_head_directly:
            assert self._head is not None
            return self._head.logits(states, partial(self._forward, tokens))
        return self._finish(states[..., None, :], tokens)[:, 0]

    @property
    def calls_head_directly(self) -> bool:
        """Whether `logits` calls norm and head directly. If not, it runs the model's whole forward with stubs for its blocks."""
        return self._head is not None and self._head.usable

    def require_predictions(self) -> None:
        """Check that the model predicts the next token, so that a loss can be measured.

        Raises:
            InputError: It does not: it is an encoder, or lacks its head.
        """
        if not self.predicts:
            raise InputError(
                f"{type(self.model).__name__} does not predict the next token (it is an encoder, or lacks its head), and "
                "substitution measures the loss of a response's tokens; measure only its similarity"
            )

    @torch.no_grad()
    def _probe(self) -> None:
        """Learn what each block returns, and check what every measurement takes for granted.

        That replaying the blocks gives the model's own output, other states going through them at the same time; and in
        float32, or if somebody has hooked into the model, that nothing behind a token moves its state. (In less than float32,
        rounding moves states by more, and a mixture's choice of experts with them.)
        """
        found: dict[int, int | None] = {}

        def learn(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                found[index] = len(output) if isinstance(output, (tuple, list)) else None

            return hook

        vocabulary = self.model.config.get_text_config().vocab_size
        tokens = (torch.arange(2 * _PROBE_TOKENS) * 7919 % vocabulary).reshape(2, _PROBE_TOKENS)
        lengths = [_PROBE_TOKENS, _PROBE_CUT]
        what = "logits" if self.predicts else "states"
        hooks = [block.register_forward_hook(learn(index)) for index, block in enumerate(self.blocks)]
        search = HeadSearch(self.model, self.block_path, self.blocks)
        try:
            with search.watching():
                expected = self._forward(tokens, lengths)
        except _FAILURES as error:
            if is_machine_error(error):
                raise
            raise self._refusal(
                f"its own forward fails ({_in_a_line(error)}){self._mixed()}; correct the settings in its config.json"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        if not expected.isfinite().all():
            raise self._refusal(
                f"its own forward produces {what} that are not finite in {expected.dtype}; its weights are damaged, or "
                "they overflow in that dtype (then use another)"
            )
        if len(found) != self.n_layers:
            raise self._refusal(f"its forward calls {len(found)} of its {self.n_layers} blocks")
        self._items = [found[index] for index in range(self.n_layers)]
        try:
            states = self._replay_among_others(tokens, lengths)
            rows = states.flatten(-3, -2)
            ours = self.logits(rows) if self.predicts else self._finish(states, tokens, lengths)
            ours = ours.reshape(expected.shape)
        except _FAILURES as error:
            if is_machine_error(error):
                raise
            raise self._refusal(f"replaying its blocks fails ({_in_a_line(error)})") from error
        scale = max(1.0, float(expected.abs().max()))
        apart = float((ours.to(expected.device) - expected).abs().max())
        computed = self._computed_in(expected)
        loose = 1.0 if computed == torch.float32 else 2**-7 / _PROBE_TOLERANCE
        if not apart <= _PROBE_TOLERANCE * loose * scale:
            raise self._refusal(
                f"replaying its blocks produces {what} that differ by {apart:.2g} from its own forward's"
            )
        if self.predicts and search.found is not None:
            self._head = self._checked(search.found, rows, ours.flatten(0, 1))
        altered = any(altered_modules(self.model))
        if computed == torch.float32 or altered:
            alone = self._forward(tokens[1:, :_PROBE_CUT])
            apart = float((alone[0] - expected[1, :_PROBE_CUT]).abs().max())
            if not apart <= (_LEAK_TOLERANCE if computed == torch.float32 else _LEAK_OF_HOOKS) * scale:
                others = "tokens behind one" if self.predicts else "tokens that its attention mask hides"
                raise self._refusal(f"{others} move {what} by {apart:.2g}, so padding would change every result")

    def _replay_among_others(self, tokens: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """States behind the last block of a replay, the same rows in another order passing every block just after them.

        Two windows of a sweep pass a block one after the other in the same way: whatever a block keeps for a later one
        (in its module, or in what it is called with) and is not known as `shared`, falls into the wrong hands here too.
        """
        recording = self.record(tokens, lengths)
        if len(recording.calls) != self.n_layers:
            raise self._refusal(f"its forward makes {len(recording.calls)} block calls for {self.n_layers} blocks")
        states, others = recording.states, recording.states.flip(-3)
        ours: Shared = {}
        theirs: Shared = {}
        for block, call in zip(self.blocks, recording.calls, strict=True):
            before = states.clone()
            out = apply_block(block, states, call, ours)
            others = apply_block(block, others, call, theirs)
            if not torch.equal(before, states):
                raise self._refusal(f"its {type(block).__name__} overwrites its input states")
            states = out
        return states

    def _checked(self, head: Head, states: torch.Tensor, expected: torch.Tensor) -> Head | None:
        """The head if it gives the same bits as a replay of the whole forward, from states [..., M, D]."""
        tokens = torch.zeros(states.shape[-2], 1, dtype=torch.long, device=self.device)
        try:
            found = head.logits(states, partial(self._forward, tokens))
        except _FAILURES as error:
            if is_machine_error(error):
                raise
            return None
        same = found.device == expected.device and found.dtype == expected.dtype and torch.equal(found, expected)
        return head if same else None

    def _computed_in(self, out: torch.Tensor) -> torch.dtype:
        """The dtype of the arithmetic: that of the weights where it is a shorter one than the output's, which some widen."""
        weights = {parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point()}
        return next((dtype for dtype in weights if dtype.itemsize < out.dtype.itemsize), out.dtype)

    def _mixed(self) -> str:
        """The hint for a forward that fails in a model whose weights have several dtypes."""
        dtypes = dtypes_in_words(self.model)
        if dtypes is None:
            return ""
        return f"; its weights have several dtypes, {dtypes}: load it with one, from_pretrained(…, dtype=torch.float32), or call model.float()"

    def _refusal(self, reason: str) -> InputError:
        altered = next((path or "the model" for path, _ in altered_modules(self.model)), None)
        hint = (
            f" ({altered} has hooks or a forward of its own: do they treat all tokens and rows alike?)"
            if altered
            else ""
        )
        return InputError(f"{type(self.model).__name__} cannot be swept layer by layer: {reason}{hint}")


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def apply_block(block: nn.Module, states: torch.Tensor, call: BlockCall, shared: Shared | None = None) -> torch.Tensor:
    """One layer application: the block's output states [..., B, T, D] for such states and the recorded call.

    `shared` are the keys and values that earlier blocks left for later ones in this pass; what the block leaves is added
    to it. Without it they go into the recording itself, which then serves one pass only.
    """
    sharing = sharing_class()
    kwargs = call.kwargs
    if shared is not None:
        kwargs = {k: sharing(shared) if isinstance(v, sharing) else v for k, v in kwargs.items()}
    out = block(states, *call.args, **kwargs)
    if shared is not None:
        for value in kwargs.values():
            if isinstance(value, sharing):
                shared.update(value)
    if isinstance(out, (tuple, list)):
        out = out[0]
    if not isinstance(out, torch.Tensor) or out.shape != states.shape:
        raise InputError(
            f"{type(block).__name__} returned {type(out).__name__}, but states of shape {tuple(states.shape)} were expected; "
            "raysweep supports blocks that return a tensor, or a tuple that starts with one"
        )
    return out
