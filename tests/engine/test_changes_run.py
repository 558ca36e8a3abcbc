"""Runs of more than windows, and of pairs with identical layers: tasks, keys, tables, and what they cost."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from architectures import DECODERS, build

from raysweep.api import open_run
from raysweep.config import Config
from raysweep.engine.cost import cost
from raysweep.engine.driver import Done, drive
from raysweep.engine.graph import Task
from raysweep.engine.inspection import inspect
from raysweep.engine.plan import plan
from raysweep.errors import InputError
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model
from raysweep.models.same import Same, same_in_checkpoints
from raysweep.planned import plan_run
from raysweep.report.tables import write_tables

ASKED = (
    "studies.substitution.sets={ends: [0, 5], mine: [1, 3, 4]}",
    "studies.substitution.modules=[attention, mlp]",
    "studies.substitution.coefficients=[0.5, 0]",
    "studies.substitution.reverse=true",
)
FROZEN = (0, 1, 4)


@pytest.fixture(scope="module")
def frozen(world: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The tuned checkpoint with layers 0, 1 and 4 as the base has them."""
    folder = tmp_path_factory.mktemp("frozen") / "tuned"
    base, tuned = (load_model(describe(str(world / name))) for name in ("base", "tuned"))
    for layer in FROZEN:
        tuned.model.layers[layer].load_state_dict(base.model.layers[layer].state_dict())
    tuned.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_every_kind_is_in_the_tables_and_windows_are_as_alone(
    make_config: Callable[..., Config],
    finished: Done,
    tables_of: Callable[[Done], dict[str, pd.DataFrame]],
    same_tables: Callable[..., None],
    tmp_path: Path,
) -> None:
    done = drive(make_config(tmp_path / "run", *ASKED))
    assert not done.failed
    tables, alone = tables_of(done), tables_of(finished)
    rows = tables["substitution"]
    assert rows.groupby(["kind", "coefficient"], sort=False)["layers"].nunique().to_dict() == {
        ("window", 1.0): 7,
        ("window", 0.5): 6,
        ("window", 0.0): 6,
        ("set", 1.0): 2,
        ("set", 0.5): 2,
        ("set", 0.0): 2,
        ("attention", 1.0): 6,
        ("mlp", 1.0): 6,
        ("reverse", 1.0): 7,
    }
    assert rows.loc[rows["kind"] == "set", ["start", "stop", "centre"]].isna().all(axis=None)
    whole = rows[(rows["kind"] == "window") & (rows["coefficient"] == 1)].astype({"start": int, "stop": int})
    assert list(rows["loss"][rows["coefficient"] == 0]) == list(whole["loss"][whole["width"] == 0]) * 8
    tables["substitution"] = whole
    same_tables(alone, {**tables, "substitution": whole.reset_index(drop=True)})
    write_tables(done.folder, tables_of(done))
    stored = pd.read_parquet(done.folder.results / "substitution.parquet")
    assert str(stored["layers"].iloc[-1]) == "0-5"
    again = drive(make_config(tmp_path / "run", *ASKED))
    assert again.n_calls == 0


def test_without_fusing_the_rows_are_the_same(
    make_config: Callable[..., Config], tables_of: Callable[[Done], dict[str, pd.DataFrame]], tmp_path: Path
) -> None:
    few = ("studies.similarity=null", "studies.correlation=null", "execution.chunk=16")
    fused = drive(make_config(tmp_path / "fused", *ASKED, *few))
    single = drive(make_config(tmp_path / "single", *ASKED, *few, "execution.fuse=false"))
    one, other = (tables_of(done)["substitution"] for done in (fused, single))
    pd.testing.assert_frame_equal(one.drop(columns="loss"), other.drop(columns="loss"))
    np.testing.assert_allclose(one["loss"], other["loss"], atol=1e-5)


