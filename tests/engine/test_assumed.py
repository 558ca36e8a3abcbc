"""Planning on paper: what is not here is as the config has it, never mistaken for the real thing, and a run refuses it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysweep.config import load_config
from raysweep.data.expected import expected_examples
from raysweep.engine.inspection import inspect
from raysweep.engine.plan import plan
from raysweep.engine.rates import given_rates
from raysweep.errors import InputError
from raysweep.models.architecture import describe_architecture, is_here
from raysweep.models.checkpoint import describe
from raysweep.models.skeleton import read_sizes
from raysweep.planned import plan_run

LAYERS = 4


@pytest.fixture(scope="module")
def saved(tiny: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four layers."""
    folder = tmp_path_factory.mktemp("saved") / "base"
    tiny("llama", LAYERS, max_position_embeddings=128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config(saved: Path, tmp_path: Path) -> Path:
    """A config whose checkpoints and records are not here; the architecture's path is relative to it."""
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "tiny.json").write_text((saved / "config.json").read_text())
    values = {
        "name": "paper",
        "models": [
            {"name": "m", "base": "no-such/base", "architecture": "sizes/tiny.json", "tuned": {"d": "no-such/tuned"}}
        ],
        "datasets": [
            {
                "name": "d",
                "path": "no-such/records",
                "format": "gsm8k",
                "limit": 10,
                "expected": {"examples": 40, "prompt_tokens": 6, "response_tokens": 3},
            }
        ],
        "studies": {"substitution": {"widths": [2]}, "similarity": {}, "correlation": {"resamples": 10}},
        "execution": {"chunk": 4, "device": "cpu"},
        "storage": str(tmp_path / "run"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_config_alone_has_the_checkpoints_shapes_and_bytes(saved: Path) -> None:
    real, paper = describe(str(saved)), describe_architecture("elsewhere", saved / "config.json")
    assert paper.shapes == real.shapes
    assert paper.bytes == sum(4 * math.prod(shape) for shape in real.shapes.values())
    assert read_sizes(paper) == read_sizes(real)
    assert (paper.on_paper, real.on_paper) == (True, False)
    assert paper.fingerprint.startswith("paper-")


def test_tied_weights_are_stored_once(tiny: Any, tmp_path: Path) -> None:
    tiny("llama", 2, tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    paper = describe_architecture("elsewhere", tmp_path / "tied" / "config.json")
    assert paper.shapes == describe(str(tmp_path / "tied")).shapes
    assert "lm_head.weight" not in paper.shapes


def test_a_plan_says_what_it_assumes(config: Path) -> None:
    planned = plan_run(config)
    first, second = planned.assumed
    assert first.startswith(
        "checkpoint 'no-such/base' and 1 tuned from it of m are not on this machine: assuming 4 layers and "
    )
    assert first.endswith("sizes/tiny.json)")
    assert second.startswith("records of d are not read: assuming 40 of 6 prompt and 3 response tokens")
    assert json.loads(json.dumps(planned.to_json()))["assumed"] == [first, second]
    assert planned.seconds is None
    assert planned.tasks["substitute"] == (0, 5), "three windows, none, and all four"


def test_by_kind_adds_up_to_the_whole(config: Path) -> None:
    planned = plan_run(config, gpus=1, rates="flops=1e6,read=1e5")
    kinds = {kind.kind: kind for kind in planned.kinds}
    assert list(kinds) == ["capture", "substitute", "similarity", "correlate"]
    assert kinds["capture"].bytes_read + kinds["substitute"].bytes_read == planned.bytes_to_read
    assert max(kinds["capture"].memory, kinds["substitute"].memory) == planned.memory
    checkpoint = inspect(load_config(config), may_assume=True).models["m"].base
    layer = sum(math.prod(shape) for name, shape in checkpoint.shapes.items() if ".layers." in name) / LAYERS
    # The prompts of ten examples of six tokens through four layers, two operations a parameter; then the base is loaded.
    assert kinds["capture"].seconds == pytest.approx(
        10 * 6 * LAYERS * 2 * layer / 1e6 + kinds["capture"].bytes_read / 1e5
    )
    assert "  capture           —      3 " in planned.to_text()
    assert planned.simulation is not None
    reckoned = kinds["capture"].seconds + kinds["substitute"].seconds
    assert planned.simulation.makespan == pytest.approx(reckoned, rel=1e-9)


def test_a_device_gives_unlike_models_unlike_rates(saved: Path, tiny: Any, tmp_path: Path) -> None:
    tiny("llama", 2, width=32).save_pretrained(tmp_path / "wide")
    given = given_rates("flops=2e9,read=5e6")
    for checkpoint in (describe(str(saved)), describe(str(tmp_path / "wide"))):
        in_layers = sum(math.prod(shape) for name, shape in checkpoint.shapes.items() if ".layers." in name)
        rates = given.of(checkpoint)  # type: ignore[union-attr]
        assert rates.layer_seconds == pytest.approx(in_layers / checkpoint.n_layers / 1e9)
        assert rates.head_seconds == pytest.approx(math.prod(checkpoint.shapes["lm_head.weight"]) / 1e9)
        assert rates.read_bytes == 5e6
    for wrong in ("flops=1", "flops=1,read=2,layer=3", "flops=0,read=1"):
        with pytest.raises(InputError, match="or flops=OPERATIONS,read=BYTES"):
            given_rates(wrong)


def test_a_run_takes_nothing_for_granted(config: Path, monkeypatch: pytest.MonkeyPatch, raysweep: Any) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    code, out, err = raysweep("run", config)
    assert (code, out) == (2, "")
    assert err.startswith(
        "error: checkpoint 'no-such/base' is not a folder on this machine, and the hub did not provide it"
    )
    assert not (config.parent / "run").exists()


def test_a_published_model_that_is_not_fetched_is_planned_by_its_architecture(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    facts = inspect(load_config(config, ["models.0.base=lab://smollm2"]), may_assume=True)
    assert facts.models["m"].base.on_paper
    assert "lab://smollm2" in facts.assumed[0]


def test_real_checkpoints_and_records_are_used_where_they_are_here(config: Path, saved: Path, tmp_path: Path) -> None:
    changes = [f"models.0.base={saved}", "models.0.tuned={}", "studies={similarity: {}}"]
    facts = inspect(load_config(config, changes), may_assume=True)
    assert not facts.models["m"].base.on_paper
    assert facts.cells["m", "d"].on_paper
    assert {int(token) for e in facts.cells["m", "d"].examples for token in e.tokens} == {-1}, "no tokenizer gives it"
    (tmp_path / "d.jsonl").write_text('{"question": "one?", "answer": "two"}\n' * 3)
    facts = inspect(load_config(config, [*changes, f"datasets.0.path={tmp_path / 'd.jsonl'}"]), may_assume=True)
    assert (len(facts.cells["m", "d"].examples), facts.cells["m", "d"].on_paper, facts.assumed) == (3, False, ())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ["datasets.0.expected=null"],
            "data set 'd' cannot be tokenised: checkpoint 'no-such/base' of model 'm' is not on this machine",
        ),
        (["models.0.architecture=gone.json"], "architecture 'gone.json' of checkpoint 'no-such/base' is not a file"),
        (
            ["datasets.0.max_tokens=6"],
            "expected.prompt_tokens is 6 and examples are cut to 6, so no response token is left",
        ),
        (
            ["datasets.0.expected.prompt_tokens=200"],
            "expected examples have 203 tokens, and the context of 'm' has 128",
        ),
        (["datasets.0.all_but_last=40"], "expected.examples is 40 and all_but_last removes 40, so none is left"),
    ],
)
def test_what_cannot_be_assumed(config: Path, changes: list[str], told: str) -> None:
    with pytest.raises(InputError) as error:
        inspect(load_config(config, changes), may_assume=True)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_size": 30}, "does not describe a model|not a config that transformers knows"),
        ({"dtype": "float8_e4m3fn"}, "has dtype 'float8_e4m3fn', but a plan needs one of float32"),
        ({"num_hidden_layers": 0}, "has num_hidden_layers 0"),
    ],
)
def test_an_architecture_that_is_none(saved: Path, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=told):
        describe_architecture("elsewhere", tmp_path / "other.json")


