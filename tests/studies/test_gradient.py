"""First order in the weights, against gradients by weights that torch takes of the model's own forward, and exact losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import DECODERS, build_pair
from transformers import PreTrainedModel

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.stream import StreamedModel
from raysweep.notebook import estimate, sweep
from raysweep.studies import gradient
from raysweep.studies.gradient import estimate_losses, first_order, nodes
from raysweep.studies.interventions import Intervention, check_changes
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair, Work, sweep_losses
from raysweep.studies.windows import Window

Draw = Callable[..., list[Example]]
MLP = ("mlp", "post_attention_layernorm")  # of Llama's layers


def plain_slopes(
    at: PreTrainedModel, step: dict[str, torch.Tensor], examples: list[Example], path: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Losses [N], and by stored weight ⟨∂loss/∂weight, its step⟩ [N], one example at a time by the model's own forward."""
    model = copy.deepcopy(at)
    blocks = model.get_submodule(path)
    for layer in range(len(blocks)):  # layers that share weights are given their own
        blocks[layer] = copy.deepcopy(blocks[layer])
    weights = {n: w for n, w in model.state_dict(keep_vars=True).items() if w.is_floating_point() and f"{path}." in n}
    for weight in weights.values():
        weight.requires_grad_(True)
    losses, slopes = [], {name: [] for name in weights}
    for example in examples:
        tokens = torch.from_numpy(example.tokens)[None]
        logits = model(input_ids=tokens, use_cache=False).logits[0, example.n_prompt - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.double(), tokens[0, example.n_prompt :])
        losses.append(float(loss.detach()))
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, slope in zip(weights, found, strict=True):
            slopes[name].append(0.0 if slope is None else float((slope.double() * step[name].double()).sum()))
    return np.array(losses), {name: np.array(values) for name, values in slopes.items()}


def plain_scores(base: PreTrainedModel, tuned: PreTrainedModel, examples: list[Example], path: str) -> Any:
    """Losses [N] and the layers' scores [L, N] at the tuned model."""
    ours, theirs = tuned.state_dict(), base.state_dict()
    step = {name: theirs[name] - weight for name, weight in ours.items() if weight.is_floating_point()}
    losses, slopes = plain_slopes(tuned, step, examples, path)
    scores = np.zeros((len(tuned.get_submodule(path)), len(examples)))
    for name, slope in slopes.items():
        scores[int(name.removeprefix(f"{path}.").split(".")[0])] += slope
    return losses, scores


def pair_of(base: PreTrainedModel, tuned: PreTrainedModel) -> Pair:
    return Pair(Adapter(base), Adapter(tuned))


@pytest.mark.parametrize("kind", DECODERS)
def test_scores_are_the_gradients_by_weights_on_every_architecture(kind, random_examples):
    base, tuned = build_pair(DECODERS[kind])
    examples = random_examples(5)
    losses, expected = plain_scores(base, tuned, examples, DECODERS[kind].block_path)
    found = first_order(pair_of(base, tuned), examples, batch_tokens=40)
    np.testing.assert_allclose(found.losses, losses, atol=1e-5)
    scale = np.abs(expected).max()
    assert np.abs(expected).min(axis=1).max() > 1e-3 * scale, "scores that a wrong row would not move show nothing"
    np.testing.assert_allclose(found.scores["layer"], expected, atol=1e-4 * scale)


@pytest.mark.parametrize("kept", [True, False])
def test_scores_are_the_same_at_every_batch_size_and_kept_or_made_anew(kept, tiny_pair, random_examples, monkeypatch):
    pair, examples = pair_of(*tiny_pair("qwen3")), random_examples(7)
    expected = first_order(pair, examples, batch_tokens=1)
    monkeypatch.setattr(gradient, "_fit", lambda flows, pair: kept)
    for budget in (30, 4096):
        work = Work()
        found = first_order(pair, examples, batch_tokens=budget, work=work)
        np.testing.assert_allclose(found.losses, expected.losses, atol=1e-5)
        np.testing.assert_allclose(found.scores["layer"], expected.scores["layer"], atol=1e-4)
    assert work.applications == (3 if kept else 4) * 4, "one batch, four layers"


