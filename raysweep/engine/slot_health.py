"""Whether a worker or its calls are to blame for failures: when a slot is suspended, quarantined, or nothing works. Pure.

A worker with a broken device, or on a broken node, fails each call in an instant. Left alone it would take all that waits.
The rule:

- A call that failed on a slot goes to one on which it has not failed, as long as one works.
- A call's first failure, if it is `refused`, is not charged while another slot works: a broken node refuses good calls as
  well. Refused a second time, the call has failed for good. Bad input costs one more attempt.
- A slot on which LIMIT different calls fail with no success in between is suspended: it gets no more calls, and the latest
  of these calls, the witness, goes to another slot first. Nothing is suspended if no other slot could work meanwhile.
- If the witness succeeds there, the slot is to blame and is quarantined for the rest of the run. Its failures are not
  charged to their calls, which run elsewhere.
- If the witness fails there too, the call is to blame (bad data, a broken checkpoint). The suspended slot goes on, and
  neither slot is charged. A failure counts as this proof only on a slot whose latest call succeeded, or on the last slot
  that works: otherwise two broken workers would confirm each other.
- If each slot that is left has lost its worker in LIMIT different calls since anybody's latest success, and calls wait that
  have not been tried, nothing works: the run ends. A call that lost a worker counts once for each slot, and not at all if
  it did so in an earlier start of this run. So each new start gets further, and calls that kill every worker end as
  failed tasks.

Calls that load no model say nothing about a device and are not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from raysweep.engine.calls import Call, Outcome
from raysweep.errors import in_lines, shortened

LIMIT = 3


@runtime_checkable
class RetiresWorkers(Protocol):
    """An executor that can go on without one of its workers."""

    def retire(self, index: int) -> Mapping[str, str]:
        """Close the slot of this index; return where its latest worker ran: `worker`, `host` and `gpu`."""


@dataclass(frozen=True)
class Quarantine:
    """A slot that is to blame, and the failures there that were charged to their calls; `error` is the latest failure's.

    `witness` completed elsewhere. `where` has `worker`, `host` and `gpu`, empty if unknown.
    """

    slot: int
    charged: tuple[Outcome, ...]
    witness: str
    error: str
    failures: int  # in a row, charged or not
    where: Mapping[str, str] = field(default_factory=dict)

    def close(self, executor: object) -> Quarantine:
        """Close the slot, if the executor keeps count of that, and note where it was."""
        where = {"worker": f"worker {self.slot}", "host": "", "gpu": ""}
        return replace(
            self, where=where | dict(executor.retire(self.slot) if isinstance(executor, RetiresWorkers) else {})
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for the log."""
        return {
            "slot": self.slot,
            **self.where,
            "failures": self.failures,
            "witness": self.witness,
            "error": self.error,
        }


@dataclass(frozen=True)
class Verdict:
    """What an outcome means: the outcome as it is to be taken, slots to quarantine, and whether no slot works any more."""

    outcome: Outcome
    quarantined: tuple[Quarantine, ...] = ()
    nothing_works: bool = False


