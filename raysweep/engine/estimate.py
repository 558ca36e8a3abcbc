"""What the calls of a run will take under each residency, reckoned call by call as a worker would run them.

Counts are exact: batches, passes and what is read follow the same arithmetic as the worker. Seconds come from rates.py,
memory from sizes. Text that is generated, losses taken again and tables are not in it; of answers to a backdoor's prompts, which
their training's call writes too, the least that they take.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from raysweep.engine.call_queue import Costs
from raysweep.engine.calls import (
    BackdoorCall,
    Call,
    CaptureCall,
    EstimateCall,
    GenerateCall,
    ModelCall,
    PairCall,
    RemovalCall,
    SubstituteCall,
    TrainCall,
)
from raysweep.engine.dispatch import CallCost, Load
from raysweep.engine.loading import batch_budget
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import hidden_size
from raysweep.engine.rates import NOMINAL, Rates, measured_rates, torch_threads
from raysweep.engine.residency import RESIDENT, Residency, choose_residency, layer_sizes
from raysweep.engine.room import SIZES, Needs, batches_of, kept_beside, sweep_batches, widest
from raysweep.engine.training_estimate import training_of
from raysweep.errors import InputError
from raysweep.models.checkpoint import text_config
from raysweep.models.skeleton import Reads, read_sizes
from raysweep.studies.gradient import GRAPH, points_of
from raysweep.studies.passes import Disk, disk_trips
from raysweep.studies.schedule import Schedule, schedule
from raysweep.studies.shelf import free_on_disk
from raysweep.studies.substitution import LOGIT_BYTES
from raysweep.studies.windows import BASE, TUNED

if TYPE_CHECKING:
    from raysweep.config import Config
    from raysweep.engine.graph import Graph
    from raysweep.engine.inspection import Facts
    from raysweep.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Estimate:
    """What calls will take: layer applications as workers count them (each on one batch; of a capture once a call), bytes of
    checkpoints read, the largest memory of a worker in bytes, and seconds.

    `call_seconds` are of all calls one after the other, `seconds` of the run with so many `workers`, of which trainings of
    several processes are taken to come one at a time; both are None where no rate could be measured here.
    """

    calls: int
    layer_applications: int
    bytes_read: int
    memory: int
    call_seconds: float | None
    seconds: float | None
    workers: int = 1

    def untimed(self) -> Estimate:
        """The same without seconds."""
        return replace(self, call_seconds=None, seconds=None)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Options:
    """What a model takes `resident` and `stream`: an estimate each, or why it cannot be so; which is taken, and why."""

    taken: str
    why: str
    resident: Estimate | str
    stream: Estimate | str

    def to_json(self) -> dict[str, Any]:
        """Plain values; what cannot be is `{"reason": …}`."""
        told = {
            mode: {"reason": found} if isinstance(found, str) else found.to_json()
            for mode, found in (("resident", self.resident), ("stream", self.stream))
        }
        return {"taken": self.taken, "why": self.why, **told}


def estimate(config: Config, facts: Facts, graph: Graph, done: Collection[str], workers: int = 1) -> Estimate:
    """What is left to do takes so much, each model where its residency has it, with so many workers."""
    return reckon(config, facts, list(model_calls(config, facts, graph, done)), workers).estimate


@dataclass(frozen=True)
class Reckoned:
    """What calls take in all, what each of them does, and by which rates; a model's are None where it could not be timed."""

    estimate: Estimate
    cost: Costs
    rates: Mapping[str, Rates | None]
    kinds: Mapping[str, Estimate] = field(default_factory=dict)  # by the calls' kind, seconds of all devices


def reckon(
    config: Config,
    facts: Facts,
    calls: Sequence[ModelCall],
    workers: int = 1,
    rates: Mapping[str, Rates | None] | None = None,
) -> Reckoned:
    """Reckon these calls, by each model's `rates` where given, else by those measured here."""
    found: dict[str, Rates | None] = rates_here(config, facts, calls) if rates is None else {**rates}
    reckoning = _Reckoning(config, facts, found)
    return Reckoned(reckoning.of(calls, workers), reckoning.cost, found, reckoning.kinds)


