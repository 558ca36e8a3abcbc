"""Options of the commands that run studies: what they come to, and what is refused before anything heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer

from raysweep.cli_options import template_of, widths_of

HEAVY = {"torch", "transformers", "pandas", "pyarrow", "ray", "datasets"}


@pytest.mark.parametrize(
    ("given", "widths"),
    [
        (None, [5]),
        (["4"], [4]),
        (["4,5"], [4, 5]),
        (["4, 5", "7"], [4, 5, 7]),
        (["1", "1"], [1]),
        (["all"], "all"),
    ],
)
def test_widths(given, widths):
    assert widths_of(given) == widths


@pytest.mark.parametrize(
    "given", [["0"], ["-1"], [""], ["4,"], ["x"], ["1.5"], ["４"], ["9" * 12], ["all,4"], ["4", "all"]]
)
def test_bad_widths_are_refused(given):
    with pytest.raises(typer.BadParameter):
        widths_of(given)


def test_the_old_name_of_the_prompt_template(capsys):
    assert template_of(None, None) == "chat"
    assert template_of("plain", None) == "plain"
    assert capsys.readouterr().err == ""
    assert template_of(None, "plain") == "plain"
    assert capsys.readouterr().err == "warning: --wording is deprecated; use --template\n"
    with pytest.raises(typer.BadParameter):
        template_of("chat", "plain")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--width", "0,4", "'0' is not a number of layers; give a number from 1, several (4,5), or all"),
        ("--device", "gpu", "give auto, cpu, mps, cuda or cuda:N"),
        ("--executor", "slurm", "'slurm' is not one of 'local', 'ray'"),
        ("--template", "lama2", "'lama2' is not one of 'chat', 'plain', 'llama2', 'llama3', 'phi3'"),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(option, value, said, raysweep):
    refused = raysweep("sweep", "a", "b", "c", option, value)
    assert (refused.code, refused.out) == (2, "")
    assert f"Invalid value for '{option}'" in refused.err
    assert said in refused.err
    assert value.partition(",")[0] in refused.err
    assert "Value error" not in refused.err


def test_bad_values_are_refused_before_anything_heavy_is_loaded():
    code = f"""
import atexit, sys
atexit.register(lambda: print(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stdout))
sys.argv = ['raysweep', 'sweep', 'a', 'b', 'c', '--device', 'gpu', '--width', 'x']
from raysweep.cli import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (2, "")


@pytest.fixture
def asked(monkeypatch):
    """The config and overrides that a command would run."""
    from raysweep import cli_sweeps

    found = []
    monkeypatch.setattr(
        cli_sweeps, "run_and_report", lambda config, overrides=(), **options: found.append((config, overrides, options))
    )
    return found


def test_options_of_sweep_reach_the_config(asked, raysweep):
    options = ["--width", "4,5", "--device", "cpu", "--executor", "ray", "--template", "plain", "--json"]
    assert raysweep("sweep", "a", "b", "c.jsonl", "--format", "dolly", "--set", "execution.chunk=8", *options).code == 0
    ((config, overrides, given),) = asked
    assert config.studies.substitution.widths == [4, 5]
    assert config.models[0].template == "plain"
    assert overrides == ["execution.chunk=8", "execution.device=cpu", "execution.executor=ray"]
    assert given["as_json"]


def test_every_width(asked, raysweep):
    assert raysweep("sweep", "a", "b", "c.jsonl", "--format", "dolly", "--width", "all").code == 0
    assert asked[0][0].studies.substitution.widths == "all"


@pytest.mark.parametrize(
    ("options", "overrides"),
    [
        ([], []),
        (["--device", "cpu"], ["execution.device=cpu"]),
        (["--executor", "ray"], ["execution.executor=ray"]),
        (["--address", "auto"], ["execution.executor=ray", "execution.address=auto"]),
        (["--set", "name=x", "--verify", "3"], ["name=x", "studies.substitution.verify=3"]),
    ],
)
def test_options_of_run_are_overrides(options, overrides, asked, raysweep):
    assert raysweep("run", "my.yaml", *options).code == 0
    assert asked[0][:2] == ("my.yaml", overrides)


def test_the_answer_as_json_is_all_of_standard_output(swept, world, raysweep):
    _, folder = swept
    ended = raysweep("run", folder / "config.yaml", "--json")
    assert ended.code == 0
    said = json.loads(ended.out)
    assert (said["folder"], said["report"]) == (str(folder), str(folder / "report" / "index.html"))
    assert said["failed"] == {}
    (cell,) = said["cells"]
    assert (cell["model"], cell["dataset"], cell["layers"]) == ("base", "counts", 5)
    assert [found["width"] for found in cell["costliest"]] == [1, 2]
    for found in cell["costliest"]:
        assert found["last"] - found["first"] + 1 == found["width"]
        assert found["low"] <= found["cost"] <= found["high"]
        assert found["examples"] == 11
    assert [(found["width"], found["windows"]) for found in cell["correlations"]] == [(1, 5), (2, 4)]
    assert all(-1 <= found["rho"] <= 1 for found in cell["correlations"])
