"""Calls that name their models and data: the same figures as with loaded models and examples, and as a run's."""

from __future__ import annotations

import copy
import json
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import raysweep as rs
from raysweep.data.examples import load_examples
from raysweep.engine.residency import Residency
from raysweep.errors import RenamedWarning

LAYERS = 4
WINDOWS = [(0, 2), range(1, 3)]
ROWS = [{"question": f"Count to {'ten ' * (1 + n % 4)}", "answer": f"one two {'three ' * (n % 3)}"} for n in range(10)]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*checkpointing.* is deprecated:FutureWarning"
)  # PEFT's, about transformers


@pytest.fixture(scope="module")
def world(tmp_path_factory: Any, tiny_pair: Any, tokenizer: Any) -> Path:
    """base, tuned, the PEFT adapter lora on base, and rows.jsonl."""
    from peft import LoraConfig, get_peft_model

    folder: Path = tmp_path_factory.mktemp("world")
    base, tuned = tiny_pair("llama", LAYERS, max_position_embeddings=128)
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder / "lora")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.fixture(scope="module")
def examples(world: Path, tokenizer: Any) -> list[rs.Example]:
    return load_examples(str(world / "rows.jsonl"), "gsm8k", tokenizer).examples


@pytest.fixture(scope="module")
def expected(world: Path, examples: list[rs.Example]) -> pd.DataFrame:
    return rs.sweep_windows(loaded(world / "base"), loaded(world / "tuned"), examples, WINDOWS)


# --- models and data by name --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_named_models_and_data_give_the_losses_of_loaded_ones(kind: Any, world: Path, expected: pd.DataFrame) -> None:
    base, tuned, rows = (kind(world / name) for name in ("base", "tuned", "rows.jsonl"))
    pd.testing.assert_frame_equal(rs.sweep_windows(base, tuned, rows, WINDOWS), expected)


def test_records_in_memory_give_the_losses_of_their_file(world: Path, expected: pd.DataFrame, tokenizer: Any) -> None:
    names = world / "base", world / "tuned"
    objects = tuple(map(loaded, names))
    for given in (ROWS, pd.DataFrame(ROWS), datasets.Dataset.from_list(ROWS)):
        pd.testing.assert_frame_equal(rs.sweep_windows(*names, given, WINDOWS), expected)
        for tokens in (tokenizer, world / "base", str(world / "tuned")):
            pd.testing.assert_frame_equal(rs.sweep_windows(*objects, given, WINDOWS, tokenizer=tokens), expected)
    few = rs.sweep_windows(
        *names, ROWS, WINDOWS, limit=np.int64(2), format="gsm8k", exclude=rs.Exclude(phrases="three")
    )
    assert few["example_id"].unique().tolist() == [0, 3]


def test_one_model_may_be_named_and_the_other_loaded(world: Path, expected: pd.DataFrame) -> None:
    base, tuned = loaded(world / "base").train(), loaded(world / "tuned")
    pd.testing.assert_frame_equal(rs.sweep_windows(base, world / "tuned", ROWS, WINDOWS), expected)
    pd.testing.assert_frame_equal(rs.sweep_windows(str(world / "base"), tuned, ROWS, WINDOWS), expected)
    assert base.training
    half = rs.sweep_windows(loaded(world / "base", torch.bfloat16), world / "tuned", ROWS, WINDOWS)
    np.testing.assert_allclose(half["loss"], expected["loss"], atol=0.3)
    assert not np.allclose(half["loss"], expected["loss"], atol=1e-5), "the named one is loaded in the other's dtype"


def test_an_adapters_folder_is_merged_onto_a_named_base_or_a_copy_of_a_loaded_one(
    world: Path, examples: list[rs.Example]
) -> None:
    from peft import PeftModel

    merged = PeftModel.from_pretrained(loaded(world / "base"), world / "lora").merge_and_unload()
    expected = rs.sweep_windows(loaded(world / "base"), merged, examples, WINDOWS)
    pd.testing.assert_frame_equal(rs.sweep_windows(world / "base", world / "lora", examples, WINDOWS), expected)
    base = loaded(world / "base").train()
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    pd.testing.assert_frame_equal(rs.sweep_windows(base, str(world / "lora"), examples, WINDOWS), expected)
    assert base.training
    assert all(torch.equal(before[name], parameter) for name, parameter in base.named_parameters())