def options(
    config: Config, facts: Facts, graph: Graph, done: Collection[str], calls: Sequence[ModelCall]
) -> dict[str, Options]:
    """For each model both residencies, by the model's name; `calls` are those that the graph needs."""
    rates = rates_here(config, facts, calls)
    found = {}
    for name, model in facts.models.items():
        taken = model.residency
        by_mode: dict[str, Estimate | str] = {}
        for mode in ("resident", "stream"):
            at = taken if taken.mode == mode else RESIDENT if mode == "resident" else _streamed(config, facts, name)
            if isinstance(at, str):
                by_mode[mode] = at
                continue
            other = replace(facts, models={**facts.models, name: replace(model, residency=at)})
            all_calls = calls if at is taken else model_calls(config, other, graph, done, only=name)
            own = [call for call in all_calls if call.model == name]
            try:
                by_mode[mode] = _Reckoning(config, other, rates).of(own)
            except InputError as error:  # a layer that its conversion rules do not make alone, say
                by_mode[mode] = str(error)
        found[name] = Options(taken.mode, taken.why, by_mode["resident"], by_mode["stream"])
    return found


def _streamed(config: Config, facts: Facts, name: str) -> Residency | str:
    """How the model would be streamed, or why it cannot be."""
    asked = config.model_copy(update={"execution": config.execution.model_copy(update={"residency": "stream"})})
    model = facts.models[name]
    try:
        return choose_residency(asked, name, model.base, list(model.tuned.values()), model.dtype, facts.device)
    except InputError as error:
        return str(error)


def rates_here(config: Config, facts: Facts, calls: Iterable[ModelCall]) -> dict[str, Rates | None]:
    """Each model's rates on this machine; None where the device, or the checkpoint, is another machine's."""
    lengths: dict[str, list[int]] = {}
    for call in calls:
        if facts.models[call.model].base.on_paper:  # nothing of it can be timed
            lengths[call.model] = [1]
            continue
        sizes = [e.n_prompt if isinstance(call, CaptureCall) else e.length - 1 for e in call.examples]
        lengths.setdefault(call.model, []).extend(sizes)
    tokens = batch_budget(config.execution.batch_tokens, facts.device)
    threads = config.execution.cpus_per_worker if config.execution.executor == "ray" else None
    with torch_threads(threads if facts.device == "cpu" else None):
        return {
            name: measured_rates(
                facts.models[name], facts.device, tokens, max(1, int(median(of_model))), config.execution.memory_bytes
            )
            for name, of_model in lengths.items()
        }


