"""A model of the run lock and of one chunk's commit in an object store, and its exploration.

A few processes each try to run: look at the lock, take it, open the log, commit a chunk unless it is there, log it, release the
lock. Each step is one request to the store. Between any two steps a process may be paused for any time, so that the others take
it for dead; a crash is a pause that never ends. Where the system keeps the lock, only a crash frees it. Every interleaving is
explored, and every reachable state is checked.

`Rules` turns single parts of the protocol off; each of them is needed, which the exploration shows by finding a violation.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple


@dataclass(frozen=True)
class Rules:
    """The parts of the protocol. `system_lock`: the operating system keeps the lock, as in a folder, and only a crash frees it."""

    looks_again: bool = True
    own_tables: bool = True
    exclusive_manifests: bool = True
    closes_logs: bool = True
    checks: bool = True
    reads_log: bool = True
    system_lock: bool = False


class Process(NamedTuple):
    """`at` is the next step; `seen` the lock's number that was found, `own` its own; `lost`: its heartbeat found a higher one."""

    at: str = "look"
    seen: int = 0
    own: int = 0
    lost: bool = False
    beating: bool = False  # its heartbeat has looked, and has not written yet
    untold: bool = False  # it found a commit that was not logged


class State(NamedTuple):
    """What the store holds: lock objects (number, owner, released), the writers whose tables are there, whose manifest, and the log.

    `lines` has how often each process has logged the commit; `opened`, for each that has opened the log, its number in the lock and
    what it found of the others' lines then. `manifests` counts manifests ever created.
    """

    processes: tuple[Process, ...]
    lock: frozenset[tuple[int, int, bool]] = frozenset()
    tables: frozenset[int] = frozenset()
    manifest: int | None = None
    manifests: int = 0
    lines: tuple[int, ...] = ()
    opened: frozenset[tuple[int, int, tuple[int, ...]]] = frozenset()  # (number, process, found)


Step = tuple[int, str]  # the process, and what it does
ENDS = ("refused", "lost", "done", "crashed")


def start(processes: int) -> State:
    return State((Process(),) * processes, lines=(0,) * processes)


def logged(state: State, rules: Rules) -> int:
    """How often readers of the log see the commit: of each writer, what those with higher numbers in the lock found."""
    if not rules.closes_logs:
        return sum(state.lines)
    counts = list(state.lines)
    for number, process, _ in state.opened:
        found = [found[process] for other, _, found in state.opened if other > number]
        counts[process] = min([counts[process], *found])
    return sum(counts)


def steps(state: State, rules: Rules) -> Iterator[tuple[Step, State]]:
    """What may happen next, and the state after it."""
    for i, process in enumerate(state.processes):
        if process.at in ENDS:
            continue
        if rules.system_lock:
            yield (i, "crash"), _with(state, i, process._replace(at="crashed", beating=False))
        yield from (((i, name), after) for name, after in _own_steps(state, i, process, rules))
        if not rules.system_lock and process.own and process.at not in ("verify", "clean"):
            yield from (((i, name), after) for name, after in _beats(state, i, process))


def _own_steps(state: State, i: int, process: Process, rules: Rules) -> Iterator[tuple[str, State]]:
    top = max(state.lock, default=None)

    def to(at: str, *, store: State = state, **changes: object) -> State:
        return _with(store, i, process._replace(at=at, **changes))  # type: ignore[arg-type]

    match process.at:
        case "look" if rules.system_lock:
            if top is None or top[2] or state.processes[top[1]].at == "crashed":
                number = top[0] + 1 if top else 1
                yield "look", to("open", store=state._replace(lock=frozenset([(number, i, False)])), own=number)
            else:
                yield "look", to("refused")
        case "look":
            if top is None or top[2]:
                yield "look", to("create", seen=top[0] if top else 0)
            else:
                yield "look", to("refused")
                yield "look, taking the holder for dead", to("create", seen=top[0])
        case "create":
            number = process.seen + 1
            if any(other[0] == number for other in state.lock):
                yield "create", to("refused")
            else:
                taken = state._replace(lock=state.lock | {(number, i, False)})
                yield "create", to("verify" if rules.looks_again else "clean", store=taken, seen=0, own=number)
        case "verify":
            if top is not None and top[0] == process.own:
                yield "verify", to("clean")
            else:
                left = state._replace(lock=frozenset(x for x in state.lock if x[0] != process.own))
                yield "verify", to("refused", store=left, own=0)
        case "clean":
            yield (
                "clean",
                to("open", store=state._replace(lock=frozenset(x for x in state.lock if x[0] >= process.own))),
            )
        case "open":
            opened = state._replace(opened=state.opened | {(process.own, i, state.lines)})
            yield "open", to("read", store=opened)
        case "read":
            untold = rules.reads_log and state.manifest is not None and not logged(state, rules)
            yield "read", to("tell" if untold else "check" if state.manifest is None else "release")
        case "tell" | "log":
            if process.lost and rules.checks:
                yield process.at, to("lost")
            else:
                lines = tuple(n + (other == i) for other, n in enumerate(state.lines))
                yield process.at, to("release", store=state._replace(lines=lines))
        case "check" | "recheck":
            if rules.checks and (top is None or top[0] != process.own):
                yield process.at, to("lost")
            else:
                yield process.at, to("table" if process.at == "check" else "log")
        case "table":
            yield "table", to("manifest", store=state._replace(tables=_tables(state, i, rules)))
        case "manifest":
            if process.lost and rules.checks:
                yield "manifest", to("lost")
            elif rules.exclusive_manifests and state.manifest is not None:
                yield "manifest", to("recheck", store=state._replace(tables=state.tables - {i}))
            else:
                made = state._replace(manifest=i, manifests=state.manifests + 1)
                yield "manifest", to("log", store=made)
        case "release":
            if process.lost:
                yield "release", to("done")
            else:
                yield "release", to("done", store=_said(state, i, process.own, released=True))