def test_identical_layers_are_found_by_digest_and_their_windows_cost_nothing(
    make_config: Callable[..., Config],
    frozen: Path,
    tables_of: Callable[[Done], dict[str, pd.DataFrame]],
    tmp_path: Path,
) -> None:
    config = make_config(tmp_path / "run", f"models.0.tuned={{first: {frozen}}}", "studies.substitution.widths=[1, 2]")
    facts = inspect(config)
    assert facts.models["m"].same["first"] == Same(frozenset(FROZEN))
    graph = plan(config, facts)
    tasks = {task.window.text: task for task in graph.of_kind("substitute") if task.window is not None}
    untouched = tasks["none"].parts
    assert all(tasks[text].parts == untouched for text in ("0", "1", "4", "0-1"))
    assert tasks["1-2"].parts == tasks["2"].parts != untouched
    assert tasks["3-4"].parts == tasks["3"].parts
    assert len({task.parts for task in tasks.values()}) == 6, "none, 2, 3, 5, 2-3, and 2-3 with 5"
    # One state for layers 0 and 1; 2: with and without; 3: as to either; 4: as before; 5: base for 5 and for all.
    needed = cost(config, facts, graph, ())
    assert needed.layer_applications == 1 + 1 + 2 + 4 + 4 + 6 + 2 * 6
    assert needed.identical == {"m/first": (3, 13 - 6)}
    assert (
        "identical    3 decoder layers of base and tuned of m/first, so 7 changes equal others and cost nothing"
        in plan_run(config).to_text()
    )
    done = drive(config)
    assert not done.failed
    rows = tables_of(done)["substitution"]
    assert rows["layers"].nunique() == 13
    means = rows.groupby("layers")["loss"].mean()
    assert means[""] == means["0"] == means["1"] == means["4"] == means["0-1"]
    assert means["1-2"] == means["2"] != means[""]
    assert rows.groupby("layers")["width"].first()["1-2"] == 2
    correlated = tables_of(done)["correlation"]
    assert correlated["width"].tolist() == [1, 2]


def test_a_copy_has_everything_in_common(world: Path) -> None:
    base = describe(str(world / "base"))
    assert same_in_checkpoints(base, base) == Same(frozenset(range(6)), True)
    tuned = describe(str(world / "tuned"))
    assert same_in_checkpoints(base, tuned) == Same()
    assert same_in_checkpoints(base, replace(base, digests={})) == Same()