class _Reckoning:
    """One worker's way through calls: what it has loaded, what it has read."""

    def __init__(self, config: Config, facts: Facts, rates: dict[str, Rates | None]) -> None:
        from raysweep.models.memory import private_bytes

        self.config, self.facts, self.rates = config, facts, rates
        self.program = private_bytes() if facts.device == "cpu" else 0
        self.loaded: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        self.read = self.memory = self.applications = 0
        self.seconds: float | None = 0.0
        self.alone: list[float] = []  # of these, those of calls that have the devices to themselves
        self.kinds: dict[str, Estimate] = {}
        self.taken: dict[str, tuple[float, int]] = {}  # by call: seconds without loads, and bytes meanwhile
        self._reads: dict[str, Reads] = {}
        self._widest: dict[str, int] = {}
        self._schedules: dict[Any, Schedule] = {}

    def of(self, calls: Iterable[ModelCall], workers: int = 1) -> Estimate:
        """The estimate of these calls, in their order."""
        n = sum(self._add(call) for call in calls)
        alone, beside = sum(self.alone), max(1, min(workers, n - len(self.alone)))
        each = None if self.seconds is None else alone + (self.seconds - alone) / beside
        return Estimate(n, self.applications, self.read, self.memory, self.seconds, each, max(1, min(workers, n)))

    def _add(self, call: ModelCall) -> bool:
        """Add the call; False for one of a kind that is not reckoned."""
        before = (self.applications, self.read, self.seconds)
        self._call_memory = 0
        if not self._reckon(call):
            return False
        self._tell_kind(call, *before)
        if isinstance(call, TrainCall) and call.processes > 1:
            self.alone.append((self.seconds or 0.0) - (before[2] or 0.0))
        return True

    def _tell_kind(self, call: ModelCall, applications: int, read: int, seconds: float | None) -> None:
        """Count what the call has added to its kind's."""
        known = self.kinds.get(call.kind, Estimate(0, 0, 0, 0, 0.0, None))
        took = None
        if known.call_seconds is not None and seconds is not None and self.seconds is not None:
            devices = call.processes if isinstance(call, TrainCall) else 1
            took = known.call_seconds + devices * (self.seconds - seconds)
        self.kinds[call.kind] = Estimate(
            known.calls + 1,
            known.layer_applications + self.applications - applications,
            known.bytes_read + self.read - read,
            max(known.memory, self._call_memory),
            took,
            took,
        )

    def _reckon(self, call: ModelCall) -> bool:
        """Reckon the call; False for one of a kind that is not."""
        if isinstance(call, SubstituteCall):
            self._sweep(call)
        elif isinstance(call, EstimateCall):
            self._gradient(call)
        elif isinstance(call, CaptureCall):
            self._capture(call)
        elif isinstance(call, TrainCall):
            untrained = isinstance(call, BackdoorCall) and not call.trains
            if call.made is not None or untrained:
                self._testing(call)
            else:
                self._training(call)
        else:
            return False
        return True

    def cost(self, call: Call) -> CallCost:
        """What one call takes: of one that was added, or of one whose seconds are a guess at so many tokens through all layers."""
        if not isinstance(call, ModelCall):
            return CallCost()
        tuned = call.tuned if isinstance(call, PairCall | RemovalCall) else None
        pair = [(call.base, None), *([(tuned, call.base)] if tuned is not None else [])]
        rates = self.rates.get(call.model) or NOMINAL
        sizes = {one.fingerprint: self._load_bytes(call, one, base) for one, base in pair}
        loads = {name: Load(size, size / rates.read_bytes) for name, size in sizes.items()}
        if call.name not in self.taken:
            new = call.new_tokens if isinstance(call, GenerateCall | RemovalCall) else 0
            times = len(call.windows) if isinstance(call, PairCall) else 1
            tokens = sum(example.length + new for example in call.examples)
            return CallCost(times * tokens * call.base.n_layers * rates.layer_seconds, 0, loads)
        return CallCost(*self.taken[call.name], loads)

    def _load_bytes(self, call: ModelCall, checkpoint: Checkpoint, base: Checkpoint | None = None) -> int:
        """Bytes that are read to have the checkpoint; streamed, what is outside its layers."""
        if call.loading.stream:
            return self._sizes(checkpoint).rest
        return checkpoint.bytes + (base.bytes if base and checkpoint.adapter else 0)

    def _load(self, call: ModelCall, checkpoint: Checkpoint, base: Checkpoint | None = None) -> int:
        """Bytes read to have the checkpoint; the least recently used one makes room, as a worker's does."""
        loading = call.loading
        state = "stream" if loading.stream else base.fingerprint if base and checkpoint.adapter else ""
        key = (checkpoint.fingerprint, state, loading.dtype)
        read = 0
        if key not in self.loaded:
            while len(self.loaded) >= self.config.execution.resident:
                self.loaded.popitem(last=False)
            if loading.stream:
                layer, rest = layer_sizes(checkpoint, loading.dtype)
                self.loaded[key] = 2 * layer + rest
            else:
                whole = [checkpoint] if base is None or not checkpoint.adapter else [checkpoint, base]
                self.loaded[key] = sum(one.n_parameters for one in whole) * SIZES[loading.dtype]
            read = self._load_bytes(call, checkpoint, base)
        self.loaded.move_to_end(key)
        return read

    def _load_pair(self, call: PairCall) -> int:
        """Bytes read to have both; what is there of them does not make room for the other."""
        for key in [key for key in self.loaded if key[0] in call.affinity]:
            self.loaded.move_to_end(key)
        return self._load(call, call.base) + self._load(call, call.tuned, call.base)

    def _widest_of(self, checkpoint: Checkpoint) -> int:
        if checkpoint.fingerprint not in self._widest:
            self._widest[checkpoint.fingerprint] = widest(checkpoint)
        return self._widest[checkpoint.fingerprint]

    def _sizes(self, checkpoint: Checkpoint) -> Reads:
        if checkpoint.fingerprint not in self._reads:
            self._reads[checkpoint.fingerprint] = read_sizes(checkpoint)
        return self._reads[checkpoint.fingerprint]

    def _take(
        self, call: ModelCall, read: int, compute: float, passes: Iterable[tuple[int, float]], states: int
    ) -> None:
        """Add a call: bytes `read` before it begins, then passes of (bytes, seconds); what waits for neither."""
        known = self.rates[call.model]
        rates = known or NOMINAL
        self._call_memory = self.program + sum(self.loaded.values()) + states
        self.memory = max(self.memory, self._call_memory)
        meanwhile, seconds = 0, compute
        for size, takes in passes:
            meanwhile += size
            seconds += max(takes, size / rates.read_bytes)
        self.taken[call.name] = (seconds, meanwhile)
        self.read += read + meanwhile
        whole = seconds + read / rates.read_bytes
        self.seconds = None if known is None or self.seconds is None else self.seconds + whole

    def _sweep(self, call: SubstituteCall) -> None:
        loading, base, rates = call.loading, call.base, self.rates[call.model] or NOMINAL
        key = (call.windows, call.same)
        if key not in self._schedules:
            self._schedules[key] = schedule(base.n_layers, call.windows, call.same)
        plan = self._schedules[key]
        batches = sweep_batches(base, call.examples, loading.batch_tokens)
        read = self._load_pair(call)
        beside = kept_beside(base, call, batches)
        together = [[index] for index in range(len(batches))]
        if loading.stream:
            needs = Needs.of(base, loading.dtype, batches, call.windows, call.same, beside)
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
        self.applications += plan.applications * len(batches)
        states = self._states(call, plan, [sum(batches[i].tokens for i in indices) for indices in together])
        self._take(call, read, labels * len(plan.ends) * rates.head_seconds, passes, states)

    def _gradient(self, call: EstimateCall) -> None:
        """A way there and back at each point; three layer applications where the layers' graphs are kept, four elsewhere.

        That they are kept wherever that may be, and that states of all batches of a streamed call fit, is taken for granted.
        """
        loading, base, rates = call.loading, call.base, self.rates[call.model] or NOMINAL
        batches = sweep_batches(base, call.examples, loading.batch_tokens)
        read = self._load_pair(call)
        tokens, n = sum(batch.tokens for batch in batches), base.n_layers
        passes = []
        for in_base, share in points_of(call.windows, call.points, n):
            times = 3 if share == 0 and not loading.stream else 4
            self.applications += times * n * len(batches)
            ours, theirs = (sum(self._sizes(c).layers) for c in (call.base, call.tuned)) if loading.stream else (0, 0)
            own, other = (ours, theirs) if in_base else (theirs, ours)  # where the way starts, and where it leads
            size = ours + theirs + (own if share < 1 else 0) + (other if share > 0 else 0)
            passes.append((size, times * n * tokens * rates.layer_seconds))
        width = hidden_size(base.config) * SIZES[loading.dtype]
        largest = max((batch.tokens for batch in batches), default=0)
        states = largest * width * (GRAPH * (1 if loading.stream else n)) + (
            tokens * width * n if loading.stream else 0
        )
        labels = sum(example.n_tokens for example in call.examples)
        self._take(call, read, 2 * labels * rates.head_seconds, passes, states)

    def _training(self, call: TrainCall) -> None:
        """A training, on the devices of its processes; a process has nothing loaded beside it."""
        rates = self.rates[call.model] or NOMINAL
        needed = training_of(call)
        self.loaded.clear()
        self.applications += needed.applications
        seconds = (needed.applied * rates.layer_seconds + needed.headed * rates.head_seconds) / call.processes
        self._take(call, call.base.bytes, seconds + self._writing(call), [], needed.memory)

    def _testing(self, call: TrainCall) -> None:
        """The test loss of a model that is there."""
        base, rates = call.base, self.rates[call.model] or NOMINAL
        batches = sweep_batches(base, call.test, call.loading.batch_tokens)
        resident = replace(call, loading=replace(call.loading, stream=False))
        read = self._load(resident, base) if call.made is None else self._load(resident, call.made, base)
        tokens = [batch.tokens for batch in batches]
        self.applications += base.n_layers * len(batches)
        labels = sum(example.n_tokens for example in call.test)
        seconds = base.n_layers * sum(tokens) * rates.layer_seconds + labels * rates.head_seconds
        states = 4 * max(tokens, default=0) * hidden_size(base.config) * SIZES[call.loading.dtype]
        self._take(call, read, seconds + self._writing(call), [], states)

    def _writing(self, call: TrainCall) -> float:
        """Seconds of answers, as if every token went through the layers once: the least that text takes."""
        if not isinstance(call, BackdoorCall):
            return 0.0
        rates = self.rates[call.model] or NOMINAL
        tokens = sum(example.n_prompt + call.tokens for example in (*call.clean, *call.triggered))
        return tokens * call.base.n_layers * rates.layer_seconds

    def _states(self, call: SubstituteCall, plan: Schedule, tokens: list[int]) -> int:
        """Bytes of the largest pass's states, of what one batch makes in a layer, and of its logits."""
        size = SIZES[call.loading.dtype]
        per_token = hidden_size(call.base.config) * size
        counts = [len(plan.roots), *(step.applications for step in plan.steps)]
        largest = min(max(tokens, default=0), call.loading.batch_tokens)
        both = max(before + behind for before, behind in pairwise(counts))  # while a layer is applied
        beside = largest * per_token * (both - max(counts))
        vocabulary = int(text_config(call.base.config).get("vocab_size") or 0)
        logits = min(LOGIT_BYTES, 4 * vocabulary * max((e.n_tokens for e in call.examples), default=0))
        held = max(tokens, default=0) * per_token * max(counts)
        return (
            held
            + beside
            + call.loading.batch_tokens * (2 * per_token + 4 * self._widest_of(call.base) * size)
            + 3 * logits
        )

    def _disk(self, call: SubstituteCall) -> Disk | None:
        """What decides whether states wait on disk, as StreamedPair has it."""
        free = free_on_disk(Path(call.loading.spill)) if call.loading.spill is not None else None
        if free is None:
            return None
        weights = sum(sum(self._sizes(checkpoint).layers) for checkpoint in (call.base, call.tuned))
        return Disk(free, weights, disk_trips(call.base.n_layers, call.windows, call.same))

    def _pass_bytes(self, call: SubstituteCall, plan: Schedule, *, all_of_base: bool) -> int:
        """What one pass reads: a layer of either checkpoint only where a state goes through it, or a capture."""
        base, tuned = self._sizes(call.base), self._sizes(call.tuned)
        total = 0
        for step in plan.steps:
            versions = {group.version for group in step.groups}
            total += base.layers[step.layer] if all_of_base or versions != {TUNED} else 0
            total += tuned.layers[step.layer] if versions != {BASE} else 0
        return total

    def _room(self, call: PairCall) -> int:
        """What states may take of memory."""
        from raysweep.models.memory import free_bytes

        residency = self.facts.models[call.model].residency
        if residency.memory is None and self.facts.device == "cpu":
            return free_bytes("cpu")
        if residency.memory is not None and self.facts.device != "cpu":
            return residency.memory  # as StreamedPair reckons there
        return residency.room

    def _capture(self, call: CaptureCall) -> None:
        loading, base, rates = call.loading, call.base, self.rates[call.model] or NOMINAL
        batches = batches_of(base, [example.n_prompt for example in call.examples], loading.batch_tokens)
        read = self._load(call, base)
        tokens = [batch.tokens for batch in batches]
        size = sum(self._sizes(base).layers) if loading.stream else 0
        takes = base.n_layers * sum(tokens) * rates.layer_seconds
        width = hidden_size(base.config) * SIZES[loading.dtype]
        self.applications += base.n_layers  # as its worker counts them: each layer once a call
        entering = sum(tokens) if loading.stream else max(tokens, default=0)
        states = base.n_layers * len(call.examples) * width + 3 * entering * width
        self._take(call, read, 0.0, [(size, takes)], states)
