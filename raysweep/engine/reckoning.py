"""Calls reckoned one after the other, as one worker would run them: what they take in all, by kind, and each by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from raysweep.engine.calls import Call, GenerateCall, ModelCall, PairCall, RemovalCall, TrainCall
from raysweep.engine.demands import RECKONED, Demands
from raysweep.engine.dispatch import CallCost, Load
from raysweep.engine.loads import Loads
from raysweep.models.sizes import probe_bytes

if TYPE_CHECKING:
    from raysweep.config import Config
    from raysweep.engine.facts import Facts
    from raysweep.engine.rates import Rates


@dataclass(frozen=True)
class Estimate:
    """What calls will take: layer applications as workers count them (each on one batch; of a capture once a call), bytes of
    checkpoints read, the largest memory of a worker in bytes, and seconds. `pinned` are the bytes of pinned memory that a worker
    needs on its host while it streams to a GPU; `memory` is then that of the GPU.

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
    pinned: int = 0

    def untimed(self) -> Estimate:
        """The same without seconds."""
        return replace(self, call_seconds=None, seconds=None)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Reckoning:
    """One worker's way through calls. `kinds` has an estimate of each kind of call, seconds of all devices."""

    def __init__(self, config: Config, facts: Facts, rates: Mapping[str, Rates | None]) -> None:
        from raysweep.models.memory import private_bytes

        self.kinds: dict[str, Estimate] = {}
        self._rates = rates
        self._program = private_bytes() if facts.device == "cpu" else 0
        self._loads = Loads(config.execution.resident)
        self._demands = Demands(facts, rates, self._loads)
        self._read = self._memory = self._pinned = self._applications = 0
        self._seconds: float | None = 0.0
        self._alone: list[float] = []  # of these, those of calls that have the devices to themselves
        self._taken: dict[str, tuple[float, int]] = {}  # by call: seconds without loads, and bytes meanwhile

    def of(self, calls: Iterable[ModelCall], workers: int = 1) -> Estimate:
        """The estimate of these calls, in their order. Raises InputError for a checkpoint that cannot be streamed."""
        n = sum(self._add(call) for call in calls)
        alone, beside = sum(self._alone), max(1, min(workers, n - len(self._alone)))
        each = None if self._seconds is None else alone + (self._seconds - alone) / beside
        return Estimate(
            n,
            self._applications,
            self._read,
            self._memory,
            self._seconds,
            each,
            max(1, min(workers, n)),
            self._pinned,
        )

    def cost(self, call: Call) -> CallCost:
        """What one call takes: of one that was added, or of one whose seconds are a guess at so many tokens through all layers."""
        if not isinstance(call, ModelCall):
            return CallCost()
        tuned = call.tuned if isinstance(call, PairCall | RemovalCall) else None
        pair = [(call.base, None), *([(tuned, call.base)] if tuned is not None else [])]
        rates = self._demands.rates(call.model)
        sizes = {one.fingerprint: self._loads.size(call, one, base) for one, base in pair}
        loads = {name: Load(size, size / rates.read_bytes) for name, size in sizes.items()}
        if call.name not in self._taken:
            new = call.new_tokens if isinstance(call, GenerateCall | RemovalCall) else 0
            times = len(call.windows) if isinstance(call, PairCall) else 1
            tokens = sum(example.length + new for example in call.examples)
            return CallCost(times * tokens * call.base.n_layers * rates.layer_seconds, 0, loads)
        return CallCost(*self._taken[call.name], loads)

    def applications(self, call: Call) -> int:
        """Return the layer applications of a call, or of a piece of one."""
        return self._demands.of(call).applications if isinstance(call, RECKONED) else 0

    def _add(self, call: ModelCall) -> bool:
        """Add the call; False for one of a kind that is not reckoned."""
        if not isinstance(call, RECKONED):
            return False
        read = self._loads.of(call)
        demand, rates = self._demands.of(call), self._demands.rates(call.model)
        states = max(demand.states, probe_bytes(call.base, call.loading.dtype))
        memory = self._program + self._loads.held + states
        meanwhile, computed = 0, demand.seconds
        for size, seconds in demand.passes:
            meanwhile += size
            computed += max(seconds, size / rates.read_bytes)  # what waits for neither
        self._taken[call.name] = (computed, meanwhile)
        whole = None if self._rates[call.model] is None else computed + read / rates.read_bytes
        self._applications += demand.applications
        self._read += read + meanwhile
        self._memory, self._pinned = max(self._memory, memory), max(self._pinned, self._loads.pinned)
        self._seconds = None if whole is None or self._seconds is None else self._seconds + whole
        self._tell_kind(call, Estimate(1, demand.applications, read + meanwhile, memory, whole, None))
        if isinstance(call, TrainCall) and call.processes > 1:
            self._alone.append(whole or 0.0)
        return True

    def _tell_kind(self, call: ModelCall, own: Estimate) -> None:
        """Count what the call takes to its kind's."""
        known = self.kinds.get(call.kind, Estimate(0, 0, 0, 0, 0.0, None))
        took = None
        if known.call_seconds is not None and own.call_seconds is not None:
            devices = call.processes if isinstance(call, TrainCall) else 1
            took = known.call_seconds + devices * own.call_seconds
        self.kinds[call.kind] = Estimate(
            known.calls + 1,
            known.layer_applications + own.layer_applications,
            known.bytes_read + own.bytes_read,
            max(known.memory, own.memory),
            took,
            took,
        )
