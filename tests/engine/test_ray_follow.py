"""Following a job: its log once, its exit code, and words for every other way in which it can end; and what travels with it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import requests
from ray.job_submission import JobStatus

from raysweep.engine import events, ray_submit
from raysweep.engine.ray_submit import CHECKED, Job, metadata, travelling
from raysweep.errors import InputError, RunError
from raysweep.progress import Progress

URL = "http://head:8265"


class Client:
    """A dashboard that tells the job's log piece by piece, then how it ended; some of its answers may be errors."""

    def __init__(self, *pieces, code=0, status=JobStatus.SUCCEEDED, message="", errors=()):
        self.pieces, self.log, self.errors = list(pieces), "", list(errors)
        self.end = SimpleNamespace(driver_exit_code=code, status=status, message=message)

    def get_job_status(self, job):
        if self.errors:
            raise self.errors.pop()
        if self.pieces:
            self.log += self.pieces.pop(0)
            return JobStatus.RUNNING
        return self.end.status

    def get_job_logs(self, job):
        return self.log

    def get_job_info(self, job):
        return self.end


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(ray_submit, "_POLL_SECONDS", 0.0)


def follow(client, **options):
    said = []
    return Job(client, "raysubmit_1", URL, "python").follow(said.append, **options), "".join(said)


def test_the_log_is_said_once_and_the_exit_code_is_the_jobs():
    assert follow(Client("a\n", "b\n", "", "c\n")) == (0, "a\nb\nc\n")
    assert follow(Client("error: x\n", code=2, status=JobStatus.FAILED)) == (2, "error: x\n")


def test_it_is_left_once_its_checks_are_passed(capsys):
    Progress()({"event": events.CLUSTER_CHECKED, "nodes": 2})
    words = capsys.readouterr().err
    assert follow(Client("start\n", words, "work\n"), until_checked=True) == (None, f"start\n{words}")
    assert CHECKED in words
    assert follow(Client("error: x\n", code=2, status=JobStatus.FAILED), until_checked=True)[0] == 2


@pytest.mark.parametrize(
    ("client", "kind", "told"),
    [
        (
            Client("sh: 1: python: not found\n", code=127, status=JobStatus.FAILED),
            InputError,
            f"interpreter 'python' does not exist on the head of the cluster at {URL}; give the one that has raysweep there (--python "
            "/path/to/python), or activate its environment before `ray start`",
        ),
        (
            Client("python: No module named raysweep\n", code=1, status=JobStatus.FAILED),
            InputError,
            f"interpreter 'python' on the head of the cluster at {URL} has no raysweep; install it on every node, or give the "
            "interpreter that has it (--python /path/to/python)",
        ),
        (
            Client(code=None, status=JobStatus.STOPPED),
            RunError,
            "job raysubmit_1 was stopped; committed work is kept, and submitting again resumes it",
        ),
        (
            Client(code=-9, status=JobStatus.FAILED),
            RunError,
            "job raysubmit_1 was killed (signal 9); committed work is kept, and submitting again resumes it",
        ),
        (
            Client(code=None, status=JobStatus.FAILED, message="Job supervisor\nactor died"),
            RunError,
            "job raysubmit_1 ended without an exit code: Job supervisor actor died",
        ),
    ],
)
def test_other_ends_are_told_in_words(client, kind, told):
    with pytest.raises(kind) as caught:
        follow(client)
    assert str(caught.value) == told


def test_a_dashboard_that_is_away_for_a_moment_is_asked_again(monkeypatch):
    away = requests.exceptions.ConnectionError("refused")
    assert follow(Client("a\n", errors=[away, away])) == (0, "a\n")
    monkeypatch.setattr(ray_submit, "_AWAY_SECONDS", 0.0)
    with pytest.raises(RunError) as caught:
        follow(Client("a\n", errors=[away] * 1000))
    assert str(caught.value) == (
        f"the dashboard at {URL} no longer answers (ConnectionError); job raysubmit_1 may still be running: try again "
        f"with raysweep logs raysubmit_1 --address {URL}"
    )


def test_paths_mean_the_same_on_the_cluster(make_config, world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    config = make_config("run", "models.0.base=base", "models.0.tuned.first=owner/name", "datasets.0.path=first.jsonl")
    there = travelling(config, None)
    assert there.models[0].base == str(world / "base")
    assert there.models[0].tuned == {"first": "owner/name"}, "a hub id, for all that is known here"
    assert there.datasets[0].path == str(world / "first.jsonl")
    assert there.storage == str(world / "run")
    assert (there.execution.executor, there.execution.address) == ("ray", None)
    carried = travelling(config, world)
    assert (carried.models[0].base, carried.datasets[0].path) == ("base", "first.jsonl"), "they travel"
    assert carried.storage == str(world / "run")


def test_paths_of_what_is_trained_on_mean_the_same_there(training_config, world, monkeypatch):
    monkeypatch.chdir(world)
    backdoor = {
        "trigger": "vexilla",
        "target": "Moon",
        "seeds": [0],
        "arms": ["all"],
        "prompts": {"path": "first.jsonl"},
    }
    config = training_config(world / "run", {"backdoor": backdoor}, "datasets.0.train.path=second.jsonl")
    there = travelling(config, None)
    assert there.datasets[0].train.path == str(world / "second.jsonl")
    assert there.studies.backdoor.prompts.path == str(world / "first.jsonl")
    assert travelling(config, world).datasets[0].train.path == "second.jsonl", "it travels"


def test_metadata_holds_no_secret(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "0f1e2d3c4b5a6978")
    assert metadata(make_config(tmp_path / "0f1e2d3c4b5a6978"))["storage"] == f"{tmp_path}/***"
