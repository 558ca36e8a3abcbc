"""Jobs of a real cluster of two nodes with a token: the same tables, exit codes and messages that come back, and every refusal.

The second node lives in a mount namespace where one folder is read-only and another is its own. No GPU is real.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
from command_line import Process, ended, started
from ray_cluster import free_port, head, node

import raysweep
from raysweep.engine import events
from raysweep.engine.events import read_events
from raysweep.engine.folder import RunFolder
from raysweep.engine.ray_token import use_token
from raysweep.report.tables import collect_tables

JOBS = Path(raysweep.__file__).parent.parent / "jobs"


def soon():
    """Seconds in which bad input is told: 15 on a machine of one's own, more where other work waits for its cores, too."""
    return 15.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Cluster:
    """A cluster's addresses, and its jobs as its dashboard tells them."""

    def __init__(self, address, port, read_only, own):
        self.address, self.url, self.read_only, self.own = address, f"http://127.0.0.1:{port}", read_only, own

    def ask(self, method, path, **options):
        headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
        answer = requests.request(method, f"{self.url}/api/jobs/{path}", headers=headers, timeout=30, **options)
        answer.raise_for_status()
        return answer.json()

    def ended(self, job):
        until = time.monotonic() + 120
        while (info := self.ask("GET", job))["status"] in ("PENDING", "RUNNING"):
            assert time.monotonic() < until, self.ask("GET", f"{job}/logs")["logs"]
            time.sleep(0.2)
        return info

    def run(self, script, *arguments, **options):
        """Exit code and log of a job made of one of the scripts in jobs/."""
        entrypoint = shlex.join([sys.executable, str(JOBS / script), *map(str, arguments)])
        job = self.ask("POST", "", json={"entrypoint": entrypoint, **options})["submission_id"]
        return self.ended(job)["driver_exit_code"], self.ask("GET", f"{job}/logs")["logs"]

    def job_of(self, storage):
        """The job whose run lies there."""
        (found,) = [job for job in self.ask("GET", "") if (job["metadata"] or {}).get("storage") == str(storage)]
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    port, read_only, own = free_port(), folder / "read-only", folder / "own"
    read_only.mkdir()
    own.mkdir()
    ro, mine = shlex.quote(str(read_only)), shlex.quote(str(own))
    before = f"mount --bind {ro} {ro} && mount -o remount,bind,ro {ro} && mount -t tmpfs none {mine}"
    with head(cpus=2, gpus=1, dashboard=port) as address, node(address, before=before):
        use_token(starting=False)
        found = Cluster(address, port, read_only, own)
        yield found
        for job in found.ask("GET", ""):
            if job["status"] == "RUNNING":
                found.ask("POST", f"{job['submission_id']}/stop")


@pytest.fixture(scope="module")
def write_config(make_config):
    """write_config(folder, "key=value", …): a config file whose run is to lie in `run` beside it."""

    def write(folder, *overrides):
        path = folder / "config.yaml"
        path.write_text(make_config(folder / "run", "execution.workers=1", *overrides).to_yaml())
        return path

    return write


def tables(folder):
    found = RunFolder(folder)
    return collect_tables(found, found.read_plan()[0])


