"""A checkpoint that cannot be read any more when its calls come: its own tasks fail, and everything else is done."""

from __future__ import annotations

import shutil

from raysweep.engine import events
from raysweep.engine.driver import drive
from raysweep.engine.executor import LocalBackend
from raysweep.engine.training_work import untold


class Damaging(LocalBackend):
    """Cuts a file short between the inspection and the first call."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def open(self, folder, n_calls, tell=untold):
        self.path.write_bytes(self.path.read_bytes()[: self.path.stat().st_size // 2])
        return super().open(folder, n_calls)


def two_models(make_config, world, copy, storage):
    models = [
        {"name": name, "base": str(at / "base"), "tuned": {"first": str(at / "tuned")}}
        for name, at in (("m", world), ("broken", copy))
    ]
    return make_config(storage, f"models={models}")


def test_a_broken_pair_fails_its_own_tasks_only(
    make_config, world, tmp_path, finished, tables_of, same_tables, events_of
):
    copy = tmp_path / "copy"
    shutil.copytree(world, copy)
    # Equal checkpoints would share their results: the copy's base has another number in its first tensor.
    from transformers import AutoModelForCausalLM

    for name in ("base", "tuned"):
        model = AutoModelForCausalLM.from_pretrained(copy / name)
        model.model.embed_tokens.weight.data[0, 0] += 1
        model.save_pretrained(copy / name)
    weights = copy / "tuned" / "model.safetensors"
    whole = weights.read_bytes()
    config = two_models(make_config, world, copy, tmp_path / "run")
    done = drive(config, backend=Damaging(weights))
    assert done.failed
    assert all(
        " broken/first" in name or name.startswith(("substitute broken", "correlate broken")) for name in done.failed
    )
    assert {name.split()[0] for name in done.failed} == {"substitute", "correlate"}
    failed = events_of(done, events.CALL_FAILED)
    assert {event["call"].split()[1] for event in failed} == {"broken/first"}
    assert all("could not be loaded" in event["error"] and event["traceback"] for event in failed)
    kept = {name: rows[rows["model"] == "m"].reset_index(drop=True) for name, rows in tables_of(done).items()}
    same_tables(
        {n: kept[n] for n in ("substitution", "similarity", "dynamics")},
        {n: tables_of(finished)[n] for n in ("substitution", "similarity", "dynamics")},
    )
    weights.write_bytes(whole)
    again = drive(config)
    assert again.failed == {}
    assert again.n_calls == len(failed) + 1, "what was done is not done again"