def _beats(state: State, i: int, process: Process) -> Iterator[tuple[str, State]]:
    """The heartbeat, a thread of its own: it looks, and then says that the process is alive."""
    top = max(state.lock, default=None)
    if process.beating:
        after = _said(state, i, process.own, released=False)
        yield "beat", _with(after, i, process._replace(beating=False))
    elif not process.lost and (top is None or top[0] != process.own):
        yield "listen", _with(state, i, process._replace(lost=True))
    elif not process.lost:
        yield "listen", _with(state, i, process._replace(beating=True))


def _tables(state: State, i: int, rules: Rules) -> frozenset[int]:
    """Whose tables are there: a name of its own for each writer, or one name that the last writer's content has."""
    return state.tables | {i} if rules.own_tables else frozenset([i])


def _said(state: State, i: int, number: int, *, released: bool) -> State:
    """The lock's object of this number as its owner writes it, whether it was there or not."""
    others = frozenset(x for x in state.lock if x[0] != number)
    return state._replace(lock=others | {(number, i, released)})


def _with(state: State, i: int, process: Process) -> State:
    if process.at in ENDS:
        process = Process(process.at)  # what it knew is of no account any more
    return state._replace(processes=(*state.processes[:i], process, *state.processes[i + 1 :]))


def violations(before: State, step: Step, after: State, rules: Rules) -> Iterator[str]:
    """What must never happen, and does by this step."""
    i, name = step
    process = after.processes[i]
    top = max(after.lock, default=None)
    if process.at == "clean" and top is not None and process.own < top[0]:
        yield "the lock is taken although somebody has a higher number"
    if after.manifest is not None and after.manifest not in after.tables:
        yield "a manifest names a table that is not the one that was committed"
    if after.manifests > 1:
        yield "a chunk is committed twice"
    if logged(after, rules) > 1:
        yield "a commit is logged twice"
    if before.processes[i].lost and name in ("manifest", "log", "tell") and process.at != "lost":
        yield "a driver writes although it knows that the lock is lost"
    last = max(after.opened, default=None)
    if last and after.processes[last[1]].at == "done" and (after.manifest is None or not logged(after, rules)):
        yield "the last run ended well, and its chunk is not committed or not logged"


def explore(processes: int, rules: Rules = Rules()) -> tuple[int, str]:
    """The number of states that are reached, and the first violation; states that differ in the processes' names alone are one."""
    seen = {start(processes)}
    queue = deque(seen)
    while queue:
        state = queue.popleft()
        for step, after in steps(state, rules):
            for violation in violations(state, step, after, rules):
                return len(seen), violation
            named = _renamed(after)
            if named not in seen:
                seen.add(named)
                queue.append(named)
    return len(seen), ""


def _renamed(state: State) -> State:
    """The state with its processes in order: where one is, and when it opened the log, tell them apart."""
    when = {process: number for number, process, _ in state.opened}
    numbers = range(len(state.processes))
    order = sorted(numbers, key=lambda i: (state.processes[i], when.get(i, 0), state.lines[i], i in state.tables))
    if order == list(numbers):
        return state
    new = {old: i for i, old in enumerate(order)}
    return State(
        tuple(state.processes[i] for i in order),
        frozenset((number, new[owner], released) for number, owner, released in state.lock),
        frozenset(new[i] for i in state.tables),
        None if state.manifest is None else new[state.manifest],
        state.manifests,
        tuple(state.lines[i] for i in order),
        frozenset((number, new[i], tuple(found[j] for j in order)) for number, i, found in state.opened),
    )


def walk_with(feature: str, rules: Rules, generator: random.Random) -> tuple[list[Step], State]:
    """A random way of three processes on which `feature` (of `features`) happens."""
    while True:
        way, state = walk(3, rules, generator, stop=generator.random() < 0.3)
        if feature in features(way, state, rules):
            return way, state


def features(way: list[Step], state: State, rules: Rules) -> set[str]:
    """What happens on a way: ends of processes, steps that are not in every one, and lines that do not count."""
    names = [name for _, name in way]
    happened = {*names, *(process.at for process in state.processes)}
    if logged(state, rules) < sum(state.lines):
        happened.add("uncounted")
    if names.count("verify") > names.count("clean"):
        happened.add("refused again")
    return happened


def walk(processes: int, rules: Rules, generator: random.Random, *, stop: bool = False) -> tuple[list[Step], State]:
    """A random way to an end of all processes, or with `stop` to somewhere. A heartbeat is not cut in two, and crashes are rare."""
    state, way = start(processes), list[Step]()
    while choices := list(steps(state, rules)):
        if stop and generator.random() < 0.05 and not any(step[1] == "beat" for step, _ in choices):
            break
        beating = next((c for c in choices if c[0][1] == "beat"), None)
        weights = [
            _WEIGHTS.get(step[1], 1.0) * (after.processes[step[0]].at != "refused" or 0.2) for step, after in choices
        ]
        step, state = beating or generator.choices(choices, weights)[0]
        way.append(step)
    return way, state


_WEIGHTS = {"crash": 0.1, "listen": 0.2, "look, taking the holder for dead": 2.0}


def without(rule: str) -> Rules:
    """The rules without one of them."""
    return replace(Rules(), **{rule: False})  # type: ignore[arg-type]
