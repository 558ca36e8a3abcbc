"""The reference of metrics has each metric once, under the name that Prometheus has."""

from __future__ import annotations

import re

import metric_reference

from raysweep.engine.metrics import METRICS


def test_every_metric_is_there_with_unit_labels_and_help():
    page = metric_reference.markdown()
    sections = dict(re.findall(r"^### `(\w+)` \{.*?\}\n(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == [metric.series for metric in METRICS]
    for metric in METRICS:
        text = sections[metric.series]
        assert metric.help in text
        assert f"unit: {metric.unit}" in text
        assert all(f"`{label}`" in text for label in metric.labels)
        assert all(f"{bound:g}" in text for bound in metric.buckets)
