"""A run with secrets in its environment and on its command line: none of them is in its folder, nor in what it says."""

from __future__ import annotations

import pytest

SECRET, TOKEN = "aUnlikelySecretValue0123456789", "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


@pytest.fixture
def with_secrets(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


def test_no_file_of_the_run_holds_them(with_secrets, raysweep, config, tmp_path):
    """The run's name is a secret here: of all that a config may hold, what is written in the most places."""
    done = raysweep("run", config, "--set", f"name=run-{SECRET}-{TOKEN}", "--set", "datasets.0.limit=4")
    assert done.code == 0, done.err
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"plan.json", "config.yaml", "events.jsonl", "index.html"} <= {path.name for path in files}
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
        assert TOKEN.encode() not in path.read_bytes(), path
    assert "name=run-***-***" in (tmp_path / "run" / "plan.json").read_text(), "the command line is kept, without them"


def test_no_message_holds_them(with_secrets, raysweep, config):
    told = raysweep("run", config, "--set", "datasets.0.path=https://me:hunter2@host/x.jsonl")
    assert told.code == 2
    assert "hunter2" not in told.out + told.err
    assert "https:/***@host/x.jsonl" in told.err
    told = raysweep("run", config, "--set", f"models.0.base=./{SECRET}")
    assert told.err.startswith("error: checkpoint './***' does not exist")