def test_parts_are_the_slopes_of_their_weights(tiny_pair, random_examples):
    base, tuned = tiny_pair("llama")
    examples = random_examples(4)
    step = {name: weight - tuned.state_dict()[name] for name, weight in base.state_dict().items()}
    _, slopes = plain_slopes(tuned, step, examples, "model.layers")
    found = first_order(pair_of(base, tuned), examples, {"layer", "attention", "mlp"}).scores
    for part in ("attention", "mlp"):
        expected = np.zeros((4, 4))
        for name, slope in slopes.items():
            _, _, layer, child, *_ = name.split(".")
            expected[int(layer)] += slope if (child in MLP) == (part == "mlp") else 0
        np.testing.assert_allclose(found[part], expected, atol=1e-5)
    np.testing.assert_allclose(found["attention"] + found["mlp"], found["layer"], atol=1e-5)


def test_a_small_step_is_told_to_first_order(tiny_pair, random_examples):
    """Against exact losses of the same changes: what is left over shrinks as the square of the step."""
    pair, examples = pair_of(*(model.double() for model in tiny_pair("llama"))), random_examples(4)
    left = []
    for c in (1e-2, 1e-3):
        changes = check_changes(4, [2], sets={"ends": [0, 3]}, coefficients=[c])
        changes = [change for change in changes if change.coefficient == c]
        exact = sweep_losses(pair, examples, changes)
        untouched = sweep_losses(pair, examples, [Window(0, 0)])
        apart = np.abs(estimate_losses(pair, examples, changes) - exact).max()
        left.append(apart / np.abs(exact - untouched).max())
    assert left[0] < 0.1
    assert left[1] == pytest.approx(left[0] / 10, rel=0.2)


def test_points_sum_up_to_what_all_layers_cost(tiny_pair, random_examples):
    """The path integral from tuned to base, in either direction, and part of the way."""
    base, tuned = tiny_pair("llama")
    with torch.no_grad():  # a shorter way, that few points follow
        for ours, theirs in zip(tuned.parameters(), base.parameters(), strict=True):
            ours.copy_(theirs + 0.2 * (ours - theirs))
    pair, examples = pair_of(base.double(), tuned.double()), random_examples(4)
    everything = tuple(range(4))
    changes = [
        Window(0, 4),
        Intervention("window", everything, 0.5),
        Intervention("reverse", everything),
        Intervention("reverse", ()),
    ]
    exact = sweep_losses(pair, examples, changes)
    one, some, many = (
        np.abs(estimate_losses(pair, examples, changes, points=n) - exact).max(axis=1) for n in (1, 17, 33)
    )
    assert (one[:3] > 1e-3).all()
    assert (many[:3] < one[:3] / 50).all()
    assert (many[:3] < some[:3] / 2).all(), "the rule's error shrinks with its points"
    assert one[3] < 1e-9, "nothing is changed"


def test_nodes_integrate_what_is_linear_between_them():
    places = np.array([0, 1 / 9, 4 / 9, 1])
    slopes = np.array([1.0, 3.0, 2.0, 7.0])
    for upto in (1.0, 0.3, 1 / 9, 0.05):
        fine = (np.arange(200_000) + 0.5) / 200_000 * upto
        mean = np.interp(fine, places, slopes).mean()
        by_place = dict(zip(places, slopes, strict=True))
        found = nodes(4, upto)
        assert sum(weight * by_place[at] for at, weight in found) == pytest.approx(mean, rel=1e-6)
        assert sum(weight for _, weight in found) == pytest.approx(1)
    assert nodes(1, 0.3) == [(0.0, 1.0)]
    assert [at for at, _ in nodes(4, 0.05)] == [0, 1 / 9], "points of no weight cost nothing"


