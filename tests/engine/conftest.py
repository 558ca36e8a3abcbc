"""A pair of small random Llamas on disk, records for them, configs on both, and ways to run and compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ray_cluster import Started, head_node
from s3_server import CREDENTIALS

from raysweep.config import Config, parse_config
from raysweep.engine.driver import Done, drive
from raysweep.engine.events import read_events
from raysweep.engine.facts import Facts
from raysweep.engine.inspection import inspect
from raysweep.errors import RunError
from raysweep.report.tables import collect_tables
from raysweep.studies.training import Recipe

LAYERS = 6
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
TOLERANCES = {"loss": 1e-5, "value": 1e-6, "delta": 1e-6, "ci_low": 1e-5, "ci_high": 1e-5}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_pair: Callable[..., Any], tokenizer: Any) -> Path:
    """A folder with the checkpoints `base` and `tuned` and the records `first.jsonl` (10) and `second.jsonl` (6)."""
    folder = tmp_path_factory.mktemp("world")
    base, tuned = tiny_pair("llama", LAYERS, max_position_embeddings=128)
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, size in (("first", 10), ("second", 6)):
        records = (
            {"question": f"{name} {' '.join(WORDS[: 1 + i % 7])}?", "answer": " ".join(WORDS[i % 5 : 3 + (3 * i) % 7])}
            for i in range(size)
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="session")
def make_config(world: Path) -> Callable[..., Config]:
    """make_config(storage, "key=value", …): windows of two layers for the data set it is tuned on, similarity on both."""

    def make(storage: Path | str, *overrides: str) -> Config:
        values = {
            "name": "small",
            "models": [{"name": "m", "base": str(world / "base"), "tuned": {"first": str(world / "tuned")}}],
            "datasets": [
                {"name": "first", "path": str(world / "first.jsonl"), "format": "gsm8k"},
                {"name": "second", "path": str(world / "second.jsonl"), "format": "gsm8k"},
            ],
            "studies": {"substitution": {"widths": [2]}, "similarity": {}, "correlation": {"resamples": 20}},
            "execution": {"chunk": 4, "device": "cpu"},
            "storage": str(storage),
        }
        return parse_config(values, overrides=overrides)

    return make


@pytest.fixture(scope="session")
def training_config(world: Path) -> Callable[..., Config]:
    """training_config(storage, studies, "key=value", …): the base on `first`, trained on the records of `second`."""

    def make(storage: Path | str, studies: Mapping[str, Any], *overrides: str) -> Config:
        first = {"name": "first", "path": str(world / "first.jsonl"), "format": "gsm8k"}
        values = {
            "name": "trainings",
            "models": [{"name": "m", "base": str(world / "base")}],
            "datasets": [{**first, "train": {"path": str(world / "second.jsonl")}}],
            "studies": studies,
            "execution": {"chunk": 4, "device": "cpu"},
            "storage": str(storage),
        }
        return parse_config(values, overrides=overrides)

    return make


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Recipe], bool]], None]:
    """failing(wrong) lets trainings fail whose recipe is `wrong`, until it is called again."""
    from raysweep.studies import finetune

    train = finetune.finetune
    chosen: list[Callable[[Recipe], bool]] = []

    def may_fail(*arguments: Any, **more: Any) -> Any:
        if chosen[-1](arguments[4]):
            raise RunError("the test loss is nan at step 1")
        return train(*arguments, **more)

    monkeypatch.setattr(finetune, "finetune", may_fail)
    return chosen.append


@pytest.fixture(scope="session")
def small(make_config: Callable[..., Config]) -> tuple[Config, Facts]:
    """The plain config and what inspection finds for it."""
    config = make_config("nowhere")
    return config, inspect(config)


@pytest.fixture(scope="session")
def finished(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The plain config, run to its end. Not to be changed by a test."""
    done = drive(make_config(tmp_path_factory.mktemp("finished") / "run"))
    assert not done.failed
    return done


@pytest.fixture(scope="session")
def tables_of() -> Callable[[Done], dict[str, pd.DataFrame]]:
    """The tables of a run, in memory."""
    return lambda done: collect_tables(done.folder, done.graph)


@pytest.fixture(scope="session")
def same_tables() -> Callable[..., None]:
    """same_tables(one, other): the same tables, rows and words; figures within what is promised, or `exactly`."""

    def check(one: Mapping[str, pd.DataFrame], other: Mapping[str, pd.DataFrame], exactly: bool = False) -> None:
        assert list(one) == list(other)
        for name, rows in one.items():
            assert list(rows.columns) == list(other[name].columns)
            assert len(rows) == len(other[name]) > 0
            for column in rows.columns:
                ours, theirs = rows[column], other[name][column]
                where = f"{name}.{column}"
                if ours.dtype.kind == "f":
                    # a swap of two neighbours moves a rank correlation by more than any rounding
                    apart = 0.1 if name == "correlation" else TOLERANCES.get(column, 1e-5)
                    # of health, ratios and numbers of examples have any size
                    relative = 1e-5 if name == "health" and not exactly else 0
                    np.testing.assert_allclose(ours, theirs, relative, 0 if exactly else apart, err_msg=where)
                else:
                    pd.testing.assert_series_equal(ours, theirs, obj=where)

    return check


@pytest.fixture(scope="session")
def events_of() -> Callable[..., list[dict[str, Any]]]:
    """events_of(done, "name", …): the logged events, of these names only where any is given."""

    def read(done: Done, *names: str) -> list[dict[str, Any]]:
        return [e for e in read_events(done.folder.events) if not names or e["event"] in names]

    return read


@pytest.fixture(scope="session")
def one_node() -> Iterator[Started]:
    """A Ray node with four CPU slots and four pretended GPUs, whose workers may use the S3 server; for tests that need no more."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with head_node(cpus=4, gpus=4) as node:
            yield node


@pytest.fixture(scope="session")
def address(one_node: Started) -> str:
    """The address of a cluster: of the one node, unless a module has another."""
    return one_node.address


@pytest.fixture
def on_ray(make_config: Callable[..., Config], address: str) -> Callable[..., Config]:
    """on_ray(storage, "key=value", …): the plain config on the cluster, without GPUs unless asked for."""

    def make(storage: Path | str, *overrides: str) -> Config:
        execution = f"execution={{executor: ray, address: '{address}', chunk: 4, device: cpu}}"
        return make_config(storage, execution, *overrides)

    return make