def submit(cluster, config, *arguments, **environment):
    """`raysweep submit` in a process of its own: exit code, standard output and error, and seconds."""
    began = time.monotonic()
    command = ["submit", config, "--address", cluster.url, "--python", sys.executable, *arguments]
    process = started(*command, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err, time.monotonic() - began


# --- the same tables ----------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_script_submitted_by_ray_makes_the_tables(cluster, write_config, tmp_path, finished, tables_of, same_tables):
    write_config(tmp_path)
    shutil.copytree(JOBS, tmp_path / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.url]
    command += ["--working-dir", str(tmp_path), "--", sys.executable, "jobs/sweep.py", "config.yaml"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cluster checked: 2 nodes with the same package versions as this process" in done.stdout
    assert f"report: {tmp_path / 'run'}/report/index.html" in done.stdout
    same_tables(tables(tmp_path / "run"), tables_of(finished))


def test_submit_makes_the_tables_and_leaves_every_gpu_to_the_workers(
    cluster, write_config, tmp_path, finished, tables_of, same_tables
):
    secret = "aUnlikely/Secret+Value0123456789"
    config = write_config(tmp_path, "execution.gpus_per_worker=1")
    elsewhere = {"RAY_ADDRESS": f"http://127.0.0.1:{free_port()}"}  # which Ray's own client would go to instead
    code, out, err, _ = submit(
        cluster, config, "--fresh", "--wait-for-folder", AWS_SECRET_ACCESS_KEY=secret, **elsewhere
    )
    assert code == 0, out + err
    assert "cluster checked: 2 nodes" in out
    assert "costliest window" in out
    same_tables(tables(tmp_path / "run"), tables_of(finished))
    (ready,) = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["event"] == events.WORKERS_READY]
    assert sorted(worker["visible"] for worker in ready["seen"]) == ["0"], "the only one, so the entry point holds none"
    job = cluster.job_of(tmp_path / "run")
    assert job["metadata"].items() >= {"name": "small", "raysweep": raysweep.__version__}.items()
    assert len(job["metadata"]["config"]) == 16
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert os.environ["RAY_AUTH_TOKEN"].encode() not in written
    assert secret.encode() not in written


# --- its own exit code and message --------------------------------------------------------------------------------


def test_a_failing_config_comes_back_with_its_exit_code_and_message(cluster, write_config, tmp_path):
    config = write_config(tmp_path, "models.0.base=/nowhere")
    code, out, err, _ = submit(cluster, config)
    assert code == 2
    assert "error: checkpoint '/nowhere' does not exist" in out
    assert err.endswith("ended with exit code 2\n")
    assert not (tmp_path / "run").exists()
    job = cluster.job_of(tmp_path / "run")["submission_id"]
    again = ended(started("logs", job, "--address", cluster.url, RAY_AUTH_MODE=""))
    assert (again.code, again.err) == (2, f"job {job} ended with exit code 2\n"), (
        "with the token, and without RAY_AUTH_MODE"
    )
    assert "error: checkpoint '/nowhere' does not exist" in again.out
    stopped = ended(started("stop", job, "--address", cluster.url))
    assert stopped == (0, f"job {job} had already ended (failed)\n", "")
    unknown = ended(started("stop", "raysubmit_x", RAY_ADDRESS=cluster.url))
    assert unknown.code == 2
    assert f"has no job 'raysubmit_x'; its jobs: {job} (failed)" in unknown.err


def test_a_job_that_would_lose_its_run_is_refused(cluster, write_config, tmp_path):
    code, log = cluster.run("sweep.py", write_config(tmp_path), "--set", "storage=runs/x")
    assert code == 2
    assert "error: storage 'runs/x' is relative, and a job runs in its own folder" in log


@pytest.mark.soak
def test_an_entry_point_that_holds_a_gpu_is_refused(cluster, write_config, tmp_path):
    code, log = cluster.run("sweep.py", write_config(tmp_path), entrypoint_num_gpus=1)
    assert code == 2
    assert (
        "error: the entry point of this job holds 1 GPU, which it does not use and no worker can then use; submit it without "
        "--entrypoint-num-gpus"
    ) in log
    assert not (tmp_path / "run").exists()


def test_an_interpreter_that_is_not_there(cluster, write_config, tmp_path):
    code, _, err, _ = submit(cluster, write_config(tmp_path), "--python", "/no/python")
    assert code == 2
    assert "error: interpreter '/no/python' does not exist on the head of the cluster" in err


@pytest.mark.soak
def test_critical_layers_are_found_by_a_worker_as_in_this_process(cluster, world, raysweep):
    asked = [
        str(world / "base"),
        str(world / "first.jsonl"),
        "--limit",
        "6",
        "--resamples",
        "20",
        "--device",
        "cpu",
        "--json",
    ]
    code, log = cluster.run("critical.py", *asked)
    assert code == 0, log
    ours = json.loads(raysweep("critical", *asked).out)
    theirs = json.loads(log[log.index("\n{") :])
    assert theirs["layers"] == ours["layers"]


@pytest.mark.soak
def test_a_report_is_drawn_by_a_job(cluster, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished.folder.root, run)
    code, log = cluster.run("report.py", run)
    assert code == 0
    assert log.endswith(f"report: {run}/report/index.html\n")
    assert (run / "report" / "index.html").is_file()


# --- Ctrl-C -------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("stop", [False, True])
def test_after_ctrl_c_the_job_goes_on_unless_it_is_to_stop(cluster, write_config, tmp_path, stop):
    config = write_config(tmp_path, "studies.substitution.generate={examples: 10, tokens: 90, changes: all}")
    arguments = ["submit", config, "--address", cluster.url, "--python", sys.executable]
    process = started(*arguments, *(["--stop"] if stop else []))
    try:
        while " to run for " not in process.said():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    job = cluster.job_of(tmp_path / "run")
    if stop:
        assert f"job {job['submission_id']} is stopped; committed work is kept" in err
        assert job["status"] == "STOPPED"
        assert (
            "interrupted; committed work is kept, and submitting again resumes it"
            in cluster.ask("GET", f"{job['submission_id']}/logs")["logs"]
        )
    else:
        assert (
            f"continues; follow it: raysweep logs {job['submission_id']} --address {cluster.url}; stop it: raysweep stop"
            in err
        )
        assert job["status"] == "RUNNING"
        cluster.ask("POST", f"{job['submission_id']}/stop")
        cluster.ended(job["submission_id"])


# --- refused, soon, with no work started --------------------------------------------------------------------------


def refused(raysweep, *arguments):
    """What the command line says, in this process, of something it refuses."""
    began = time.monotonic()
    ended = raysweep(*arguments)
    assert ended.code == 2, ended.out + ended.err
    assert time.monotonic() - began <= soon()
    return ended.err.removeprefix("error: ").strip()


@pytest.mark.soak
def test_a_storage_that_a_node_may_not_write_to(cluster, write_config, tmp_path):
    storage = cluster.read_only / "run"
    code, out, _, seconds = submit(cluster, write_config(tmp_path), "--set", f"storage={storage}")
    assert code == 2
    assert f"error: storage '{storage}' is not shared by the whole cluster: " in out
    assert "cannot read and write there (OSError: [Errno 30] Read-only file system" in out
    assert "; give a folder that every node mounts and can write to, or a URL that every node reaches" in out
    assert seconds <= soon()
    assert list(cluster.read_only.iterdir()) == [], "what was made to find out is gone"


@pytest.mark.soak  # likewise
def test_a_storage_that_is_another_on_one_node(cluster, write_config, tmp_path, raysweep):
    storage = cluster.own / "run"
    told = refused(raysweep, "run", write_config(tmp_path), "--address", cluster.address, "--set", f"storage={storage}")
    assert told.startswith(f"storage '{storage}' is not shared by the whole cluster: {socket.gethostname()} (node ")
    assert (
        "does not see what the driver writes there; it is not a folder that both share; give a folder that "
        "every" in told
    )
    assert list(cluster.own.iterdir()) == []


@pytest.mark.soak  # test_ray_checks.py has what is said, without a cluster
def test_nodes_with_another_raysweep_than_the_driver(cluster, write_config, tmp_path):
    other = tmp_path / "other" / "raysweep-99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: raysweep\nVersion: 99.0\n")
    began = time.monotonic()
    path = os.pathsep.join([str(other.parent), str(JOBS.parent)])
    ended = subprocess.run(
        [sys.executable, "-m", "raysweep", "run", str(write_config(tmp_path)), "--address", cluster.address],
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    err = ended.stderr
    assert ended.returncode == 2
    assert err.startswith(
        f"error: the nodes of the cluster have different package versions than this process: raysweep is {raysweep.__version__} on "
    )
    assert err.count("and 99.0 here; ") == 2, "both nodes"
    assert err.endswith("install the same versions on every node (pip install -c constraints.txt)\n")
    assert time.monotonic() - began <= soon()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_cluster_of_another_ray(cluster, write_config, tmp_path, raysweep, monkeypatch, command):
    import ray

    there = ray.__version__
    monkeypatch.setattr(ray, "__version__", "2.59.0")
    address = cluster.address if command == "run" else cluster.url
    told = refused(raysweep, command, write_config(tmp_path), "--address", address)
    assert f"{address}" in told
    assert f"has Ray {there}" in told
    assert "and this process has Ray 2.59.0" in told
    assert told.endswith("; use the same on both")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["run", "submit"])
