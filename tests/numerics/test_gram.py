"""What may come in as states, and what is refused."""

import numpy as np
import pytest
import torch

from raysweep.numerics.gram import as_float64, read_layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_torch_tensors_are_read_without_loss(dtype):
    tensor = torch.tensor([1.0, -0.3, 2.0**-14, 300.0], dtype=torch.float64).to(dtype).requires_grad_()
    values = as_float64(tensor)
    assert values.dtype == np.float64
    assert values.tolist() == tensor.tolist()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "no layers"),
        ([np.zeros(3)], r"layer 0: states of shape \(3,\); expected \[N, D\]"),
        ([np.zeros((1, 3))], r"layer 0: states of shape \(1, 3\).*at least 2"),
        ([np.zeros((4, 0))], r"layer 0: states of shape \(4, 0\)"),
        ([np.zeros((4, 3)), np.zeros((5, 3))], "layer 1 has 5 examples, layer 0 has 4"),
        ([np.ones((4, 3)), np.array([[1.0, 2.0], [np.nan, 1.0], [0.0, 0.0], [3.0, 1.0]])], "layer 1: .*not all finite"),
        ([np.full((4, 3), np.inf)], "layer 0: .*not all finite"),
    ],
)
def test_unfit_states_are_refused_by_layer(layers, message):
    with pytest.raises(ValueError, match=message):
        read_layers(layers)


def test_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="unknown kernel 'poly'; known: linear, rbf"):
        read_layers(np.zeros((1, 4, 3)), "poly")
