"""δ against losses over a model's layers: the join of the two sides, and every figure, against scipy on plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from raysweep.numerics.resampling import half_samples
from raysweep.studies.correlation import correlate_cell, correlate_curves, untold

LAYERS, N = 14, 40


def plain_delta(states: np.ndarray) -> np.ndarray:
    """δ of linear CKA over three neighbouring layers, by feature covariances rather than Grams."""
    X = states - states.mean(1, keepdims=True)
    F = np.array([[np.linalg.norm(A.T @ B) ** 2 for B in X] for A in X])
    S = F / np.sqrt(np.outer(np.diag(F), np.diag(F)))
    return np.array([S[i, max(0, i - 1) : i + 2].mean() for i in range(len(S))])


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    """[LAYERS, N, 12] with steps of very unlike size between layers, so that δ has a clear shape."""
    rng = np.random.default_rng(1)
    steps = rng.uniform(0.1, 1.5, LAYERS)
    made = [rng.normal(size=(N, 12))]
    for step in steps[1:]:
        made.append(made[-1] + step * rng.normal(size=made[0].shape))
    return torch.from_numpy(np.stack(made))


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    """Example ids with gaps, ascending."""
    return np.arange(N) * 2 + 5


def centres_of(width: int) -> np.ndarray:
    return np.arange(LAYERS - width + 1) + (width - 1) / 2


def at(delta: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """δ at whole centres, and halfway between two layers at x.5."""
    return np.interp(centres, np.arange(len(delta)), delta)


@pytest.fixture(scope="module")
def losses(states: torch.Tensor, ids: np.ndarray) -> pd.DataFrame:
    """Rows of widths 1, 4 and 5, the untouched model and all layers; small δ costs more, with noise by example."""
    rng = np.random.default_rng(2)
    delta = plain_delta(states.numpy())
    rows = []
    for width in (0, 1, 4, 5, LAYERS):
        for start in range(LAYERS - width + 1 if width else 1):
            centre = start + (width - 1) / 2 if width else np.nan
            cost = -at(delta, np.array([centre]))[0] if 0 < width < LAYERS else 0.0
            for example in ids:
                rows.append((width, centre, example, 9 + 6 * cost + rng.normal(0, 0.6)))
    table = pd.DataFrame(rows, columns=["width", "centre", "example_id", "loss"])
    return table.assign(kind="window", coefficient=1.0, estimator="exact")


def correlate(states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame, **changes: object) -> pd.DataFrame:
    settings: dict[str, Any] = {"metrics": ["cka_linear"], "neighbourhood": 3, "resamples": 80, "seed": 4}
    return correlate_cell(states, ids, losses, **(settings | changes))


def curve(losses: pd.DataFrame, width: int) -> np.ndarray:
    return losses[losses["width"] == width].groupby("centre")["loss"].mean().to_numpy()


def test_the_table_has_the_contracts_columns(states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame) -> None:
    table = correlate(states, ids, losses, metrics=["cka_linear", "cka_rbf"])
    assert list(table.columns) == [
        *("metric", "width", "neighbourhood", "n_layers", "spearman", "ci_low", "ci_high"),
        *("p_shift", "partial_depth", "kendall", "precision_at_k", "p_value", "effective_layers"),
        *("p_permutation", "precision_chance", "p_precision", "reason"),
    ]
    assert list(zip(table["width"], table["metric"], strict=True)) == [
        (width, metric) for width in (1, 4, 5) for metric in ("cka_linear", "cka_rbf")
    ]
    assert table["n_layers"].tolist() == [14, 14, 11, 11, 10, 10]
    assert (table["neighbourhood"] == 3).all()


@pytest.mark.parametrize("width", [1, 4, 5])
def test_the_figures_are_scipys(width: int, states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame) -> None:
    row = correlate(states, ids, losses).set_index("width").loc[width]
    delta, loss = at(plain_delta(states.numpy()), centres_of(width)), curve(losses, width)
    assert row["spearman"] == pytest.approx(stats.spearmanr(delta, loss).statistic, abs=1e-12)
    assert row["kendall"] == pytest.approx(stats.kendalltau(delta, loss).statistic, abs=1e-12)
    depth = np.arange(len(delta))
    ranks = [stats.rankdata(side) for side in (delta, loss)]
    left = [side - np.polyval(np.polyfit(depth, side, 1), depth) for side in ranks]
    assert row["partial_depth"] == pytest.approx(stats.pearsonr(*left).statistic, abs=1e-9)
    k = round(len(delta) / 5)
    hits = set(np.argsort(delta)[:k]) & set(np.argsort(-loss)[:k])
    assert row["precision_at_k"] == pytest.approx(len(hits) / k)
    assert row["precision_chance"] == pytest.approx(k / len(delta))
    assert row["p_precision"] == pytest.approx(stats.hypergeom.sf(len(hits) - 1, len(delta), k, k))
    t = row["partial_depth"] * np.sqrt((row["effective_layers"] - 3) / (1 - row["partial_depth"] ** 2))
    assert row["p_value"] == pytest.approx(2 * stats.t.sf(abs(t), row["effective_layers"] - 3))
    assert 3 < row["effective_layers"] < 1.5 * len(delta)


def plain_interval(
    states: np.ndarray, losses: pd.DataFrame, examples: np.ndarray, width: int, resamples: int = 80, seed: int = 4
) -> tuple[float, float]:
    """Spearman on half-samples of `examples` (places in states and ids alike), both sides recomputed each time."""
    of_width = losses[losses["width"] == width].pivot(index="centre", columns="example_id", values="loss").to_numpy()
    rho = []
    for keep in half_samples(len(examples), resamples, seed):
        chosen = examples[keep]
        delta = at(plain_delta(states[:, chosen]), centres_of(width))
        rho.append(stats.spearmanr(delta, of_width[:, chosen].mean(1)).statistic)
    low, high = np.quantile(rho, [0.025, 0.975])
    delta = at(plain_delta(states[:, examples]), centres_of(width))
    shift = (stats.spearmanr(delta, of_width[:, examples].mean(1)).statistic - np.mean(rho)) / 2
    return max(-1.0, float(low + shift)), min(1.0, float(high + shift))


@pytest.mark.parametrize("width", [1, 4])
def test_the_interval_resamples_the_examples_of_both_sides_together(
    width: int, states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame
) -> None:
    row = correlate(states, ids, losses).set_index("width").loc[width]
    expected = plain_interval(states.numpy(), losses, np.arange(N), width)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(expected, abs=1e-9)
    assert row["ci_low"] < row["ci_high"]


def test_a_clear_relation_is_found_and_its_interval_holds_the_estimate(
    states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame
) -> None:
    for row in correlate(states, ids, losses, resamples=200).itertuples():
        assert row.spearman < -0.5
        assert row.ci_low <= row.spearman <= row.ci_high < 0


def test_the_join_is_by_example_id_whatever_the_order(
    states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame
) -> None:
    order = np.random.default_rng(0).permutation(N)
    plain = correlate(states, ids, losses)
    shuffled = correlate(states[:, order], ids[order], losses.sample(frac=1, random_state=3))
    pd.testing.assert_frame_equal(shuffled, plain, rtol=0, atol=1e-9)
    assert plain[["ci_low", "ci_high"]].notna().to_numpy().all()


def test_examples_of_one_side_only_are_left_out_of_the_interval(
    states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame
) -> None:
    without_loss, without_state = [3, 17, 20], [0, 39]
    have_state = np.setdiff1d(np.arange(N), without_state)
    some = losses[~losses["example_id"].isin(ids[without_loss])]
    row = correlate(states[:, have_state], ids[have_state], some).set_index("width").loc[5]
    delta = at(plain_delta(states[:, have_state].numpy()), centres_of(5))
    assert row["spearman"] == pytest.approx(stats.spearmanr(delta, curve(some, 5)).statistic, abs=1e-12)
    both = np.setdiff1d(np.arange(N), without_loss + without_state)
    expected = plain_interval(states.numpy(), losses, both, 5)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(expected, abs=1e-9)


def test_an_example_with_a_nan_loss_under_one_window_is_left_out_of_the_interval_and_of_that_mean(
    states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame
) -> None:
    torn = losses.copy()
    torn.loc[(torn["width"] == 4) & (torn["centre"] == 3.5) & (torn["example_id"] == ids[11]), "loss"] = np.nan
    table, whole = (correlate(states, ids, rows).set_index("width") for rows in (torn, losses))
    assert curve(torn, 4)[2] != curve(losses, 4)[2]
    delta = at(plain_delta(states.numpy()), centres_of(4))
    assert table.loc[4, "spearman"] == pytest.approx(stats.spearmanr(delta, curve(torn, 4)).statistic, abs=1e-12)
    expected = plain_interval(states.numpy(), losses, np.setdiff1d(np.arange(N), [11]), 4)
    assert tuple(table.loc[4, ["ci_low", "ci_high"]]) == pytest.approx(expected, abs=1e-9)
    pd.testing.assert_series_equal(table.loc[5], whole.loc[5])


def test_a_window_without_any_finite_loss_leaves_nothing_to_correlate(
    states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame
) -> None:
    torn = losses.copy()
    torn.loc[(torn["width"] == 4) & (torn["centre"] == 3.5), "loss"] = np.nan
    row = correlate(states, ids, torn).set_index("width").loc[4]
    assert row["n_layers"] == 11
    assert row[["spearman", "kendall", "ci_low", "ci_high", "p_shift", "precision_at_k"]].isna().all()


def test_an_infinite_loss_counts_as_the_largest(states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame) -> None:
    burst = losses.copy()
    burst.loc[(burst["width"] == 1) & (burst["centre"] == 6), "loss"] = np.inf
    row = correlate(states, ids, burst).set_index("width").loc[1]
    loss = curve(losses, 1).copy()
    loss[6] = 1e9
    expected = stats.spearmanr(plain_delta(states.numpy()), loss).statistic
    assert row["spearman"] == pytest.approx(expected, abs=1e-12)
    assert row[["ci_low", "ci_high"]].isna().all()


def test_centres_at_both_ends_may_be_left_out(states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame) -> None:
    row = correlate(states, ids, losses, drop_ends=2).set_index("width").loc[5]
    delta, loss = at(plain_delta(states.numpy()), centres_of(5))[2:-2], curve(losses, 5)[2:-2]
    assert row["n_layers"] == 6
    assert row["spearman"] == pytest.approx(stats.spearmanr(delta, loss).statistic, abs=1e-12)


def test_a_width_with_fewer_than_three_centres_has_no_row(
    states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame
) -> None:
    assert correlate(states, ids, losses, drop_ends=4)["width"].tolist() == [1, 4]
    none = correlate(states, ids, losses, drop_ends=6)
    assert len(none) == 0
    assert "spearman" in none.columns


def test_fewer_than_eight_examples_have_no_interval(
    states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame
) -> None:
    few = losses[losses["example_id"].isin(ids[:7])]
    row = correlate(states[:, :7], ids[:7], few).set_index("width").loc[1]
    delta = plain_delta(states[:, :7].numpy())
    assert row["spearman"] == pytest.approx(stats.spearmanr(delta, curve(few, 1)).statistic, abs=1e-12)
    assert row[["ci_low", "ci_high"]].isna().all()


def test_every_metric_has_an_interval(states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame) -> None:
    table = correlate(states, ids, losses, metrics=["cka_linear_debiased", "cka_rbf"])
    assert (table["ci_low"] < table["ci_high"]).all()


def test_what_too_few_centres_cannot_tell_is_nan_with_its_reason(
    states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame
) -> None:
    rows = correlate(states, ids, losses, drop_ends=1).set_index("width")
    assert rows["p_shift"].isna().all()
    assert rows.loc[1, "reason"] == (
        "no share of shifts with 12 centres: it is never below 1/12, so it could not be below 0.05"
    )
    assert rows.loc[4, "reason"].startswith(
        "no p with 9 centres: the test keeps its level only from 10 centres on; no sh"
    )
    assert rows.loc[4, ["p_value", "effective_layers"]].isna().all()


def test_with_many_centres_nothing_is_left_out() -> None:
    delta, loss = np.random.default_rng(0).standard_normal((2, 24))
    figures = correlate_curves(delta, loss)
    assert np.isfinite(list(figures.values())).all()
    assert untold(figures) is None
    assert 1 / 24 <= figures["p_shift"] <= 1


def test_few_centres_have_no_p_of_precision() -> None:
    figures = correlate_curves(np.arange(7.0) ** 2 % 5, np.arange(7.0) * 3 % 7)
    assert np.isnan(figures["p_precision"])
    assert figures["precision_chance"] == pytest.approx(1 / 7)
    assert str(untold(figures)).endswith(
        "no p of precision with 7 centres: getting 1 of 1 right by chance is more likely than 0.05"
    )


def test_curves_without_variation_have_no_correlation() -> None:
    figures = correlate_curves(np.ones(6), np.arange(6.0))
    assert figures.pop("n_layers") == 6
    assert np.isnan([figures[name] for name in ("spearman", "kendall", "partial_depth", "p_value")]).all()
    assert untold({**figures, "n_layers": 6}) == "δ or the loss is undefined somewhere, or the same at all centres"
    line = correlate_curves(np.arange(12.0), np.arange(12.0) % 5)
    assert (
        untold(line) == "δ or the loss is a straight line in depth, so nothing remains to test after depth is taken out"
    )


def test_only_whole_windows_put_back_exactly_are_correlated(
    states: torch.Tensor, ids: np.ndarray, losses: pd.DataFrame
) -> None:
    others = [{"kind": "attention"}, {"kind": "reverse"}, {"coefficient": 0.5}, {"estimator": "gradient"}]
    more = [losses.assign(loss=-losses["loss"], **other) for other in others]
    pd.testing.assert_frame_equal(
        correlate(states, ids, pd.concat([*more, losses])), correlate(states, ids, losses), check_exact=True
    )
