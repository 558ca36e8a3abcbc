"""Runs of adaptation: arms as asked for every seed, compared as far as they were trained."""

from __future__ import annotations

import shutil

import pytest
from small_trainings import LAYERS, TRAINER, calls_after

from raysweep import api
from raysweep.engine.driver import drive
from raysweep.studies.training import drawn_beside

ADAPTATION = {"similarity": {}, "adaptation": {"trainer": {**TRAINER, "max_steps": 2}, "seeds": [0, 1], "top": 2}}


@pytest.fixture(scope="module")
def adapted(training_config, tmp_path_factory):
    done = drive(training_config(tmp_path_factory.mktemp("adapted") / "run", ADAPTATION))
    assert done.failed == {}
    return done


def test_arms_are_trained_for_every_seed_on_as_many_layers(adapted, tables_of):
    tables = tables_of(adapted)
    rows = tables["training"]
    assert set(rows["study"]) == {"adaptation"}
    layers = {key: of["layers"].unique() for key, of in rows.groupby(["arm", "seed"])}
    assert set(layers) == {(arm, seed) for arm in ("critical", "non_critical", "all") for seed in (0, 1)}
    assert all(len(found) == 1 for found in layers.values())

    def numbers(arm, seed):
        first, *rest = (int(n) for n in layers[arm, seed][0].replace("-", ",").split(","))
        return {first, *rest}

    critical = set(tables["dynamics"].sort_values("rank")["layer"].head(2))
    for seed in (0, 1):
        assert numbers("critical", seed) == critical
        assert numbers("non_critical", seed) == set(drawn_beside(tuple(critical), LAYERS, seed))
        assert not numbers("non_critical", seed) & critical
        assert layers["all", seed][0] == "0-5"
    assert not (adapted.folder.root / "checkpoints").exists()
    assert not list((adapted.folder.root / "training").iterdir())


def test_differences_are_those_of_the_curves(adapted, tables_of):
    tables = tables_of(adapted)
    test = tables["training"][tables["training"]["split"] == "test"]
    losses = test.pivot_table(index=["arm", "seed"], columns="step", values="loss")
    found = tables["adaptation"].set_index(["arm", "versus", "measure"])
    assert len(found) == 6
    for (arm, versus, measure), row in found.iterrows():
        curves = losses.loc[arm] - losses.loc[versus]
        by_seed = curves[2] if measure == "final" else (curves[0] / 2 + curves[1] + curves[2] / 2) / 2
        assert row["value"] == pytest.approx(by_seed.mean(), abs=1e-9)
        assert (row["seeds"], row["steps"]) == (2, 2)
        assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_one_seed_more_trains_only_that(adapted, training_config, tmp_path, events_of):
    before, root = len(events_of(adapted)), shutil.copytree(adapted.folder.root, tmp_path / "run")
    done = drive(
        training_config(
            root, ADAPTATION, "studies.adaptation.seeds=[0, 1, 2]", "studies.adaptation.arms=[critical, all]"
        )
    )
    assert done.failed == {}
    assert sorted(calls_after(done, events_of, before)) == [
        "adapt m/first all seed 2",
        "adapt m/first critical seed 2",
        "adaptation m/first",
    ]


def test_arms_that_are_trained_are_compared_where_another_failed(
    training_config, tmp_path, tables_of, same_tables, adapted, failing
):
    failing(lambda recipe: recipe.trained.mode == "all" and recipe.seed == 1)
    done = drive(training_config(tmp_path / "run", ADAPTATION))
    assert done.failed == {
        "adapt m/first all seed 1": "the test loss is nan at step 1",
        "adaptation m/first": "compared only in part, because 'adapt m/first all seed 1' failed",
    }
    whole, part = tables_of(adapted)["adaptation"], tables_of(done)["adaptation"]
    same_tables({"adaptation": part[:2]}, {"adaptation": whole[:2]})
    assert part["seeds"].tolist() == [2, 2, 1, 1, 1, 1]
    assert part["value"].notna().all()
    assert part["reason"].tolist()[2] == (
        "one seed: no interval; left out, because only one of critical and all has test losses: seed 1; "
        "all with seed 1: training failed (the test loss is nan at step 1)"
    )
    failing(lambda recipe: False)
    again = drive(training_config(tmp_path / "run", ADAPTATION))
    assert (again.n_calls, again.failed) == (2, {}), "the training and the comparison"
    same_tables(tables_of(again), tables_of(adapted))


def test_an_arm_that_failed_has_its_reason_on_the_page(training_config, tmp_path, failing):
    failing(lambda recipe: recipe.trained.mode == "all")
    run = api.run(training_config(tmp_path / "run", ADAPTATION))
    assert run.adaptation["value"].notna().tolist() == [True, True, False, False, False, False]
    told = (
        "Training critical layers cannot be compared with training all layers: no seed has test losses of both critical and all; "
        "all with seed 0, 1: training failed (the test loss is nan at step 1)."
    )
    assert told in run.report.read_text(encoding="utf-8")
    assert told in api.open_run(tmp_path / "run").report.read_text(encoding="utf-8")


def test_with_no_arm_trained_there_is_nothing_to_compare(training_config, tmp_path, tables_of, failing):
    failing(lambda recipe: True)
    done = drive(training_config(tmp_path / "run", ADAPTATION))
    assert done.failed["adaptation m/first"].startswith("not made, because 'adapt m/first critical seed 0' failed")
    assert "adaptation" not in tables_of(done)
