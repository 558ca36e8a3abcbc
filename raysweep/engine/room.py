"""What the states of batches need in memory: the arithmetic that plans and refusals share. Bytes; nothing is loaded.

studies/streamed.py reckons the same from loaded modules when a call begins; a test compares both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.data.batches import make_batches
from raysweep.data.examples import Example
from raysweep.engine.calls import EstimateCall, ModelCall, SubstituteCall
from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint, standard_config
from raysweep.models.rotary import rotary_table
from raysweep.models.same import NOTHING, Same
from raysweep.models.sizes import SIZES, eager_heads, experts_per_token, hidden_size, widest
from raysweep.studies.call_memory import TokenBytes
from raysweep.studies.gradient import GRAPH
from raysweep.studies.interventions import Change
from raysweep.studies.passes import Disk, Need, Pass, choose_passes, most_states, states_of_a_way_back
from raysweep.studies.substitution import LOGIT_BYTES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from raysweep.engine.facts import Facts


@dataclass(frozen=True)
class Batch:
    """Padded tokens `rows` × `length` of the examples at `indices`."""

    indices: tuple[int, ...]
    length: int

    @property
    def tokens(self) -> int:
        """Tokens with those that fill rows up."""
        return len(self.indices) * self.length


@lru_cache(maxsize=8)
def _text_config(folder: Path, fingerprint: str) -> PreTrainedConfig:
    """The checkpoint's text config, read once for all calls of a checkpoint with this fingerprint."""
    return standard_config(folder).get_text_config()


def _table(config: PreTrainedConfig, length: int) -> int:
    try:
        return rotary_table(config, length)
    except InputError:  # the call itself will say so, and fail alone
        return 0


def batches_of(base: Checkpoint, lengths: Sequence[int], batch_tokens: int) -> list[Batch]:
    """The batches that a worker makes of texts of these lengths."""
    config = _text_config(base.folder, base.fingerprint)
    tables = {length: _table(config, length) for length in set(lengths)}
    groups = make_batches(lengths, batch_tokens, [tables[length] for length in lengths])
    return [Batch(tuple(group), max(lengths[i] for i in group)) for group in groups]


def sweep_batches(base: Checkpoint, examples: Sequence[Example], batch_tokens: int) -> list[Batch]:
    """The batches of a sweep: a text's last token predicts nothing and is left out."""
    return batches_of(base, [example.length - 1 for example in examples], batch_tokens)


@dataclass(frozen=True)
class Needs:
    """What each batch needs for as long as a pass takes, and the bytes that the batch at work needs beside."""

    batches: tuple[Need, ...]
    at_work: int

    @classmethod
    def of(
        cls,
        base: Checkpoint,
        dtype: str,
        batches: Sequence[Batch],
        windows: Sequence[Change],
        same: Same = NOTHING,
        beside: Sequence[int] = (),
        batch_tokens: int = 0,
    ) -> Needs:
        """Those of a streamed sweep; `beside` are the tokens' states that captures on its way keep, by batch, and
        `batch_tokens` bounds a block call (0: to a batch)."""
        token = token_bytes(base, dtype)
        states = most_states(base.n_layers, windows, same)
        needs = tuple(
            Need(batch.tokens * (states * token.state + batch.length * token.mask), kept * token.state)
            for batch, kept in zip(batches, beside or [0] * len(batches), strict=True)
        )
        at_work = (token.at_work(batch.tokens, batch.length, states, batch_tokens) for batch in batches)
        return cls(needs, max(at_work, default=0) + 3 * LOGIT_BYTES)

    def passes(self, room: int, disk: Disk | None = None) -> list[Pass]:
        """Which batches go through the layers together in so many bytes, and which of them wait on disk."""
        return choose_passes(self.batches, room - self.at_work, disk)


def token_bytes(checkpoint: Checkpoint, dtype: str) -> TokenBytes:
    """What a layer of the checkpoint makes of one token in the dtype."""
    text = _text_config(checkpoint.folder, checkpoint.fingerprint)
    return TokenBytes.of(
        width=hidden_size(checkpoint.config),
        widest=widest(checkpoint, experts_per_token(text)),
        heads=eager_heads(text),
        size=SIZES[dtype],
    )


def kept_beside(base: Checkpoint, call: SubstituteCall, batches: Sequence[Batch]) -> list[int]:
    """States [D] that the captures on a sweep's way keep, by batch."""
    riding = {i for part in call.captures for i in range(part.first, part.stop)}
    prompts = [[call.examples[i].n_prompt for i in batch.indices if i in riding] for batch in batches]
    return [len(sizes) * (max(sizes) + base.n_layers) if sizes else 0 for sizes in prompts]


def refuse_too_small(facts: Facts, calls: Iterable[ModelCall]) -> None:
    """Raise InputError where a memory budget does not hold the largest batch's states beside weights and program.

    `calls` are those to be run; what is not streamed has no budget.
    """
    lacking: dict[str, tuple[int, int, str]] = {}
    for call in calls:
        if not (isinstance(call, SubstituteCall | EstimateCall) and call.loading.stream and call.loading.memory):
            continue
        batches = sweep_batches(call.base, call.examples, call.loading.batch_tokens)
        if isinstance(call, EstimateCall):
            most, what = _there_and_back(call, batches), "in a forward and backward pass"
        else:
            beside = kept_beside(call.base, call, batches)
            how = call.loading
            needs = Needs.of(call.base, how.dtype, batches, call.windows, call.same, beside, how.batch_tokens)
            most = max(need.states + need.fixed for need in needs.batches) + needs.at_work
            what = f"under {len(call.windows)} windows"
        least = facts.models[call.model].residency.least
        if least + most > max(call.loading.memory, lacking.get(call.model, (0, 0, ""))[0]):
            lacking[call.model] = (least + most, most, what)
    for name, (whole, most, what) in lacking.items():
        raise InputError(
            f"model '{name}': a memory budget of {_gb(facts.models[name].residency.memory or 0)} (execution.memory) holds two "
            f"layers of each checkpoint, but not also the states of one batch {what} ({_gb(most)}); the minimum is "
            f"{_gb(whole + 10**7)}. Set execution.memory to that or more, or lower execution.batch_tokens"
        )


def _there_and_back(call: EstimateCall, batches: Sequence[Batch]) -> int:
    """Bytes of the largest batch's states at all layers, and of one layer's graph."""
    per_token = hidden_size(call.base.config) * SIZES[call.loading.dtype]
    largest = max(batch.tokens for batch in batches)
    return largest * per_token * (states_of_a_way_back(call.base.n_layers) + GRAPH) + 3 * LOGIT_BYTES


def _gb(size: float) -> str:
    return f"{-(-size // 10**7) / 100:.2f} GB"