def test_an_adapter_on_a_loaded_base_of_16_bits_is_rounded_once(
    world: Path, tmp_path: Path, examples: list[rs.Example]
) -> None:
    from peft import PeftModel

    base = loaded(world / "base", torch.bfloat16)
    exact = PeftModel.from_pretrained(copy.deepcopy(base).float(), world / "lora").merge_and_unload()
    exact.save_pretrained(tmp_path)
    expected = rs.sweep_windows(base, loaded(tmp_path, torch.bfloat16), examples, WINDOWS)
    pd.testing.assert_frame_equal(rs.sweep_windows(base, world / "lora", examples, WINDOWS), expected)
    assert base.dtype == torch.bfloat16


def test_an_adapter_that_cannot_be_merged_onto_a_loaded_base_is_refused(world: Path, tmp_path: Path) -> None:
    from accelerate import cpu_offload
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    get_peft_model(
        loaded(world / "base"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    ).save_pretrained(tmp_path / "prompt")
    other = loaded(world / "base")
    other.model.layers[1].mlp.up_proj = torch.nn.Linear(16, 44, bias=False)
    get_peft_model(other, LoraConfig(r=2, target_modules=["up_proj"])).save_pretrained(tmp_path / "wide")
    base = loaded(world / "base")
    for adapter in ("prompt", "wide"):
        with pytest.raises(rs.InputError, match=f"adapter '.*{adapter}'"):
            rs.sweep_windows(base, tmp_path / adapter, ROWS, WINDOWS)
    cpu_offload(base, execution_device=torch.device("cpu"))
    with pytest.raises(rs.InputError, match=r"a base that is spread over devices; give base by its name or folder$"):
        rs.sweep_windows(base, world / "lora", ROWS, WINDOWS)


def test_capture_and_critical_layers_by_name(world: Path, examples: list[rs.Example]) -> None:
    base = loaded(world / "base")
    states = rs.capture(base, examples)
    assert torch.equal(rs.capture(world / "base", world / "rows.jsonl"), states)
    assert torch.equal(rs.capture(str(world / "base"), ROWS, "last"), states)
    expected = rs.critical_layers(base, {"a": examples, "b": examples[:8]}, resamples=20)
    found = rs.critical_layers(world / "base", {"a": ROWS, "b": ROWS[:8]}, resamples=20)
    assert found.layers == expected.layers
    np.testing.assert_array_equal(found.delta, expected.delta)
    np.testing.assert_array_equal(found.stability, expected.stability)
    alone = rs.critical_layers(world / "base", world / "rows.jsonl", resamples=20, limit=8)
    assert alone.layers == found.datasets["b"].layers


def test_named_models_that_do_not_fit_in_memory_are_streamed(
    world: Path, examples: list[rs.Example], expected: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rs.capture(world / "base", examples)
    monkeypatch.setattr("raysweep.engine.inspection.choose_residency", lambda *given: Residency("stream", "as asked"))
    monkeypatch.setattr("raysweep.notebook_models.load_model", None)
    found = rs.sweep_windows(world / "base", world / "tuned", examples, WINDOWS)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=0, atol=1e-5)
    assert torch.equal(rs.capture(world / "base", examples), whole)
    assert rs.critical_layers(world / "base", examples, top=1, resamples=5).layers
    assert len(rs.estimate(world / "base", world / "tuned", examples, widths=1)) > 0


def test_names_of_the_laboratory_may_be_paths() -> None:
    by_name = rs.capture("lab://tiny", "lab://sums/test", limit=2)
    assert torch.equal(rs.capture(Path("lab://tiny"), Path("lab://sums/test"), limit=2), by_name)


def test_what_the_command_line_refuses_is_refused(world: Path, tmp_path: Path, tiny: Any, tokenizer: Any) -> None:
    other = tmp_path / "other"
    tiny("llama", LAYERS, intermediate_size=44, max_position_embeddings=128).save_pretrained(other)
    tokenizer.save_pretrained(other)
    for base, tuned, told in (
        (world / "base", other, r"differ in tensor model\.layers\.0\.mlp"),
        (world / "lora", world / "tuned", "is a PEFT adapter; give the full checkpoint"),
        (world / "base", tmp_path / "nothing", "does not exist; give a folder"),
        ("lab://tinny", world / "tuned", "did you mean 'tiny'"),
        (loaded(world / "base"), other, "differ in tensor"),
    ):
        with pytest.raises(rs.InputError, match=told):
            rs.sweep_windows(base, tuned, ROWS, WINDOWS)
    with pytest.raises(rs.InputError, match=r"^base '.*lora' is a PEFT adapter; give the full checkpoint"):
        rs.capture(world / "lora", ROWS)


def test_warnings_of_the_command_line_are_warnings(
    world: Path, tmp_path: Path, tokenizer: Any, examples: list[rs.Example]
) -> None:
    loaded(world / "tuned").save_pretrained(tmp_path)
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = tokenizer.chat_template + "{{ ' ' }}{{ 'bye' }}"
    changed.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="formats 10 of 10 texts differently from the one of"):
        rs.sweep_windows(world / "base", tmp_path, ROWS, WINDOWS)
    most = max(example.length for example in examples) - 1
    n_cut = sum(example.length > most for example in examples)
    with pytest.warns(
        UserWarning, match=rf"^examples \(for this call\): {n_cut} of 10 examples were cut to max_tokens"
    ):
        rs.sweep_windows(world / "base", world / "tuned", ROWS, WINDOWS, max_tokens=most)


