"""What is told of nodes that are not as the driver is, from their answers alone; the token, its file, and the dashboard."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from raysweep.config import parse_config
from raysweep.engine.ray_checks import NodeReport, Probe, compare_versions, make_task, own_versions
from raysweep.errors import InputError
from raysweep.store.places import listing, location

OURS = {"python": "3.11.7", "raysweep": "0.1.0", "ray": "2.60.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"}

OURS_HERE = own_versions()


def reports(*changes):
    return [NodeReport(f"{i}abcdef0123", f"host{i}", OURS | change) for i, change in enumerate(changes)]


def test_builds_of_one_release_are_the_same():
    compare_versions(OURS, reports({}, {"torch": "2.13.0+cu130"}, {"torch": "2.13.0"}))


def test_every_difference_is_told_with_its_node_and_both_releases():
    with pytest.raises(InputError) as caught:
        compare_versions(OURS, reports({}, {"python": "3.12.1", "torch": "2.12.0+cpu"}, {"raysweep": None}))
    assert str(caught.value) == (
        "the nodes of the cluster have different package versions than this process: python is 3.12.1 on host1 (node "
        "1abcdef0) and 3.11.7 "
        "here; torch is 2.12.0+cpu on host1 (node 1abcdef0) and 2.13.0+cpu here; raysweep is not installed on host2 (node "
        "2abcdef0) and 0.1.0 here; install the same versions on every node (pip install -c constraints.txt)"
    )


def test_of_many_differences_the_first_are_told():
    with pytest.raises(InputError) as caught:
        compare_versions(OURS, reports(*[{"ray": "2.59.0"}] * 12))
    assert str(caught.value).count("ray is 2.59.0") == 10
    assert "; and 2 more; install" in str(caught.value)


def test_this_process_has_all_that_is_compared():
    assert own_versions().keys() == OURS.keys()


# --- the storage, which the driver and a node both see or not --------------------------------------------------------


def answer(probe, storage):
    """What a node says for which `storage` is where the probe's is for the driver."""
    names = f"{probe.name}.driver", f"{probe.name}.node0"
    versions, told = make_task()(str(storage), probe.options, *names, probe.name, ["raysweep", "no-such-package"], 0.3)
    assert versions == {"python": OURS_HERE["python"], "raysweep": OURS_HERE["raysweep"], "no-such-package": None}
    return [NodeReport("node0", "host0", versions, told)]


@pytest.mark.parametrize("storage", ["{folder}/new/[e]r/run", "file://{folder}/run", "memory://bucket/a/run"])
def test_a_storage_that_is_one_is_found_so_and_left_as_it_was(tmp_path, storage):
    place = location(storage.format(folder=tmp_path))
    with Probe(place) as probe:
        probe.check(answer(probe, place))
    assert list(tmp_path.iterdir()) == []
    assert fsspec.filesystem("memory").find("/bucket") == []


def test_a_place_in_an_object_store_is_found_with_its_options(s3):
    place = location(s3.url("probed"), s3.options)
    with Probe(place) as probe:
        probe.check(answer(probe, place))
    assert listing(place) == {}


def test_a_storage_that_is_two_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("raysweep.engine.ray_checks._SEEN_SECONDS", 0.3)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    with Probe(ours) as probe:
        with pytest.raises(InputError) as caught:
            probe.check(answer(probe, theirs))
        assert str(caught.value) == (
            f"storage '{ours}' is not shared by the whole cluster: host0 (node node0) does not see what the driver "
            "writes there; it is not a folder that both share; give a folder that every node mounts and can write to, "
            "or a URL that "
            "every node reaches"
        )
        (theirs / f"{probe.name}.driver").write_text(probe.name)  # as where only one way is slow, or closed
        with pytest.raises(InputError, match="writes there; it is that node's own"):
            probe.check(answer(probe, theirs))
        (theirs / f"{probe.name}.driver").write_text("another")
        with pytest.raises(InputError, match="reads something other than the driver wrote there"):
            probe.check(answer(probe, theirs))
    assert not ours.exists()


def test_a_storage_that_the_driver_cannot_write_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to by this process"), Probe(tmp_path / "file" / "run"):
        pass


# --- the token ----------------------------------------------------------------------------------------------------

