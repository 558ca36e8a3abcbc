"""The RBF kernel's bandwidth: the median's rules and the factor, against the plain kernel."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import drifting_states, few, plain_cka, plain_debiased_cka, plain_gram, seeds

from raysweep.numerics.cka import cka_matrix


def squared_distances(X_ND):
    return np.array([[((a - b) ** 2).sum() for b in X_ND] for a in X_ND])


PLAIN_MEDIANS = {
    "lower_nonzero": lambda D: np.sort(D[D > 0])[(np.count_nonzero(D) - 1) // 2],
    "off_diagonal": lambda D: np.median([D[i, j] for i in range(len(D)) for j in range(len(D)) if i != j]),
    "all": np.median,
}


@few
@given(seed=seeds, examples=st.integers(4, 13), rule=st.sampled_from(list(PLAIN_MEDIANS)), bandwidth=st.floats(0.3, 10))
def test_rules_and_bandwidths_equal_the_plain_kernel(seed, examples, rule, bandwidth):
    X_LND = drifting_states(seed, 2, examples)
    medians = [bandwidth**2 * PLAIN_MEDIANS[rule](squared_distances(X_ND)) for X_ND in X_LND]
    K, G = (plain_gram(X_ND, "rbf", median) for X_ND, median in zip(X_LND, medians, strict=True))
    biased, debiased = cka_matrix(X_LND, "rbf", debiased="both", median=rule, bandwidth=bandwidth)
    assert biased[0, 1] == pytest.approx(plain_cka(K, G), abs=1e-9)
    # A narrow kernel of few examples is the identity but for 1e-3: what is left of it has as many digits fewer.
    beside = [np.abs(A - np.eye(examples)).max() ** 2 for A in (K, G)]
    assert debiased[0, 1] == pytest.approx(plain_debiased_cka(K, G), abs=1e-9 + 1e-12 / min(beside))


def test_a_very_wide_bandwidth_is_the_linear_kernel_to_the_last_digits():
    """exp(−d²/s) − 1 is −d²/s there, and centring −d² gives twice the linear kernel."""
    X_LND = drifting_states(0)
    wide = cka_matrix(X_LND, "rbf", debiased="both", bandwidth=1e7)
    np.testing.assert_allclose(wide, cka_matrix(X_LND, debiased="both"), rtol=0, atol=1e-10)


def test_a_median_of_zero_is_refused_by_name():
    X_LND = np.zeros((2, 6, 3))
    X_LND[:, 0] = 1.0
    with pytest.raises(
        ValueError,
        match="layer 0: the median of the squared distances is 0 by the rule 'off_diagonal'; use 'lower_nonzero'",
    ):
        cka_matrix(X_LND, "rbf", median="off_diagonal")
    np.testing.assert_allclose(cka_matrix(X_LND, "rbf"), 1, rtol=1e-12)


def test_unknown_rules_and_bandwidths_are_refused():
    with pytest.raises(ValueError, match="unknown median rule 'mean'; known: lower_nonzero, off_diagonal, all"):
        cka_matrix(drifting_states(0), "rbf", median="mean")
    for bandwidth in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="bandwidth must be a positive factor"):
            cka_matrix(drifting_states(0), "rbf", bandwidth=bandwidth)
    with pytest.raises(ValueError, match="unknown kernel 'poly'; known: linear, rbf"):
        cka_matrix(drifting_states(0), "poly")


def exact_debiased(layers):
    """Debiased RBF CKA of two layers of whole numbers, with the paper's median, in 50 decimal digits."""
    with localcontext(prec=50):
        centred = []
        for X_ND in layers:
            rows, places = [[Decimal(int(x)) for x in row] for row in X_ND], range(len(X_ND))
            D = [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
            positive = sorted(d for row in D for d in row if d)
            scale, n = 2 * positive[(len(positive) - 1) // 2], len(rows)
            K = [[(-D[a][b] / scale).exp() if a != b else Decimal(0) for b in places] for a in places]
            sums = [sum(row) for row in K]
            both = sum(sums) / ((n - 1) * (n - 2))
            U = [K[a][b] - (sums[a] + sums[b]) / (n - 2) + both for a in places for b in places if a != b]
            centred.append(U)
        x, y = centred
        xy, xx, yy = (sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((x, y), (x, x), (y, y)))
        return float(xy / (xx * yy).sqrt())


@pytest.mark.parametrize("examples", [4, 5, 9])
@pytest.mark.parametrize("apart", [1000, 10**5, 10**7])
def test_examples_that_are_nearly_as_far_from_one_another_keep_their_digits(examples, apart):
    """Corners of a simplex, moved by one part in `apart`: U-centring leaves so little of their kernels."""
    rng = np.random.default_rng(examples)
    layers = [apart * np.eye(examples, dtype=int) + rng.integers(-9, 10, (examples, examples)) for _ in range(2)]
    found = cka_matrix([layer.astype(float) for layer in layers], "rbf", debiased=True)
    assert found[0, 1] == pytest.approx(exact_debiased(layers), abs=1e-14 * apart)
    np.testing.assert_allclose(found.diagonal(), 1, rtol=1e-12)


@pytest.mark.parametrize("examples", [4, 7])
def test_examples_as_far_from_one_another_have_no_debiased_value(examples):
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((examples, examples)))[0]
    biased, debiased = cka_matrix([np.eye(examples) @ turn, 3 * np.eye(examples)], "rbf", debiased="both")
    np.testing.assert_allclose(biased, 1, rtol=1e-12)
    assert np.isnan(debiased).all()
