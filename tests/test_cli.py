"""The command line, end to end: what each command prints and where, its exit code, and every refusal.

Most commands run in this process through the entry point itself; a few run as a user starts them, in a process of
their own. Checkpoints are small random models, records are sentences of a few words.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from scipy import stats

from raysweep import cli, recipes
from raysweep.engine.events import read_events

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def raysweep(monkeypatch, capsys):
    """raysweep("run", …) calls the entry point in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["raysweep", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Result(ended.value.code or 0, said.out, said.err)

    return call


def started(*arguments, **options):
    """`raysweep …` in a process of its own."""
    command = [sys.executable, "-m", "raysweep", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes, **options)


def ended(process):
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out, err)


def content(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny, tiny_pair, tokenizer):
    """Checkpoints `base`, `tuned` and ones that do not belong with them, and twelve records."""
    folder = tmp_path_factory.mktemp("world")
    base, tuned = tiny_pair("llama", 5, max_position_embeddings=128)
    models = {
        "base": base,
        "tuned": tuned,
        "deeper": tiny("llama", 6, max_position_embeddings=128),
        "wider": tiny("llama", 5, width=24, max_position_embeddings=128),
        "larger": tiny("llama", 5, vocab_size=336, max_position_embeddings=128),
        "other": tiny("qwen3", 5, max_position_embeddings=128),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    records = [
        {"question": f"Count {' '.join(WORDS[: 1 + i % 7])}?", "answer": " ".join(WORDS[i % 5 : 3 + (3 * i) % 7])}
        for i in range(12)
    ]
    (folder / "counts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def settings(world, storage):
    return {
        "name": "mine",
        "models": [{"name": "m", "base": str(world / "base"), "tuned": {"d": str(world / "tuned")}}],
        "datasets": [{"name": "d", "path": str(world / "counts.jsonl"), "format": "gsm8k"}],
        "studies": {"substitution": {"widths": [2]}, "similarity": {}, "correlation": {"resamples": 20}},
        "execution": {"chunk": 4, "device": "cpu"},
        "storage": str(storage),
    }


@pytest.fixture
def config(world, tmp_path):
    """A config file whose run lies beside it, in `run`."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(world, tmp_path / "run")))
    return path


@pytest.fixture(scope="module")
def swept(world, tmp_path_factory):
    """`raysweep sweep` as a user runs it: its result and its run folder."""
    folder = tmp_path_factory.mktemp("swept")
    arguments = [world / "base", world / "tuned", world / "counts.jsonl", "--width", 2, "--width", 1, "--limit", 11]
    changes = ["--set", "execution.chunk=4", "--set", "studies.correlation.resamples=20"]
    return ended(started("sweep", *arguments, *changes, "--out", folder / "run")), folder / "run"


# --- a run, looked at from all sides ------------------------------------------------------------------------------


def test_sweep_answers_on_standard_output(swept):
    result, folder = swept
    assert result.code == 0, result.err
    answers = result.out.splitlines()
    assert len(answers) == 3, "one a width, and the report"
    for line, width, windows in zip(answers[:2], (1, 2), (5, 4), strict=True):
        assert re.fullmatch(
            rf"base on counts: Spearman [+-]\d\.\d{{3}} \[[+-]\S+, [+-]\S+\] between cka_linear dynamics and the loss after "
            rf"substitution, over {windows} windows of width {width}",
            line,
        )
    assert answers[2] == f"report: {folder / 'report' / 'index.html'}"


def test_sweep_tells_its_progress_in_plain_lines_on_standard_error(swept):
    lines = swept[0].err.splitlines()
    assert re.fullmatch(r"\[ *\d+\.\d s\] 13 tasks, 0 done already; 8 calls to run", lines[0])
    assert lines[-1].startswith("estimated ÷ real: time ")
    assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in lines[:-1])


def test_sweep_leaves_a_whole_run(swept):
    _, folder = swept
    found = content(folder)
    for name in ("config.yaml", "plan.json", "events.jsonl", "report/index.html"):
        assert name in found
    for table in ("substitution", "similarity", "dynamics", "health", "correlation"):
        assert f"results/{table}.parquet" in found
    losses = pd.read_parquet(folder / "results" / "substitution.parquet")
    assert len(losses) == (1 + 5 + 4 + 1) * 11
    assert {path.suffix for path in (folder / "report" / "figures").iterdir()} == {".png", ".svg"}


def test_sweep_keeps_the_config_it_made(swept, raysweep):
    _, folder = swept
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert kept["studies"]["substitution"]["widths"] == [2, 1]
    assert kept["execution"]["chunk"] == 4, "--set counts here too"
    assert kept["datasets"][0]["format"] == "gsm8k", "found from the first record"
    again = raysweep("run", folder / "config.yaml")
    assert again.code == 0
    assert "13 tasks, 13 done already; 0 calls to run" in again.err


def test_status(swept, raysweep):
    _, folder = swept
    told = raysweep("status", folder)
    assert (told.code, told.err) == (0, "")
    first, *rest = told.out.splitlines()
    assert re.fullmatch(r"finished; (\d+) of \1 parts committed", first)
    assert [line.split() for line in rest] == [
        ["substitute", "11", "of", "11", "tasks", "done"],
        ["similarity", "1", "of", "1", "tasks", "done"],
        ["correlate", "1", "of", "1", "tasks", "done"],
    ]


def test_status_as_json(swept):
    _, folder = swept
    told = ended(started("status", folder, "--json"))
    assert (told.code, told.err) == (0, "")
    standing = json.loads(told.out)
    assert standing == {
        "state": "finished",
        "tasks": {
            "substitute": {"done": 11, "all": 11},
            "similarity": {"done": 1, "all": 1},
            "correlate": {"done": 1, "all": 1},
        },
        "parts": {"done": 11 * 3 + 3 + 3 + 1, "all": 40},
        "failures": {},
        "unfinished": [],
    }


def test_report_is_drawn_again(swept, raysweep):
    _, folder = swept
    page = folder / "report" / "index.html"
    page.unlink()
    told = raysweep("report", folder)
    assert told == Result(0, f"report: {page}\n", "")
    text = page.read_text(encoding="utf-8")
    assert "raysweep" in text
    assert str(folder) in text, "the command is told"


def test_plan_tells_and_writes_nothing(config, raysweep):
    before = content(config.parent)
    told = raysweep("plan", config)
    assert (told.code, told.err) == (0, "")
    assert content(config.parent) == before
    lines = told.out.splitlines()
    assert lines[:3] == ["substitute   6 tasks, 0 done", "similarity   1 tasks, 0 done", "correlate    1 tasks, 0 done"]
    words = ["to", "to", "memory", "time", "weights", "resident", "stream"]
    assert [line.split()[0] for line in lines[3:]] == words
    assert re.fullmatch(r"  resident   \S+ kB to read, \d+ layer calls, \d+ MB of memory, \S+ s \(taken\)", lines[8])
    assert re.fullmatch(r"  stream     \S+ kB to read, \d+ layer calls, \d+ MB of memory, \S+ s", lines[9])
    # trunk 5; branches 5 + 3 × 2; tails 3 + 2 + 1; the base model's own layers 5
    # three chunks of one batch, and a capture call each
    assert lines[4] == "to compute   27 layer applications, each on a whole data set (81 calls of a layer on a batch)"


def test_plan_as_json_before_and_after_a_run(config, raysweep):
    told = raysweep("plan", config, "--json", "--set", "studies.substitution.widths=[5]")
    planned = json.loads(told.out)
    assert told.err == ""
    assert planned["tasks"]["substitute"] == {"done": 0, "all": 2}
    assert planned["names"][:2] == ["substitute m/d none", "substitute m/d 0-4"]
    assert planned["layer_applications"] == 10 + 5
    assert planned["device"] == "cpu"
    assert raysweep("run", config).code == 0
    planned = json.loads(raysweep("plan", config, "--json").out)
    assert planned["tasks"]["substitute"] == {"done": 6, "all": 6}
    assert [planned[key] for key in ("layer_applications", "bytes_to_read", "seconds")] == [0, 0, 0]


def test_fresh_forgets(config, raysweep):
    assert raysweep("run", config).code == 0
    assert "8 tasks, 8 done already; 0 calls" in raysweep("run", config).err
    assert "8 tasks, 0 done already; 8 calls" in raysweep("run", config, "--fresh").err


def test_demo_is_the_laboratorys(tmp_path, raysweep, monkeypatch):
    monkeypatch.setattr(recipes, "DEMO_SETS", {"facts": "boolq"})
    monkeypatch.setattr(recipes, "DEMO_EXAMPLES", 8)
    told = raysweep("demo", "--out", tmp_path / "demo")
    assert told.code == 0, told.err
    assert told.out.splitlines()[-1] == f"report: {tmp_path / 'demo' / 'report' / 'index.html'}"
    texts = pd.read_parquet(tmp_path / "demo" / "results" / "generation.parquet")
    assert len(texts) == 22, "a text of one example under each window"


def test_the_demo_studies_four_sets():
    config = recipes.demo_config("somewhere")
    assert {d.name: d.path for d in config.datasets} == {
        name: f"lab://{name}/test" for name in ("sums", "facts", "quiz", "orders")
    }
    assert config.models[0].tuned == {name: f"lab://tiny/{name}" for name in ("sums", "facts", "quiz", "orders")}
    assert config.studies.correlation is not None


def test_init_writes_a_config_to_start_from(tmp_path, raysweep, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert raysweep("init") == Result(0, "wrote raysweep.yaml; now: raysweep plan raysweep.yaml\n", "")
    before = (tmp_path / "raysweep.yaml").read_text()
    assert before.startswith("# A raysweep run.")
    told = raysweep("plan", "raysweep.yaml", "--set", "datasets.0.limit=4", "--json")
    assert json.loads(told.out)["tasks"]["substitute"]["all"] == 22
    refused = raysweep("init")
    assert refused == Result(2, "", "error: 'raysweep.yaml' exists already; give another name or delete it\n")
    assert (tmp_path / "raysweep.yaml").read_text() == before
    refused = raysweep("init", "gone/my.yaml")
    assert refused == Result(2, "", "error: folder 'gone' does not exist; make it first\n")


def test_long_and_foreign_names_make_a_config():
    config = recipes.sweep_config("x/" + "b" * 90, "t", "données/" + "é" * 70 + ".jsonl", format="dolly", wording="chat", widths=[1])  # fmt: skip
    assert len(config.name) <= 100
    assert config.storage == f"runs/{config.name}"
    config = recipes.sweep_config("lab://tiny", "lab://tiny/sums", "lab://sums/test", format="gsm8k", wording="chat", widths=[1])  # fmt: skip
    assert (config.name, config.datasets[0].name) == ("tiny-sums", "sums")


# --- correlate ----------------------------------------------------------------------------------------------------

DELTA = [0.97, 0.95, 0.80, 0.82, 0.96, 0.91]
LOSS = {1: 1.2, 2: 1.9, 3: 1.7, 4: 1.1, 9: 1.0}


@pytest.fixture
def measured(tmp_path):
    """CSV files of δ by layer and loss by centre, as options."""
    pd.DataFrame({"layer": range(6), "delta": DELTA}).to_csv(tmp_path / "delta.csv", index=False)
    pd.DataFrame({"centre": LOSS.keys(), "loss": LOSS.values()}).to_csv(tmp_path / "loss.csv", index=False)
    return ["--dynamics", tmp_path / "delta.csv", "--losses", tmp_path / "loss.csv"]


def test_correlate_as_json(measured):
    told = ended(started("correlate", *measured, "--json"))
    assert (told.code, told.err) == (0, "")
    found = json.loads(told.out)
    expected = stats.spearmanr(DELTA[1:5], [LOSS[centre] for centre in (1, 2, 3, 4)]).statistic
    assert found["figures"]["spearman"] == pytest.approx(expected, abs=1e-12)
    assert found["centres"] == [1, 2, 3, 4]
    assert (found["only_dynamics"], found["only_losses"]) == ([0, 5], [9])


def test_correlate_in_words(measured, raysweep):
    told = raysweep("correlate", *measured)
    assert (told.code, told.err) == (0, "")
    expected = stats.spearmanr(DELTA[1:5], [LOSS[centre] for centre in (1, 2, 3, 4)]).statistic
    assert told.out.startswith(f"Spearman       {expected:+.6f} over 4 centres (1 to 4)\n")
    assert "layers without a loss: 0, 5\n" in told.out
    assert "centres without a δ: 9" in told.out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({1: "gone.csv"}, "error: file 'gone.csv' does not exist"),
        ({1: "gone.pt"}, "error: dynamics file 'gone.pt' does not exist"),
        ({3: "gone"}, "error: file 'gone' does not exist"),
        ({4: "--neighbourhood", 5: "2"}, "error: --neighbourhood 2: it has a layer in its middle, so it is odd"),
    ],
)
def test_correlate_refuses(measured, raysweep, change, told):
    arguments = dict(enumerate(measured)) | change
    assert raysweep("correlate", *arguments.values()) == Result(2, "", f"{told}\n")


# --- refusals -----------------------------------------------------------------------------------------------------

REFUSALS = {
    "a checkpoint that is missing": (
        ["models.0.base=./gone"],
        "checkpoint './gone' does not exist; give a folder written by save_pretrained, or a hub id (owner/name)",
    ),
    "a checkpoint that is a file": (
        ["models.0.base={world}/counts.jsonl"],
        "checkpoint '{world}/counts.jsonl' is a file, not a checkpoint folder; "
        "give a folder written by save_pretrained, or a hub id (owner/name)",
    ),
    "a folder that is no checkpoint": (
        ["models.0.base={world}"],
        "checkpoint '{world}' has no config.json ({world}); is it the folder that save_pretrained wrote?",
    ),
    "records that are missing": (["datasets.0.path=./gone.jsonl"], "there is no file gone.jsonl: check the path"),
    "a name that the laboratory has not": (
        ["models.0.base=lab://tinny"],
        "the laboratory has no 'lab://tinny'; did you mean 'tiny'? (write it after lab://)",
    ),
    "a misspelt key": (
        ["studies.substitution.width=5"],
        "{config}: unknown key 'studies.substitution.width'; did you mean 'widths'?",
    ),
    "an executor that is not there": (["execution.executor=dask"], "{config}: key 'execution.executor': 'dask' is not 'local' or 'ray'"),
    "an override without a value": (
        ["name"],
        "--set name: write it as key=value, for example execution.chunk=16",
    ),
    "another depth": (
        ["models.0.tuned.d={world}/deeper"],
        "base '{world}/base' and tuned '{world}/deeper' differ in depth: 5 and 6 decoder layers "
        "(tensor model.layers.5.input_layernorm.weight: [16] and none)",
    ),
    "another width": (
        ["models.0.tuned.d={world}/wider"],
        "base '{world}/base' and tuned '{world}/wider' differ in tensor lm_head.weight: [320, 16] and [320, 24]; "
        "a pair must have the same width and vocabulary",
    ),
    "another vocabulary": (
        ["models.0.tuned.d={world}/larger"],
        "base '{world}/base' and tuned '{world}/larger' differ in tensor lm_head.weight: [320, 16] and [336, 16]; "
        "a pair must have the same width and vocabulary",
    ),
    "another architecture": (
        ["models.0.tuned.d={world}/other"],
        "base '{world}/base' and tuned '{world}/other' are different architectures: llama and qwen3; "
        "a pair must be one model before and after fine-tuning",
    ),
    "an unknown format": (
        ["datasets.0.format=gsm9k"],
        "unknown format 'gsm9k': did you mean 'gsm8k'?",
    ),
    "an unknown wording": (["models.0.wording=lama2"], "unknown wording 'lama2': did you mean 'llama2'?"),
    "records of another format": (
        ["datasets.0.format=dolly"],
        "{world}/counts.jsonl, line 1: has no field 'instruction', which format 'dolly' needs; "
        "its fields are question, answer",
    ),
    "no response tokens": (
        ["datasets.0.max_tokens=2"],
        "{world}/counts.jsonl has no usable response tokens: none of its 12 records has a prompt token and a response token "
        "after cutting to max_tokens 2; check the format, the texts and max_tokens",
    ),
    "a window wider than the model": (
        ["studies.substitution.widths=[2, 6]"],
        "a window of width 6 does not fit the 5 decoder layers of model 'm'; give widths from 1 to 5",
    ),
    "storage that is someone else's": (
        ["storage={world}"],
        "storage '{world}' is neither empty nor a run folder (it has '*'); give another folder",
    ),
    "storage that is a file": (
        ["storage={world}/counts.jsonl"],
        "storage '{world}/counts.jsonl' is a file; give a folder",
    ),
    "storage that is a URL": (
        ["storage=s3://bucket/run"],
        "{config}: key 'storage': give a folder, not 's3://bucket/run'; a run is stored in this machine's file system",
    ),
    "a device that is not there": (
        ["execution.device=cuda:99"],
        "execution.device asks for cuda:99, and this machine shows * CUDA devices; use auto or cpu",
    ),
    "a device of no kind": (
        ["execution.device=tpu"],
        "{config}: key 'execution.device': 'tpu' is no device; give auto, cpu, mps, cuda or cuda:N",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_refused_before_anything_is_written(world, config, raysweep, monkeypatch, name):
    overrides, told = REFUSALS[name]
    monkeypatch.chdir(config.parent)
    before = content(config.parent), content(world)
    options = [part for override in overrides for part in ("--set", override.format(world=world))]
    for command in ("run", "plan"):
        refused = raysweep(command, config, *options)
        assert (refused.code, refused.out) == (2, "")
        expected = re.escape(f"error: {told.format(world=world, config=config)}\n").replace(r"\*", ".+")
        assert re.fullmatch(expected, refused.err), refused.err
    assert (content(config.parent), content(world)) == before


def test_a_record_without_its_field_is_told_with_file_and_line(world, config, raysweep, tmp_path):
    lines = (world / "counts.jsonl").read_text().splitlines()
    path = tmp_path / "broken.jsonl"
    path.write_text("\n".join([*lines[:3], '{"question": "and?", "anwser": "x"}', *lines[3:]]))
    refused = raysweep("run", config, "--set", f"datasets.0.path={path}")
    assert refused == Result(
        2,
        "",
        f"error: {path}, line 4: has no field 'answer', which format 'gsm8k' needs; its fields are question, anwser\n",
    )
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_cut_is_refused(world, config, raysweep, tmp_path):
    (tmp_path / "cut").mkdir()
    for path in (world / "base").iterdir():
        data = path.read_bytes()
        (tmp_path / "cut" / path.name).write_bytes(data[:-1] if path.suffix == ".safetensors" else data)
    refused = raysweep("run", config, "--set", f"models.0.base={tmp_path / 'cut'}")
    size = (world / "base" / "model.safetensors").stat().st_size
    assert refused == Result(
        2,
        "",
        f"error: {tmp_path}/cut/model.safetensors has {size - 1} bytes where its header tells {size}; "
        "copy the checkpoint again\n",
    )


def test_files_and_folders_that_are_missing(tmp_path, raysweep, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = raysweep("run", "gone.yaml")
    assert refused == Result(
        2, "", "error: config 'gone.yaml' does not exist; `raysweep init` writes one to start from\n"
    )
    for command in ("status", "report"):
        assert raysweep(command, "gone") == Result(2, "", "error: run folder 'gone' does not exist\n")
        told = f"error: '{tmp_path}' is no run folder (it has no events.jsonl and plan.json)\n"
        assert raysweep(command, tmp_path) == Result(2, "", told)
    assert content(tmp_path) == []


def test_sweep_refuses_too(world, tmp_path, raysweep, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = raysweep("sweep", world / "base", world / "deeper", world / "counts.jsonl", "--width", 2)
    assert refused.code == 2
    assert "differ in depth: 5 and 6 decoder layers" in refused.err
    refused = raysweep("sweep", world / "base", world / "tuned", "gone.jsonl")
    assert refused == Result(2, "", "error: there is no file gone.jsonl: check the path\n")
    refused = raysweep("sweep", world / "base", world / "tuned", world / "counts.jsonl", "--width", 0)
    assert refused == Result(2, "", "error: config: key 'studies.substitution.widths[0]': give 1 or more, not 0\n")
    (tmp_path / "odd.jsonl").write_text('{"text": "x"}\n')
    refused = raysweep("sweep", world / "base", world / "tuned", "odd.jsonl")
    assert refused.code == 2
    assert refused.err.startswith(
        "error: the first record, with the fields text, fits no known format; name the format:"
    )
    assert content(tmp_path) == ["odd.jsonl"]


@pytest.mark.parametrize("arguments", [["rum"], ["run"], ["run", "x.yaml", "--st", "a=b"], ["sweep", "a"]])
def test_bad_usage(arguments, raysweep):
    refused = raysweep(*arguments)
    assert (refused.code, refused.out) == (2, "")
    assert "Error" in refused.err


# --- ends that are not happy --------------------------------------------------------------------------------------


def test_a_failed_task_gives_exit_code_1_and_the_rest_is_kept(config, raysweep, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("the device is gone\nsomewhere")

    with monkeypatch.context() as patch:
        patch.setattr("raysweep.engine.work.similarity_tables", broken)
        failed = raysweep("run", config)
    assert failed.code == 1
    assert "failed: similarity m/d: RuntimeError: the device is gone\n" in failed.err
    assert "failed: correlate m/d: not made, for 'similarity m/d' failed\n" in failed.err
    assert "Traceback" not in failed.err
    *answer, last = failed.out.splitlines()
    assert len(answer) == 1, "the costliest window is known"
    assert re.fullmatch(r"m on d: layers \d-\d put back cost most, loss \d+\.\d{4}", answer[0])
    assert last == f"report: {config.parent / 'run' / 'report' / 'index.html'}"
    (event,) = [e for e in read_events(config.parent / "run" / "events.jsonl") if e["event"] == "call_failed"]
    assert "in broken" in event["traceback"]
    told = raysweep("status", config.parent / "run").out
    assert "  failed: similarity m/d: RuntimeError: the device is gone\n" in told
    assert "  not done: correlate m/d" in told
    mended = raysweep("run", config)
    assert mended.code == 0
    assert "Spearman" in mended.out


def test_an_interrupt_gives_exit_code_130_and_a_run_that_resumes(config, raysweep, tmp_path):
    events = tmp_path / "run" / "events.jsonl"
    many = [
        "--set",
        "execution.fuse=false",
        "--set",
        "execution.chunk=1",
        "--set",
        "studies.substitution.widths=[1, 2, 3]",
    ]
    process = started("run", config, *many)
    while "chunk_committed" not in (events.read_text() if events.exists() else "") and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stopped = ended(process)
    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err.endswith("interrupted; what is committed is kept, and running again resumes it\n")
    assert "Traceback" not in stopped.err
    assert [event["event"] for event in read_events(events)][-1] == "run_interrupted"
    assert raysweep("status", tmp_path / "run").out.startswith("interrupted; ")

    resumed = raysweep("run", config, *many)
    assert resumed.code == 0
    done = [key for event in read_events(events) if event["event"] == "chunk_committed" for key in event["keys"]]
    assert len(done) == len(set(done)) == json.loads(raysweep("status", tmp_path / "run", "--json").out)["parts"]["all"]


def test_an_interrupt_anywhere_gives_exit_code_130(config, raysweep, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("raysweep.engine.driver.inspect", interrupted)
    for command in ("run", "plan"):
        assert raysweep(command, config).code == 130


def test_the_command_is_kept_for_the_report(config, raysweep, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["raysweep"])
    assert raysweep("run", config, "--set", "name=a name".replace(" ", "-")).code == 0
    about = json.loads((config.parent / "run" / "plan.json").read_text())["about"]
    assert about["command"] == shlex.join(["raysweep", "run", str(config), "--set", "name=a-name"])


def test_as_a_module_and_as_a_script():
    script = Path(sys.executable).with_name("raysweep")
    for command in ([sys.executable, "-m", "raysweep"], [str(script)] if script.exists() else []):
        if command:
            told = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60)
            assert told.returncode == 0
            for name in ("demo", "sweep", "init", "plan", "run", "status", "report", "correlate"):
                assert re.search(rf"^  {name} ", told.stdout, re.MULTILINE)
