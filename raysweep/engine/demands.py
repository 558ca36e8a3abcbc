"""What a call of each kind demands once its checkpoints are there: the worker's batches, passes and states, on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.engine.calls import (
    BackdoorCall,
    CaptureCall,
    EstimateCall,
    ModelCall,
    PairCall,
    SubstituteCall,
    TrainCall,
)
from raysweep.engine.loads import Loads
from raysweep.engine.memory import is_training
from raysweep.engine.rates import NOMINAL, Rates
from raysweep.engine.room import Needs, batches_of, kept_beside, sweep_batches, token_bytes
from raysweep.engine.training_estimate import training_of
from raysweep.models.sizes import SIZES, hidden_size, vocabulary_size
from raysweep.studies.call_memory import TokenBytes
from raysweep.studies.gradient import GRAPH, points_of
from raysweep.studies.passes import Disk, disk_trips
from raysweep.studies.schedule import Schedule, schedule
from raysweep.studies.shelf import free_on_disk
from raysweep.studies.substitution import LOGIT_BYTES
from raysweep.studies.windows import BASE, TUNED

if TYPE_CHECKING:
    from raysweep.engine.facts import Facts
    from raysweep.models.checkpoint import Checkpoint

RECKONED = (SubstituteCall, EstimateCall, CaptureCall, TrainCall)  # kinds of calls; what others take is by_kind.py's


@dataclass(frozen=True)
class Demand:
    """Layer `applications` as the worker counts them, `seconds` beside the passes, `passes` of (bytes read meanwhile, seconds of
    computing), and bytes of the largest pass's `states` with all that is made on the way."""

    applications: int
    seconds: float
    passes: Sequence[tuple[int, float]]
    states: int


