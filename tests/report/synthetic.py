"""Synthetic result tables: plausible curves over a deep model, made without any of the code under test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from raysweep.report.page import Provenance

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/x.png onerror=alert(1)>'
RTL = "שלום עולם \u202e abc 🦊"


def make_tables(
    models: Sequence[str] = ("tiny",),
    datasets: Sequence[str] = ("sums", "facts", "chat", "choices"),
    metrics: Sequence[str] = ("cka_linear",),
    widths: Sequence[int] = (5,),
    n_layers: int = 24,
    n_examples: int = 60,
    texts: Sequence[str] = ("The answer is 42.", "Forty-two."),
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Every table of a run; losses bump where representations move fastest, except on the last data set."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for m, model in enumerate(models):
        for d, dataset in enumerate(datasets):
            cell = {"model": model, "dataset": dataset}
            peak = 8.0 + 1.5 * d + 2 * m
            loss_peak = peak if d < 3 else n_layers - 5.0
            parts["substitution"].append(_substitution(rng, cell, n_layers, n_examples, widths, loss_peak))
            for metric in metrics:
                S_LL = _similarity_values(rng, n_layers, peak, metric)
                parts["similarity"].append(_similarity(cell, metric, S_LL))
                dynamics = _dynamics(rng, cell, metric, S_LL)
                parts["dynamics"].append(dynamics)
                for width in widths:
                    parts["correlation"].append(
                        _correlation(rng, cell, metric, width, dynamics, parts["substitution"][-1])
                    )
            parts["health"].append(_health(cell, n_layers))
            parts["generation"].append(_generation(cell, n_layers, widths[0], texts))
    return {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items() if frames}


TABLES = ("substitution", "similarity", "dynamics", "correlation", "health", "generation")


def _substitution(rng, cell, n_layers, n_examples, widths, peak):
    easy_E = rng.gamma(4.0, 0.12, n_examples)
    spans = [(0, 0), *((start, start + w) for w in widths for start in range(n_layers - w + 1)), (0, n_layers)]
    rows = []
    for start, stop in spans:
        width = stop - start
        centre = start + (width - 1) / 2 if width else math.nan
        if width == 0:
            extra = 0.0
        elif width == n_layers:
            extra = 1.3
        else:
            extra = 0.12 + (0.1 + 0.11 * width) * math.exp(-(((centre - peak) / 4.0) ** 2)) + 0.15 * (centre < 4)
        noise_E = rng.normal(0, 0.12, n_examples) * bool(width)
        for example, loss in enumerate(easy_E + extra * rng.gamma(6, 1 / 6, n_examples) + noise_E):
            rows.append(
                {
                    **cell,
                    "kind": "window",
                    "layers": f"{start}-{stop - 1}" if width else "",
                    "start": start,
                    "stop": stop,
                    "width": width,
                    "centre": centre,
                    "coefficient": 1.0,
                    "estimator": "exact",
                    "example_id": example,
                    "n_tokens": 12,
                    "loss": loss,
                }
            )
    return pd.DataFrame(rows)


def _similarity_values(rng, n_layers, peak, metric):
    layer_L = np.arange(n_layers)
    speed_L = (
        0.02 + 0.16 * np.exp(-(((layer_L - peak) / 3.0) ** 2)) + 0.08 * (layer_L < 3) + rng.uniform(0, 0.02, n_layers)
    )
    place_L = np.cumsum(speed_L) * (1.4 if metric == "cka_rbf" else 1.0)
    return np.exp(-np.abs(place_L[:, None] - place_L[None, :]))


def _similarity(cell, metric, S_LL):
    i, j = np.indices(S_LL.shape)
    frame = pd.DataFrame({"layer_i": i.ravel(), "layer_j": j.ravel(), "value": S_LL.ravel()})
    return frame.assign(**cell, metric=metric, other=None, ci_low=math.nan, ci_high=math.nan, reason=None)


def _dynamics(rng, cell, metric, S_LL):
    n_layers = len(S_LL)
    delta_L = np.array([S_LL[layer, max(0, layer - 1) : layer + 2].mean() for layer in range(n_layers)])
    half_L = rng.uniform(0.006, 0.016, n_layers)
    return pd.DataFrame(
        {
            **cell,
            "metric": metric,
            "neighbourhood": 3,
            "layer": range(n_layers),
            "delta": delta_L,
            "ci_low": delta_L - half_L,
            "ci_high": delta_L + half_L,
            "rank": stats.rankdata(delta_L).astype(int),
            "rank_low": stats.rankdata(delta_L) - 1,
            "rank_high": stats.rankdata(delta_L) + 1,
            "chosen": 0.5,
        }
    )


# What the correlation table has beside ρ and p.
BESIDE = {"effective_layers": 9.5, "p_permutation": 0.01, "precision_chance": 0.2, "p_precision": 0.02, "reason": None}


def _correlation(rng, cell, metric, width, dynamics, substitution):
    losses = substitution[substitution["width"] == width].groupby("centre")["loss"].mean()
    delta = dynamics.set_index("layer")["delta"]
    delta_C = np.array([(delta[math.floor(c)] + delta[math.ceil(c)]) / 2 for c in losses.index])
    rho = stats.spearmanr(delta_C, losses)[0]
    return pd.DataFrame(
        [
            {
                **cell,
                "metric": metric,
                "width": width,
                "neighbourhood": 3,
                "n_layers": len(losses),
                "spearman": rho,
                "ci_low": max(-1.0, rho - 0.11),
                "ci_high": min(1.0, rho + 0.16),
                "p_shift": 1 / len(losses),
                "partial_depth": rho * 0.9,
                "kendall": stats.kendalltau(delta_C, losses)[0],
                "precision_at_k": 0.6,
                "p_value": 1 / len(losses) + float(rng.uniform(0, 0.05)) if rho < -0.3 else 0.4,
                **BESIDE,
            }
        ]
    )


def _health(cell, n_layers):
    rows = []
    for layer in range(n_layers):
        warning = (
            "one dimension holds 71 % of the variance: linear CKA mostly compares that one" if 2 <= layer <= 5 else None
        )
        rows.append(
            {
                **cell,
                "layer": layer,
                "measure": "largest_dimension_share",
                "value": 0.71 if warning else 0.1,
                "warning": warning,
            }
        )
        rows.append({**cell, "layer": layer, "measure": "n_over_d", "value": 0.75, "warning": None})
    return pd.DataFrame(rows)


def _generation(cell, n_layers, width, texts):
    rows = []
    for example, text in enumerate(texts):
        for name in ("tuned", *(f"window {s}-{s + width - 1}" for s in range(0, n_layers - width + 1, 6))):
            prompt = f"Question {example}: what is six times seven?"
            rows.append(
                {**cell, "example_id": example, "intervention": name, "prompt": prompt, "reference": "42", "text": text}
            )
    return pd.DataFrame(rows)


def make_provenance(**changes: object) -> Provenance:
    known: dict[str, Any] = {
        "name": "tiny",
        "created": "2025-11-23 08:40 UTC",
        "command": "raysweep run configs/demo.yaml",
        "duration_s": 47.3,
        "versions": {"raysweep": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.1"},
        "checkpoints": [
            {
                "model": "tiny",
                "role": role,
                "path": path,
                "fingerprint": "3f9a1c77d2b04e55",
                "layers": "24",
                "parameters": "1.95 M",
                "dtype": "float32",
            }
            for role, path in (("base", "lab://tiny"), ("tuned on sums", "lab://tiny/sums"))
        ],
        "datasets": [
            {
                "dataset": "sums",
                "path": "lab://sums/test",
                "format": "gsm8k",
                "wording": "chat",
                "examples": "300",
                "left_out": "0",
                "cut": "2",
            }
        ],
        "timings": [
            {"what": "substitution of tiny on sums", "seconds": "9.1", "detail": "20 windows, 1,204 layer applications"}
        ],
        "warnings": [],
        "failures": [],
        "config_yaml": "name: tiny\nmodels:\n  - name: tiny\n    base: lab://tiny\n",
    }
    return Provenance(**{**known, **changes})


def make_hostile(markup: str = HOSTILE) -> tuple[dict[str, pd.DataFrame], Provenance]:
    """Two models, two metrics, undefined values with reasons, and markup wherever a string comes from outside."""
    tables = make_tables(
        models=("tiny", f"big {markup}"),
        datasets=("sums", f"$x$ {RTL}"),
        metrics=("cka_linear", "cka_rbf"),
        widths=(3,),
        n_layers=10,
        n_examples=20,
        texts=(markup, RTL, "a\x00b\n\n" + "long " * 200),
    )
    similarity, dynamics = tables["similarity"], tables["dynamics"]
    flat = (similarity["metric"] == "cka_linear") & similarity[["layer_i", "layer_j"]].isin([0]).any(axis="columns")
    similarity.loc[flat, "value"] = math.nan
    similarity.loc[flat, "reason"] = f"layer 0: every example has the same state {markup}"
    undefined = (dynamics["metric"] == "cka_linear") & (dynamics["layer"] < 2)
    dynamics.loc[undefined, ["delta", "ci_low", "ci_high", "rank"]] = math.nan
    correlation = tables["correlation"]
    lost = (
        (correlation["model"] == "tiny") & (correlation["metric"] == "cka_linear") & (correlation["dataset"] != "sums")
    )
    correlation.loc[
        lost, ["spearman", "ci_low", "ci_high", "p_value", "p_shift", "partial_depth", "kendall", "precision_at_k"]
    ] = math.nan
    health = tables["health"]
    health.loc[health["warning"].notna(), "warning"] += f" {markup}"
    health.loc[0, ["value", "warning"]] = [math.nan, f"no variance at all {markup}"]
    tables["substitution"].loc[tables["substitution"]["example_id"] == 3, "loss"] = math.nan
    provenance = make_provenance(
        name=f"run {markup}",
        command=f"raysweep run '{markup}'",
        warnings=[f"record 7 was cut {markup}"],
        failures=[f"substitution 3-7 of tiny on sums: CUDA out of memory {markup}"],
        config_yaml=f"name: '{markup}'\n# {RTL}\n",
        versions={"raysweep": markup},
        timings=[{"what": markup, "seconds": "1", "detail": RTL}],
    )
    return tables, provenance


# Losses of the tuned model untouched and of all six layers put back, for tables that add their own windows.
STEADY = {(0, 0): [1.0, 1.1, 0.9, 1.2], (0, 6): [3.0, 3.1, 2.8, 3.2]}


def frame_of(losses):
    """A substitution table from {(start, stop): losses of the examples}."""
    rows = [
        {"start": start, "stop": stop, "width": stop - start, "example_id": example, "loss": loss}
        for (start, stop), values in losses.items()
        for example, loss in enumerate(values)
    ]
    for row in rows:
        row["layers"] = "-".join(map(str, dict.fromkeys([row["start"], row["stop"] - 1]))) if row["width"] else ""
    return pd.DataFrame(rows).assign(kind="window", coefficient=1.0, estimator="exact")


def tiny_tables(losses, correlation=None):
    """One model and data set from {(start, stop): losses of the examples}, with δ smallest at layer 1 of 6."""
    delta_L = [0.9, 0.5, 0.9, 0.95, 0.95, 0.99]
    cell = {"model": "m", "dataset": "d", "metric": "cka_linear", "neighbourhood": 3}
    dynamics = pd.DataFrame({"layer": range(6), "delta": delta_L, "rank": stats.rankdata(delta_L, "ordinal")})
    tables = {
        "substitution": frame_of(losses).assign(model="m", dataset="d"),
        "dynamics": dynamics.assign(**cell, ci_low=math.nan, ci_high=math.nan),
    }
    if correlation is not None:
        usual = {"width": 2, "n_layers": 20, "partial_depth": -0.5, "kendall": -0.5, "precision_at_k": 0.5}
        usual |= {"p_shift": 0.05, **BESIDE}
        tables["correlation"] = pd.DataFrame([{**cell, **usual, **correlation}])
    return tables
