"""Checkpoints on disk: finding them, and describing them without loading weights.

A checkpoint is a folder as `save_pretrained` writes it, a hub id, or a `lab://` name; a PEFT adapter folder may stand for
a tuned checkpoint and is merged onto its base. Checking pairs is pair.py's, loading is loading.py's.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep import lab
from raysweep.errors import InputError, shortened, shown
from raysweep.limits import LAYERS, SETTINGS_BYTES, read_limited
from raysweep.models.digest_check import digest_small_files
from raysweep.models.file_sizes import check_file_sizes
from raysweep.models.kernels import choose_attention, without_kernels
from raysweep.models.kinds import checkpoint_predicts
from raysweep.models.provenance_file import read_note
from raysweep.models.tensors import Shape
from raysweep.models.weight_reader import WeightReader
from raysweep.models.weights import read_weights, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What is downloaded of a hub repository: it may keep the same weights under other names as well.
_DOWNLOADED = ("*.json", "model*.safetensors", "adapter_model.safetensors", "*.model", "*.jinja", "*.txt")
_NO_DTYPE = ("auto", "None")  # what trainers write in place of one
_FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DEPTH = re.compile(r"(^|_)(n|num|number)_.*(layer|block)s?$|(layers|depth|blocks)$")
_FORMS = ("use_return_dict", "output_attentions")  # what a program wants of outputs


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's identity: its config, `shapes` (tensor → shape), bytes, and the fingerprint of its contents.

    `digests` has each tensor's own (none of `.bin` files), `dtypes` what each is stored in, as safetensors names it. `files` has
    the SHA-256 of its other files by name: settings, tokenizer, `.bin` weights. Of a checkpoint that the run itself makes, it
    has those of all files once they are committed, and `manifest` is the path of their manifest. `note` is what its
    provenance file says of the weights. Of one `on_paper`, which is not here, `folder` is the config's file,
    and there are no weights to read; see architecture.py.
    """

    source: str
    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    bytes: int
    adapter: bool
    fingerprint: str
    digests: Mapping[str, str] = field(default_factory=dict)
    on_paper: bool = False
    dtypes: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    manifest: str = ""

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return int(text_config(self.config)["num_hidden_layers"])

    @property
    def dtype(self) -> str:
        """The dtype that the config names, or where it names none that there is, the one that most values are stored in."""
        for config in (self.config, text_config(self.config)):
            named = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
            if named and named not in _NO_DTYPE:
                return named
        return self._stored_dtype

    @property
    def _stored_dtype(self) -> str:
        values: dict[str, int] = {}
        for name, stored in self.dtypes.items():
            if stored in _FLOATING:
                values[stored] = values.get(stored, 0) + math.prod(self.shapes[name])
        return _FLOATING[max(values, key=lambda stored: values[stored])] if values else "float32"

    @property
    def n_parameters(self) -> int:
        """Number of stored parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def find(source: str) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded (configs, tokenizer and safetensors only).

    Raises InputError where there is no such folder, laboratory name or hub repository.
    """
    folder = Path(lab.resolve(source)).expanduser()
    if folder.is_dir():
        return folder
    looks_like_path = source.startswith((".", "/", "~", lab.SCHEME)) or source.count("/") != 1 or folder.exists()
    if looks_like_path:
        kind = "is a file, not a checkpoint folder" if folder.exists() else "does not exist"
        raise InputError(
            f"checkpoint '{source}' {kind}; give a folder written by save_pretrained, or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(_DOWNLOADED)))
    except Exception as error:  # the hub client raises many types; every one means the same to the user
        raise InputError(
            f"checkpoint '{source}' is not a folder on this machine, and the hub did not provide it "
            f"({type(error).__name__}: {error}); "
            "check the name, the network and your access"
        ) from error


def describe(source: str, *, reader: WeightReader | None = None) -> Checkpoint:
    """Read a checkpoint's config, tensor shapes and fingerprint; every byte of its weights is looked at, no model built.

    With a `reader`, files that it has read already are not read again, nor are those that its cache has. Raises InputError for a folder without config or weights, with an unreadable one, or with weights that are not finite.
    """
    folder = find(source)
    adapter = (folder / "adapter_config.json").exists()
    config_path = folder / ("adapter_config.json" if adapter else "config.json")
    if not config_path.exists():
        raise InputError(
            f"checkpoint '{source}' has no config.json ({folder}); {_subfolders(folder) or 'is it the folder that save_pretrained wrote?'}"
        )
    check_file_sizes(folder)
    config = read_config(config_path, folder, adapter=adapter)
    weights = read_weights(folder, source, config_path, adapter=adapter, reader=reader)
    return Checkpoint(
        source,
        folder,
        config,
        weights.shapes,
        weights.bytes,
        adapter,
        weights.fingerprint,
        weights.digests,
        dtypes=weights.dtypes,
        note=read_note(folder),
        files={**digest_small_files(folder), **weights.files},
    )


def begin_reading(source: str, reader: WeightReader) -> None:
    """Begin to read the weights of a checkpoint that is on this machine, for a later `describe` with the same reader.

    Does nothing if the checkpoint is elsewhere or has an error, which `describe` reports.
    """
    with suppress(InputError, OSError, ValueError):  # ValueError: a name that the hub does not allow
        folder = _find_here(source)
        if folder is not None:
            check_file_sizes(folder)
            adapter = (folder / "adapter_config.json").exists()
            for path in weight_files(folder, source, adapter=adapter):
                reader.begin(path, source, adapter=adapter)


def _find_here(source: str) -> Path | None:
    """The folder of a checkpoint that is on this machine, if only in the hub's cache. Asks no network."""
    folder = Path(lab.resolve(source)).expanduser()
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~", lab.SCHEME)) or source.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "adapter_config.json"):
        path = try_to_load_from_cache(source, name)
        if isinstance(path, str):
            return Path(path).parent
    return None


def fingerprint_of(folder: Path, source: str) -> str | None:
    """Read every byte of the weights in a folder and return their fingerprint, as `describe` does; None if there are none.

    Raises InputError for weights that are damaged or not finite, and OSError for files that cannot be read.
    """
    adapter = (folder / "adapter_config.json").exists()
    config_path = folder / ("adapter_config.json" if adapter else "config.json")
    if not config_path.is_file():
        return None
    try:
        weight_files(folder, source, adapter=adapter)
    except InputError:
        return None
    return read_weights(folder, source, config_path, adapter=adapter).fingerprint


def _subfolders(folder: Path) -> str | None:
    """Words that name the subfolders that hold a checkpoint (PEFT saves an adapter with a name of its own in one), if any does."""
    names = ("adapter_config.json", "config.json")
    found = sorted({path.parent.name for name in names for path in folder.glob(f"*/{name}")})
    if not found:
        return None
    kind = "an adapter" if (folder / found[0] / names[0]).exists() else "a checkpoint"
    return f"its subfolder '{found[0]}' has {kind}: give {folder / found[0]}" + (
        f" (or one of {len(found) - 1} others)" if len(found) > 1 else ""
    )


def read_config(path: Path, folder: Path, *, adapter: bool = False) -> Mapping[str, Any]:
    """The config in the file `path`, with its depth under transformers' standard name; `folder` is where transformers finds it.

    Raises InputError where it is not a JSON object, or tells of no number of layers.
    """
    try:
        config = json.loads(read_limited(path, SETTINGS_BYTES).decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}; save the checkpoint again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object; save the checkpoint again")
    _check_depths(config, path)
    if not adapter and "num_hidden_layers" not in text_config(config):
        config = dict(_standard_names(folder))
    depth = text_config(config).get("num_hidden_layers")
    if not adapter and (type(depth) is not int or not 1 <= depth <= LAYERS.value()):
        raise InputError(
            f"{path} has num_hidden_layers {shown(depth)}, but it must be a number from 1 to "
            f"{LAYERS.value():.15g}; save the checkpoint again"
        )
    return config


def _check_depths(config: Any, path: Path) -> None:
    """Raise InputError for a number of layers or blocks, anywhere in the config, for which no library should make a list."""
    if isinstance(config, list):
        for value in config:
            _check_depths(value, path)
    if isinstance(config, dict):
        for key, value in config.items():
            if type(value) is int and _DEPTH.search(key):
                LAYERS.check(value, f"{path}, {shortened(key)}")
            _check_depths(value, path)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) and inner else config


