"""A second plan, and a run over a folder that is complete, read no weights: here the weights are garbage by then."""

from __future__ import annotations

import os
import shutil
import struct
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft_warnings import pefts_warnings

from raysweep import cli
from raysweep.engine import rates
from raysweep.errors import InputError
from raysweep.models import digest_cache
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model


@pytest.fixture
def own(world, make_config, tmp_path, monkeypatch):
    """own(kind): a config file whose model is a copy with weights of a kind; all files count as settled."""
    monkeypatch.setenv("RAYSWEEP_DIGEST_CACHE", "on")
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_cache, "_SETTLED_SECONDS", -60)
    monkeypatch.setattr(rates, "_KNOWN", {})

    def make(kind):
        for name in ("base", "tuned"):
            shutil.copytree(world / name, tmp_path / name)
        tuned = tmp_path / "tuned"
        model = load_model(describe(str(tuned)))
        if kind == "bin":
            (tuned / "model.safetensors").unlink()
            torch.save(model.state_dict(), tuned / "pytorch_model.bin")
        if kind == "adapter":
            shutil.rmtree(tuned)
            with pefts_warnings():
                get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tuned)
        models = f"models=[{{name: m, base: '{tmp_path / 'base'}', tuned: {{first: '{tuned}'}}}}]"
        config = make_config(tmp_path / "run", models, f"execution.residency={'stream' if kind == 'plain' else 'auto'}")
        (tmp_path / "config.yaml").write_text(config.to_yaml())

    return make


def command(name, tmp_path, capsys):
    rates._KNOWN.clear()  # as in a new process
    with pytest.raises(SystemExit) as ended:
        cli.app([name, str(tmp_path / "config.yaml"), *(["--executor", "local"] if name == "run" else [])])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return said.out


def spoil(tmp_path, monkeypatch):
    """Make every weight NaN, without a trace that the file system has of it."""
    before, identity = {}, digest_cache.identity
    for path in [*tmp_path.glob("*/*.safetensors"), *tmp_path.glob("*/*.bin")]:
        before[os.path.realpath(path)] = identity(path)
        raw = path.read_bytes()
        start = 8 + struct.unpack("<Q", raw[:8])[0] if path.suffix == ".safetensors" else 0
        path.write_bytes(raw[:start] + b"\xff" * (len(raw) - start))
    assert len(before) == 2
    monkeypatch.setattr(digest_cache, "identity", lambda path: before[os.path.realpath(path)])


@pytest.mark.parametrize("kind", ["plain", "bin", "adapter"])
def test_a_second_plan_reads_no_weights(kind, own, tmp_path, monkeypatch, capsys):
    own(kind)
    first = command("plan", tmp_path, capsys)
    spoil(tmp_path, monkeypatch)
    started = time.process_time()
    again = command("plan", tmp_path, capsys)
    assert time.process_time() - started < 5
    assert first.splitlines()[0] == again.splitlines()[0]
    monkeypatch.setenv("RAYSWEEP_DIGEST_CACHE", "off")
    with pytest.raises(InputError, match="is not finite"):
        cli.app(["plan", str(tmp_path / "config.yaml")])


def test_a_run_over_a_complete_folder_reads_no_weights(own, tmp_path, monkeypatch, capsys):
    own("plain")
    command("run", tmp_path, capsys)
    done = sorted((tmp_path / "run" / "chunks").rglob("*"))
    spoil(tmp_path, monkeypatch)
    command("run", tmp_path, capsys)
    assert sorted((tmp_path / "run" / "chunks").rglob("*")) == done


def test_workers_refuse_weights_that_a_plan_took_from_the_cache(own, tmp_path, monkeypatch, capsys):
    own("plain")
    command("plan", tmp_path, capsys)
    spoil(tmp_path, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        cli.app(["run", str(tmp_path / "config.yaml"), "--executor", "local"])
    assert ended.value.code == 1
    assert "is not the planned one" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("chunks/*"))
