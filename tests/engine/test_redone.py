"""Work that is done again says why: what of the keys changed since the folder's latest run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raysweep.engine import inspection
from raysweep.engine.driver import drive
from raysweep.engine.events import read_events
from raysweep.engine.graph import Graph, Task
from raysweep.engine.keys import computed
from raysweep.engine.redone import CALCULATIONS, why_redone
from raysweep.planned import plan_run

VERSIONS = {"torch": "2.13.0", "transformers": "5.23.1", "peft": "0.21.2", "numpy": "2.1"}
BASE = {"model": "m", "role": "base", "path": "/base", "fingerprint": "aaaa"}
ABOUT: dict[str, Any] = {"versions": VERSIONS, "calculations": CALCULATIONS, "checkpoints": [BASE]}
EARLIER = Graph((Task("substitute", "m", "d", ("old-0", "old-1")), Task("similarity", "m", "d", ("old-2",))))
NOW = Graph((Task("substitute", "m", "d", ("new-0", "new-1")), Task("similarity", "m", "d", ("old-2",))))
DONE = ["old-0", "old-1", "old-2"]


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ({"versions": VERSIONS | {"torch": "2.12.1"}}, "torch 2.12 became 2.13"),
        ({"versions": VERSIONS | {"torch": "2.13.9", "numpy": "1.0"}}, "the config or the records changed"),
        (
            {"versions": {name: VERSIONS[name] for name in ("torch", "transformers")}},
            "keys now include the version of peft (0.21)",
        ),
        (
            {"calculations": CALCULATIONS | {"statistics": 3}},
            f"raysweep's arithmetic of statistics is version {CALCULATIONS['statistics']} and was 3",
        ),
        (
            {"checkpoints": [BASE | {"fingerprint": "bbbb"}]},
            "checkpoint '/base' has fingerprint aaaa and had bbbb",
        ),
        ({}, "the config or the records changed"),
    ],
)
def test_what_changed_is_said(before: dict[str, Any], why: str) -> None:
    assert why_redone(EARLIER, {**ABOUT, **before}, NOW, ABOUT, DONE) == (
        f"1 completed task is recomputed (substitute m/d): {why}. The earlier results are kept"
    )


def test_what_was_not_done_or_still_is_is_not_said() -> None:
    assert why_redone(EARLIER, ABOUT, EARLIER, ABOUT, DONE) == ""
    assert why_redone(EARLIER, ABOUT, NOW, ABOUT, DONE[1:]) == ""
    assert why_redone(Graph(()), ABOUT, NOW, ABOUT, DONE) == ""


def test_a_run_and_its_plan_say_it_of_another_release(make_config, tmp_path, monkeypatch) -> None:
    config = make_config(tmp_path / "run", "datasets.0.limit=4", "studies={similarity: {}}", "models.0.tuned={}")
    drive(config)
    other = {**inspection.libraries(), "torch": "2.99.0"}
    monkeypatch.setattr(inspection, "libraries", lambda: other)
    planned, heard = plan_run(config), list[dict[str, Any]]()
    drive(config, listener=heard.append)
    (said,) = [event["why"] for event in heard if event["event"] == "tasks_redone"]
    assert said.startswith("2 completed tasks are recomputed (similarity m/first, …): torch 2.13 became 2.99.")
    assert (planned.redone, f"recompute    {said}" in planned.to_text()) == (said, True)
    events = list(read_events(tmp_path / "run" / "events.jsonl"))
    assert sum(event["event"] == "tasks_redone" for event in events) == 1
    drive(config, listener=heard.append)
    assert sum(event["event"] == "tasks_redone" for event in heard) == 1, "the second time nothing is done again"


def test_keys_have_the_release_of_peft_where_an_adapter_is_merged(small) -> None:
    _, facts = small
    model = facts.models["m"]
    adapter = replace(model.tuned["first"], adapter=True)
    assert computed(facts, model, model.base, model.tuned["first"])["libraries"].keys() == {"torch", "transformers"}
    assert computed(facts, model, adapter)["libraries"]["peft"] == ".".join(facts.libraries["peft"].split(".")[:2])
