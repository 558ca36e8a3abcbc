"""The commands, end to end: what each prints and where, and what it leaves.

Most run in this process through the entry point itself; a few run as a user starts them, in a process of their own.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pandas as pd
import pytest
import yaml
from command_line import Result, content, ended, started

from raysweep import recipes
from raysweep.errors import InputError


def test_sweep_answers_on_standard_output(swept):
    result, folder = swept
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines.pop() == f"report: {folder / 'report' / 'index.html'}"
    assert max(map(len, lines)) <= 80
    said = " ".join(map(str.strip, lines))
    assert re.match(
        r"On base · counts the tuned model is worse than its base: mean loss 6\.\d\d against 6\.\d\d nats, a gain of −0\.\d\d "
        r"\[−0\.\d\d, −0\.\d\d\]\. .*\(chat\) and format \(gsm8k\)",
        said,
    ), "weights are random"
    assert " base on counts: " in said
    assert re.search(r"\(ρ = \S+ \[\S+ \S+\], p \S+ ?\S*\)\.$|nothing for δ to predict", said)


def test_sweep_tells_its_progress_in_plain_lines_on_standard_error(swept):
    *lines, first, second = swept[0].err.splitlines()
    assert re.fullmatch(r"\[ *\d+\.\d s\] 8 calls to run for 13 tasks", lines[0])
    assert first.startswith("plan's estimate ÷ measured: time ")
    assert second.startswith("  ")
    assert max(len(first), len(second)) <= 80
    assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in lines)


def test_quiet_prints_the_answer_alone_and_verbose_each_call(swept, raysweep, tmp_path):
    result, folder = swept
    quiet = raysweep("run", folder / "config.yaml", "--quiet", "--set", f"storage={tmp_path / 'run'}", "--fresh")
    assert (quiet.code, quiet.err) == (0, "")
    assert quiet.out.splitlines()[:-1] == result.out.splitlines()[:-1]
    verbose = raysweep("run", folder / "config.yaml", "-v", "--set", f"storage={tmp_path / 'run'}", "--fresh")
    assert verbose.out == quiet.out
    said = [line.partition("] ")[2] for line in verbose.err.splitlines()]
    assert sum(line.startswith("started: ") for line in said) == sum(line.startswith("done: ") for line in said) == 8
    assert sum(line.startswith("task done: ") for line in said) == 13
    refused = raysweep("run", folder / "config.yaml", "-q", "-v")
    assert refused == Result(2, "", "error: --quiet and --verbose are opposites; give one of them\n")


def test_verbose_has_the_traceback_of_an_error(raysweep):
    refused = raysweep("plan", "gone.yaml", "--verbose")
    assert refused.code == 2
    assert refused.err.startswith("Traceback ")
    assert refused.err.splitlines()[-1].startswith("error: config 'gone.yaml' does not exist")
    assert "Traceback" not in raysweep("plan", "gone.yaml").err, "the next command is not verbose"


def test_sweep_leaves_a_whole_run(swept):
    _, folder = swept
    found = content(folder)
    for name in ("config.yaml", "plan.json", "events.jsonl", "report/index.html"):
        assert name in found
    for table in ("substitution", "similarity", "dynamics", "critical", "health", "correlation"):
        assert f"results/{table}.parquet" in found
    losses = pd.read_parquet(folder / "results" / "substitution.parquet")
    assert len(losses) == (1 + 5 + 4 + 1) * 11
    assert {path.suffix for path in (folder / "report" / "figures").glob("[!.]*")} == {".png", ".svg"}


def test_sweep_keeps_the_config_it_made(swept, raysweep):
    _, folder = swept
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert kept["studies"]["substitution"]["widths"] == [2, 1]
    assert kept["execution"]["chunk"] == 4, "--set counts here too"
    assert kept["datasets"][0]["format"] == "gsm8k", "found from the first record"
    again = raysweep("run", folder / "config.yaml")
    assert again.code == 0
    assert "all 13 tasks already done" in again.err


def test_status(swept, raysweep):
    _, folder = swept
    told = raysweep("status", folder)
    assert (told.code, told.err) == (0, "")
    first, *rest = told.out.splitlines()
    assert re.fullmatch(r"finished: 100 % done \(41 of 41 parts\), last activity \d+ (s|min) ago", first)
    assert [line.split() for line in rest] == [
        [],
        ["model", "on", "data", "set", "capture", "substitution", "similarity", "correlation"],
        ["base", "on", "counts", *(["100", "%"] * 4)],
    ]


def test_status_as_json(swept):
    _, folder = swept
    told = ended(started("status", folder, "--json"))
    assert (told.code, told.err) == (0, "")
    standing = json.loads(told.out)
    kinds = {"substitute": 33, "capture": 3, "similarity": 4, "correlate": 1}
    assert standing.pop("cells") == [
        {"model": "base", "dataset": "counts", "parts": {kind: {"done": n, "all": n} for kind, n in kinds.items()}}
    ]
    assert (standing.pop("holder"), standing.pop("seconds_left")) == (None, None)
    assert datetime.fromisoformat(standing.pop("last_activity")) <= datetime.now(UTC)
    assert standing == {
        "state": "finished",
        "tasks": {
            "substitute": {"done": 11, "all": 11},
            "similarity": {"done": 1, "all": 1},
            "correlate": {"done": 1, "all": 1},
        },
        "parts": {"done": 11 * 3 + 3 + 4 + 1, "all": 41},
        "failures": {},
        "unfinished": [],
        "trainings": {},
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
    # Whether bfloat16 is faster is this machine's; test_estimate.py tests that line.
    lines = [line for line in told.out.splitlines() if not line.startswith("faster ")]
    assert lines[:3] == ["substitution 6 tasks, 0 done", "similarity   1 task, 0 done", "correlation  1 task, 0 done"]
    kinds = ["by", "capture", "substitution", "similarity", "correlation"]
    words = [*kinds, "to", "to", "memory", "time", "weights", "resident", "stream"]
    assert [line.split()[0] for line in lines[3:]] == words
    assert re.fullmatch(
        r"  resident   \S+ kB to read, \d+ layer calls, \S+ [MG]B of memory, \S+ s \(chosen\)", lines[13]
    )
    assert re.fullmatch(r"  stream     \S+ kB to read, \d+ layer calls, \S+ [MG]B of memory, \S+ s", lines[14])
    # trunk 5; branches 5 + 3 × 2; tails 3 + 2 + 1; the base model's own layers 5
    # three chunks of one batch, and a capture call each
    assert lines[9] == "to compute   27 layer applications, each on a full data set (81 layer calls, each on one batch)"


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
    assert "all 8 tasks already done" in raysweep("run", config).err
    assert "8 calls to run for 8 tasks\n" in raysweep("run", config, "--fresh").err


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
    written = "wrote raysweep.yaml and raysweep.schema.json; next: raysweep plan raysweep.yaml\n"
    assert raysweep("init") == Result(0, written, "")
    before = (tmp_path / "raysweep.yaml").read_text()
    assert before.startswith("# yaml-language-server: $schema=raysweep.schema.json\n# A raysweep run.")
    told = raysweep("plan", "raysweep.yaml", "--set", "datasets.0.limit=4", "--json")
    assert json.loads(told.out)["tasks"]["substitute"]["all"] == 22
    refused = raysweep("init")
    assert refused == Result(2, "", "error: 'raysweep.yaml' already exists; give another name or delete it\n")
    assert (tmp_path / "raysweep.yaml").read_text() == before
    refused = raysweep("init", "gone/my.yaml")
    assert refused == Result(2, "", "error: folder 'gone' does not exist; create it first\n")


def test_long_and_foreign_names_make_a_config():
    config = recipes.sweep_config("x/" + "b" * 90, "t", "données/" + "é" * 70 + ".jsonl", format="dolly", template="chat", widths=[1])  # fmt: skip
    assert len(config.name) <= 100
    assert config.storage == f"runs/{config.name}"
    config = recipes.sweep_config("lab://tiny", "lab://tiny/sums", "lab://sums/test", format="gsm8k", template="chat", widths=[1])  # fmt: skip
    assert (config.name, config.datasets[0].name) == ("tiny-sums", "sums")


def test_a_dot_in_a_models_name_is_no_ending():
    def made(base, tuned, data):
        return recipes.sweep_config(base, tuned, data, format="dolly", template="chat", widths=[1])

    one, two = (made(f"meta-llama/Llama-3.{n}B-Instruct", "./tuned", "data/dolly.v2.JSONL") for n in ("1-8", "2-3"))
    assert one.models[0].name == "Llama-3.1-8B-Instruct"
    assert (one.name, two.name) == ("Llama-3.1-8B-Instruct-tuned-dolly.v2", "Llama-3.2-3B-Instruct-tuned-dolly.v2")
    assert made("base", "./other", "dolly.jsonl").storage != made("base", "./tuned", "dolly.jsonl").storage


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("sums/train.jsonl.gz", "sums"),
        ("sums/test.csv.ZST", "sums"),
        ("data/dolly.v2.jsonl.xz", "dolly.v2"),
        ("my.tsv", "my"),
        ("set[1]", "set-1"),
        ("a::b{c}", "a--b-c"),
        ("hub/set:part", "set-part"),
        ("???", "data"),
        ("my.parquet.gz", "my.parquet.gz"),
    ],
)
def test_data_sets_are_named_after_their_files_and_folders(data, name):
    config = recipes.sweep_config("base", "tuned", data, format="dolly", template="chat", widths=[1])
    assert config.datasets[0].name == name
    assert config.datasets[0].path == data


def test_the_format_is_found_from_the_first_record_of_a_folder(tmp_path):
    (tmp_path / "train-1.jsonl").write_text('{"question": "one?", "answer": "two"}\n{torn')
    (tmp_path / "train-2.jsonl").write_bytes(b"\xff")
    config = recipes.sweep_config("base", "tuned", str(tmp_path), format=None, template="chat", widths=[1])
    assert config.datasets[0].format == "gsm8k"
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(InputError, match=r"has several splits; name one of train, test"):
        recipes.sweep_config("base", "tuned", str(tmp_path), format=None, template="chat", widths=[1])


def test_a_prompt_alone_asks_for_columns():
    config = recipes.critical_config("bert", ["my.jsonl"], format=None, template="plain", prompt="text", similarity={}, execution={})  # fmt: skip
    assert (config.datasets[0].format, config.datasets[0].prompt, config.datasets[0].response) == (
        "columns",
        "text",
        None,
    )


def test_records_that_are_cut_or_left_out_are_told_where_they_are_counted(world, config, raysweep):
    told = [
        "d (for m): 4 of 12 records were skipped. They have no response token, or cutting them to max_tokens or to the model's context "
        "leaves none",
        "d (for m): 6 of 8 examples were cut to max_tokens or to the model's context",
    ]
    cut = ["--set", "datasets.0.max_tokens=22"]
    planned = raysweep("plan", config, *cut).out.splitlines()
    assert planned[:2] == [f"warning      {line}" for line in told]
    lines = raysweep("run", config, *cut).err.splitlines()
    assert [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")] == told


def test_the_version(raysweep):
    told = raysweep("--version")
    assert (told.code, told.err) == (0, "")
    assert re.fullmatch(r"raysweep \d+\.\d+\.\d+\n", told.out)
