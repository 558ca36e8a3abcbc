"""`raysweep logs` and `raysweep stop`, on a stand-in for the dashboard's client: what they print, and their exit codes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from command_line import Result
from ray.job_submission import JobStatus

from raysweep.engine import ray_submit
from raysweep.engine.ray_address import address_or_default
from raysweep.errors import InputError

URL = "http://head:8265"
AT = ("--address", URL)


class Client:
    """A dashboard with one job, whose log grows each time its state is asked for."""

    def __init__(self, *pieces, code=0, status=JobStatus.SUCCEEDED, older=()):
        self.pieces, self.printed, self.older, self.stopped = list(pieces), "", older, False
        self.end = SimpleNamespace(driver_exit_code=code, status=status, message="")

    def list_jobs(self):
        jobs = [("raysubmit_1", "02000000", 2.0), *((name, None, 1.0) for name in self.older)]
        return [
            SimpleNamespace(submission_id=name, job_id=number, entrypoint="/py -m raysweep run x", start_time=at, status=JobStatus.RUNNING)
            for name, number, at in jobs
        ]  # fmt: skip

    def get_job_status(self, job):
        if self.pieces and not self.stopped:
            self.printed += self.pieces.pop(0)
            return JobStatus.RUNNING
        return self.end.status

    def get_job_logs(self, job):
        return self.printed

    def get_job_info(self, job):
        return self.end

    def stop_job(self, job):
        self.stopped, self.end.status = True, JobStatus.STOPPED
        return True


@pytest.fixture
def dashboard(monkeypatch):
    """dashboard(client): the commands talk to it."""
    monkeypatch.setattr(ray_submit, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(ray_submit, "check_dashboard_answers", lambda url: {})
    monkeypatch.setattr("raysweep.engine.ray_token.use_token", lambda *, starting: None)

    def use(client):
        monkeypatch.setattr(ray_submit, "client_of", lambda url: client)
        return client

    return use


def test_logs_follows_to_the_end_with_the_jobs_exit_code(dashboard, raysweep):
    dashboard(Client("a\n", "b\n"))
    assert raysweep("logs", "raysubmit_1", *AT) == Result(0, "a\nb\n", "")
    dashboard(Client("a\n", code=1, status=JobStatus.FAILED))
    assert raysweep("logs", "02000000", *AT) == Result(1, "a\n", "job raysubmit_1 ended with exit code 1\n")


def test_logs_without_following_prints_what_there_is(dashboard, raysweep):
    client = dashboard(Client("a\n", "b\n"))
    client.printed = "old\n"
    assert raysweep("logs", "raysubmit_1", "--no-follow", *AT) == Result(0, "old\n", "")
    assert client.pieces == ["a\n", "b\n"]


def test_the_interpreter_is_the_one_that_the_job_was_submitted_with(dashboard, raysweep):
    dashboard(Client("sh: 1: /py: not found\n", code=127, status=JobStatus.FAILED))
    ended = raysweep("logs", "raysubmit_1", *AT)
    assert ended.code == 2
    assert "error: interpreter '/py' does not exist on the head" in ended.err


def test_ctrl_c_leaves_the_job_and_names_the_commands(dashboard, raysweep):
    client = dashboard(Client("a\n"))

    def interrupted(job):
        raise KeyboardInterrupt

    client.get_job_status = interrupted
    ended = raysweep("logs", "raysubmit_1", *AT)
    assert (ended.code, ended.out) == (130, "")
    assert ended.err == (
        f"interrupted; job raysubmit_1 continues; follow it: raysweep logs raysubmit_1 --address {URL}; stop it: "
        f"raysweep stop raysubmit_1 --address {URL}\n"
    )
    assert not client.stopped


def test_stop(dashboard, raysweep):
    client = dashboard(Client("a\n", "b\n"))
    said = "job raysubmit_1 is stopped; committed work is kept, and submitting again resumes it\n"
    assert raysweep("stop", "raysubmit_1", *AT) == Result(0, said, "")
    assert client.stopped


def test_stop_without_waiting(dashboard, raysweep):
    client = dashboard(Client("a\n", "b\n"))
    said = "job raysubmit_1 was asked to stop; committed work is kept\n"
    assert raysweep("stop", "raysubmit_1", "--no-wait", *AT) == Result(0, said, "")
    assert client.stopped


def test_a_job_that_has_ended_is_not_stopped(dashboard, raysweep):
    client = dashboard(Client())
    said = "job raysubmit_1 had already ended (succeeded)\n"
    assert raysweep("stop", "raysubmit_1", *AT) == Result(0, said, "")
    assert not client.stopped


@pytest.mark.parametrize("command", ["logs", "stop"])
def test_an_unknown_job_is_refused_with_the_jobs_that_there_are(command, dashboard, raysweep):
    dashboard(Client(older=[f"raysubmit_{n}" for n in range(2, 12)]))
    ended = raysweep(command, "raysubmit_x", *AT)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(
        f"error: the cluster at {URL} has no job 'raysubmit_x'; its jobs: raysubmit_1 (running), raysubmit_2 (running), "
    )
    assert ended.err.endswith("and 3 older ones\n")


def test_a_cluster_without_jobs(dashboard, raysweep):
    client = dashboard(Client())
    client.list_jobs = list
    ended = raysweep("stop", "raysubmit_x", *AT)
    assert ended == Result(2, "", f"error: the cluster at {URL} has no job 'raysubmit_x'; no job was submitted to it\n")


@pytest.mark.parametrize("error", [RuntimeError("500"), ConnectionError("gone")])
def test_a_dashboard_that_lists_no_jobs(error, dashboard, raysweep):
    client = dashboard(Client())

    def failing():
        raise error

    client.list_jobs = failing
    ended = raysweep("logs", "x", *AT)
    assert ended == Result(2, "", f"error: the dashboard at {URL} does not list its jobs ({type(error).__name__})\n")


def test_the_address_is_rays_own_by_default(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(InputError, match=r"which cluster\? Give --address http://HOST:8265"):
        address_or_default(None)
    monkeypatch.setenv("RAY_ADDRESS", "http://a:8265")
    assert address_or_default(None) == "http://a:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://b")
    assert address_or_default(None) == "https://b"
    assert address_or_default("c:8265") == "c:8265"


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "ray://10.0.0.1:10001"])
def test_an_address_of_the_environment_that_is_not_a_dashboards(address, monkeypatch, raysweep):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    ended = raysweep("logs", "x")
    assert ended.code == 2
    assert ended.err.startswith(
        f"error: RAY_ADDRESS is '{address}', which is not a dashboard's URL; give --address http://HOST"
    )
