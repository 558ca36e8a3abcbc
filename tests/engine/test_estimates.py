"""A run by the gradient: every change estimated, a sample measured exactly, the same tables however it is run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM

from raysweep.engine import events
from raysweep.engine.driver import drive
from raysweep.engine.inspection import inspect
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.errors import InputError

GRADIENT = "studies.substitution={widths: [2], estimator: gradient, sample: 2}"
KEYS = ["kind", "layers", "coefficient", "example_id"]


@pytest.fixture(scope="module")
def estimated(make_config, tmp_path_factory):
    done = drive(make_config(tmp_path_factory.mktemp("estimated") / "run", GRADIENT))
    assert not done.failed
    return done


def by_hand(world, examples, window):
    """Loss + ⟨∂loss/∂θ, step⟩ over the window's layers, from gradients by weights of the model's own forward."""
    base, tuned = (
        AutoModelForCausalLM.from_pretrained(world / name, dtype=torch.float32).eval() for name in ("base", "tuned")
    )
    theirs = dict(base.named_parameters())
    chosen = {
        n: p for n, p in tuned.named_parameters() if any(n.startswith(f"model.layers.{i}.") for i in range(*window))
    }
    losses = []
    for example in examples:
        tokens = torch.from_numpy(example.tokens)[None]
        logits = tuned(input_ids=tokens, use_cache=False).logits[0, example.n_prompt - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.double(), tokens[0, example.n_prompt :])
        slopes = torch.autograd.grad(loss, list(chosen.values()))
        step = sum(
            float((g * (theirs[n] - p).detach()).sum()) for g, (n, p) in zip(slopes, chosen.items(), strict=True)
        )
        losses.append(loss.item() + step)
    return np.array(losses)


def test_every_window_is_estimated_and_a_sample_measured(estimated, finished, tables_of, world, small):
    rows = tables_of(estimated)["substitution"]
    gradient, exact = (rows[rows["estimator"] == name] for name in ("gradient", "exact"))
    everything = tables_of(finished)["substitution"]
    assert len(gradient) == len(everything)
    assert set(exact["layers"]) >= {"", "0-5"}
    assert exact["layers"].nunique() == 4, "the tuned model, all layers put back, and two at random"
    both = exact.merge(everything, on=KEYS, suffixes=("", "_all"))
    assert len(both) == len(exact)
    np.testing.assert_array_equal(both["loss"], both["loss_all"])
    untouched = gradient[gradient["layers"] == ""]["loss"].to_numpy()
    np.testing.assert_allclose(untouched, exact[exact["layers"] == ""]["loss"], atol=1e-5)
    examples = small[1].cells["m", "first"].examples
    found = gradient[gradient["layers"] == "1-2"]["loss"].to_numpy()
    np.testing.assert_allclose(found, by_hand(world, examples, (1, 3)), atol=1e-4)


def test_an_exact_run_finds_the_sample_again(make_config, estimated, events_of):
    folder = estimated.folder.root
    done = drive(make_config(folder))
    keys = [key for event in events_of(done, events.CHUNK_COMMITTED) for key in event["keys"]]
    assert len(keys) == len(set(keys)), "nothing is computed twice"
    again = drive(make_config(folder, GRADIENT))
    assert again.n_calls == 0


RAY = "execution={executor: ray, workers: 1, device: cpu, chunk: 4}"


@pytest.mark.parametrize(
    "how",
    [
        "execution.batch_tokens=1",
        "execution.chunk=10",
        "execution.residency=stream",
        pytest.param(RAY, marks=pytest.mark.soak),
    ],
)
def test_the_tables_do_not_depend_on_how_it_is_run(how, make_config, estimated, tmp_path, tables_of, same_tables):
    done = drive(make_config(tmp_path / "run", GRADIENT, how))
    assert not done.failed
    same_tables(tables_of(estimated), tables_of(done))


def test_dynamics_are_correlated_with_the_estimates(estimated, tables_of):
    tables = tables_of(estimated)
    rows = tables["substitution"]
    rows = rows[(rows["estimator"] == "gradient") & (rows["width"] == 2)]
    loss = rows.groupby("centre")["loss"].mean()
    delta = tables["dynamics"].query("dataset == 'first'").set_index("layer")["delta"]
    beside = [(delta[int(c - 0.5)] + delta[int(c + 0.5)]) / 2 for c in loss.index]
    told = tables["correlation"].set_index("dataset").loc["first"]
    assert told["n_layers"] == len(loss) == 5
    assert told["spearman"] == pytest.approx(spearmanr(beside, loss)[0], abs=1e-9)


def test_points_and_models_have_keys_of_their_own(make_config):
    def keys(*overrides):
        config = make_config("nowhere", *overrides)
        graph = plan(config, inspect(config))
        return {key for task in graph.of_kind("estimate") for key in task.parts}

    one, two = keys(GRADIENT), keys(GRADIENT, "studies.substitution.points=2")
    assert one
    assert two
    assert not one & two
    assert keys(GRADIENT, "studies.substitution.sample=0") == one, "the sample is no part of an estimate"


def test_one_call_a_chunk_for_all_windows(make_config):
    config = make_config("nowhere", GRADIENT)
    facts = inspect(config)
    calls = [c for c in model_calls(config, facts, plan(config, facts), set()) if c.kind == "estimate"]
    assert [call.name for call in calls] == [f"estimate m/first 0-5 chunk {index}" for index in range(3)]
    assert {len(call.windows) for call in calls} == {7}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("studies.substitution={points: 4}", "points applies only to estimator: gradient, and estimator is exact"),
        ("studies.substitution={sample: 4}", "sample applies only to estimator: gradient, and estimator is exact"),
        ("studies.substitution={estimator: gradient, points: 0}", "points"),
        ("studies.substitution={estimator: gradiant}", "gradient"),
    ],
)
def test_what_does_not_go_together_is_refused(override, told, make_config):
    with pytest.raises(InputError, match=told):
        make_config("nowhere", override)


def test_a_sample_is_drawn_the_same_each_time(make_config, estimated, tmp_path, tables_of):
    rows = tables_of(estimated)["substitution"]
    again = drive(make_config(tmp_path / "run", GRADIENT))
    pd.testing.assert_frame_equal(tables_of(again)["substitution"], rows)
