"""The ways to CKA's products (examples, dimensions, a device; tiles, groups, threads) give one result."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import drifting_states, few, oracle, seeds

from raysweep.numerics import blas_threads, linear_products
from raysweep.numerics.cka import cka_matrix
from raysweep.numerics.cross_products import cross_products, groups_for
from raysweep.numerics.device_products import device_products, device_tile, on_one_device
from raysweep.numerics.gram_tiles import tile_for, tile_products
from raysweep.numerics.linear_products import cheaper_by_dimensions
from raysweep.numerics.products import Accumulator, normalised

DOUBLE, SINGLE = np.dtype(np.float64), np.dtype(np.float32)


def unlike_layers(seed, examples, widths=(3, 1, 4, 2)):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((examples, width)) + 5 for width in widths]


@few
@given(seed=seeds, examples=st.integers(4, 60), depth=st.integers(1, 5), dtype=st.sampled_from([DOUBLE, SINGLE]))
def test_products_of_dimensions_equal_the_oracle(seed, examples, depth, dtype):
    layers = unlike_layers(seed, examples)
    for groups in ([slice(0, 4)], [slice(0, 1), slice(1, 3), slice(3, 4)]):
        products = cross_products(layers, groups, dtype)
        for F_LL, expected in zip((products.biased, products.debiased), oracle(layers), strict=True):
            np.testing.assert_allclose(normalised(F_LL), expected, rtol=0, atol=1e-9 if dtype == DOUBLE else 2e-4)


def test_many_rows_are_read_block_by_block():
    layers = [states.astype(np.float32) for states in unlike_layers(0, 1300)]
    assert cheaper_by_dimensions(layers)
    np.testing.assert_allclose(cka_matrix(layers, debiased="both"), oracle(layers), rtol=0, atol=1e-6)
    np.testing.assert_allclose(cka_matrix(layers, tile=600, debiased="both"), oracle(layers), rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [1.7, 3.0])
@pytest.mark.parametrize("examples", [300, 2000])
def test_a_layer_that_multiplies_the_one_before_is_no_more_than_alike(examples, factor):
    """Products of dimensions are rounded each by itself, and do not keep below one what kernels of examples do."""
    X_ND = np.random.default_rng(0).standard_normal((examples, 16)).astype(np.float32) + 3
    layers = np.stack([X_ND, np.float32(factor) * X_ND, X_ND[::-1]])
    assert cheaper_by_dimensions(layers)
    S_LL = cka_matrix(layers)
    assert S_LL.max() <= 1 + 1e-12
    np.testing.assert_allclose(S_LL, oracle(layers)[0], rtol=0, atol=1e-12)


def test_the_cheaper_way_is_the_one_with_fewer_multiplications():
    wide, narrow = np.zeros((2, 100, 400)), np.zeros((2, 100, 10))
    assert not cheaper_by_dimensions(wide)
    assert cheaper_by_dimensions(narrow)


@few
@given(seed=seeds, examples=st.integers(4, 30), tile=st.integers(1, 31))
def test_a_device_computes_the_same(seed, examples, tile):
    """On the CPU's tensors, which the same code takes."""
    layers = [torch.from_numpy(states) for states in unlike_layers(seed, examples)]
    products = device_products(layers, tile)
    for F_LL, expected in zip((products.biased, products.debiased), oracle(layers), strict=True):
        np.testing.assert_allclose(normalised(F_LL), expected, rtol=0, atol=1e-9)


class _On:
    def __init__(self, device):
        self.device = device
        self.shape = (10, 4)


def test_only_states_on_one_cuda_device_are_computed_there():
    assert on_one_device([_On("cuda:1"), _On("cuda:1")])
    assert not on_one_device([_On("cuda:0"), _On("cuda:1")])
    assert not on_one_device([_On("cpu"), _On("cpu")])
    assert not on_one_device([np.zeros((3, 2))])
    assert device_tile(10**9, [_On("cuda")]) == 10
    assert device_tile(8 * (1 * 5**2 + 3 * 4 * 5), [_On("cuda")]) == 5


