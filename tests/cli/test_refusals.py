"""Every refusal of the command line, before anything is written."""

from __future__ import annotations

import re

import pytest
from command_line import Result, content

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
        "checkpoint '{world}' has no config.json ({world}); its subfolder 'base' has a checkpoint: give {world}/base (or one of *",
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
    "workers that this process is not": (
        ["execution.workers=3"],
        "execution.workers asks for 3 workers, and execution.executor is local, which is one worker in this process; give "
        "--executor ray, which starts them on this machine or joins a cluster (--address), or workers: auto",
    ),
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
        "unknown format 'gsm9k'; did you mean 'gsm8k'?",
    ),
    "an unknown prompt template": (["models.0.template=lama2"], "unknown prompt template 'lama2'; did you mean 'llama2'?"),
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
    "storage that is no store's URL": (
        ["storage=ftp://host/run"],
        "{config}: key 'storage': 'ftp://host/run' cannot store a run: files there must never appear half-written, "
        "as in a folder or an object store; known: abfs, abfss, az, gcs, gs, memory, s3, s3a",
    ),
    "storage with a password in it": (
        ["storage=s3://AKIA:hush@bucket/run"],
        "{config}: key 'storage': the URL has a name or password in it; give credentials in the environment or in the store's own "
        "config files (for S3: AWS_ACCESS_KEY_ID or ~/.aws)",
    ),
    "a device that is not there": (
        ["execution.device=cuda:99"],
        "execution.device asks for cuda:99, and this machine has * CUDA devices; use auto or cpu",
    ),
    "a device of no kind": (
        ["execution.device=tpu"],
        "{config}: key 'execution.device': 'tpu' is not a device; give auto, cpu, mps, cuda or cuda:N",
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


@pytest.mark.parametrize(
    ("override", "place", "told"),
    [
        (
            "models.0.base=base",
            "base",
            "checkpoint 'base' does not exist; give a folder written by save_pretrained, or a hub id (owner/name)",
        ),
        ("datasets.0.path=./counts.jsonl", "./counts.jsonl", "there is no file counts.jsonl: check the path"),
        ("datasets.0.path=some/records", "some/records", "there is no file or folder some/records: check the path"),
    ],
)
def test_what_lies_beside_the_config_is_told_to(world, config, raysweep, tmp_path, monkeypatch, override, place, told):
    there, here = config.parent / "there", tmp_path / "here"
    for folder in (there, here / "some"):
        folder.mkdir(parents=True)
    moved = config.rename(there / "config.yaml")
    monkeypatch.chdir(here)
    plain = f"error: {told}\n"
    assert raysweep("plan", "../there/config.yaml", "--set", override) == Result(2, "", plain)
    path = there / place
    path.parent.mkdir(exist_ok=True)
    path.touch()
    where = f"; it is next to the config: give ../there/{place.removeprefix('./')}, because paths of records and checkpoints are relative to the current folder\n"
    for command in ("run", "plan"):
        assert raysweep(command, "../there/config.yaml", "--set", override) == Result(2, "", plain.rstrip("\n") + where)
    assert raysweep("plan", moved, "--set", "models.0.base=./gone").err.endswith("or a hub id (owner/name)\n"), (
        "nowhere"
    )


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
        f"error: {tmp_path}/cut/model.safetensors has {size - 1} bytes, but its header says {size}; copy the "
        "checkpoint again\n",
    )


def test_files_and_folders_that_are_missing(tmp_path, raysweep, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = raysweep("run", "gone.yaml")
    assert refused == Result(
        2, "", "error: config 'gone.yaml' does not exist; `raysweep init` writes one to start from\n"
    )
    for command in ("status", "report"):
        assert raysweep(command, "gone") == Result(2, "", "error: run folder 'gone' does not exist\n")
        told = f"error: '{tmp_path}' is not a run folder (it has no events.jsonl and plan.json)\n"
        assert raysweep(command, tmp_path) == Result(2, "", told)
    assert content(tmp_path) == []


def test_a_place_that_no_config_can_be_written_to(raysweep):
    for place, why in (("/proc/my.yaml", "No such file or directory"), ("x" * 300, "File name too long")):
        told = f"error: '{place}' cannot be written: {why}; give another path\n"
        assert raysweep("init", place) == Result(2, "", told)


def test_a_run_folder_in_place_of_a_config(swept, raysweep):
    _, folder = swept
    told = f"error: config '{folder}' is a folder; give '{folder}/config.yaml', the run's own\n"
    assert raysweep("plan", folder) == Result(2, "", told)
    assert raysweep("plan", folder.parent) == Result(
        2, "", f"error: config '{folder.parent}' is a folder; give a file\n"
    )


def test_sweep_refuses_too(world, tmp_path, raysweep, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = raysweep("sweep", world / "base", world / "deeper", world / "counts.jsonl", "--width", 2)
    assert refused.code == 2
    assert "differ in depth: 5 and 6 decoder layers" in refused.err
    refused = raysweep("sweep", world / "base", world / "tuned", "gone.jsonl")
    assert refused == Result(2, "", "error: there is no file gone.jsonl: check the path\n")
    refused = raysweep("sweep", world / "base", world / "tuned", world / "counts.jsonl", "--width", 0)
    assert refused.code == 2
    assert (
        "Invalid value for '--width': '0' is not a number of layers; give a number from 1, several (4,5)" in refused.err
    )
    (tmp_path / "odd.jsonl").write_text('{"text": "x"}\n')
    refused = raysweep("sweep", world / "base", world / "tuned", "odd.jsonl")
    assert refused.code == 2
    assert refused.err.startswith(
        "error: odd.jsonl: the first record, with the fields text, fits no known format; name the format:"
    )
    assert content(tmp_path) == ["odd.jsonl"]


@pytest.mark.parametrize("arguments", [["rum"], ["run"], ["run", "x.yaml", "--st", "a=b"], ["sweep", "a"]])
def test_bad_usage(arguments, raysweep):
    refused = raysweep(*arguments)
    assert (refused.code, refused.out) == (2, "")
    assert "Error" in refused.err