class Demands:
    """What calls demand, by the models' rates, or where there are none by made-up ones; what many calls ask for is found once."""

    def __init__(self, facts: Facts, rates: Mapping[str, Rates | None], loads: Loads) -> None:
        self._facts, self._rates, self._loads = facts, rates, loads
        self._token_bytes: dict[tuple[str, str], TokenBytes] = {}
        self._schedules: dict[Any, Schedule] = {}

    def rates(self, model: str) -> Rates:
        """The rates that a model's calls are reckoned by."""
        return self._rates.get(model) or NOMINAL

    def of(self, call: ModelCall) -> Demand:
        """What a call of a RECKONED kind demands. Raises InputError for a checkpoint that cannot be streamed."""
        if isinstance(call, SubstituteCall):
            return self._sweep(call)
        if isinstance(call, EstimateCall):
            return self._gradient(call)
        if isinstance(call, CaptureCall):
            return self._capture(call)
        if isinstance(call, TrainCall):
            return self._training(call) if is_training(call) else self._testing(call)
        raise TypeError(f"a {type(call).__name__} has no estimate")

    def _sweep(self, call: SubstituteCall) -> Demand:
        loading, base, rates = call.loading, call.base, self.rates(call.model)
        key = (call.windows, call.same)
        if key not in self._schedules:
            self._schedules[key] = schedule(base.n_layers, call.windows, call.same)
        plan = self._schedules[key]
        batches = sweep_batches(base, call.examples, loading.batch_tokens)
        beside = kept_beside(base, call, batches)
        together = [[index] for index in range(len(batches))]
        if loading.stream:
            needs = Needs.of(base, loading.dtype, batches, call.windows, call.same, beside, loading.batch_tokens)
            together = [list(each.batches) for each in needs.passes(self._room(call), self._disk(call))]
        riding = [sum(beside[i] for i in indices) for indices in together]  # about the prompts' tokens
        sizes = [self._pass_bytes(call, plan, all_of_base=bool(kept)) if loading.stream else 0 for kept in riding]
        a_token = plan.applications * rates.layer_seconds
        captured = base.n_layers * rates.layer_seconds
        passes = [
            (size, sum(batches[i].tokens for i in indices) * a_token + kept * captured)
            for size, indices, kept in zip(sizes, together, riding, strict=True)
        ]
        labels = sum(example.n_tokens for example in call.examples)
        states = self._states(call, plan, [sum(batches[i].tokens for i in indices) for indices in together])
        return Demand(plan.applications * len(batches), labels * len(plan.ends) * rates.head_seconds, passes, states)

    def _gradient(self, call: EstimateCall) -> Demand:
        """A way there and back at each point; three layer applications where the layers' graphs are kept, four elsewhere.

        That they are kept wherever that may be, and that states of all batches of a streamed call fit, is taken for granted.
        """
        loading, base, rates = call.loading, call.base, self.rates(call.model)
        batches = sweep_batches(base, call.examples, loading.batch_tokens)
        tokens, n = sum(batch.tokens for batch in batches), base.n_layers
        applications, passes = 0, []
        for in_base, share in points_of(call.windows, call.points, n):
            times = 3 if share == 0 and not loading.stream else 4
            applications += times * n * len(batches)
            ours, theirs = (sum(self._loads.reads(c).layers) if loading.stream else 0 for c in (call.base, call.tuned))
            own, other = (ours, theirs) if in_base else (theirs, ours)  # where the way starts, and where it leads
            size = ours + theirs + (own if share < 1 else 0) + (other if share > 0 else 0)
            passes.append((size, times * n * tokens * rates.layer_seconds))
        width = hidden_size(base.config) * SIZES[loading.dtype]
        largest = max((batch.tokens for batch in batches), default=0)
        states = largest * width * (GRAPH * (1 if loading.stream else n)) + (
            tokens * width * n if loading.stream else 0
        )
        labels = sum(example.n_tokens for example in call.examples)
        return Demand(applications, 2 * labels * rates.head_seconds, passes, states)

    def _capture(self, call: CaptureCall) -> Demand:
        loading, base, rates = call.loading, call.base, self.rates(call.model)
        batches = batches_of(base, [example.n_prompt for example in call.examples], loading.batch_tokens)
        tokens = [batch.tokens for batch in batches]
        size = sum(self._loads.reads(base).layers) if loading.stream else 0
        takes = base.n_layers * sum(tokens) * rates.layer_seconds
        token, largest = self._token(base, loading.dtype), max(tokens, default=0)
        longest = max((batch.length for batch in batches), default=0)
        entering = (sum(tokens) if loading.stream else largest) * (token.state + longest * token.mask)
        states = base.n_layers * len(call.examples) * token.state + entering + token.call(largest, longest)
        return Demand(base.n_layers, 0.0, [(size, takes)], states)  # each layer once a call, as its worker counts them

    def _training(self, call: TrainCall) -> Demand:
        """A training, on the devices of its processes."""
        rates, needed = self.rates(call.model), training_of(call)
        seconds = (needed.applied * rates.layer_seconds + needed.headed * rates.head_seconds) / call.processes
        return Demand(needed.applications, seconds + self._writing(call), [], needed.memory)

    def _testing(self, call: TrainCall) -> Demand:
        """The test loss of a model that is there."""
        base, rates = call.base, self.rates(call.model)
        batches = sweep_batches(base, call.test, call.loading.batch_tokens)
        tokens = [batch.tokens for batch in batches]
        labels = sum(example.n_tokens for example in call.test)
        seconds = base.n_layers * sum(tokens) * rates.layer_seconds + labels * rates.head_seconds
        states = 4 * max(tokens, default=0) * hidden_size(base.config) * SIZES[call.loading.dtype]
        return Demand(base.n_layers * len(batches), seconds + self._writing(call), [], states)

    def _writing(self, call: TrainCall) -> float:
        """Seconds of answers, as if every token went through the layers once: the least that text takes."""
        if not isinstance(call, BackdoorCall):
            return 0.0
        tokens = sum(example.n_prompt + call.tokens for example in (*call.clean, *call.triggered))
        return tokens * call.base.n_layers * self.rates(call.model).layer_seconds

    def _states(self, call: SubstituteCall, plan: Schedule, tokens: list[int]) -> int:
        """Bytes of the largest pass's states, of what one batch makes in a layer, and of its logits."""
        token = self._token(call.base, call.loading.dtype)
        counts = [len(plan.roots), *(step.applications for step in plan.steps)]
        largest = min(max(tokens, default=0), call.loading.batch_tokens)
        both = max(before + behind for before, behind in pairwise(counts))  # while a layer is applied
        beside = largest * token.state * (both - max(counts))
        labels = len(plan.ends) * sum(example.n_tokens for example in call.examples)
        logits = min(LOGIT_BYTES, 4 * vocabulary_size(call.base.config) * labels)
        held = max(tokens, default=0) * token.state * max(counts)
        longest = max((example.length - 1 for example in call.examples), default=0)
        return held + beside + token.call(max(call.loading.batch_tokens, longest), longest) + 3 * logits

    def _token(self, checkpoint: Checkpoint, dtype: str) -> TokenBytes:
        key = (checkpoint.fingerprint, dtype)
        if key not in self._token_bytes:
            self._token_bytes[key] = token_bytes(checkpoint, dtype)
        return self._token_bytes[key]

    def _room(self, call: PairCall) -> int:
        """What states may take of memory."""
        from raysweep.models.memory import free_bytes

        residency = self._facts.models[call.model].residency
        if residency.memory is None and self._facts.device == "cpu":
            return free_bytes("cpu")
        return residency.room

    def _disk(self, call: SubstituteCall) -> Disk | None:
        """What decides whether states wait on disk, as StreamedPair has it."""
        free = free_on_disk(Path(call.loading.spill)) if call.loading.spill is not None else None
        if free is None:
            return None
        weights = sum(sum(self._loads.reads(checkpoint).layers) for checkpoint in (call.base, call.tuned))
        return Disk(free, weights, disk_trips(call.base.n_layers, call.windows, call.same))

    def _pass_bytes(self, call: SubstituteCall, plan: Schedule, *, all_of_base: bool) -> int:
        """What one pass reads: a layer of either checkpoint only where a state goes through it, or a capture."""
        base, tuned = self._loads.reads(call.base), self._loads.reads(call.tuned)
        total = 0
        for step in plan.steps:
            versions = {group.version for group in step.groups}
            total += base.layers[step.layer] if all_of_base or versions != {TUNED} else 0
            total += tuned.layers[step.layer] if versions != {BASE} else 0
        return total
