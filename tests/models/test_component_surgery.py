"""Components out of a layer's states: against plain algebra in float64, and the model as it was afterwards, whatever happened."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel

from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.blocks import find_blocks
from raysweep.models.surgery import Positions, orthonormal_rows, part_within, removed

Tiny = Callable[..., PreTrainedModel]
KINDS = ["llama", "gpt2", "falcon"]
TOKENS = torch.tensor([[5, 7, 11, 13, 2, 3], [1, 2, 3, 4, 9, 8]])
LAYER = 1


def directions(k: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    """Neither orthogonal nor of one length."""
    rows = torch.randn(k, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows * torch.arange(1, k + 1)[:, None]


def output_of(model: PreTrainedModel, layer: int = LAYER) -> np.ndarray:
    """The block's output in float64 [B, T, D], by a hook of the test's own put behind all others."""
    seen: list[torch.Tensor] = []
    block = find_blocks(model)[layer]
    handle = block.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
    handle.remove()
    return seen[0].double().numpy()


def state_of(model: PreTrainedModel) -> list[Any]:
    hooks = [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()]
    return [*hooks, *((name, id(p), p._version) for name, p in model.named_parameters())]


def project_out(H: np.ndarray, C: np.ndarray) -> np.ndarray:
    """H without its part in the rows of C, by the normal equations."""
    return H - H @ C.T @ np.linalg.solve(C @ C.T, C)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3])
def test_project_leaves_nothing_in_the_subspace_and_everything_outside_it(kind: str, k: int, tiny: Tiny) -> None:
    model, C = tiny(kind), directions(k)
    before = output_of(model)
    with removed(model, LAYER, C, positions="all"):
        after = output_of(model)
    np.testing.assert_allclose(after, project_out(before, C.numpy()), atol=1e-5 * np.abs(before).max())
    unit = C.numpy() / np.linalg.norm(C, axis=1, keepdims=True)
    assert (np.abs(after @ unit.T) / np.linalg.norm(before, axis=-1, keepdims=True)).max() < 1e-6


def test_only_the_chosen_tokens_change_and_the_others_not_by_a_bit(tiny: Tiny) -> None:
    model, C = tiny("llama"), directions(2)
    before = output_of(model)
    cases: list[tuple[Positions | slice, list[int]]] = [("last", [5]), ("all", list(range(6))), (slice(2, 4), [2, 3])]
    for positions, changed in cases:
        with removed(Adapter(model), LAYER, C, positions=positions):
            after = output_of(model)
        differs = (after != before).any(axis=(0, 2))
        assert [t for t in range(6) if differs[t]] == list(changed)


def test_paper_subtracts_the_stored_part_whatever_the_state(tiny: Tiny) -> None:
    model, C = tiny("llama"), directions(2)
    before = output_of(model)
    stored = torch.from_numpy(before[:, -1])
    part = before[:, -1] - project_out(before[:, -1], C.numpy())
    with removed(model, LAYER, C, mode="paper", positions="all", stored_D=stored):
        of_each = output_of(model)
    np.testing.assert_allclose(of_each, before - part[:, None], atol=1e-5)
    with removed(model, LAYER, C, mode="paper", positions="all", stored_D=stored[0]):
        of_first = output_of(model)
    np.testing.assert_allclose(of_first, before - part[0], atol=1e-5)
    with removed(model, LAYER, C):
        np.testing.assert_allclose(output_of(model)[:, -1], of_each[:, -1], atol=1e-5)


def test_a_mean_that_is_kept_stays(tiny: Tiny) -> None:
    model, C = tiny("llama"), directions(2)
    before = output_of(model)
    mean = before.reshape(-1, 16).mean(axis=0)
    with removed(model, LAYER, C, positions="all", mean_D=torch.from_numpy(mean)):
        after = output_of(model)
    np.testing.assert_allclose(after, mean + project_out(before - mean, C.numpy()), atol=1e-5)


def test_without_a_direction_nothing_is_hooked(tiny: Tiny) -> None:
    model = tiny("gpt2")
    before, untouched = output_of(model), state_of(model)
    for nothing in (torch.empty(0, 16), torch.zeros(2, 16)):
        with removed(model, LAYER, nothing, positions="all"):
            assert state_of(model) == untouched
            assert np.array_equal(output_of(model), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_as_before_after_an_exception(kind: str, error: type[BaseException], tiny: Tiny) -> None:
    model = tiny(kind)
    before, logits = state_of(model), output_of(model, 3)

    def fail() -> None:
        with removed(model, LAYER, directions(3)), removed(model, 2, directions(1)):
            assert state_of(model) != before
            assert not np.array_equal(output_of(model, 3), logits)
            raise error("out of memory")

    with pytest.raises(error):
        fail()
    assert state_of(model) == before
    assert np.array_equal(output_of(model, 3), logits)


class _Tupled(nn.Module):
    """A block of another model's, which returns a tuple or list."""

    def __init__(self, block: nn.Module, several: type) -> None:
        super().__init__()
        self.block, self.several = block, several

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.several((self.block(*args, **kwargs), "weights"))


