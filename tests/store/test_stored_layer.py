"""Layers of a store read a few rows at a time, and CKA computed from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from stored import DTYPES, bits_of, random_bits, write

from raysweep.errors import StoreError
from raysweep.numerics.cka import cka_matrix
from raysweep.store import activation_writing
from raysweep.store.activations import open_activations


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows_of", [[11], [4, 0, 6, 1]])
def test_any_slice_is_bit_exact(
    tmp_path: Path, dtype: str, rows_of: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_writing, "BATCH_BYTES", 3 * (5 * 4 + 20))  # several record batches a file
    bits_LND, states_LND = random_bits(dtype, (2, 11, 5))
    write(tmp_path, states_LND, rows_of)
    layers = open_activations(tmp_path).stored_layers()
    assert len(layers) == 2
    for bits_ND, layer in zip(bits_LND, layers, strict=True):
        assert layer.shape == (11, 5)
        assert layer.dtype == states_LND.dtype
        for rows in (slice(None), slice(0, 1), slice(3, 9), slice(10, 11), slice(5, 5), slice(-2, None), slice(8, 99)):
            np.testing.assert_array_equal(bits_of(layer[rows]), bits_ND[rows])


def test_rows_are_read_in_their_order_only(tmp_path: Path) -> None:
    write(tmp_path, torch.zeros(1, 4, 3))
    with pytest.raises(IndexError, match="found step 2"):
        open_activations(tmp_path).stored_layers()[0][::2]


def test_no_rows(tmp_path: Path) -> None:
    write(tmp_path, torch.zeros(1, 0, 3))
    layer = open_activations(tmp_path).stored_layers()[0]
    assert layer.shape == (0, 3)
    assert tuple(layer[:].shape) == (0, 3)


def test_a_file_cut_short_meanwhile_is_told(tmp_path: Path) -> None:
    entries = write(tmp_path, torch.zeros(1, 40, 3))
    layer = open_activations(tmp_path).stored_layers()[0]
    path = tmp_path / entries[0].path
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(StoreError, match=r"part-0000.arrow: ends \d+ bytes before the rows that it had"):
        layer[:]


@pytest.mark.parametrize("dtype", DTYPES)
def test_cka_from_the_store_equals_cka_from_memory(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    states_LND = torch.tensor(rng.standard_normal((3, 150, 200)).cumsum(axis=0)).to(getattr(torch, dtype))
    write(tmp_path, states_LND, [70, 80])
    stored = cka_matrix(open_activations(tmp_path).stored_layers(), debiased="both", tile=64)
    np.testing.assert_allclose(stored, cka_matrix(states_LND, debiased="both"), rtol=0, atol=1e-7)