def test_an_adapter_leaves_the_layers_it_has_no_tensor_for(
    world: Path, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[2, 3], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(load_model(describe(str(world / "base"))), lora).save_pretrained(tmp_path / "lora")
    config = make_config(tmp_path / "run", f"models.0.tuned={{first: {tmp_path / 'lora'}}}")
    assert inspect(config).models["m"].same["first"] == Same(frozenset({0, 1, 4, 5}), True)
    assert not drive(config).failed, "what the plan takes for identical is, once loaded"


def test_all_widths_and_a_set_that_does_not_fit(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", "studies.substitution.widths=all")
    assert len(list(plan(config, inspect(config)).of_kind("substitute"))) == 6 * 7 / 2 + 1
    assert Config.model_validate(config.model_dump()).studies.substitution == config.studies.substitution
    with pytest.raises(
        InputError, match=r"^set 'far' has layer 6, which is not among the 6 decoder layers of model 'm'; "
    ):
        inspect(make_config(tmp_path / "run", "studies.substitution.sets={far: [2, 6]}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("widths=every", "key 'studies.substitution.widths': expected a list, not 'every'"),
        (
            "sets={a: [1, 2], b: [2, 1]}",
            "studies.substitution.sets: the sets 'a' and 'b' have the same layers; remove one",
        ),
        ("sets={a: []}", r"key 'studies.substitution.sets.a': give at least one item"),
        ("coefficients=[1.5]", r"key 'studies.substitution.coefficients\[0\]': give 1.0 or less, not 1.5"),
        ("modules=[norm]", r"key 'studies.substitution.modules\[0\]': 'norm' is not 'attention' or 'mlp'"),
    ],
)
def test_what_is_no_change_is_refused(
    override: str, message: str, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        make_config(tmp_path / "run", f"studies.substitution.{override}")


def test_modules_that_cannot_be_told_are_refused_before_anything_runs(
    make_config: Callable[..., Config], tmp_path: Path, tokenizer: Any
) -> None:
    for name, seed in (("base", 0), ("tuned", 1)):
        build(DECODERS["mamba"], seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    places = (f"models.0.base={tmp_path / 'base'}", f"models.0.tuned={{first: {tmp_path / 'tuned'}}}")
    config = make_config(tmp_path / "run", *places, "studies.substitution.modules=[mlp]")
    with pytest.raises(InputError, match=r"^MambaBlock has the part 'norm', and raysweep does not know"):
        inspect(config)


def test_tasks_of_every_kind_survive_the_plan_file(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", *ASKED)
    tasks = plan(config, inspect(config)).tasks
    assert len({task.name for task in tasks}) == len(tasks)
    assert tuple(Task.from_json(json.loads(json.dumps(task.to_json()))) for task in tasks) == tasks


def test_what_a_set_is_called_is_told_and_shares_results(
    make_config: Callable[..., Config], tables_of: Callable[[Done], dict[str, pd.DataFrame]], tmp_path: Path
) -> None:
    few = ("studies.similarity=null", "studies.correlation=null", "studies.substitution.verify=100")
    asked = ("studies.substitution.generate={examples: 1, tokens: 3, changes: all}", "studies.substitution.widths=[5]")
    places = [
        make_config(tmp_path / "run", *few, *asked, f"studies.substitution.sets={{{name}: [1, 3]}}")
        for name in ("early", "mine")
    ]
    done, again = map(drive, places)
    assert not done.failed
    assert again.n_calls == 0, "a set of another name is the same set"
    told = {task.name for task in again.graph.tasks}
    assert {"substitute m/first set mine 1,3", "generate m/first set mine 1,3"} <= told
    pd.testing.assert_frame_equal(tables_of(again)["substitution"], tables_of(done)["substitution"])
    page = open_run(tmp_path / "run").report.read_text(encoding="utf-8")
    assert "Replacing the set mine (1, 3) with the base model's layers costs" in page
    assert "set mine (1,3)" in page
    assert "early" not in page
    assert list(tables_of(again)["generation"]["intervention"]) == [
        "none",
        "window 0-4",
        "window 1-5",
        "window 0-5",
        "set 1,3",
    ]


def test_text_under_every_change_is_asked_for(
    make_config: Callable[..., Config], tables_of: Callable[[Done], dict[str, pd.DataFrame]], tmp_path: Path
) -> None:
    few = ("studies.similarity=null", "studies.correlation=null", "studies.substitution.widths=[5]")
    windows = "studies.substitution.generate={examples: 1, tokens: 3}"
    alone = drive(make_config(tmp_path / "run", *ASKED, *few, windows))
    assert len(tables_of(alone)["generation"]) == 4
    done = drive(make_config(tmp_path / "run", *ASKED, *few, f"{windows[:-1]}, changes: all}}"))
    assert not done.failed
    assert done.n_calls == 1, "the text under windows is there"
    rows = tables_of(done)["generation"]
    assert list(rows["intervention"][4:]) == [
        *("window 0-4 at 0.5", "window 1-5 at 0.5", "window 0-5 at 0.5"),
        *("window 0-4 at 0", "window 1-5 at 0", "window 0-5 at 0"),
        *("set 0,5", "set 0,5 at 0.5", "set 0,5 at 0", "set 1,3,4", "set 1,3,4 at 0.5", "set 1,3,4 at 0"),
        *("attention 0-4", "attention 1-5", "attention 0-5", "mlp 0-4", "mlp 1-5", "mlp 0-5"),
        *("reverse none", "reverse 0-4", "reverse 1-5", "reverse 0-5"),
    ]
    text = rows.set_index("intervention")["text"]
    assert text["window 0-4 at 0"] == text["set 0,5 at 0"] == text["none"]
