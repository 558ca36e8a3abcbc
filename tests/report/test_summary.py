"""The answer in plain lines, where ρ or its interval is not there."""

from __future__ import annotations

import math

from synthetic import make_tables

from raysweep.report.summary import summary_lines

FIRST = "tiny on x: Spearman "
LAST = " between cka_linear dynamics and the loss after substitution, over 4 windows of width 5"


def test_what_is_not_known_is_said_in_words():
    tables = make_tables(datasets=("x",), n_layers=8, n_examples=8)
    correlation = tables["correlation"].assign(spearman=-0.5, ci_low=math.nan, ci_high=math.nan)
    assert summary_lines({**tables, "correlation": correlation}) == [f"{FIRST}-0.500 [n/a]{LAST}"]
    correlation = correlation.assign(spearman=math.nan)
    dynamics = tables["dynamics"].assign(delta=math.nan)
    (line,) = summary_lines({**tables, "correlation": correlation, "dynamics": dynamics})
    assert line == f"{FIRST}n/a (δ is undefined at layers 0–7: a similarity it is the mean of is undefined){LAST}"