@pytest.mark.parametrize("several", [tuple, list])
def test_a_block_may_return_a_tuple_and_what_comes_with_the_states_is_kept(several: type, tiny: Tiny) -> None:
    model, C = tiny("llama"), directions(2)
    blocks = find_blocks(model)
    states = torch.randn(2, 3, 16)
    real = blocks[0]
    blocks[0] = _Tupled(nn.Identity(), several)
    try:
        with removed(model, 0, C, positions="all"):
            out = blocks[0](states)
    finally:
        blocks[0] = real
    assert out[1] == "weights"
    np.testing.assert_allclose(out[0], project_out(states.double().numpy(), C.numpy()), atol=1e-5)


def test_what_is_no_states_is_refused_and_the_hook_removed(tiny: Tiny) -> None:
    model = tiny("llama")
    before = state_of(model)
    block = find_blocks(model)[0]
    with removed(model, 0, directions(1)):
        (hook,) = block._forward_hooks.values()
        with pytest.raises(
            InputError, match=r"LlamaDecoderLayer does not return states \[B, T, D\], but \(2, 1, 6, 16\); "
        ):
            hook(block, (), torch.zeros(2, 1, 6, 16))
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"layer": 4}, IndexError, "layer 4 is not among 4 layers"),
        ({"layer": -1}, IndexError, "layer -1 is not among 4 layers"),
        ({"mode": "projekt"}, InputError, "unknown mode 'projekt'; did you mean 'project'?"),
        ({"positions": "lst"}, InputError, "unknown positions 'lst', and no slice; did you mean 'last'?"),
        ({"mode": "paper"}, InputError, "mode 'paper' needs stored_D, the state whose part is subtracted"),
        ({"stored_D": torch.zeros(16)}, InputError, "mode 'project' has no use for stored_D, the state"),
        ({"components_KD": torch.ones(1, 8)}, InputError, "components_KD has width 8, and the model's states have 16"),
        ({"mean_D": torch.ones(4)}, InputError, "mean_D has width 4, and the model's states have 16"),
        ({"components_KD": torch.ones(16)}, InputError, "components are finite directions [K, D], a row each; got a "),
        (
            {"components_KD": torch.full((1, 16), torch.nan)},
            InputError,
            "components are finite directions [K, D], a row each; got values that are not finite",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(
    asked: dict[str, Any], error: type[Exception], message: str, tiny: Tiny
) -> None:
    model = tiny("llama")
    before = state_of(model)
    values = {"layer": LAYER, "components_KD": torch.ones(1, 16), **asked}
    with (
        pytest.raises(error, match=re.escape(message)),
        removed(model, values.pop("layer"), values.pop("components_KD"), **values),
    ):
        pytest.fail("the context was entered")
    assert state_of(model) == before


@settings(deadline=None, max_examples=60)
@given(
    k=st.integers(1, 6),
    width=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    doubled=st.booleans(),
)
def test_the_basis_spans_what_the_rows_span(k: int, width: int, seed: int, scale: float, doubled: bool) -> None:
    rng = np.random.default_rng(seed)
    C = rng.normal(size=(k, width)) * np.array([scale, *[1.0] * (k - 1)])[:, None]
    C = np.concatenate([C, 3 * C[:1]]) if doubled else C
    basis = orthonormal_rows(torch.from_numpy(C))
    assert len(basis) == min(k, width)
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-12)
    np.testing.assert_allclose(part_within(torch.from_numpy(C), basis), C, atol=1e-9 * np.abs(C).max())
    H = torch.from_numpy(rng.normal(size=(5, width)))
    rest = H - part_within(H, basis)
    np.testing.assert_allclose(part_within(rest, basis), 0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_what_is_left_of_wide_states_is_their_rounding(dtype: torch.dtype, limit: float, tiny: Tiny) -> None:
    """4096 dimensions, one of them a thousand times as large, as massive activations are."""
    model, C = tiny("llama"), directions(10, 4096)
    model.config.hidden_size = 4096
    H = torch.randn(2, 30, 4096, generator=torch.Generator().manual_seed(1))
    H[..., 7] *= 1000
    H = H.to(dtype)
    with removed(model, 0, C, positions="all"):
        (hook,) = find_blocks(model)[0]._forward_hooks.values()
        after = hook(find_blocks(model)[0], (), H)
    assert after.dtype == dtype
    left = (after.double() @ orthonormal_rows(C).T).abs().amax(dim=-1) / H.double().norm(dim=-1)
    assert left.max() < limit
