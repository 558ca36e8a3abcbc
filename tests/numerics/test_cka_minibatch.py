"""CKA accumulated over batches against the mean of plain unbiased HSICs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import drifting_states, few, oracle, seeds

import raysweep as rs
from raysweep.numerics.minibatch import MinibatchCKA


def plain_hsic_1(K_NN, L_NN):
    """Song et al. (2012), eq. 5, as printed."""
    n = len(K_NN)
    K, L = (A_NN - np.diag(np.diag(A_NN)) for A_NN in (K_NN, L_NN))
    one = np.ones(n)
    total = np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ K @ L @ one
    return total / (n * (n - 3))


def plain_minibatch(batches, other_batches):
    def mean(left, right, i, j):
        return np.mean([plain_hsic_1(X[i] @ X[i].T, Y[j] @ Y[j].T) for X, Y in zip(left, right, strict=True)])

    rows, cols = range(len(batches[0])), range(len(other_batches[0]))
    return np.array(
        [
            [
                mean(batches, other_batches, i, j)
                / np.sqrt(mean(batches, batches, i, i) * mean(other_batches, other_batches, j, j))
                for j in cols
            ]
            for i in rows
        ]
    )


@few
@given(seed=seeds, sizes=st.lists(st.integers(6, 14), min_size=1, max_size=4))
def test_equals_the_mean_over_batches(seed, sizes):
    batches = [drifting_states(seed + place, 3, size, 6) for place, size in enumerate(sizes)]
    others = [drifting_states(seed + 9 + place, 2, size, 4) for place, size in enumerate(sizes)]
    one, two = MinibatchCKA(), MinibatchCKA()
    for X_LBD, Y_MBD in zip(batches, others, strict=True):
        one.update(torch.from_numpy(X_LBD))
        two.update(X_LBD, Y_MBD)
    assert one.batches == len(sizes)
    np.testing.assert_allclose(one.value(), plain_minibatch(batches, batches), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(two.value(), plain_minibatch(batches, others), rtol=1e-8, atol=1e-8)


def test_one_batch_is_the_debiased_value():
    X_LND = drifting_states(0, 4, 80, 12).astype(np.float32)
    cka = rs.MinibatchCKA()
    cka.update(X_LND)
    np.testing.assert_allclose(cka.value(), oracle(X_LND)[1], rtol=0, atol=1e-6)


def test_batches_estimate_what_all_examples_do():
    X_LND = drifting_states(0, 4, 1200, 12)
    cka = MinibatchCKA()
    for start in range(0, 1200, 40):
        cka.update(X_LND[:, start : start + 40])
    np.testing.assert_allclose(cka.value(), oracle(X_LND)[1], rtol=0, atol=0.03)


def test_a_layer_constant_in_all_batches_is_nan_and_in_one_adds_nothing():
    X_LBD, Y_LBD = drifting_states(0, 3, 10, 6), drifting_states(1, 3, 10, 6)
    X_LBD[1] = Y_LBD[1] = 2.5
    cka = MinibatchCKA()
    cka.update(X_LBD)
    cka.update(Y_LBD)
    np.testing.assert_array_equal(np.isnan(cka.value()).all(axis=0), [False, True, False])
    cka.update(drifting_states(2, 3, 10, 6))
    assert np.isfinite(cka.value()).all()


def test_what_is_refused_does_not_count():
    cka = MinibatchCKA()
    with pytest.raises(ValueError, match="no batch has been seen; call update first"):
        cka.value()
    X_LBD = drifting_states(0, 3, 10, 6)
    cka.update(X_LBD)
    before = cka.value()
    spoilt = X_LBD.copy()
    spoilt[2, 7, 1] = np.inf
    for states, message in [
        (X_LBD[:, :3], "batch 1: the unbiased HSIC needs at least 4 examples, got 3"),
        (X_LBD[:2], r"batch 1: the models' layers are \(2, 0\), in the batches before \(3, 0\)"),
        (spoilt, "batch 1: layer 2: .*example 7 has inf in dimension 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            cka.update(states)
    assert cka.batches == 1
    np.testing.assert_array_equal(cka.value(), before)
