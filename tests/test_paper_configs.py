"""configs/paper: every one loads, plans and costs itself on a machine that has neither checkpoints nor data, without a network."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from raysweep.config import load_config
from raysweep.engine.inspection import inspect
from raysweep.errors import InputError
from raysweep.planned import plan_run

FOLDER = Path(__file__).parents[1] / "configs" / "paper"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
RATES = "flops=4e14,read=5e9"
# Parameters in billions, as the models' own cards give them.
SIZES = {"llama-2-7b": 6.74, "llama-2-13b": 13.02, "llama-3.1-8b": 8.03, "llama-3.2-3b": 3.21, "phi-3-mini-128k": 3.82}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working folder, and no connection to be had."""

    def refused(*_: object) -> None:
        raise AssertionError("a plan on paper asks the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.chdir(tmp_path)


def test_there_is_one_for_each_result() -> None:
    names = {"adaptation", "cca", "cka_maps", "removal", "table2", "table4"}
    assert {path.stem for path in CONFIGS} == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads_plans_and_costs_itself(path: Path) -> None:
    config = load_config(path)
    planned = plan_run(path, gpus=8, rates=RATES)
    assert len([text for text in planned.assumed if text.startswith("checkpoint ")]) == len(config.models)
    assert len([text for text in planned.assumed if text.startswith("records of ")]) == len(config.datasets)
    assert planned.simulation is not None
    assert planned.simulation.makespan > 0
    kinds = {kind.kind: kind for kind in planned.kinds}
    assert {"capture", "similarity"} <= kinds.keys()
    for kind in kinds.values():
        assert kind.seconds is not None, kind
        assert kind.seconds > 0
        if kind.kind not in ("adaptation", "judge"):  # made of few rows
            assert kind.bytes_read > 0
            assert kind.memory > 0
    told = planned.to_text()
    for line in planned.assumed:
        assert f"assumed      {line}" in told
    assert json.loads(json.dumps(planned.to_json()))["kinds"][0]["kind"] == planned.kinds[0].kind
    assert not any(Path.cwd().iterdir()), "a plan writes nothing"


def test_table_2_has_thirty_cells_and_the_published_figures() -> None:
    config = load_config(FOLDER / "table2.yaml")
    assert config.studies.correlation is not None
    published = config.studies.correlation.published
    assert {(m, d) for m, of_model in published.items() for d in of_model} == {
        (model.name, dataset.name) for model in config.models for dataset in config.datasets
    }
    assert published["llama-2-7b"]["openbookqa"] == 0.147
    facts = inspect(config, lambda asked: asked, may_assume=True)
    assert len(facts.cells) == 30
    assert {len(cell.examples) for cell in facts.cells.values()} == {300}
    for model in config.models:
        checkpoint, name = facts.models[model.name].base, Path(str(model.architecture)).stem
        assert checkpoint.n_parameters / 1e9 == pytest.approx(SIZES[name], abs=0.005)
        assert checkpoint.bytes == 2 * checkpoint.n_parameters
        assert facts.models[model.name].dtype == checkpoint.dtype


def test_a_plan_needs_no_rates_and_no_such_device(tmp_path: Path) -> None:
    planned = plan_run(FOLDER / "cka_maps.yaml")
    assert (planned.device, planned.seconds, planned.simulation) == ("cuda", None, None)
    assert "time         not known" in planned.to_text()
    with pytest.raises(
        InputError, match=r"checkpoint 'meta-llama/Llama-2-7b-chat-hf' is not on this machine; give --rates layer=SECO"
    ):
        plan_run(FOLDER / "cka_maps.yaml", gpus=2)