def limits(checkpoint: Checkpoint) -> tuple[int | None, int | None]:
    """(context, vocabulary): the most tokens of a text and the rows of the embedding; None where the config sets none.

    The context is `max_position_embeddings` under whatever name the architecture writes it. An adapter has its base's.
    """
    text = standard_config(checkpoint.folder).get_text_config()
    context, vocabulary = (getattr(text, key, None) for key in ("max_position_embeddings", "vocab_size"))
    return (
        context if isinstance(context, int) and context > 0 else None,
        vocabulary if isinstance(vocabulary, int) else None,
    )


def standard_config(folder: Path) -> PreTrainedConfig:
    """The config as transformers reads it: standard names, and defaults for what the file leaves out.

    What programs leave in the file that has nothing to do with the weights is dropped: kernels of other packages and of the
    hub (kernels.py), the form of outputs, a dtype that is none, a padding token without an embedding. Raises
    InputError for a file that transformers cannot read.
    """
    try:
        config = _read_standard(folder)
    except Exception as error:  # a value of a wrong type raises whatever the config's class stumbled over
        raise InputError(f"{folder / 'config.json'} is not a config that transformers knows: {error}") from error
    for each in (config, config.get_text_config()):
        each.return_dict = True
        for form in ("output_hidden_states", "output_router_logits"):
            if getattr(each, form, False):
                setattr(each, form, False)
        padding, rows = getattr(each, "pad_token_id", None), getattr(each, "vocab_size", None)
        if isinstance(padding, int) and isinstance(rows, int) and not 0 <= padding < rows:
            each.pad_token_id = None
    choose_attention(config)
    return config


