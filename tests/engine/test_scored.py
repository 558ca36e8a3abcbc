"""Runs whose evidence is circular or void: identical checkpoints, layers that were not trained, pairs without a tuned checkpoint."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_trainings import TRAINER

from raysweep.api import open_run
from raysweep.config import Config
from raysweep.engine.driver import Done, drive
from raysweep.engine.inspection import inspect
from raysweep.engine.plan import plan
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model
from raysweep.planned import plan_run

Tables = Callable[[Done], dict[str, pd.DataFrame]]
MakeConfig = Callable[..., Config]
IDENTICAL = "the tuned checkpoint of m on first is identical to its base: every window costs 0"
FIGURES = ["spearman", "ci_low", "ci_high", "p_shift", "partial_depth", "kendall", "precision_at_k", "p_value"]
FIGURES += ["effective_layers", "p_permutation", "precision_chance", "p_precision"]


def tuned_on(folder: Path | str) -> str:
    return f"models.0.tuned={{first: {folder}}}"


@pytest.fixture(scope="module")
def save(world: Path, tokenizer: Any) -> Callable[..., Path]:
    """save(folder, change): the tuned model after `change(tuned, base)`, as a checkpoint."""

    def saved(folder: Path, change: Callable[[Any, Any], None]) -> Path:
        base, tuned = (load_model(describe(str(world / name))) for name in ("base", "tuned"))
        change(tuned, base)
        tuned.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return saved


def like_base(layers: set[int]) -> Callable[[Any, Any], None]:
    def change(tuned: Any, base: Any) -> None:
        for layer in layers:
            tuned.model.layers[layer].load_state_dict(base.model.layers[layer].state_dict())

    return change


def test_a_base_given_twice_is_said_first_everywhere_and_the_run_goes_on(
    make_config: MakeConfig, world: Path, tmp_path: Path, tables_of: Tables, raysweep: Callable[..., Any]
) -> None:
    copied = shutil.copytree(world / "base", tmp_path / "again")
    for name, folder in (("twice", world / "base"), ("copied", copied)):
        config = make_config(tmp_path / name, tuned_on(folder))
        path = tmp_path / f"{name}.yaml"
        path.write_text(config.to_yaml())
        assert raysweep("plan", path).out.startswith(f"void         {IDENTICAL}")
        if name == "twice":
            continue
        result = raysweep("run", path)
        assert result.code == 0
        assert " ".join(result.out.split()).startswith(IDENTICAL[0].upper() + IDENTICAL[1:])
        assert f"warning: {IDENTICAL}" in result.err
        assert "costliest window" not in result.out
    run = open_run(str(tmp_path / "copied"))
    page = run.report.read_text(encoding="utf-8")
    headline = page[page.index('<div class="headline">') :]
    assert headline[: headline.index("</div>")].count("<p>") == 1
    assert IDENTICAL[1:] in re.sub("<[^>]+>", "", headline[: headline.index("</div>")])
    assert set(run.correlation["reason"]) == {
        "no decoder layer differs between base and tuned, so every window costs 0"
    }
    json_plan = json.loads(raysweep("plan", tmp_path / "copied.yaml", "--json").out)
    assert json_plan["void"] == [warning for warning in json_plan["warnings"] if warning.startswith(IDENTICAL)]


def test_files_of_pickled_tensors_that_are_the_same_are_found_by_their_bytes(
    make_config: MakeConfig, world: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(world / "base", tmp_path / "base")
    (folder / "model.safetensors").unlink()
    torch.save(load_model(describe(str(world / "base"))).state_dict(), folder / "pytorch_model.bin")
    again = shutil.copytree(folder, tmp_path / "again")
    config = make_config(tmp_path / "run", f"models.0.base={folder}", tuned_on(again))
    assert inspect(config).warnings[0].startswith(IDENTICAL)


def test_layers_that_are_all_the_bases_are_said_first_where_something_else_differs(
    make_config: MakeConfig, save: Callable[..., Path], tmp_path: Path, tables_of: Tables
) -> None:
    config = make_config(tmp_path / "run", tuned_on(save(tmp_path / "head", like_base(set(range(6))))))
    done = drive(config)
    assert not done.failed
    losses = tables_of(done)["substitution"].groupby("layers")["loss"].mean()
    assert losses.nunique() == 1
    first = open_run(str(tmp_path / "run")).summary()[0]
    assert first.startswith(
        "All 6 decoder layers of m, tuned on first, are identical to the base's: only the embedding, "
    )


@pytest.mark.parametrize(
    ("trained", "words"),
    [({2, 3}, "only layers 2–3 of 6 were trained, so "), ({4}, "only layer 4 of 6 was trained, so ")],
    ids=["two", "one"],
)
def test_no_rho_is_given_where_only_some_layers_were_trained(
    trained: set[int],
    words: str,
    make_config: MakeConfig,
    save: Callable[..., Path],
    finished: Done,
    tmp_path: Path,
    tables_of: Tables,
) -> None:
    config = make_config(tmp_path / "run", tuned_on(save(tmp_path / "some", like_base(set(range(6)) - trained))))
    assert any(
        line.startswith(f"withheld     no ρ of m × first: {words}") for line in plan_run(config).to_text().splitlines()
    )
    done = drive(config)
    assert not done.failed
    tables, whole = tables_of(done), tables_of(finished)
    rows = tables["correlation"]
    assert rows[FIGURES].isna().all(axis=None)
    assert rows["reason"].str.startswith(words).all()
    same = ["metric", "width", "neighbourhood", "n_layers"]
    pd.testing.assert_frame_equal(rows[same], whole["correlation"][same])
    assert whole["correlation"]["spearman"].notna().all()
    assert whole["correlation"]["spearman"].iloc[0] == pytest.approx(plain_rho(tables_of(finished)), abs=1e-9), (
        "where all layers were trained there is one"
    )
    pd.testing.assert_frame_equal(tables["dynamics"], whole["dynamics"])


def plain_rho(tables: dict[str, pd.DataFrame]) -> float:
    from scipy import stats

    rows = tables["substitution"]
    losses = rows[rows["width"] == 2].groupby("centre")["loss"].mean()
    delta = tables["dynamics"].query("dataset == 'first'").sort_values("layer")["delta"].to_numpy()
    return float(stats.spearmanr(np.interp(losses.index, np.arange(6), delta), losses)[0])


def test_only_the_key_of_a_correlation_that_is_withheld_is_another(
    make_config: MakeConfig, save: Callable[..., Path], tmp_path: Path
) -> None:
    from dataclasses import replace

    def keys(config: Config, *, without: bool) -> dict[str, Any]:
        facts = inspect(config)
        model = facts.models["m"]
        untrained = model.untrained("first")
        if without:  # as if nothing were known of identical layers but what decides losses

            class Unaware(type(model)):  # type: ignore[misc]
                def untrained(self, dataset: str) -> frozenset[int]:
                    return frozenset()

            fields = {name: getattr(model, name) for name in model.__dataclass_fields__}
            facts = replace(facts, models={"m": Unaware(**fields)})
        assert untrained or config.models[0].tuned["first"].endswith("tuned")
        return {task.name: (task.parts, dict(task.results)) for task in plan(config, facts).tasks}

    some = make_config("nowhere", tuned_on(save(tmp_path / "some", like_base({0, 1}))))
    aware, unaware = keys(some, without=False), keys(some, without=True)
    assert {name for name in aware if aware[name] != unaware[name]} == {"correlate m/first"}
    whole = make_config("nowhere")
    assert keys(whole, without=False) == keys(whole, without=True)


def test_an_adapter_on_a_few_layers_gives_no_rho(
    make_config: MakeConfig, world: Path, tmp_path: Path, tables_of: Tables
) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1, 2, 4], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(load_model(describe(str(world / "base"))), lora).save_pretrained(tmp_path / "lora")
    done = drive(make_config(tmp_path / "run", tuned_on(tmp_path / "lora")))
    assert not done.failed
    rows = tables_of(done)["correlation"]
    assert rows["spearman"].isna().all()
    assert rows["reason"].str.startswith("only layers 1–2, 4 of 6 were trained, so ").all()


def test_an_adapter_that_changes_nothing_is_the_base(make_config: MakeConfig, world: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"])  # its updates begin at zero
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(load_model(describe(str(world / "base"))), lora).save_pretrained(tmp_path / "lora")
    config = make_config(tmp_path / "run", tuned_on(tmp_path / "lora"))
    assert any(line.startswith(IDENTICAL) for line in plan_run(config).void)
    assert not drive(config).failed
    assert open_run(str(tmp_path / "run")).summary()[0].startswith(IDENTICAL[0].upper() + IDENTICAL[1:])


@pytest.mark.parametrize(
    ("asked", "reason", "planned"),
    [
        ({"layers": [2, 3]}, "only layers 2–3 of 6 were trained", "only layers 2–3 of 6 were trained"),
        ({"freeze": [0, 5]}, "only layers 1–4 of 6 were trained", "only layers 1–4 of 6 were trained"),
        ({"layers": "critical", "top": 2}, None, "critical layers, 2 of 6, are trained"),
        ({"freeze": "non_critical", "top": 2}, None, "layers that are not critical, 2 of 6, are left untrained"),
        (
            {"layers": [1, 4], "lora": {"r": 2}},
            "only layers 1, 4 of 6 were trained",
            "only layers 1, 4 of 6 were trained",
        ),
        (
            {"lora": {"r": 2, "target_modules": r".*\.(0|3)\.self_attn\.q_proj"}},
            "only layers 0, 3 of 6 were trained",
            "only layers 0, 3 of 6 were trained",
        ),
        ({}, "", ""),
        ({"lora": {"r": 2}}, "", ""),
    ],
    ids=["layers", "freeze", "critical", "freeze found", "lora", "lora by a pattern", "all", "lora everywhere"],
)
def test_a_fine_tune_of_the_run_itself_gives_no_rho_where_it_trains_some_layers(
    asked: dict[str, Any],
    reason: str | None,
    planned: str,
    training_config: MakeConfig,
    tmp_path: Path,
    tables_of: Tables,
) -> None:
    studies = {
        "finetune": {"trainer": {**TRAINER, "max_steps": 1}, **asked},
        "substitution": {"widths": [2]},
        "similarity": {},
        "correlation": {"resamples": 5},
    }
    config = training_config(tmp_path / "run", studies, "execution.chunk=10")
    assert [line.startswith(f"no ρ of m × first: {planned}") for line in plan_run(config).withheld] == [True] * bool(
        planned
    )
    done = drive(config)
    assert done.failed == {}
    tables = tables_of(done)
    row = tables["correlation"].iloc[0]
    if reason is None:
        changed = tables["training"]["layers"].iloc[0].replace("-", ",").split(",")
        assert str(row["reason"]).startswith("only layer")
        assert all(number in str(row["reason"]) for number in changed)
    elif reason:
        assert str(row["reason"]).startswith(reason)
    assert np.isnan(row["spearman"]) == (reason != "")
    assert drive(config).n_calls == 0


def test_pairs_without_a_tuned_checkpoint_are_listed_in_the_plan(make_config: MakeConfig, world: Path) -> None:
    two = f"models=[{{name: m, base: {world / 'base'}, tuned: {{first: {world / 'tuned'}}}}}, {{name: n, base: {world / 'base'}}}]"

    def told(*more: str) -> list[str]:
        return [
            line
            for line in plan_run(make_config("nowhere", two, *more)).to_text().splitlines()
            if line.startswith("not tuned")
        ]

    pairs = "not tuned    no tuned checkpoint on: m × second, n × first, n × second: "
    assert told() == [f"{pairs}only similarity is measured"]
    assert told("studies.spectrum={}") == [f"{pairs}only similarity and spectrum are measured"]
    assert told("studies.similarity=null", "studies.correlation=null") == [f"{pairs}nothing is measured"]
    assert told("studies.substitution=null", "studies.correlation=null") == []


def test_very_many_pairs_without_a_tuned_checkpoint_are_counted(make_config: MakeConfig, world: Path) -> None:
    many = ", ".join(f"{{name: n{number}, base: {world / 'base'}}}" for number in range(7))
    models = f"models=[{{name: m, base: {world / 'base'}, tuned: {{first: {world / 'tuned'}}}}}, {many}]"
    (line,) = plan_run(make_config("nowhere", models)).untuned
    assert line.startswith("no tuned checkpoint on: m × second, n0 × first, ")
    assert line.endswith(" and 5 more: only similarity is measured")