class SlotHealth:
    """The failures of each slot since its latest success."""

    def __init__(self, lost_before: Collection[str] = ()) -> None:
        self.failed_on: defaultdict[str, set[int]] = defaultdict(set)  # by call: the slots on which it failed
        self._lost_before = lost_before
        self._ever_lost: set[tuple[int, str]] = set()
        self.witnesses: dict[int, Call] = {}  # by suspended slot: the call that another slot is to try
        self._quarantined: set[int] = set()
        # By slot and call, since the slot's latest success.
        self._failed: defaultdict[int, dict[str, Outcome]] = defaultdict(dict)
        self._lost: defaultdict[int, set[str]] = defaultdict(set)  # calls by slot, since anybody's latest success
        self._proven: set[int] = set()  # slots whose latest call succeeded, or failed for its own reasons

    def may_work(self, slot: int) -> bool:
        """Whether the slot may get calls."""
        return slot not in self._quarantined and slot not in self.witnesses

    def leaves(self, slot: int, slots: Collection[int]) -> set[str]:
        """The calls that this slot leaves to others: they failed on it, and not on each of the others that work."""
        others = {other for other in slots if other != slot and self.may_work(other)}
        return {name for name, failed in self.failed_on.items() if slot in failed and not others <= failed}

    def may_try(self, slot: int, call: Call) -> bool:
        """Whether the slot may run another one's witness: it has not failed on it."""
        return self.may_work(slot) and call.name not in self._failed[slot]

    def release(self, slot: int) -> None:
        """End a suspension without a verdict."""
        self.witnesses.pop(slot, None)
        self._failed.pop(slot, None)

    def judge(self, slot: int, outcome: Outcome, slots: Collection[int]) -> Verdict:
        """Count what came of a call on a slot; `slots` are all that run models and are not lost for good."""
        if outcome.error is None:
            return Verdict(outcome, tuple(self._succeeded(slot, outcome)) if outcome.call.affinity else ())
        if outcome.failure == "unstarted" or not outcome.call.affinity:
            return Verdict(outcome)
        if not self.may_work(slot):
            return Verdict(replace(outcome, failure="unstarted"))
        return self._failure(slot, outcome, slots)

    def _succeeded(self, slot: int, outcome: Outcome) -> list[Quarantine]:
        self._lost.clear()
        self.failed_on.pop(outcome.call.name, None)
        self._proven.add(slot)
        self.release(slot)
        name = outcome.call.name
        blamed = [suspect for suspect, call in self.witnesses.items() if call.name == name]
        return [self._quarantine(suspect) for suspect in blamed]

    def _quarantine(self, slot: int) -> Quarantine:
        witness, failed = self.witnesses.pop(slot).name, self._failed.pop(slot)
        self._quarantined.add(slot)
        charged = tuple(outcome for outcome in failed.values() if outcome.failure != "unstarted")
        return Quarantine(slot, charged, witness, failed[witness].error or "", len(failed))

    def _failure(self, slot: int, outcome: Outcome, slots: Collection[int]) -> Verdict:
        name = outcome.call.name
        is_first = not self.failed_on[name]
        self.failed_on[name].add(slot)
        others = [other for other in slots if other != slot and self.may_work(other)]
        if outcome.failure == "lost" and (slot, name) not in self._ever_lost and name not in self._lost_before:
            self._ever_lost.add((slot, name))
            self._lost[slot].add(name)
        nothing_works = all(len(self._lost[each]) >= LIMIT for each in {slot, *slots} - self._quarantined)
        elsewhere = [other for other, failed in self._failed.items() if other != slot and name in failed]
        if elsewhere and (slot in self._proven or not others):
            for other in elsewhere:
                self._failed[other].pop(name)
                if other in self.witnesses and self.witnesses[other].name == name:
                    self.release(other)
            return Verdict(outcome, nothing_works=nothing_works)
        self._proven.discard(slot)
        is_new, failed = name not in self._failed[slot], self._failed[slot]
        uncharged = replace(outcome, failure="unstarted")
        if len({*failed, name}) >= LIMIT and others:
            self.witnesses[slot] = outcome.call
            failed[name] = uncharged
            return Verdict(uncharged, nothing_works=nothing_works)
        is_witness = any(call.name == name for call in self.witnesses.values())
        is_unconfirmed = outcome.failure == "refused" and is_first and bool(others)
        failed[name] = uncharged if is_unconfirmed or (is_witness and is_new) else outcome
        return Verdict(failed[name], nothing_works=nothing_works)


def nothing_works(last: Outcome) -> str:
    """Return the message for a run that ends because no worker can run anything."""
    return (
        f"each worker that is left was lost in {LIMIT} different calls, and no call has succeeded in between; the last was "
        f"'{last.call.name}': {shortened(in_lines(Exception(last.error)), 400)}. Committed work is kept. Check the GPUs (nvidia-smi -q, "
        "dmesg) and nodes, and run again, which continues from it"
    )