def test_what_a_template_does_to_texts_is_a_warning_wherever_they_are_made(
    world: Path, tokenizer: Any, pair: Any
) -> None:
    cutting = copy.deepcopy(tokenizer)
    cutting.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{% endfor %}"
    cutting.chat_template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    turns = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "a</think>b", "weight": 1}]
    for call in (
        lambda: rs.load_examples([{"messages": turns}] * 3, cutting),
        lambda: rs.sweep_windows(*pair, [{"messages": turns}] * 3, WINDOWS, tokenizer=cutting),
    ):
        with (
            pytest.warns(UserWarning, match="^3 of 3 examples lose a part of their answer"),
            pytest.warns(UserWarning, match=r"does not use these, so they are ignored: .*weight"),
        ):
            call()
    dated = copy.deepcopy(tokenizer)
    dated.chat_template = "{{ strftime_now('%Y-%m-%d') }}" + tokenizer.chat_template
    with pytest.warns(UserWarning, match=r"reads the clock and gets (.*); pass template_date='\1' to get the same"):
        rs.load_examples(ROWS, dated)
    for day in ("2026-01-31", date(2026, 1, 31)):
        found = rs.load_examples(ROWS, dated, template_date=day).examples
        assert found[0].prompt.startswith("2026-01-31")
        losses = rs.sweep_windows(*pair, ROWS, WINDOWS, tokenizer=dated, template_date=day)
        pd.testing.assert_frame_equal(losses, rs.sweep_windows(*pair, found, WINDOWS))


# --- examples -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(world: Path) -> tuple[Any, Any]:
    return loaded(world / "base"), loaded(world / "tuned")


def test_examples_come_as_a_list_as_what_was_loaded_or_one_by_one(
    pair: tuple[Any, Any], examples: list[rs.Example], expected: pd.DataFrame, world: Path, tokenizer: Any
) -> None:
    for given in (
        rs.load_examples(world / "rows.jsonl", tokenizer),
        tuple(examples),
        (example for example in examples),
        np.array(examples, dtype=object),
    ):
        pd.testing.assert_frame_equal(rs.sweep_windows(*pair, given, WINDOWS), expected)


def example(tokens: Any, n_prompt: int) -> rs.Example:
    return rs.Example(7, tokens, n_prompt, "", "")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "^examples is empty; give at least one example$"),
        (None, "^examples is of type NoneType; give a list of examples, or records$"),
        (example(np.arange(3), 1), "^examples is one Example; give a list of them$"),
        ([example(np.arange(3), 1), {"question": "a"}], r"^examples\[1\] is of type dict, and others are Examples"),
        (
            ROWS,
            "^examples is records, and a loaded model has no tokenizer; give tokenizer=…, or the result of "
            "load_examples$",
        ),
        ("lab://sums/test", "^examples is 'lab://sums/test', and a loaded model has no tokenizer"),
        ([example(np.array([1, 999]), 1)], "with id 7 has the token 999, and the model has embeddings for 0 to 319"),
        ([example(np.array([1, -1]), 1)], "with id 7 has the token -1"),
        ([example(np.arange(3), 0)], "with id 7 has 0 prompt tokens of 3; give 1 or more"),
        ([example(np.arange(3), 3)], "with id 7 has no response token, and the loss is measured on response tokens"),
        ([example([1, 2, 3], 1)], "with id 7 has tokens of type list; give a numpy array"),
        ([example(np.array([0.5, 2.0]), 1)], "give a numpy array of whole numbers"),
    ],
)
def test_examples_that_cannot_be_measured_are_refused(given: Any, told: str, pair: tuple[Any, Any]) -> None:
    with pytest.raises(rs.InputError, match=told):
        rs.sweep_windows(*pair, given, WINDOWS)


