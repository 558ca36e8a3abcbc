"""The Python calls of `import raysweep as rs`, as a notebook makes them: plain models and arrays, and whole runs."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import peft
import pytest
import torch
import yaml

import raysweep as rs
from raysweep.api import _plain_values, status
from raysweep.config import parse_config
from raysweep.planned import plan_run
from raysweep.report.tables import COLUMNS

LAYERS = 5


@pytest.fixture(scope="module")
def pair(tiny_pair):
    return tiny_pair("llama", LAYERS, max_position_embeddings=128)


@pytest.fixture(scope="module")
def world(tmp_path_factory, pair, tokenizer):
    """The pair as folders, and ten records."""
    folder = tmp_path_factory.mktemp("world")
    for name, model in zip(("base", "tuned"), pair, strict=True):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    records = ({"q": f"Count to {'ten ' * (1 + i % 4)}", "a": f"one two {'three ' * (i % 3)}"} for i in range(10))
    (folder / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def settings(world, storage):
    return {
        "name": "mine",
        "models": [{"name": "m", "base": str(world / "base"), "tuned": {"d": str(world / "tuned")}}],
        "datasets": [
            {"name": "d", "path": str(world / "test.jsonl"), "format": "columns", "prompt": "q", "response": "a"}
        ],
        "studies": {"substitution": {"widths": [1]}, "similarity": {}, "correlation": {"resamples": 20}},
        "execution": {"chunk": 4, "device": "cpu"},
        "storage": str(storage),
    }


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    return rs.run(settings(world, tmp_path_factory.mktemp("done") / "run"))


@pytest.fixture(scope="module")
def examples(world, tokenizer):
    loaded = rs.load_examples(str(world / "test.jsonl"), "columns", tokenizer, prompt="q", response="a")
    assert (len(loaded.examples), loaded.n_cut, loaded.n_unusable) == (10, 0, 0)
    return loaded.examples


# --- runs ---------------------------------------------------------------------------------------------------------


def test_a_run_gives_data_frames(done):
    assert isinstance(done, rs.Run)
    assert done.failed == {}
    assert done.report == done.folder / "report" / "index.html"
    assert done.report.is_file()
    assert list(done.tables) == ["substitution", "similarity", "dynamics", "critical", "health", "correlation"]
    for name, table in done.tables.items():
        assert isinstance(table, pd.DataFrame)
        assert tuple(table.columns) == COLUMNS[name]
        pd.testing.assert_frame_equal(getattr(done, name), table)
    assert len(done.substitution) == (LAYERS + 2) * 10
    assert len(done.similarity) == LAYERS**2
    with pytest.raises(AttributeError) as caught:
        done.spectrum  # noqa: B018
    told = "this run has no table 'spectrum'; it has substitution, similarity, dynamics, critical, health, correlation"
    assert str(caught.value) == told


def test_a_run_can_be_copied_and_sent(done):
    for other in (copy.copy(done), copy.deepcopy(done), pickle.loads(pickle.dumps(done))):
        assert other.folder == done.folder
        pd.testing.assert_frame_equal(other.substitution, done.substitution)


def test_a_run_is_summed_up(done):
    *void, cost, prediction = done.summary()
    (row,) = done.correlation.to_dict("records")
    assert cost.startswith("m on d: ")
    assert all("the tuned model is " in line for line in void)
    rho = f"{row['spearman']:.2f}".replace("-", "−")
    assert f"ρ = {rho} [" in prediction or "nothing for δ to predict" in prediction
    without = rs.Run(done.folder, {"substitution": done.substitution}, done.report)
    assert without.summary() == [*void, cost]
    (changes,) = rs.Run(done.folder, {"dynamics": done.dynamics}, done.report).summary()
    assert changes.startswith("m on d: the base model's representations change most at layer")


def test_a_run_takes_a_file_values_or_a_config(world, done, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(world, done.folder)))
    heard = []
    for config in (path, str(path), settings(world, done.folder), parse_config(settings(world, done.folder))):
        again = rs.run(config, ["name=again"], listener=heard.append)
        pd.testing.assert_frame_equal(again.substitution, done.substitution)
    begun = [event for event in heard if event["event"] == "run_started"]
    assert [event["calls"] for event in begun] == [{}, {}, {}, {}]
    assert [event["name"] for event in begun] == ["again"] * 4, "overrides count whatever the config is"


def test_a_run_is_opened_again(done):
    opened = rs.open_run(str(done.folder))
    assert list(opened.tables) == list(done.tables)
    for name, table in done.tables.items():
        pd.testing.assert_frame_equal(opened.tables[name], table)
    with pytest.raises(rs.InputError, match="does not exist"):
        rs.open_run(done.folder / "gone")


def test_the_standing_and_the_plan_of_a_run(world, done):
    standing = status(done.folder)
    assert (standing.state, standing.failures, standing.unfinished) == ("finished", {}, [])
    assert standing.tasks == {"substitute": (7, 7), "similarity": (1, 1), "correlate": (1, 1)}
    planned = plan_run(parse_config(settings(world, done.folder)), ["studies.substitution.widths=[1, 2]"])
    assert planned.tasks["substitute"] == (7, 11)
    # what is left: the trunk, two layers from each of four starts, and three, two, one layers behind them
    assert planned.layer_applications == 4 - 1 + 8 + 6


def test_a_run_prints_in_a_line(done):
    text = repr(done)
    assert text.startswith(f"Run('{done.folder}', rows: substitution {len(done.substitution)}, ")
    assert len(text) < 300
    assert "\n" not in text


def test_a_sweep_by_name_gives_the_runs_losses(world, done):
    ours = rs.sweep(world / "base", world / "tuned", world / "test.jsonl", widths=1, prompt="q", response="a")
    keys = ["layers", "example_id"]
    both = ours.merge(done.substitution, on=keys, validate="one_to_one")
    assert len(both) == len(ours) == len(done.substitution)
    np.testing.assert_allclose(both["loss_x"], both["loss_y"], rtol=0, atol=1e-5)


def test_a_config_may_hold_paths_tuples_and_numpys_numbers(world, tmp_path):
    plain = settings(world, tmp_path)
    given = {
        **plain,
        "models": ({"name": "m", "base": world / "base", "tuned": {"d": world / "tuned"}},),
        "studies": {**plain["studies"], "substitution": {"widths": np.array([1])}},
        "execution": {**plain["execution"], "chunk": np.int64(4)},
        "storage": tmp_path,
    }
    assert parse_config(_plain_values(given)) == parse_config(plain)
    assert _plain_values(Path("lab://tiny")) == "lab://tiny"
    with pytest.raises(rs.InputError, match="chunk"):
        rs.run(given, "execution.chunk=0")


def test_bad_input_is_an_input_error(world, tmp_path):
    with pytest.raises(rs.InputError, match="unknown key 'storge'; did you mean 'storage'"):
        rs.run({**settings(world, tmp_path / "run"), "storge": 1})
    with pytest.raises(rs.InputError, match="give widths from 1 to 5"):
        rs.run(settings(world, tmp_path / "run"), ["studies.substitution.widths=[6]"])
    assert issubclass(rs.InputError, rs.RaysweepError)
    assert not (tmp_path / "run").exists()


# --- loaded models and plain arrays -------------------------------------------------------------------------------


def mean_nll(model, example):
    tokens = torch.from_numpy(example.tokens)
    with torch.no_grad():
        logits = model(input_ids=tokens[None]).logits[0, :-1].double()
    nll = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
    return float(nll[example.n_prompt - 1 :].mean())


def test_sweep_windows(pair, examples):
    rows = rs.sweep_windows(*pair, examples, [(1, 3), (4, 5)])
    assert tuple(rows.columns) == COLUMNS["substitution"][2:], "all but model and data set"
    assert list(rows["layers"].unique()) == ["", "4", "1-2", "0-4"]
    for layers, replaced in (("", []), ("4", [4]), ("1-2", [1, 2]), ("0-4", range(5))):
        mixed = copy.deepcopy(pair[1])
        for layer in replaced:
            mixed.model.layers[layer].load_state_dict(pair[0].model.layers[layer].state_dict())
        expected = [mean_nll(mixed, example) for example in examples]
        np.testing.assert_allclose(rows[rows["layers"] == layers]["loss"], expected, rtol=0, atol=1e-5)
    with pytest.raises(rs.InputError, match="give 0 <= start < stop <= 5"):
        rs.sweep_windows(*pair, examples, [(3, 6)])


def test_sweep_of_every_kind(pair, examples):
    base, tuned = pair
    rows = rs.sweep(
        *pair, examples, widths=[2], sets={"ends": [4, 0]}, modules=["mlp"], coefficients=[0.25], reverse=True
    )
    assert tuple(rows.columns) == COLUMNS["substitution"][2:]
    kinds = rows.groupby(["kind", "coefficient"], sort=False)["layers"].nunique().to_dict()
    assert kinds == {
        ("window", 1.0): 6,
        ("window", 0.25): 5,
        ("set", 1.0): 1,
        ("set", 0.25): 1,
        ("mlp", 1.0): 5,
        ("reverse", 1.0): 6,
    }

    def replaced(model, donor, layers, share=1.0, part=""):
        mixed = copy.deepcopy(model)
        for layer in layers:
            mine, theirs = mixed.model.layers[layer], donor.model.layers[layer]
            with torch.no_grad():
                for (name, parameter), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
                    if name.startswith(part):
                        parameter.copy_((1 - share) * parameter + share * other)
        return mixed

    truth = {
        ("window", "1-2", 1.0): replaced(tuned, base, [1, 2]),
        ("window", "1-2", 0.25): replaced(tuned, base, [1, 2], 0.25),
        ("set", "0,4", 1.0): replaced(tuned, base, [0, 4]),
        ("reverse", "", 1.0): base,
        ("reverse", "1-2", 1.0): replaced(base, tuned, [1, 2]),
    }
    for (kind, layers, coefficient), model in truth.items():
        found = rows[(rows["kind"] == kind) & (rows["layers"] == layers) & (rows["coefficient"] == coefficient)]
        expected = [mean_nll(model, example) for example in examples]
        np.testing.assert_allclose(found["loss"], expected, rtol=0, atol=1e-5)
    mlp = replaced(replaced(tuned, base, [1, 2], part="mlp"), base, [1, 2], part="post_attention_layernorm")
    found = rows[(rows["kind"] == "mlp") & (rows["layers"] == "1-2")]["loss"]
    np.testing.assert_allclose(found, [mean_nll(mlp, example) for example in examples], rtol=0, atol=1e-5)


def test_sweep_of_all_widths_is_the_sweep_of_all_windows(pair, examples):
    rows = rs.sweep(*pair, examples[:2], widths="all")
    windows = [(start, stop) for start in range(LAYERS) for stop in range(start + 1, LAYERS + 1)]
    assert rows["layers"].nunique() == len(windows) + 1
    pd.testing.assert_frame_equal(rows, rs.sweep_windows(*pair, examples[:2], windows))
    assert list(rs.sweep(*pair, examples[:1])["layers"]) == ["", "0-4"]
    with pytest.raises(rs.InputError, match=r"^set 'far' has layer 5, which is not among the 5 decoder layers; give"):
        rs.sweep(*pair, examples, sets={"far": [5]})


def test_capture(pair, examples):
    X = rs.capture(pair[0], examples)
    assert X.shape == (LAYERS, 10, 16)
    for n, example in enumerate(examples):
        prompt = torch.from_numpy(example.tokens[: example.n_prompt])[None]
        with torch.no_grad():
            states = pair[0](input_ids=prompt, output_hidden_states=True).hidden_states
        for layer in range(LAYERS - 1):  # the last of these is behind the final norm
            torch.testing.assert_close(X[layer, n], states[layer + 1][0, -1], rtol=0, atol=1e-5)


def test_similarity_and_dynamics():
    X = np.random.default_rng(0).normal(size=(4, 12, 5))
    S = rs.cka_matrix(torch.from_numpy(X))
    centred = X - X.mean(axis=1, keepdims=True)
    grams = centred @ centred.transpose(0, 2, 1)
    expected = [[(a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()) for b in grams] for a in grams]
    np.testing.assert_allclose(S, expected, atol=1e-12)
    biased, debiased = rs.cka_matrix(torch.from_numpy(X), debiased="both")
    np.testing.assert_allclose(biased, S)
    assert debiased.shape == (4, 4)
    delta = rs.local_dynamics(S, neighbourhood=3)
    np.testing.assert_allclose(delta, [np.mean(S[i, max(0, i - 1) : i + 2]) for i in range(4)], atol=1e-12)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
def test_critical_layers(pair, examples):
    found = rs.critical_layers(pair[0], examples, top=2, resamples=50)
    delta = rs.local_dynamics(rs.cka_matrix(rs.capture(pair[0], examples)), neighbourhood=3)
    np.testing.assert_allclose(found.delta, delta, atol=1e-9)
    assert set(found.layers) == set(np.argsort(delta)[:2])
    assert found.stability.sum() == pytest.approx(2)

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], **found.peft_config())
    adapted = peft.get_peft_model(copy.deepcopy(pair[0]), config)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in trained} == set(found.layers)

    prefixes = tuple(found.freeze_list())
    matched = [name for name, _ in pair[0].named_parameters() if name.startswith(prefixes)]
    assert len(matched) == 2 * len(list(pair[0].model.layers[0].named_parameters()))
    assert {int(name.split(".")[2]) for name in matched} == set(found.layers)


def test_other_measures_on_plain_arrays_and_between_two_models():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((3, 30, 6)), torch.from_numpy(rng.standard_normal((2, 30, 9)))
    assert rs.similarity(X).tolist() == rs.cka_matrix(X).tolist()
    assert rs.similarity(X, "mutual_knn", other=Y, neighbours=5).shape == (3, 2)
    assert np.isnan(rs.similarity(X[:, :8], "mutual_knn")).all(), "eight examples have no ten nearest"


def test_every_public_name_is_there_and_described():
    assert set(rs.__all__) <= set(dir(rs))
    for name in rs.__all__:
        assert getattr(rs, name).__doc__
    assert rs.__version__ == version("raysweep")
    with pytest.raises(AttributeError, match="module 'raysweep' has no attribute 'sweeps'"):
        rs.sweeps  # noqa: B018


def test_a_run_needs_no_ray(world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it raises ImportError
    assert rs.run(settings(world, tmp_path)).failed == {}