def test_expected_examples_are_counted_and_cut_as_records_are() -> None:
    found = expected_examples(50, 8, 4, last=20, limit=15, max_tokens=10)
    assert (len(found.examples), found.n_cut) == (15, 15)
    assert {(e.n_prompt, e.length) for e in found.examples} == {(8, 10)}
    prompts = expected_examples(5, 8, 4, prompts_only=True)
    assert {(e.n_prompt, e.length) for e in prompts.examples} == {(8, 8)}


@pytest.mark.parametrize(("source", "here"), [("lab://tiny", True), ("no-such/base", False), ("./gone", False)])
def test_what_is_here(source: str, here: bool) -> None:
    assert is_here(source) is here


def test_published_figures_are_of_the_configs_own_names(config: Path) -> None:
    with pytest.raises(
        InputError, match=r"studies.correlation.published has figures for 'e', which is not a data set of this config"
    ):
        load_config(config, ["studies.correlation.published={m: {e: -0.5}}"])
    with pytest.raises(InputError, match=r"has figures for 'other', which is not a model of this config"):
        load_config(config, ["studies.correlation.published={other: {d: -0.5}}"])
    plain, published = load_config(config), load_config(config, ["studies.correlation.published={m: {d: -0.5}}"])
    facts = inspect(plain, may_assume=True)
    assert plan(plain, facts) == plan(published, facts), "with every key"
