"""Spectra against closed forms, numpy's own decompositions, scipy's subspace angles and a plain canonical correlation analysis."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import few, seeds

from raysweep.numerics.spectral import (
    canonical_correlations,
    decompose,
    effective_rank,
    explained_shares,
    participation_ratio,
    principal_angle_cosines,
    principal_components,
    stable_rank,
)

SHAPES = [(30, 50), (50, 30), (40, 40)]


def orthonormal(rows, columns, rng):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def built(examples, width, singular_values, seed=0, mean=0.0):
    """States with known singular values and vectors: (states, left [N, K], right [D, K])."""
    rng = np.random.default_rng(seed)
    k = len(singular_values)
    left = orthonormal(examples, k + 1, rng)
    left[:, 0] = 1.0  # what is orthogonal to it is centred
    left = np.linalg.qr(left)[0][:, 1:]
    right = orthonormal(width, k, rng)
    return left @ np.diag(singular_values) @ right.T + mean, left, right


def same_up_to_sign(ours, theirs, atol):
    np.testing.assert_allclose(np.abs(ours @ theirs), np.eye(len(ours)), rtol=0, atol=atol)


@pytest.mark.parametrize(("examples", "width"), SHAPES)
def test_known_components_come_back(examples, width):
    sigma = np.array([40.0, 20.0, 5.0, 1.0, 0.5])
    states, left, right = built(examples, width, sigma, mean=np.linspace(-300, 700, width))
    found = decompose(states, 5)
    np.testing.assert_allclose(found.singular_values[:5], sigma, rtol=1e-11)
    assert (found.rank, found.constant, found.singular_values.shape) == (5, False, (min(examples, width),))
    same_up_to_sign(found.left, left, 1e-10)
    same_up_to_sign(found.right, right, 1e-10)
    mean, components, singular_values = principal_components(states, 3)
    np.testing.assert_allclose(mean, states.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(singular_values, sigma[:3], rtol=1e-11)
    assert components.shape == (3, width)
    assert all(row[np.abs(row).argmax()] > 0 for row in components), "the sign does not depend on the machine"


@pytest.mark.parametrize(("examples", "width"), SHAPES)
def test_small_components_beside_a_massive_one_are_kept(examples, width):
    """Squared, as in a Gram, the small ones would be 1e-16 of the largest: lost in float64."""
    sigma = [1e6, 2e-2, 1e-2, 5e-3]
    states, left, right = built(examples, width, sigma)
    found = decompose(states, 4)
    np.testing.assert_allclose(found.singular_values[:4], sigma, rtol=1e-6)
    same_up_to_sign(found.left, left, 1e-6)
    same_up_to_sign(found.right, right, 1e-6)
    gram = states @ states.T if examples < width else states.T @ states
    by_gram = np.sqrt(np.abs(np.linalg.eigvalsh(gram)[::-1][:4]))
    assert abs(by_gram[2] / sigma[2] - 1) > 0.01, "why no Gram is used"


@pytest.mark.parametrize(("examples", "width"), SHAPES)
def test_components_are_the_covariance_matrix_s_own(examples, width):
    states = np.random.default_rng(1).standard_normal((examples, width)) * np.geomspace(5, 0.5, width) + 10
    variances, directions = np.linalg.eigh(np.cov(states.T))
    _, components, singular_values = principal_components(states, 4)
    np.testing.assert_allclose(singular_values**2 / (examples - 1), variances[::-1][:4], rtol=1e-10)
    same_up_to_sign(components, directions[:, ::-1][:, :4], 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_of_a_lower_precision_on_a_large_common_mean(dtype):
    """What is decomposed is the stored values' own spectrum, in float64."""
    states, _, _ = built(60, 40, np.geomspace(60, 6, 12), mean=100.0)
    stored = torch.from_numpy(states).to(dtype)
    plain = stored.double().numpy()
    expected = np.linalg.svd(plain - plain.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(decompose(stored, 3).singular_values, expected, rtol=1e-9, atol=1e-9)


def test_what_rounding_alone_would_give_is_no_component():
    states, _, _ = built(80, 50, [30.0, 10.0, 3.0], mean=1.0)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        found = decompose(torch.from_numpy(states).to(dtype), 10)
        assert found.rank == len(found.left) == len(found.right) == 3, dtype
        assert found.singular_values[3] < found.rounding < 3.0


def test_rounding_is_bounded_closely():
    """Not so low that roundings pass for components, nor so high that it hides what stands above them."""
    rng = np.random.default_rng(3)
    for scale, mean in ((1.0, 0.0), (1.0, 100.0), (np.r_[1000.0, np.ones(199)], 0.0)):
        states = torch.from_numpy(rng.standard_normal((100, 200)) * scale + mean)
        error = (states.bfloat16().double() - states).numpy()
        largest = np.linalg.norm(error - error.mean(axis=0), 2)
        assert largest < decompose(states.bfloat16(), 1).rounding / 4 < 8 * largest


def test_a_factor_of_any_size_changes_nothing_but_the_singular_values():
    states, _, _ = built(20, 30, [3.0, 2.0, 1.0])
    plain = decompose(states, 2)
    for factor in (1e-140, 1e140):
        scaled = decompose(states * factor, 2)
        np.testing.assert_allclose(scaled.singular_values[:3] / factor, plain.singular_values[:3], rtol=1e-12)
        np.testing.assert_allclose(scaled.left, plain.left, atol=1e-12)
        assert (scaled.rank, scaled.determined(2)) == (3, True)
        assert effective_rank(scaled.singular_values[:3]) == pytest.approx(effective_rank([3, 2, 1]), rel=1e-10)


def test_gaps_tell_which_components_are_determined():
    found = decompose(built(40, 30, [4.0, 3.0, 3.0, 1.0, 1.0 - 1e-10])[0], 5)
    assert [found.gap(k) for k in (1, 2, 3, 5)] == pytest.approx([1 - 9 / 16, 0, 1 - 1 / 9, 1])
    assert found.gap(4) == pytest.approx(2e-10, rel=1e-3)
    assert [found.determined(k) for k in range(1, 6)] == [True, False, True, False, True]
    single = decompose(built(40, 30, [4.0, 4.0 - 1e-8])[0].astype(np.float32), 2)
    assert not single.determined(1), "float32 states do not tell such singular values apart"


@pytest.mark.parametrize(
    ("states", "k", "said"),
    [
        (np.ones((5, 3)), 1, "1 components are asked for, and the states have 0: all examples have the same state"),
        (np.eye(5), 5, "5 components are asked for, and the states have 4: 5 examples have 4 components at most"),
        (
            np.random.default_rng(0).standard_normal((9, 3)),
            4,
            "4 components are asked for, and the states have 3: the states have 3 dimensions",
        ),
        (
            built(9, 8, [2.0, 1.0])[0],
            3,
            "3 components are asked for, and the states have 2: the rest is no larger than the rounding of the states",
        ),
        (np.array([[0.0, np.nan], [1, 2]]), 1, "states are not all finite: example 0 has nan in dimension 1"),
        (np.array([[0.0, np.inf], [1, 2]]), 1, "states are not all finite: example 0 has inf in dimension 1"),
        (np.ones(4), 1, "states of shape (4,); expected [N, D] with N at least 2"),
        (np.ones((1, 4)), 1, "states of shape (1, 4); expected [N, D] with N at least 2"),
    ],
)
def test_refusals(states, k, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        principal_components(states, k)


@few
@given(seeds, st.integers(2, 12))
def test_ranks_by_their_formulas(seed, n):
    sigma = np.sort(np.random.default_rng(seed).uniform(0.01, 5, n))[::-1]
    p = sigma / sigma.sum()
    shares = sigma**2 / (sigma**2).sum()
    assert effective_rank(sigma) == pytest.approx(math.prod(float(x) ** -float(x) for x in p))
    assert participation_ratio(sigma) == pytest.approx(1 / (shares**2).sum())
    assert stable_rank(sigma) == pytest.approx(1 / shares[0])
    np.testing.assert_allclose(explained_shares(sigma), shares)
    assert 1 <= stable_rank(sigma) <= participation_ratio(sigma) * (1 + 1e-12) <= effective_rank(sigma) * (1 + 2e-12)
    assert effective_rank(sigma) <= n * (1 + 1e-12)


def test_ranks_of_equal_and_of_no_components():
    for measure in (effective_rank, participation_ratio, stable_rank):
        assert measure([2.5] * 7) == pytest.approx(7)
        assert measure([3.0, 0.0, 0.0]) == pytest.approx(1)
        assert math.isnan(measure([0.0, 0.0]))
        assert math.isnan(measure([]))
    assert np.isnan(explained_shares([0.0])).all()


def two_layers(seed, examples, width):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((examples, width)) * np.geomspace(4, 0.3, width)
    return x, x @ orthonormal(width, width, rng) + rng.standard_normal((examples, width))


def plain_cca(x, y, k):
    """Canonical correlations of the first k principal components' scores, by the eigenvalues of Σxx⁻¹ Σxy Σyy⁻¹ Σyx."""
    scores = []
    for states in (x, y):
        centred = states - states.mean(axis=0)
        directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :k]
        scores.append(centred @ directions)
    a, b = scores
    product = np.linalg.solve(a.T @ a, a.T @ b) @ np.linalg.solve(b.T @ b, b.T @ a)
    return np.sqrt(np.sort(np.linalg.eigvals(product).real)[::-1])


@pytest.mark.parametrize(("examples", "width"), SHAPES)
@pytest.mark.parametrize("k", [1, 3, 10])
def test_canonical_correlations_and_angles_against_independent_ones(examples, width, k):
    x, y = two_layers(5, examples, width)
    found = decompose(x, 10), decompose(y, 10)
    np.testing.assert_allclose(canonical_correlations(*found, k), plain_cca(x, y, k), rtol=0, atol=1e-9)
    spaces = [np.linalg.eigh(np.cov(states.T))[1][:, ::-1][:, :k] for states in (x, y)]
    expected = np.cos(scipy.linalg.subspace_angles(*spaces))[::-1]
    np.testing.assert_allclose(principal_angle_cosines(*found, k), expected, rtol=0, atol=1e-9)


@few
@given(seeds, st.integers(1, 6), st.sampled_from([(12, 20), (20, 12)]))
def test_invariances_and_range(seed, k, shape):
    x, y = two_layers(seed, *shape)
    rng = np.random.default_rng(seed + 1)
    turn, width = orthonormal(shape[1], shape[1], rng), shape[1]
    dx, dy = decompose(x, k), decompose(y, k)
    moved = decompose(x @ turn * 3.7 + rng.standard_normal(width), k)
    together = decompose(y @ turn - 5.0, k)
    # how far rounding turns a subspace, by Wedin
    slack = 1e-12 * max(d.singular_values[0] / (d.singular_values[k - 1] - d.singular_values[k]) for d in (dx, dy))
    cca, cosines = canonical_correlations(dx, dy, k), principal_angle_cosines(dx, dy, k)
    np.testing.assert_allclose(canonical_correlations(moved, dy, k), cca, rtol=0, atol=slack)
    np.testing.assert_allclose(canonical_correlations(dy, dx, k), cca, rtol=0, atol=1e-13)
    np.testing.assert_allclose(principal_angle_cosines(moved, together, k), cosines, rtol=0, atol=slack)
    np.testing.assert_allclose(principal_angle_cosines(dy, dx, k), cosines, rtol=0, atol=1e-13)
    for values in (cca, cosines):
        assert ((values >= 0) & (values <= 1 + 1e-12)).all()
        assert (np.diff(values) <= 0).all()
    for same in (canonical_correlations(dx, moved, k), principal_angle_cosines(dx, dx, k)):
        np.testing.assert_allclose(same, 1, rtol=0, atol=slack)


def test_independent_layers_share_what_the_docstring_says():
    rng = np.random.default_rng(0)
    examples, width, k = 25, 40, 4
    squares = []
    for _ in range(400):
        x, y = (decompose(rng.standard_normal((examples, width)), k) for _ in range(2))
        squares.append([(of(x, y, k) ** 2).mean() for of in (canonical_correlations, principal_angle_cosines)])
    np.testing.assert_allclose(np.mean(squares, axis=0), [k / (examples - 1), k / width], rtol=0.04)


def test_subspaces_that_cannot_be_compared():
    x, y = decompose(np.eye(6), 3), decompose(np.eye(6, 4), 2)
    with pytest.raises(ValueError, match="3 components of each side are asked for, and there are 3 and 2"):
        canonical_correlations(x, y, 3)
    with pytest.raises(ValueError, match="vectors of 6 and 4 coordinates cannot be compared"):
        principal_angle_cosines(x, y, 2)


_THREADED = """
import numpy as np
from raysweep.numerics.spectral import canonical_correlations, decompose
rng = np.random.default_rng(0)
x = rng.standard_normal((200, 600)).astype(np.float32) * np.geomspace(30, 1, 600, dtype=np.float32)
a, b = decompose(x, 10), decompose(x + rng.standard_normal(x.shape), 10)
print(repr([*a.singular_values[:10] / a.singular_values[0], *canonical_correlations(a, b, 10), *a.right[9, :50]]))
"""


def test_threads_change_nothing_that_is_told():
    found = []
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, threads)}
        ran = subprocess.run(
            [sys.executable, "-c", _THREADED], env=environment, capture_output=True, text=True, check=True
        )
        found.append(eval(ran.stdout, {"np": np}))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-6)
