"""A sharded checkpoint of FSDP and its base's folder → a Hugging Face folder that any program loads."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import InputError, RunError, nearest
from raysweep.models.checkpoint import Checkpoint, describe, predicts_tokens
from raysweep.models.loading import skeleton
from raysweep.models.shards import Sharded, find_shards, read_index, read_tensor
from raysweep.store.whole_folder import install_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = ("float32", "bfloat16", "float16")
_BESIDE = (  # the base's files that a tuned model shares with it
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
    "spiece.model",
)


@dataclass(frozen=True)
class Consolidated:
    """The folder written, its tensors and values, and the dtype that they all have."""

    folder: Path
    tensors: int
    values: int
    dtype: str

    def to_text(self) -> str:
        """A line for a terminal."""
        return f"wrote {self.tensors} tensors, {self.values} values in {self.dtype}: {self.folder}"


def consolidate(shards: str | Path, base: str | Checkpoint, out: str | Path, *, dtype: str = "auto") -> Consolidated:
    """Write the weights in `shards` as safetensors to the new folder `out`, with the base's config and tokenizer.

    `shards` is a `checkpoint-N` of the trainer, or a folder of torch.distributed.checkpoint. `dtype` auto is the widest that a
    tensor is stored in, so that no value changes. The model is in memory once. `out` appears whole or not at all.

    Raises InputError, with nothing written, for shards that are not whole, that hold more than tensors, or whose names and
    shapes are not those of the base's config; and for an `out` that is not empty. Raises RunError where it cannot be written.
    """
    import torch

    to = Path(out).expanduser()
    check_vacant(to)
    if dtype not in ("auto", *DTYPES):
        raise InputError(f"unknown dtype '{dtype}'; {nearest(dtype, ('auto', *DTYPES))}")
    checkpoint = describe(base) if isinstance(base, str) else base
    if checkpoint.adapter or not predicts_tokens(checkpoint):
        raise InputError(
            f"base '{checkpoint.source}' is not a complete causal language model; give the one that was trained"
        )
    folder = find_shards(Path(shards).expanduser())
    model = skeleton(checkpoint)
    found = named(read_index(folder).tensors, model.state_dict())
    check_fits(found, model, folder, checkpoint.source)
    widest = _widest(tensor.dtype for tensor in found.values()) if dtype == "auto" else getattr(torch, dtype)
    state = {
        name: value.to(widest) if value.is_floating_point() else value
        for name, value in ((name, read_tensor(tensor)) for name, tensor in found.items())
    }
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.config.dtype = widest
    whole = _write(model, checkpoint, to)
    words = str(widest).removeprefix("torch.")
    return Consolidated(to, len(whole.shapes), whole.n_parameters, words)


def check_vacant(out: Path) -> None:
    """Raise InputError unless the folder is empty or is not there."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"'{out}' is a file or a link; give a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"'{out}' is not empty; give a new folder, or empty this one")


def named(tensors: Mapping[str, Sharded], expected: Iterable[str]) -> dict[str, Sharded]:
    """The tensors under the model's own names: accelerate and the trainer put `model.` before every one."""
    known = set(expected)
    if tensors and all(name.startswith("model.") for name in tensors):
        shorter = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        if len(shorter.keys() & known) > len(tensors.keys() & known):
            return shorter
    return dict(tensors)


def check_fits(found: Mapping[str, Sharded], model: PreTrainedModel, folder: Path, base: str) -> None:
    """Raise InputError where the shards lack a tensor of the model, have one that it has not, or one of another shape."""
    expected = model.state_dict()
    tied = model.all_tied_weights_keys
    held = set(found) | {name for name, other in tied.items() if other in found}
    held |= {other for name, other in tied.items() if name in found}
    where = f"shards '{folder}' do not fit base '{base}'"
    for problem, names in (("lack", expected.keys() - held), ("have too many", found.keys() - expected.keys())):
        if names:
            some = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            told = (
                f"they {problem} tensors"
                if problem == "have too many"
                else f"they lack tensors of {type(model).__name__}"
            )
            raise InputError(
                f"{where}: {told} ({len(names)}: {some}); give the base that was trained, with all of its weights"
            )
    for name, tensor in sorted(found.items()):
        if tensor.shape != tuple(expected[name].shape):
            raise InputError(
                f"{where}: tensor {name} is {list(tensor.shape)} in the shards and {list(expected[name].shape)} in the base's "
                "config; give the base that was trained"
            )
        if tensor.dtype.is_floating_point != expected[name].dtype.is_floating_point:
            raise InputError(
                f"{where}: tensor {name} is stored as {tensor.dtype}, but {type(model).__name__} has another kind"
            )


def _widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype that holds every value of these exactly, of the floating ones."""
    import functools

    import torch

    return functools.reduce(torch.promote_types, {dtype for dtype in dtypes if dtype.is_floating_point})


def _write(model: PreTrainedModel, base: Checkpoint, out: Path) -> Checkpoint:
    """Write the model and its base's other files to a temporary folder, read them back, then rename the folder to `out`."""
    written: list[Checkpoint] = []

    def build(whole: Path, scratch: Path) -> None:
        model.save_pretrained(whole)
        for pattern in _BESIDE:
            for file in base.folder.glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, whole / file.name)
        written.append(describe(str(whole)))

    try:
        if not install_folder(out, build):
            raise InputError(f"'{out}' is not empty; give another folder")
        return written[0]
    except OSError as error:
        raise RunError(f"'{out}' cannot be written to: {error.strerror or error}; nothing was written") from error