def _read_standard(folder: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    path = folder / "config.json" if folder.is_dir() else folder
    try:
        raw = json.loads(read_limited(path, SETTINGS_BYTES))
    except (OSError, ValueError, RecursionError):
        raw = None  # transformers says what is wrong
    plain = without_kernels(_without_leftovers(raw))
    if plain == raw:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(plain), encoding="utf-8")
        return AutoConfig.from_pretrained(scratch, trust_remote_code=False)


def _without_leftovers(raw: Any) -> Any:
    """A config's values without settings whose own value transformers would stumble over while it reads the file."""
    import torch

    if not isinstance(raw, dict):
        return raw
    plain = {key: _without_leftovers(value) if key == "text_config" else value for key, value in raw.items()}
    for key in _FORMS:
        plain.pop(key, None)
    for key in ("dtype", "torch_dtype"):
        if plain.get(key) is not None and not isinstance(getattr(torch, str(plain[key]), None), torch.dtype):
            del plain[key]
    return plain


def _standard_names(folder: Path) -> Mapping[str, Any]:
    """The config under transformers' standard names (GPT-2 and others name their sizes differently)."""
    config = standard_config(folder)
    text = config.get_text_config()
    sizes = {
        "num_hidden_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
    }
    return {**config.to_dict(), **sizes}


def predicts_tokens(checkpoint: Checkpoint) -> bool:
    """Whether it is a causal language model, whose loss can be measured, or has states only (an encoder).

    Raises InputError for what is neither.
    """
    return checkpoint_predicts(standard_config(checkpoint.folder), checkpoint.source)