def test_gpus_that_the_cluster_has_not(cluster, write_config, tmp_path, raysweep, command):
    address = cluster.address if command == "run" else cluster.url
    config = write_config(tmp_path, "execution.gpus_per_worker=1", "execution.workers=2")
    assert refused(raysweep, command, config, "--address", address) == (
        f"execution.workers asks for 2 workers of 1 CPU and 1 GPU each, and there is room for 1: the cluster at {address} has 3 "
        "CPUs and 1 GPUs on 2 nodes; use fewer, or smaller ones (execution.cpus_per_worker, gpus_per_worker)"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "environment", "told"),
    [
        ("run", {"RAY_AUTH_TOKEN": "0" * 64}, "the one in this process's RAY_AUTH_TOKEN is wrong"),
        ("submit", {"RAY_AUTH_TOKEN": "0" * 64}, "the one in this process's RAY_AUTH_TOKEN is wrong"),
        ("run", {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, "this process gives none"),
    ],
)
def test_a_token_that_is_not_the_clusters(cluster, write_config, tmp_path, command, environment, told):
    address = cluster.address if command == "run" else cluster.url
    began = time.monotonic()
    clean = {"RAY_AUTH_MODE": "", **environment}
    inherited = {name: value for name, value in {**os.environ, **clean}.items() if value}
    process = Process([command, str(write_config(tmp_path)), "--address", address], inherited)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"asks for a token, and {told}; give its token in RAY_AUTH_TOKEN, or in the file" in err
    assert len(err.splitlines()) == 1, "one line, and none of Ray's"
    assert time.monotonic() - began <= soon()
    assert not (tmp_path / "run").exists()


def test_a_dashboard_that_does_not_answer(write_config, tmp_path, raysweep):
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert refused(raysweep, "submit", write_config(tmp_path), "--address", nowhere) == (
        f"nothing answers at {nowhere} (ConnectionError); is the cluster up, and is this its dashboard (port 8265 by default, "
        "and on the head's loopback unless it was started otherwise)?"
    )


def test_something_else_that_answers(cluster, write_config, tmp_path, raysweep):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer():
            with contextlib.closing(server.accept()[0]) as caller:
                caller.recv(65536)
                caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        told = refused(raysweep, "submit", write_config(tmp_path), "--address", url)
    assert told == f"what answers at {url} is not a Ray dashboard; give http://HOST:8265 of the cluster's head"


@pytest.mark.parametrize("address", ["somewhere", "ray://127.0.0.1:10001", "auto"])
def test_what_is_no_dashboards_address(write_config, tmp_path, raysweep, address):
    assert refused(raysweep, "submit", write_config(tmp_path), "--address", address) == (
        f"--address '{address}' is not a dashboard's address; give http://HOST:8265 (the dashboard, not the head's port 6379)"
    )
