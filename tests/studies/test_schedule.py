"""The schedule of all changes, against a simulation that carries each state's history of layers as a tuple."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.models.same import NOTHING, Same
from raysweep.studies.interventions import Change, Intervention, check_changes, identity
from raysweep.studies.schedule import layer_applications, schedule, shared_rows
from raysweep.studies.windows import UNTOUCHED, Window, windows_of_widths

History = tuple[object, ...]  # whose embedding, then what was applied at each depth so far


def wanted(change: Change, n_layers: int, same: Same = NOTHING) -> History:
    """What a change means, said by itself."""
    if isinstance(change, Window):
        kind, chosen, c = "window", set(range(change.start, change.stop)), 1.0
    else:
        kind, chosen, c = change.kind, set(change.chosen), change.coefficient
    embedding = "base" if kind == "reverse" and not same.rest else "tuned"
    history: list[object] = [embedding]
    for layer in range(n_layers):
        if layer in same.layers:
            history.append("tuned")
        elif kind == "reverse":
            history.append("tuned" if layer in chosen else "base")
        elif layer not in chosen or c == 0:
            history.append("tuned")
        elif kind in ("attention", "mlp"):
            history.append(kind)
        else:
            history.append("base" if c == 1 else c)
    return tuple(history)


def follow(n_layers: int, changes: list[Change], same: Same = NOTHING) -> tuple[dict[Change, History], int]:
    """Do what the schedule says with histories for states; returns each change's, and the applications done."""
    plan = schedule(n_layers, changes, same)
    states: dict[int, History] = {n: ("base" if in_base else "tuned",) for n, in_base in plan.roots.items()}
    done = 0
    for layer, step in enumerate(plan.steps):
        assert step.layer == layer
        behind: dict[int, History] = {}
        for group in step.groups:
            part, share = group.version
            name = ("tuned" if share == 0 else "base" if share == 1 else share) if part == "layer" else part
            for before, after in group.moves:
                assert after not in behind, "a state is computed once"
                assert states[before][0] == ("base" if group.in_base else "tuned")
                behind[after] = (*states[before], name)
        assert step.applications == len(behind)
        done += len(behind)
        states = behind
    reached = {}
    for number, (in_base, rows) in plan.ends.items():
        assert states[number][0] == ("base" if in_base else "tuned")
        reached |= {changes[row]: states[number] for row in rows}
    assert plan.applications == done == layer_applications(n_layers, changes, same)
    return reached, done


def fewest(n_layers: int, changes: list[Change], same: Same = NOTHING) -> int:
    """Distinct histories, of every length above 0, that are prefixes of a wanted one: each costs one application."""
    histories = {wanted(change, n_layers, same) for change in changes}
    return len({history[: n + 1] for history in histories for n in range(1, n_layers + 1)})


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, list[Change], Same]:
    n_layers = draw(st.integers(1, 8))
    layers = st.lists(st.integers(0, n_layers - 1), unique=True, max_size=n_layers).map(lambda x: tuple(sorted(x)))
    spans = [Window(a, b) for a in range(n_layers) for b in range(a + 1, n_layers + 1)]
    other = st.one_of(
        st.builds(Intervention, st.just("set"), layers.filter(bool), st.sampled_from([1.0, 0.5, 0.0])),
        st.builds(Intervention, st.just("window"), layers.filter(bool), st.sampled_from([0.25, 0.5])),
        st.builds(Intervention, st.sampled_from(["attention", "mlp", "reverse"]), layers),
    )
    changes = draw(st.lists(st.one_of(st.sampled_from([UNTOUCHED, *spans]), other), unique=True, max_size=12))
    return n_layers, changes, Same(frozenset(draw(layers)), draw(st.booleans()))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_each_change_goes_through_its_own_layers_and_none_twice(case: tuple[int, list[Change], Same]) -> None:
    n_layers, changes, same = case
    reached, done = follow(n_layers, changes, same)
    assert reached == {change: wanted(change, n_layers, same) for change in changes}
    assert done == fewest(n_layers, changes, same), "no state is computed twice, and none that nobody needs"
    keys = {str(identity(change, n_layers, same)) for change in changes}
    assert len(keys) == len(set(reached.values())), "one key for one model, another for another"


@pytest.mark.parametrize(("widths", "applications", "rows"), [([5], 577, 28 + 2), ("all", 6016, 528 + 1)])
def test_the_cost_of_sweeping_32_layers(widths: list[int], applications: int, rows: int) -> None:
    chosen = windows_of_widths(32, widths)
    assert len(chosen) == rows
    assert layer_applications(32, chosen) == applications


def test_windows_that_differ_in_identical_layers_only_are_one() -> None:
    same = Same(frozenset({0, 1, 2}))
    windows = windows_of_widths(6, [2])  # (0,0) [0,2) [1,3) [2,4) [3,5) [4,6) [0,6)
    assert shared_rows(6, windows, same) == 2, "[0, 2) and [1, 3) are the untouched model"
    assert layer_applications(6, windows, same) == layer_applications(6, [*windows[:1], *windows[3:]], same)
    assert layer_applications(6, windows[:3], same) == 6, "which costs the model's own layers, once"
    # Forks at the first layer that differs and joins at the last: [2, 4) is layer 3 alone.
    assert layer_applications(6, [Window(2, 4)], same) == layer_applications(6, [Window(3, 4)], same) == 6


def test_what_is_not_a_window_beside_it() -> None:
    changes = check_changes(4, [2], sets={"a": [3, 0]}, modules=["mlp"], coefficients=[0.5, 1.0], reverse=True)
    assert [change.text for change in changes] == [
        *("none", "0-1", "1-2", "2-3", "0-3", "0-1 at 0.5", "1-2 at 0.5", "2-3 at 0.5", "0-3 at 0.5"),
        *("set a 0,3", "set a 0,3 at 0.5", "mlp 0-1", "mlp 1-2", "mlp 2-3", "mlp 0-3"),
        *("reverse none", "reverse 0-1", "reverse 1-2", "reverse 2-3", "reverse 0-3"),
    ]
