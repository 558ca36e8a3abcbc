"""Runs that take components out of layers: tasks, keys, tables, the page, and what is refused before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from architectures import ENCODERS, build

from raysweep.api import open_run
from raysweep.config import Config
from raysweep.data.examples import load_examples
from raysweep.engine.driver import Done, drive
from raysweep.engine.facts import Facts
from raysweep.engine.graph import Task
from raysweep.engine.inspection import inspect
from raysweep.engine.plan import plan
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.studies.removal import Removal
from raysweep.studies.removal_tables import remove_at_layer

MakeConfig = Callable[..., Config]
Tables = Callable[[Done], dict[str, pd.DataFrame]]
ALONE = ("studies.substitution=null", "studies.correlation=null")
FEW = "components: [1, [0, 2]], examples: 1, tokens: 3"


@pytest.fixture(scope="module")
def critical(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("removal") / "run"
    done = drive(make_config(folder, *ALONE, f"studies.removal={{top: 2, modes: [project, paper], {FEW}}}"))
    assert not done.failed
    return done


def test_components_are_removed_at_the_critical_layers(critical: Done, tables_of: Tables) -> None:
    tables = tables_of(critical)
    for dataset in ("first", "second"):
        dynamics = tables["dynamics"].query(f"dataset == '{dataset}'")
        chosen = sorted(dynamics.nsmallest(2, "delta")["layer"])
        rows = tables["removal"].query(f"dataset == '{dataset}'")
        assert list(rows["layer"].unique()) == chosen
        assert len(rows) == 2 * 4 * 8
        assert set(rows["of"]) == {"base"}
        assert set(rows["components"]) == {"top 1", "0,2"}
        texts = tables["generation"].query(f"dataset == '{dataset}'")
        assert list(texts["intervention"][:3]) == [
            f"removal none at {chosen[0]}",
            f"removal top 1 at {chosen[0]} project last",
            f"removal top 1 at {chosen[0]} paper last",
        ]
    assert rows.query("mode == 'project' and measure == 'inner_product'")["value"].max() < 1e-6


def test_the_figures_are_the_studys(critical: Done, tables_of: Tables, world: Path) -> None:
    checkpoint = describe(str(world / "base"))
    tokenizer = load_tokenizer(checkpoint)
    examples = load_examples(str(world / "second.jsonl"), "gsm8k", tokenizer).examples
    rows = tables_of(critical)["removal"].query("dataset == 'second' and mode == 'project'")
    removals = [Removal((0,)), Removal((0, 2))]
    layer = int(rows["layer"].iloc[0])
    told = remove_at_layer(Adapter(load_model(checkpoint)), tokenizer, examples, layer, removals, shown=1, new_tokens=3)
    ours = rows[rows["layer"] == layer].reset_index(drop=True)[list(told["removal"].columns)]
    pd.testing.assert_frame_equal(ours, told["removal"], check_dtype=False, atol=1e-5)


def test_the_page_shows_texts_side_by_side(critical: Done) -> None:
    page = open_run(critical.folder.root).report.read_text(encoding="utf-8")
    assert "Principal components removed" in page
    assert "Texts with and without these components" in page
    assert "Texts generated under each" not in page, "there are no windows"
    assert "top 1 (project, last token)" in page


def test_what_is_there_is_not_done_again_and_other_removals_are(critical: Done, make_config: MakeConfig) -> None:
    storage = critical.folder.root
    again = drive(make_config(storage, *ALONE, f"studies.removal={{top: 2, modes: [project, paper], {FEW}}}"))
    assert again.n_calls == 0
    more = drive(make_config(storage, *ALONE, f"studies.removal={{top: 2, mean: kept, {FEW}}}"))
    assert not more.failed
    assert more.n_calls == 4, "two layers on two data sets; what is captured is there"


def test_listed_layers_of_the_tuned_model_need_no_similarity(
    make_config: MakeConfig, tables_of: Tables, tmp_path: Path
) -> None:
    alone = (*ALONE, "studies.similarity=null")
    asked = make_config(tmp_path / "run", *alone, f"studies.removal={{of: tuned, layers: [4, 0], {FEW}}}")
    done = drive(asked)
    assert not done.failed
    assert [task.name for task in done.graph.tasks] == ["removal m/first layer 4", "removal m/first layer 0"]
    rows = tables_of(done)["removal"]
    assert set(rows["of"]) == {"tuned"}
    assert list(rows["layer"].unique()) == [4, 0]
    of_base = drive(make_config(tmp_path / "run", *alone, f"studies.removal={{layers: all, {FEW}}}"))
    assert not of_base.failed
    assert len(of_base.graph.tasks) == 2 * 6
    both = pd.concat([rows, tables_of(of_base)["removal"]]).query("measure == 'loss_before' and dataset == 'first'")
    assert both["value"].round(4).nunique() == 2, "base and tuned"


def test_without_enough_layers_with_a_delta_the_table_says_so(
    make_config: MakeConfig, tables_of: Tables, tmp_path: Path, world: Path
) -> None:
    same = tmp_path / "same.jsonl"
    same.write_text("".join(json.dumps({"question": "one?", "answer": f"{n}"}) + "\n" for n in range(4)))
    sets = f"datasets=[{{name: first, path: {same}, format: gsm8k}}]"
    done = drive(make_config(tmp_path / "run", *ALONE, sets, f"studies.removal={{top: 1, {FEW}}}"))
    assert not done.failed
    rows = tables_of(done)["removal"]
    assert rows["layer"].isna().all()
    assert set(rows["reason"]) == {"fewer than 1 layers have a δ in cka_linear"}
    page = open_run(done.folder.root).report.read_text(encoding="utf-8")
    assert "No removal of components could be measured" in page


def test_a_task_is_the_same_after_a_round_trip_and_keys_tell_what_decides(
    small: tuple[Config, Facts], make_config: MakeConfig
) -> None:
    def keys(text: str) -> set[str]:
        config = make_config("nowhere", f"studies.removal={{{text}}}")
        tasks = list(plan(config, small[1]).of_kind("removal"))
        assert [Task.from_json(json.loads(json.dumps(task.to_json()))) for task in tasks] == tasks
        assert len({task.name for task in tasks}) == len(tasks)
        return {key for task in tasks for key in task.keys}

    plain = keys("layers: [2]")
    others = [
        *("layers: [3]", "layers: critical", "layers: [2], components: [2]", "layers: [2], modes: [paper]"),
        *("layers: [2], positions: [all]", "layers: [2], mean: kept", "layers: [2], of: tuned"),
        *("layers: [2], tokens: 5", "layers: [2], examples: 1"),
    ]
    assert all(not plain & keys(other) for other in others)
    assert keys("layers: [2], components: [1, 3, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]") == plain


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["layers: [1, 6]"],
            "studies.removal.layers has layer 6, which is not among the 6 decoder layers of model 'm'; ",
        ),
        (["top: 7"], "studies.removal.top asks for 7 critical layers, and model 'm' has only 6"),
        (
            ["components: [2, 9]"],
            "studies.removal.components asks for component 8 (counted from 0), and the states of 6 examples of 'second' have at most 5",
        ),
        (["components: [1], tokens: 200"], "studies.removal asks for 200 tokens after each prompt; record "),
        (
            ["components: [1]", "execution.residency=stream"],
            "model 'm' cannot be streamed: studies.removal generates token by token, which would read every layer for "
            "each token; remove it",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    overrides: list[str], message: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(tmp_path / "run", *ALONE, f"studies.removal={{{overrides[0]}}}", *overrides[1:])
    with pytest.raises(InputError) as refused:
        drive(config)
    assert str(refused.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_an_encoder_is_refused(tmp_path: Path, make_config: MakeConfig, tokenizer: Any) -> None:
    build(ENCODERS["bert"]).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    config = make_config(
        tmp_path / "run",
        *ALONE,
        f"models=[{{name: b, base: {tmp_path / 'bert'}, template: plain}}]",
        "studies.removal={layers: [0]}",
    )
    with pytest.raises(
        InputError, match=r"^model 'b': checkpoint '.*' does not predict the next token .* remove studies"
    ):
        inspect(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layers: most", "give critical, all, or a list of distinct layers counted from 0, not 'most'"),
        ("layers: [1, 1]", "give critical, all, or a list of distinct layers counted from 0, not [1, 1]"),
        ("layers: []", "give critical, all, or a list of distinct layers counted from 0, not []"),
        ("layers: [2], top: 1", "top applies only to layers: critical, and layers are listed; remove one of them"),
        (
            "components: [0]",
            "give how many of the first components (1 or more), or a list of distinct ones counted from 0",
        ),
        ("components: [3, [2, 0, 1]]", "3 is listed twice; list each once"),
        ("components: [[1, true]]", "or a list of distinct ones counted from 0, not [1, True]"),
        ("modes: [project, project]", "'project' is listed twice; list each once"),
        ("mode: paper", "unknown key 'studies.removal.mode'; did you mean 'modes'?"),
    ],
)
def test_what_a_config_may_not_ask_for(override: str, message: str, make_config: MakeConfig) -> None:
    with pytest.raises(InputError) as refused:
        make_config("nowhere", f"studies.removal={{{override}}}")
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_critical_needs_similarity_and_tuned_a_checkpoint(make_config: MakeConfig) -> None:
    with pytest.raises(
        InputError, match="removal at critical layers needs similarity, which finds them; add it, or list"
    ):
        make_config("nowhere", *ALONE, "studies.similarity=null", "studies.removal={}")
    with pytest.raises(InputError, match="removal of: tuned needs a tuned checkpoint; give models"):
        make_config("nowhere", *ALONE, "models.0.tuned={}", "studies.removal={of: tuned, layers: [1]}")