def test_options_of_records_are_refused_where_there_are_none(pair: tuple[Any, Any], examples: list[rs.Example]) -> None:
    with pytest.raises(rs.InputError, match=r"^limit applies to records, and examples are already tokenised"):
        rs.sweep_windows(*pair, examples, WINDOWS, limit=2)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'limits'; did you mean 'limit'\?"):
        rs.sweep_windows(*pair, examples, WINDOWS, limits=2)  # type: ignore[call-arg]
    with pytest.raises(rs.InputError, match=r"^examples has one example, and similarity compares examples; give 2"):
        rs.critical_layers(pair[0], examples[:1])


@pytest.mark.parametrize(
    "options",
    [
        {"top": 0}, {"top": True}, {"top": 9}, {"metric": "cka"}, {"pooling": "lst"}, {"neighbourhood": 2}, {"seed": -1},
        {"neighbourhood": 1, "diagonal": False}, {"resamples": 0}, {"batch_tokens": 0}, {"batch_tokens": 8.0},
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings_of_critical_layers_are_refused(
    options: dict[str, Any], pair: tuple[Any, Any], examples: list[rs.Example]
) -> None:
    with pytest.raises(rs.InputError):
        rs.critical_layers(pair[0], examples, **options)


# --- load_examples ------------------------------------------------------------------------------------------------


def test_load_examples_finds_the_format_and_takes_the_tokenizer_by_name(world: Path, tokenizer: Any) -> None:
    source = str(world / "rows.jsonl")
    expected = load_examples(source, "gsm8k", tokenizer, limit=3)
    for found in (
        rs.load_examples(source, "gsm8k", tokenizer, limit=3),
        rs.load_examples(source, None, tokenizer, limit=3),
        rs.load_examples(source, tokenizer, limit=3),
        rs.load_examples(source, tokenizer, format="gsm8k", limit=3),
        rs.load_examples(source=source, tokenizer=tokenizer, format="gsm8k", limit=3),
        rs.load_examples(Path(source), world / "base", limit=3),
        rs.load_examples(ROWS, str(world / "base"), limit=3),
        rs.load_examples((row for row in ROWS), tokenizer, limit=3),
        rs.load_examples(pd.DataFrame(ROWS), "gsm8k", str(world / "base"), limit=3),
        rs.load_examples(source, tokenizer, prompt="question", response="{{ answer }}", limit=3),
        rs.load_examples(source, tokenizer, limit=3, exclude={"phrases": "nothing of the kind"}),
    ):
        assert [e.tokens.tolist() for e in found.examples] == [e.tokens.tolist() for e in expected.examples]
    assert repr(found) == "Loaded(3 examples)"


def test_load_examples_refuses_what_it_cannot_use(tokenizer: Any) -> None:
    calls: Any = rs.load_examples
    for arguments, options, told in (
        ((ROWS,), {}, "^load_examples needs a tokenizer; give one, or the name or folder of a checkpoint$"),
        ((ROWS, "gsm8k"), {}, "^load_examples needs a tokenizer"),
        ((ROWS, tokenizer, "gsm8k"), {}, "^format is of type .*; give the name of a format, then the tokenizer$"),
        (
            (ROWS, "gsm8k", tokenizer.backend_tokenizer),
            {},
            "^tokenizer is of type Tokenizer; give a tokenizer of transformers",
        ),
        ((ROWS, "gsm8k", "/nowhere"), {}, "^tokenizer '/nowhere' could not be loaded"),
        (([{"a": 1}], tokenizer), {}, "fits no known format"),
        ((ROWS, tokenizer), {"limit": 0}, "^limit is 0; give a whole number, 1 or more$"),
        ((ROWS, tokenizer), {"max_tokens": 2.5}, "^max_tokens is 2.5, of type float"),
        ((ROWS, tokenizer), {"too_long": "shorten"}, "^too_long is 'shorten'; give 'refuse' or 'cut'$"),
        ((ROWS, tokenizer), {"exclude": {"phrases": [3]}}, "^exclude has 3, of type int, among its phrases"),
    ):
        with pytest.raises(rs.InputError, match=told):
            calls(*arguments, **options)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'templates'; did you mean 'template'\?"):
        calls(ROWS, tokenizer, templates="chat")
    with pytest.warns(RenamedWarning, match="^keyword argument `wording` is now called `template`; both work$"):
        found = calls(ROWS, tokenizer, wording="plain")
    assert found.examples[0].prompt == calls(ROWS, tokenizer, template="plain").examples[0].prompt
    with pytest.raises(rs.InputError, match=r"^got template: 'chat' and wording: 'plain'; wording is the old name"):
        calls(ROWS, tokenizer, wording="plain", template="chat")
    with pytest.raises(TypeError, match="takes a source, a format and a tokenizer"):
        calls(ROWS, "gsm8k", tokenizer, 3)
