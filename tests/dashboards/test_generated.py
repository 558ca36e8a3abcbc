"""What is committed in dashboards/ is what the generator writes, and Grafana can take it."""

from __future__ import annotations

import re

import pytest
from generate import files
from panels import LEFT_OUT, ROWS
from queries import FOLDER, board, drawn, queries
from rules import ALERTS, RECORDING

from raysweep.engine.metrics import METRICS

# The ids of Grafana's unit picker that are used; `si:` takes any word behind it.
UNITS = {"percentunit", "s", "short", "bytes", "Bps", "bool_yes_no"}
KINDS = {"row", "stat", "timeseries", "bargauge", "heatmap"}


def used(text):
    """The metrics named in a query."""
    words = set(re.findall(r"ray_raysweep_\w+", text))
    found = {metric for metric in METRICS if metric.series in words}
    assert {metric.series for metric in found} == words, "a name that no metric has"
    return found


@pytest.mark.parametrize("name", ["raysweep.json", "metrics.md", "prometheus.yml", "recording.yml", "alerts.yml"])
def test_the_files_are_what_the_generator_writes(name):
    assert (FOLDER / name).read_text(encoding="utf-8") == files()[name]


def test_nothing_else_is_generated():
    written = {path.name for path in FOLDER.iterdir() if path.suffix in (".json", ".yml", ".md")}
    assert written == {*files(), "README.md"}


def test_every_metric_is_on_a_panel_or_left_out_with_a_reason():
    shown = {metric for _, query in queries() for metric in used(query)}
    assert shown.isdisjoint(LEFT_OUT)
    assert shown | set(LEFT_OUT) == set(METRICS)
    assert all(LEFT_OUT.values())


def test_the_names_are_prometheuss_and_say_what_they_count():
    assert len({metric.series for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"raysweep_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.labels[0] == "run"
        assert metric.help.endswith(".")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert not metric.name.endswith("_total"), "Ray adds it"
        assert metric.unit not in ("seconds", "bytes") or metric.unit in metric.name


def test_rules_name_metrics_and_each_other():
    recorded = {rule["record"] for rule in RECORDING}
    for rule in RECORDING:
        assert used(rule["expr"])
    for rule in ALERTS:
        assert set(re.findall(r"run:raysweep_\w+:\w+", rule["expr"])) <= recorded
        assert {"summary", "description"} == set(rule["annotations"])


def test_ids_are_unique_and_no_panel_lies_on_another():
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells


def test_every_panel_says_what_it_shows_in_which_unit():
    assert sum(map(len, ROWS.values())) == len(drawn())
    for panel in drawn():
        assert panel["type"] in KINDS
        assert panel["title"]
        assert panel["description"].endswith(".")
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in UNITS or re.fullmatch(r"si:\w+/s", unit), unit
        assert [target["refId"] for target in panel["targets"]] == ["A", "B", "C"][: len(panel["targets"])]


def test_data_source_run_and_window_are_variables():
    found = {variable["name"]: variable for variable in board()["templating"]["list"]}
    assert list(found) == ["datasource", "run", "window"]
    for panel in drawn():
        for each in (panel, *panel["targets"], found["run"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= set(found)
            names = re.findall(r"ray_raysweep_\w+(\{run=~\"\$run\")?", target["expr"])
            assert names
            assert all(names), "each series is of the chosen run"
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= {
                *("run", "kind", "state", "what", "worker", "outcome", "cause", "le")
            }
