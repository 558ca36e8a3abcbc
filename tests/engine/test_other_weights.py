"""Runs whose checkpoints change after they were planned: the calls that load them are refused, and commit nothing."""

from __future__ import annotations

import json
import shutil

import pytest
from ray_cluster import head_node, node
from small_trainings import TRAINER, finetuned

from raysweep import api
from raysweep.engine import events
from raysweep.engine.driver import drive
from raysweep.engine.work import Worker


def flip(path):
    """One bit of the last weight in a safetensors file; of a float32, so that the value stays finite."""
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 0x80
    path.write_bytes(raw)


@pytest.fixture
def own(world, make_config, tmp_path):
    """own(*overrides): the plain config in `run`, its tuned checkpoint a copy in `tuned`, both below tmp_path."""
    shutil.copytree(world / "tuned", tmp_path / "tuned")
    tuned = f"models.0.tuned={{first: '{tmp_path / 'tuned'}'}}"
    return lambda *overrides: make_config(tmp_path / "run", tuned, *overrides)


def substitutions(folder):
    return sorted(folder.glob("chunks/substitute-*"))


@pytest.mark.parametrize("residency", ["resident", "stream"])
def test_a_checkpoint_swapped_after_the_plan_is_refused_and_nothing_of_it_committed(
    residency, own, tmp_path, world, tables_of, same_tables, finished
):
    folder, kept = tmp_path / "tuned", world / "tuned"

    def swap(event):
        if event["event"] == events.RUN_STARTED:
            flip(folder / "model.safetensors")

    config = own(f"execution.residency={residency}")
    done = drive(config, listener=swap)
    assert done.failed
    if residency == "resident":  # else the base's states are captured in the sweep's pass
        assert all("substitute" in name or "correlate" in name for name in done.failed), "captures need the base alone"
    error = next(error for name, error in done.failed.items() if "substitute" in name)
    assert error.startswith(f"checkpoint '{folder}' is not the planned one: {folder}/model.safetensors: tensor ")
    assert not substitutions(tmp_path / "run")
    assert api.examine(tmp_path / "run").findings == ()

    shutil.copyfile(kept / "model.safetensors", folder / "model.safetensors")
    again = drive(config)
    assert again.failed == {}
    assert again.n_calls < finished.n_calls or residency == "stream", "what was committed is not computed again"
    same_tables(tables_of(again), tables_of(finished))


