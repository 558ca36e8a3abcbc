"""A real kill during fine-tuning: run again, it goes on from its last checkpoint, and ends as if nothing had been."""

from __future__ import annotations

import signal
import time

import pytest
from command_line import started

from raysweep import api
from raysweep.engine.driver import drive

STEPS = 24
TRAINER = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "report_to": "none",
    "save_steps": 4,
    "eval_steps": 12,
    "logging_steps": 12,
}
STUDIES = {
    "finetune": {"trainer": TRAINER},
    "substitution": {"widths": [3]},
    "similarity": {},
    "correlation": {"resamples": 10},
}


@pytest.fixture
def killed(training_config, tmp_path):
    """The folder of a run that was killed while it trained, after its first checkpoint."""
    config, root = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(training_config(root, STUDIES).to_yaml())
    process = started("run", config)
    while process.poll() is None and not list(root.glob("training/*/checkpoint-*/whole.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said
    return root


def test_killed_while_it_trains_a_run_goes_on_from_the_last_checkpoint(
    killed, training_config, tmp_path, tables_of, same_tables, events_of
):
    standing = api.status(killed)
    assert standing.state == "killed"
    assert standing.trainings["finetune m/first"]["of"] == STEPS
    resumed = drive(training_config(killed, STUDIES))
    assert resumed.failed == {}
    (done,) = [event for event in events_of(resumed, "call_done") if event["call"] == "finetune m/first"]
    assert 0 < done["measured"]["resumed_from"] < STEPS
    assert done["measured"]["steps"] == STEPS

    whole = drive(training_config(tmp_path / "whole", STUDIES))
    ours, theirs = tables_of(resumed), tables_of(whole)
    last = [t["training"].query("split == 'test'").set_index("step")["loss"][STEPS] for t in (ours, theirs)]
    assert last[0] == pytest.approx(last[1], abs=1e-3)
    same_tables(ours, theirs)
    assert not list((killed / "training").iterdir())
    assert api.examine(killed).findings == ()
    assert drive(training_config(killed, STUDIES)).n_calls == 0