def test_layers_alike_add_nothing(tiny_pair, random_examples):
    base, tuned = tiny_pair("llama")
    tuned.model.layers[1].load_state_dict(base.model.layers[1].state_dict())
    tuned.model.layers[2].mlp.load_state_dict(base.model.layers[2].mlp.state_dict())
    scores = first_order(pair_of(base, tuned), random_examples(3), {"layer", "attention", "mlp"}).scores
    assert (scores["layer"][1] == 0).all()
    assert (scores["layer"][2] != 0).all()
    expected = scores["mlp"][2]
    norm_only = first_order(pair_of(base, tuned), random_examples(3)).scores["layer"][2] - scores["attention"][2]
    np.testing.assert_allclose(expected, norm_only, atol=1e-6)


def test_estimates_have_a_row_a_change_in_its_order(tiny_pair, random_examples):
    pair, examples = pair_of(*tiny_pair("gpt2")), random_examples(5)
    changes = check_changes(4, [1, 2], sets={"ends": [0, 3]}, modules=["mlp"], coefficients=[0.5], reverse=True)
    together = estimate_losses(pair, examples, changes)
    for row in (0, 3, len(changes) - 1):
        alone = estimate_losses(pair, examples, [changes[row]])
        np.testing.assert_allclose(alone[0], together[row], atol=1e-6)
    singles = {c: row for row, c in enumerate(changes)}
    untouched = together[singles[Window(0, 0)]]
    both = together[singles[Window(1, 3)]] - untouched
    each = sum(together[singles[Window(layer, layer + 1)]] - untouched for layer in (1, 2))
    np.testing.assert_allclose(both, each, atol=1e-9)


def test_loaded_models_are_estimated_as_they_are_swept(tiny_pair, random_examples):
    base, tuned = tiny_pair("llama")
    examples = random_examples(4)
    asked: dict[str, Any] = {"widths": [1, 2], "sets": {"ends": [0, 3]}, "modules": ["mlp"], "reverse": True}
    rows = estimate(base, tuned, examples, points=2, **asked)
    exact = sweep(base, tuned, examples, **asked)
    labels = [name for name in exact.columns if name not in ("estimator", "loss")]
    pd.testing.assert_frame_equal(rows[labels], exact[labels])
    assert set(rows["estimator"]) == {"gradient"}
    changes = check_changes(4, [1, 2], sets={"ends": [0, 3]}, modules=["mlp"], reverse=True)
    found = estimate_losses(Pair(Adapter(base), Adapter(tuned)), examples, changes, points=2)
    np.testing.assert_array_equal(rows["loss"], found.ravel())
    untouched = rows["layers"] == ""
    assert untouched.any()
    np.testing.assert_allclose(rows["loss"][untouched], exact["loss"][untouched], atol=1e-5)
    with pytest.raises(InputError, match=r"^points is 0; give a whole number, 1 or more$"):
        estimate(base, tuned, examples, points=0)


def test_a_budget_without_room_for_a_way_back_says_the_least(tmp_path, tiny_pair, random_examples):
    for name, model in zip(("base", "tuned"), tiny_pair("llama"), strict=True):
        model.save_pretrained(tmp_path / name)
    pair = StreamedPair.of(*(StreamedModel(describe(str(tmp_path / name))) for name in ("base", "tuned")), memory=10**6)
    with pytest.raises(
        InputError, match=r"^a memory budget of 0\.01 GB is too small: .* forward and backward pass need \d+\.\d\d GB"
    ):
        estimate_losses(pair, random_examples(2), [Window(0, 1)])


def test_models_are_left_as_they_were(tiny_pair, random_examples):
    base, tuned = build_pair(DECODERS["mixtral"])  # goes by weights
    before = {name: weight.clone() for name, weight in tuned.state_dict().items()}
    required = [parameter.requires_grad for parameter in tuned.parameters()]
    estimate_losses(pair_of(base, tuned), random_examples(3), [Window(0, 1)], points=2)
    assert [parameter.requires_grad for parameter in tuned.parameters()] == required
    assert all(parameter.grad is None for parameter in tuned.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in tuned.state_dict().items())
    assert not any(module._forward_hooks for module in tuned.modules())
