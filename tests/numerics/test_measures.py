"""Every measure against a plain implementation, and against what the registry declares of it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_measures import plain_measure
from plain_similarity import drifting_states, few, seeds

import raysweep
from raysweep.numerics.measures import registry
from raysweep.numerics.measures.registry import MEASURES, Parameters, similarity

PARAMETERS = {"components": 3, "neighbours": 3, "variance": 0.9}
every_metric = pytest.mark.parametrize("metric", MEASURES)


def compare(X_LND, metric, other=None, **parameters):
    return registry.compare(X_LND, metric, other, Parameters(**parameters))


def measured(X_LND, metric, other=None):
    return similarity(X_LND, metric, other, **PARAMETERS)


def rotation(rng, width):
    return np.linalg.qr(rng.standard_normal((width, width)))[0]


def stretch(rng, width):
    return rotation(rng, width) * rng.uniform(0.2, 5, width) @ rotation(rng, width)


# A transformation of states [N, D], drawn by a generator.
TRANSFORMATIONS = {
    "orthogonal": lambda rng: lambda X: X @ rotation(rng, X.shape[-1]),
    "scaling": lambda rng: lambda X: X * 10.0 ** rng.uniform(-9, 9),
    "translation": lambda rng: lambda X: X + 3 * rng.standard_normal(X.shape[-1]),
    "linear": lambda rng: lambda X: X @ stretch(rng, X.shape[-1]),
}
every_transformation = pytest.mark.parametrize("transformation", TRANSFORMATIONS)


@every_metric
@few
@given(seed=seeds, width=st.integers(3, 9))
def test_equal_to_the_plain_measure(metric, seed, width):
    X_LND = drifting_states(seed, 3, 24, width) + 0.5
    expected = [[plain_measure(metric, x_ND, y_ND, **PARAMETERS) for y_ND in X_LND] for x_ND in X_LND]
    np.testing.assert_allclose(measured(X_LND, metric), expected, rtol=0, atol=1e-7)


@every_metric
def test_equal_to_the_plain_measure_where_dimensions_outnumber_examples(metric):
    X_LND = drifting_states(5, 3, 30, 50) * 0.6 ** np.arange(50)
    expected = [[plain_measure(metric, x_ND, y_ND, **PARAMETERS) for y_ND in X_LND] for x_ND in X_LND]
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(measured(X_LND, metric), expected, rtol=0, atol=1e-7)


@every_metric
def test_between_two_models_as_between_the_layers_of_one(metric):
    X_LND = drifting_states(0, 5, 24, 6)
    between = measured(X_LND[:2], metric, X_LND[2:])
    assert between.shape == (2, 3)
    np.testing.assert_allclose(between, measured(X_LND, metric)[:2, 2:], rtol=0, atol=1e-12)


@every_metric
def test_layers_of_unequal_width_are_compared_or_refused(metric):
    narrow, wide = drifting_states(1, 2, 24, 4), drifting_states(2, 3, 24, 9)
    if MEASURES[metric].equal_widths:
        with pytest.raises(
            ValueError, match=r"^layer 0 of the other model has width 9, layer 0 has 4: states of unequal"
        ):
            measured(narrow, metric, wide)
        with pytest.raises(
            ValueError, match=r"^layer 1 has width 9, layer 0 has 4: states of unequal width have no cos"
        ):
            measured([narrow[0], wide[0]], metric)
        return
    expected = [[plain_measure(metric, x_ND, y_ND, **PARAMETERS) for y_ND in wide] for x_ND in narrow]
    np.testing.assert_allclose(measured(narrow, metric, wide), expected, rtol=0, atol=1e-7)
    np.testing.assert_allclose(measured([narrow[0], *wide], metric)[:1, 1:], expected[:1], rtol=0, atol=1e-7)


@every_metric
@few
@given(seed=seeds, examples=st.integers(14, 30), width=st.integers(3, 6), mean=st.sampled_from([0.0, 5.0]))
def test_the_range_and_the_value_of_a_layer_with_itself(metric, seed, examples, width, mean):
    measure, values = MEASURES[metric], measured(drifting_states(seed, 4, examples, width) + mean, metric)
    low, high = measure.range
    assert values.dtype == np.float64
    assert values.min() >= low - 1e-12
    assert values.max() <= high + 1e-12
    np.testing.assert_allclose(values.diagonal(), measure.itself, rtol=0, atol=1e-12)
    likeness = measure.likeness(values)
    np.testing.assert_allclose(likeness.diagonal(), 1, rtol=0, atol=1e-12)
    assert likeness.max() <= 1 + 1e-12, "nothing is more like a layer than itself"


@every_metric
@few
@given(seed=seeds)
def test_symmetry_is_exact_where_declared_and_fails_where_not(metric, seed):
    values = measured(drifting_states(seed, 4, 20, 5), metric)
    if MEASURES[metric].symmetric:
        np.testing.assert_array_equal(values, values.T)
    else:
        assert np.abs(values - values.T).max() > 1e-6


@every_transformation
@every_metric
@few
@given(seed=seeds)
def test_a_declared_invariance_holds(metric, transformation, seed):
    declared = getattr(MEASURES[metric], transformation)
    X_LND, rng = drifting_states(seed, 4, 20, 5) + 1.0, np.random.default_rng([seed, 1])
    draw = TRANSFORMATIONS[transformation]
    if declared == "each":
        moved = [draw(rng)(X_ND) if layer % 2 else X_ND for layer, X_ND in enumerate(X_LND)]
    elif declared == "common":
        moved = draw(rng)(X_LND)
    else:
        return
    np.testing.assert_allclose(measured(moved, metric), measured(X_LND, metric), rtol=0, atol=1e-7)


@every_transformation
@every_metric
def test_an_invariance_that_is_not_declared_fails_on_an_example(metric, transformation):
    declared = getattr(MEASURES[metric], transformation)
    X_LND, rng = drifting_states(7, 4, 20, 5) + 1.0, np.random.default_rng(7)
    draw = TRANSFORMATIONS[transformation]
    still = measured(X_LND, metric)
    if declared == "each":
        return
    assert np.abs(measured([draw(rng)(X_LND[0]), *X_LND[1:]], metric) - still).max() > 1e-3
    if declared == "none":
        assert np.abs(measured(draw(rng)(X_LND), metric) - still).max() > 1e-3


@every_metric
def test_torch_tensors_of_any_precision(metric):
    X_LND = torch.tensor(drifting_states(3, 3, 24, 5)).to(torch.bfloat16)
    expected = measured(X_LND.double().numpy(), metric)
    np.testing.assert_array_equal(measured(X_LND, metric), expected)
    np.testing.assert_array_equal(measured(list(X_LND), metric, iter(X_LND)), measured(X_LND, metric, X_LND))


@every_metric
def test_a_constant_layer_is_nan_with_its_reason(metric):
    X_LND = drifting_states(3, 4, 24, 5)
    X_LND[0] = X_LND[0, 0]
    X_LND[3] = X_LND[3, 0]
    found = compare(X_LND, metric, **PARAMETERS)
    if MEASURES[metric].equal_widths:  # the cosine of two states needs no other states
        assert not np.isnan(found.values).any()
        return
    at = {(i, j) for i in range(4) for j in range(4) if {i, j} & {0, 3}}
    assert set(found.reasons) == at == set(zip(*np.nonzero(np.isnan(found.values)), strict=True))
    assert found.reasons[2, 0] == "all examples have the same state at layer 0, so its similarity is 0/0"
    assert found.reasons[3, 0] == "all examples have the same state at layer 0 and 3, so its similarity is 0/0"
    between = compare(X_LND[:2], metric, X_LND[1:], **PARAMETERS)
    assert set(between.reasons) == {(0, 0), (0, 1), (0, 2), (1, 2)}
    assert between.reasons[0, 2] == (
        "all examples have the same state at layer 0 of the first model and 2 of the other model, so its similarity is 0/0"
    )
    assert compare(X_LND[:1], metric, X_LND[3:], **PARAMETERS).reasons.keys() == {(0, 0)}


TOO_FEW = {
    "cka_linear_debiased": (3, "debiased CKA needs at least 4 examples, got 3"),
    "svcca": (6, "there are only 6 examples; give more, or ask for a smaller share"),
    "pwcca": (6, "there are only 6 examples; give more, or ask for a smaller share"),
    "cca_top_k": (6, "there are only 6 examples; give 7 or more, or ask for fewer components"),
    "rsa": (2, "2 examples have one distance; ranks need 3 examples or more"),
    "mutual_knn": (4, "of 4 examples all others are among the 3 nearest; give 5 or more, or ask for fewer neighbours"),
    "cknna": (4, "of 4 examples all others are among the 3 nearest; give 5 or more, or ask for fewer neighbours"),
}


@pytest.mark.parametrize("metric", TOO_FEW)
def test_too_few_examples_give_nan_with_the_reason(metric):
    examples, told = TOO_FEW[metric]
    X_LND = np.random.default_rng(0).standard_normal((3, examples + 1, 3))
    few_examples = compare(X_LND[:, :examples], metric, X_LND[:2, :examples], **PARAMETERS | {"variance": 1.0})
    assert np.isnan(few_examples.values).all()
    assert few_examples.values.shape == (3, 2)
    assert set(few_examples.reasons) == set(np.ndindex(3, 2))
    assert all(told in reason for reason in few_examples.reasons.values())
    enough = compare(X_LND, metric, **PARAMETERS | {"variance": 1.0})
    assert np.isfinite(enough.values).all()
    assert not enough.reasons


@pytest.mark.parametrize("metric", [name for name in MEASURES if name not in TOO_FEW])
def test_two_examples_are_enough_for_the_others(metric):
    assert np.isfinite(similarity(np.random.default_rng(0).standard_normal((3, 2, 4)), metric)).all()


@every_metric
def test_states_that_do_not_fit_are_refused_by_layer(metric):
    X_LND = drifting_states(0, 3, 24, 5)
    spoilt = X_LND.copy()
    spoilt[1, 7, 2] = np.nan
    for states, other, told in (
        (spoilt, None, "layer 1"),
        (X_LND, spoilt, "the other model: layer 1"),
        (
            X_LND,
            X_LND[:, :20],
            "the first model has states of 24 examples, the other of 20; give both the same examples",
        ),
        ([], None, "no layers"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
            measured(states, metric, other)


@pytest.mark.parametrize(
    ("metric", "parameters", "told"),
    [
        ("cca", {}, "unknown metric 'cca'; known: cka_linear, cka_linear_debiased, cka_rbf, svcca"),
        ("cca_top_k", {"components": 0}, "components must be at least 1, got 0"),
        ("cknna", {"neighbours": 0}, "neighbours must be at least 1, got 0"),
        ("pwcca", {"variance": 1.1}, "variance must be a share above 0 and at most 1, got 1.1"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(metric, parameters, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        similarity(drifting_states(0), metric, **parameters)


def test_the_page_of_measures_says_what_the_registry_declares():
    page = (Path(raysweep.__file__).parents[1] / "docs" / "reference" / "measures.md").read_text(encoding="utf-8")
    tables = [re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE) for section in page.split("\n## ")]
    sees, known, declared = [dict(rows) for rows in tables if rows]
    assert list(sees) == list(known) == list(declared) == list(MEASURES)
    for metric, measure in MEASURES.items():
        low, high = (f"{value:g}".replace("-", "−") for value in measure.range)
        assert declared[metric].split(" | ") == [
            *(f"{low} to {high}", f"{measure.itself:g}", "yes" if measure.symmetric else "no"),
            *(measure.orthogonal, measure.scaling, measure.translation, measure.linear),
            "equal" if measure.equal_widths else "any",
        ]
