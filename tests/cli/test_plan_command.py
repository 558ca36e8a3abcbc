"""`raysweep plan` and what `raysweep run` says of it afterwards: identical layers, both residencies, refusals, the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Result

LAYERS = 5
Call = Callable[..., Result]


@pytest.fixture
def config(tmp_path: Path, tiny_pair: Callable[..., Any], tokenizer: Any) -> Path:
    """A config of a pair whose layers 1 and 2 were frozen in fine-tuning."""
    base, tuned = tiny_pair("llama", LAYERS, max_position_embeddings=128)
    for layer in (1, 2):
        tuned.model.layers[layer].load_state_dict(base.model.layers[layer].state_dict())
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    records = ({"question": f"Count to {i}?", "answer": "one two three"} for i in range(6))
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    values = {
        "name": "frozen",
        "models": [{"name": "m", "base": str(tmp_path / "base"), "tuned": {"d": str(tmp_path / "tuned")}}],
        "datasets": [{"name": "d", "path": str(tmp_path / "d.jsonl"), "format": "gsm8k"}],
        "studies": {"substitution": {"widths": [1]}},
        "execution": {"chunk": 4, "device": "cpu"},
        "storage": str(tmp_path / "run"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_frozen_layers_are_told_and_cost_nothing(config: Path, raysweep: Call) -> None:
    code, out, err = raysweep("plan", config)
    assert (code, err) == (0, "")
    assert (
        "identical    2 decoder layers of base and tuned of m/d, so 2 changes equal others and cost nothing"
        in out.splitlines()
    )
    planned = json.loads(raysweep("plan", config, "--json")[1])
    assert planned["identical"] == {"m/d": [2, 2]}
    # States behind each layer, by hand: 0 by tuned or base; nothing new at 1 and 2; base for 3, and with 0 for [0, 5);
    # then 4 likewise. Behind 0: 2; behind 1 and 2: 2 each; behind 3: 2 + 1 + 1; behind 4: 4 + 1.
    assert planned["layer_applications"] == 2 + 2 + 2 + 4 + 5
    assert planned["batch_applications"] == 2 * planned["layer_applications"], "two chunks of a batch each"
    # A window of a frozen layer alone adds nothing.
    windows = ("--set", "studies.substitution.sets={ends: [1, 2]}")
    assert json.loads(raysweep("plan", config, "--json", *windows)[1])["layer_applications"] == 15


def test_workers_are_for_elsewhere_where_the_plan_is_on_paper(config: Path, raysweep: Call) -> None:
    assert raysweep("plan", config, "--set", "execution.workers=2", "--gpus", 2).code == 0


def test_both_residencies_as_json(config: Path, raysweep: Call) -> None:
    planned = json.loads(raysweep("plan", config, "--json")[1])
    found = planned["options"]["m"]
    assert (found["taken"], found["why"].startswith("its weights (0.01 GB) fit in ")) == ("resident", True)
    for mode in ("resident", "stream"):
        assert {"layer_applications", "bytes_read", "memory", "call_seconds"} <= found[mode].keys()
    assert planned["bytes_to_read"] == found["resident"]["bytes_read"]
    assert planned["memory"] == found["resident"]["memory"]


def test_a_budget_for_no_batch_ends_with_2(config: Path, raysweep: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysweep.models.memory.private_bytes", lambda: 10**8)
    asked = ("--set", "execution.residency=stream", "--set", "execution.memory=120MB")
    for command in ("plan", "run"):
        code, out, err = raysweep(command, config, *asked)
        assert (code, out) == (2, "")
        assert re.fullmatch(
            r"error: model 'm': a memory budget of 0\.12 GB .* not also the states of one batch under 5 windows .*; "
            r"the minimum is 0\.3\d GB\. Set execution\.memory to that or more, or lower execution\.batch_tokens\n",
            err,
        )
    assert not (config.parent / "run").exists()


def test_a_run_says_how_far_the_estimate_was_off(config: Path, raysweep: Call) -> None:
    code, out, err = raysweep("run", config)
    assert code == 0
    line = " ".join(map(str.strip, err.splitlines()[-2:]))
    number = r"\d+\.\d\d"
    assert re.fullmatch(
        rf"plan's estimate ÷ measured: time {number}, bytes read 1\.00, layer applications 1\.00, peak memory {number}",
        line,
    )
    page = (config.parent / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert "Estimated and measured effort" in page
    assert "peak memory of a worker, bytes" in page
    code, again, err = raysweep("run", config)
    assert (code, again) == (0, out)
    assert "estimated" not in err, "nothing was left to estimate"
