"""Where a checkpoint's end tokens are read, what counts as none, and what identifies the tokenizer that decodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.loading import load_model
from raysweep.models.text_settings import EndTokens, decoder_digest, end_tokens, plain_generation_config

LACKING = object()


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny("llama", 2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def stored(saved: Path, tmp_path: Path) -> Callable[..., Checkpoint]:
    """stored(generation, config): the checkpoint with these `eos_token_id` in the two files."""

    def write(generation: Any, config: Any) -> Checkpoint:
        for path in saved.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        for name, value in (("generation_config.json", generation), ("config.json", config)):
            values = json.loads((tmp_path / name).read_text())
            values.pop("eos_token_id")
            (tmp_path / name).write_text(json.dumps(values if value is LACKING else {**values, "eos_token_id": value}))
        return describe(str(tmp_path))

    return write


class Tokenizer:
    """A tokenizer, as far as it is asked."""

    def __init__(self, eos_token_id: int | None) -> None:
        self.eos_token_id = eos_token_id


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer_has", "ids", "ignored"),
    [
        (7, 8, 9, (7,), ()),
        ([9, 7, 7], 8, 9, (7, 9), ()),
        (LACKING, 8, 9, (8,), ()),
        (None, [8, 3], 9, (3, 8), ()),
        ([], 8, 9, (8,), ()),
        (LACKING, LACKING, 9, (9,), ()),
        (LACKING, None, None, (), ()),
        (320, 8, 9, (8,), (320,)),
        ([7, 320, -1], 8, 9, (7,), (-1, 320)),
        (-1, 128009, 9, (9,), (-1, 128009)),
        ([319, 320], LACKING, None, (319,), (320,)),
        (7.0, 8, 9, (7,), ()),
        (True, LACKING, 9, (9,), ()),
        ("two", 8, 9, (8,), ()),
        ([[7]], 8, 9, (8,), ()),
        (-1, LACKING, 4000, (), (-1,)),
    ],
)
def test_end_tokens_are_those_of_the_first_file_that_names_one(
    generation: Any,
    config: Any,
    tokenizer_has: int | None,
    ids: tuple[int, ...],
    ignored: tuple[int, ...],
    stored: Callable[..., Checkpoint],
) -> None:
    asked: list[None] = []

    def tokenizer() -> Any:
        asked.append(None)
        return Tokenizer(tokenizer_has)

    assert end_tokens(stored(generation, config), tokenizer) == EndTokens(ids, ignored)
    assert bool(asked) == (not ids or ids == (tokenizer_has,)), "a tokenizer is loaded only where files say nothing"


@pytest.mark.parametrize("text", ["{", "[]", '"eos"'])
def test_a_damaged_generation_config_is_refused_where_text_is_asked_for_and_stops_no_loading(
    text: str, stored: Callable[..., Checkpoint]
) -> None:
    checkpoint = stored(7, 8)
    path = checkpoint.folder / "generation_config.json"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        end_tokens(checkpoint, lambda: None)
    assert str(refused.value).startswith(f"{path} is not ")
    assert load_model(describe(checkpoint.source)).generation_config.eos_token_id == 8


def test_a_loaded_models_generation_config_has_special_tokens_alone(stored: Callable[..., Checkpoint]) -> None:
    checkpoint = stored([7, 9], 8)
    path = checkpoint.folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_beams": 4, "pad_token_id": -1}))
    found = plain_generation_config(checkpoint).to_diff_dict()
    assert {name: found.get(name) for name in ("eos_token_id", "bos_token_id", "pad_token_id", "num_beams")} == {
        "eos_token_id": [7, 9],
        "bos_token_id": 1,
        "pad_token_id": 0,
        "num_beams": None,
    }


def test_the_decoder_is_its_files_without_the_chat_template(stored: Callable[..., Checkpoint]) -> None:
    checkpoint = stored(7, 8)
    before = decoder_digest(checkpoint)
    assert len(before) == 32
    settings = checkpoint.folder / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "chat_template": "{{ messages }}"}))
    (checkpoint.folder / "chat_template.jinja").write_text("{{ messages }}")
    assert decoder_digest(checkpoint) == before
    settings.write_text(json.dumps({**values, "clean_up_tokenization_spaces": True}))
    assert decoder_digest(checkpoint) != before
    settings.write_text(json.dumps(values))
    assert decoder_digest(checkpoint) == before
    vocabulary = checkpoint.folder / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace("<end>", "<over>"))
    assert decoder_digest(checkpoint) != before
    for path in (vocabulary, settings):
        path.unlink()
    assert decoder_digest(checkpoint) == ""