ASK = """
import os
from raysweep.engine.ray_token import use_token
use_token(starting={starting})
print(os.environ.get("RAY_AUTH_MODE"))
"""


def mode(folder, starting, **environment):
    """RAY_AUTH_MODE as it is before ray is imported, in a process with this home."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    asked = subprocess.run(
        [sys.executable, "-c", ASK.format(starting=starting)],
        env={**clean, "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return asked.stdout.strip()


def test_a_cluster_that_is_started_asks_for_a_token_and_a_client_gives_one_that_it_has(tmp_path):
    assert mode(tmp_path, starting=True) == "token"
    assert mode(tmp_path, starting=False) == "None"
    assert mode(tmp_path, starting=False, RAY_AUTH_TOKEN="abc") == "token"
    assert mode(tmp_path, starting=True, RAY_AUTH_MODE="disabled") == "disabled", "as was asked for"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("abc")
    assert mode(tmp_path, starting=False) == "token"


def test_a_token_file_that_others_can_read_is_made_private(tmp_path):
    path = tmp_path / "token"
    path.write_text("abc")
    path.chmod(0o644)
    mode(tmp_path, starting=False, RAY_AUTH_TOKEN_PATH=str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# --- the dashboard ------------------------------------------------------------------------------------------------


def test_a_dashboard_for_others_needs_a_token(monkeypatch):
    from raysweep.engine.ray_backend import check_dashboard

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for host in ("127.0.0.1", "localhost", "::1"):
        check_dashboard(host)
    with pytest.raises(InputError) as caught:
        check_dashboard("0.0.0.0")
    assert str(caught.value) == (
        "execution.dashboard_host 0.0.0.0 opens the dashboard, which runs any job it is sent, to other machines, and "
        "RAY_AUTH_MODE=disabled requires no token; unset it or set it to token, or keep the dashboard at 127.0.0.1"
    )
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check_dashboard("0.0.0.0")


def test_a_dashboard_is_opened_by_nobody_who_starts_none(make_config, tmp_path):
    with pytest.raises(
        InputError, match="dashboard_host applies only to a Ray cluster that raysweep starts, and executor is local"
    ):
        make_config(tmp_path, "execution.dashboard_host=0.0.0.0")
    with pytest.raises(InputError, match="and address 'auto' is a running cluster; remove it"):
        make_config(tmp_path, "execution={executor: ray, address: auto, dashboard_host: 0.0.0.0}")
    assert parse_config(make_config(tmp_path).model_dump()).execution.dashboard_host == "127.0.0.1"


# --- being a job --------------------------------------------------------------------------------------------------


def test_a_job_sees_no_gpu_and_keeps_nothing_in_its_own_folder(monkeypatch):
    from raysweep.engine.ray_jobs import enter_job, in_job

    assert not in_job()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert in_job()
    enter_job("/shared/run")
    enter_job("s3://bucket/run")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(InputError) as caught:
        enter_job("runs/x")
    assert str(caught.value) == (
        "storage 'runs/x' is relative, and a job runs in its own folder, which is deleted with it; give an absolute "
        "folder that every node sees (--set storage=/shared/run), or a URL"
    )


def test_states_of_a_job_wait_in_an_absolute_folder(make_config, tmp_path, monkeypatch):
    from raysweep.engine.ray_backend import RayBackend
    from raysweep.engine.ray_submit import travelling

    monkeypatch.chdir(tmp_path)
    submitted = travelling(make_config("runs/x", "execution.spill=scratch"), None)
    assert submitted.execution.spill == str(tmp_path / "scratch")
    assert travelling(make_config("runs/x"), None).execution.spill is None
    elsewhere = travelling(make_config("runs/x", "execution.spill=~/scratch"), tmp_path)
    assert elsewhere.execution.spill == str(Path.home() / "scratch")

    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    asked = make_config("/shared/run", "execution={executor: ray, spill: scratch}").execution
    with pytest.raises(InputError) as caught:
        RayBackend(asked).check("/shared/run", {})
    assert str(caught.value) == (
        "execution.spill 'scratch' is relative, and a job runs in its own folder, which may be on a disk without room; give an "
        "absolute folder, which each worker has on its own disk (--set execution.spill=/scratch)"
    )