def test_a_command_that_meets_another_checkpoint_ends_with_1(own, tmp_path, monkeypatch, capsys):
    from raysweep import cli

    config = own("studies.similarity=null", "studies.correlation=null")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    attempt = Worker.attempt

    def late(worker, call):
        if not substitutions(tmp_path / "run") and call.kind == "substitute" and not (tmp_path / "swapped").exists():
            (tmp_path / "swapped").touch()
            flip(tmp_path / "tuned" / "model.safetensors")
        return attempt(worker, call)

    monkeypatch.setattr(Worker, "attempt", late)
    with pytest.raises(SystemExit) as ended:
        cli.app(["run", str(tmp_path / "config.yaml"), "--executor", "local"])
    assert ended.value.code == 1
    assert "is not the planned one" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(training_config, tmp_path_factory):
    """trained(kind): the folder of a run that fine-tunes a whole model, or an adapter (`lora`). Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")

    def find(kind):
        if not (folder / kind).exists():
            assert drive(training_config(folder / kind, asked_of(kind))).failed == {}
        return folder / kind

    return find


def asked_of(kind):
    return finetuned(**({"lora": {"r": 2}} if kind == "lora" else {}))


@pytest.mark.parametrize(
    ("kind", "name", "overrides"),
    [
        ("whole", "model.safetensors", ["datasets.0.limit=4"]),  # its loss on other records is measured first
        ("whole", "model.safetensors", ["studies.substitution.widths=[3]", "execution.residency=stream"]),
        pytest.param(
            *("lora", "adapter_model.safetensors", ["studies.substitution.widths=[3]"]), marks=pytest.mark.soak
        ),
    ],
    ids=["evaluated", "streamed", "lora"],
)
def test_a_kept_fine_tune_with_a_flipped_bit_is_refused_until_it_is_made_again(
    kind, name, overrides, trained, training_config, tmp_path, tables_of, same_tables
):
    run = shutil.copytree(trained(kind), tmp_path / "run")
    (weights,) = run.glob(f"checkpoints/m/*/{name}")
    flip(weights)
    asked = asked_of(kind)
    config = training_config(run, asked, *overrides)
    before = set(substitutions(run))
    refused = {error for error in drive(config).failed.values() if not error.startswith("not made, because")}
    (manifest,) = run.glob("chunks/finetune-*.json")
    (error,) = refused
    assert error.startswith(f"checkpoint '{weights.parent}' is not the planned one: {weights}: planned SHA-256")
    assert f"Remove {manifest} to create it again." in error
    assert set(substitutions(run)) == before

    manifest.unlink()
    done = drive(config)
    assert done.failed == {}
    shutil.copytree(trained(kind), tmp_path / "sound")
    sound = drive(training_config(tmp_path / "sound", asked, overrides[0]))
    rows, expected = (tables_of(each)["substitution"] for each in (done, sound))
    same_tables({"substitution": rows}, {"substitution": expected})


@pytest.mark.soak
def test_the_run_that_makes_a_checkpoint_compares_it_too(training_config, tmp_path):
    """Damaged between its commit and the sweep."""

    def damage(event):
        if event["event"] == events.TASK_DONE and event["task"] == "finetune m/first":
            (weights,) = (tmp_path / "run").glob("checkpoints/m/*/model.safetensors")
            flip(weights)

    studies = {"finetune": {"trainer": {**TRAINER, "max_steps": 1}}, "substitution": {"widths": [2]}}
    done = drive(training_config(tmp_path / "run", studies), listener=damage)
    assert done.failed
    assert all(task.startswith("substitute") for task in done.failed)
    assert not substitutions(tmp_path / "run")


# --- the doctor ---------------------------------------------------------------------------------------------------


def test_commits_of_a_checkpoint_that_changed_since_are_marked_and_kept(finished, world, tmp_path):
    run, moved = shutil.copytree(finished.folder.root, tmp_path / "run"), tmp_path / "tuned"
    shutil.copytree(world / "tuned", moved)
    for path in run.glob("chunks/*.json"):
        path.write_text(path.read_text().replace(str(world / "tuned"), str(moved)))
    assert api.examine(run, checksums=True).findings == ()
    flip(moved / "model.safetensors")
    assert api.examine(run).findings == ()
    before = {path: path.read_bytes() for path in run.glob("chunks/*")}
    for remove in (False, True):
        found = api.examine(run, checksums=True, remove=remove)
        marked = {finding.path for finding in found.findings}
        of_pair = [*substitutions(run), *run.glob("chunks/correlat*")]  # states are the base's
        assert marked == {f"chunks/{path.name}" for path in of_pair if path.suffix == ".json"}
        assert {finding.kind for finding in found.findings} == {"input"}
        assert found.left == len(marked)
        assert f"computed from checkpoint '{tmp_path / 'tuned'}' with fingerprint" in found.findings[0].why
        assert found.to_text().endswith(
            f" bytes; {len(marked)} computed from checkpoints that have changed since, and kept"
        )
    assert {path: path.read_bytes() for path in run.glob("chunks/*")} == before
    shutil.rmtree(tmp_path / "tuned")
    gone = api.examine(run, checksums=True)
    assert gone.findings == ()
    (text,) = gone.unchecked
    assert text.startswith(f"checkpoint '{tmp_path / 'tuned'}' cannot be checked: {tmp_path / 'tuned'} is not on this")
    assert gone.to_json()["unchecked"] == [text]


def test_commits_without_a_record_of_inputs_stay_readable(finished, tmp_path):
    run = shutil.copytree(finished.folder.root, tmp_path / "run")
    for path in run.glob("chunks/*.json"):
        manifest = json.loads(path.read_text())
        assert manifest["extra"].pop("inputs")
        path.write_text(json.dumps(manifest))
    found = api.examine(run, checksums=True)
    assert (found.findings, found.unchecked) == ((), ())


# --- Ray ----------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_node_with_another_checkpoint_under_the_same_path_is_refused(
    own, world, tmp_path, tables_of, same_tables, finished
):
    """All workers are on that node; the plan is made on the other."""
    shutil.copytree(world / "tuned", tmp_path / "stale")
    flip(tmp_path / "stale" / "model.safetensors")
    mount = f"mount --bind {tmp_path / 'stale'} {tmp_path / 'tuned'}"
    with head_node(cpus=0, gpus=0) as head, node(head.address, cpus=2, before=mount):
        done = drive(own(f"execution={{executor: ray, address: '{head.address}', chunk: 4, device: cpu}}"))
    errors = [error for name, error in done.failed.items() if "substitute" in name]
    assert errors
    told = f"checkpoint '{tmp_path / 'tuned'}' is not the planned one: {tmp_path / 'tuned'}/model.safetensors: tensor "
    assert all(error.startswith(told) for error in errors)
    assert not substitutions(tmp_path / "run")
    again = drive(own())
    assert again.failed == {}
    same_tables(tables_of(again), tables_of(finished))