@pytest.mark.parametrize("memory", [300_000, 2**20, 2**28])
def test_memory_chooses_tiles_and_changes_nothing(memory, monkeypatch):
    monkeypatch.setattr("raysweep.numerics.products._CHUNK_NUMBERS", 2**10)
    X_LND = drifting_states(0, 5, 150, 64).astype(np.float32)
    tile = tile_for(memory, list(X_LND), SINGLE)
    taken = 4 * (5 * tile**2 + 2 * blas_threads.workers() * tile * 64)
    assert tile == 150 or tile < 150
    assert taken + Accumulator.memory(5, 150) <= memory
    np.testing.assert_allclose(cka_matrix(X_LND, debiased="both", memory=memory), oracle(X_LND), rtol=0, atol=1e-6)


def test_too_little_memory_is_refused_with_what_it_takes():
    X_LND = drifting_states(0, 5, 80, 64)
    with pytest.raises(
        ValueError, match=r"memory of 1000 bytes is too little for these layers; it takes (\d+) at least"
    ):
        cka_matrix(X_LND, memory=1000)
    narrow = drifting_states(0, 2, 80, 3)
    assert cheaper_by_dimensions(list(narrow))
    with pytest.raises(
        ValueError, match=r"memory of 1000 bytes is too little for these layers; it takes (\d+) at least"
    ) as refused:
        cka_matrix(narrow, memory=1000)
    least = int(str(refused.value).split("takes ")[1].split()[0])
    np.testing.assert_allclose(cka_matrix(narrow, memory=least), oracle(narrow)[0], rtol=0, atol=1e-10)


def test_groups_of_dimensions_fit_into_the_memory():
    layers = list(np.zeros((6, 500, 10)))
    assert groups_for(2**28, layers, DOUBLE) == [slice(0, 6)]
    room = 16 * 6 * 500 + 16 * 20**2 + 3 * 500 * 8 * 20
    assert groups_for(room, layers, DOUBLE) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert len(groups_for(room - 1, layers, DOUBLE)) == 6


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing_but_rounding(threads, monkeypatch):
    X_LND = drifting_states(0, 5, 90, 32).astype(np.float32)
    expected = cka_matrix(X_LND, debiased="both", tile=40)
    for module in ("gram_tiles", "products"):
        monkeypatch.setattr(f"raysweep.numerics.{module}.workers", lambda: threads)
    np.testing.assert_allclose(cka_matrix(X_LND, debiased="both", tile=40), expected, rtol=0, atol=1e-12)


def test_states_need_not_be_in_memory():
    class Lazy:
        """Rows made when they are asked for, each slice once."""

        shape, dtype = (200, 16), "float32"

        def __init__(self, seed):
            self.read = 0
            self._states = np.random.default_rng(seed).standard_normal(self.shape).astype(np.float32)

        def __getitem__(self, rows):
            self.read = max(self.read, rows.stop - rows.start)
            return self._states[rows].copy()

    layers = [Lazy(0), Lazy(1)]
    S_LL = cka_matrix(layers, tile=50)
    np.testing.assert_allclose(S_LL, oracle([layer._states for layer in layers])[0], rtol=0, atol=1e-6)


def test_a_tile_must_be_whole(monkeypatch):
    products = tile_products(list(drifting_states(0, 2, 7, 3)), 3, DOUBLE)
    whole = tile_products(list(drifting_states(0, 2, 7, 3)), 7, DOUBLE)
    np.testing.assert_allclose(products.inner, whole.inner, rtol=1e-12)
    np.testing.assert_allclose(products.diagonals, whole.diagonals, rtol=1e-12)
    assert linear_products.linear_products(list(drifting_states(0, 2, 7, 3)), 3, 0, debiased=True)[1].tolist() == [
        False,
        False,
    ]
