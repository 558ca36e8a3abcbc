"""One setting changed in the config.json of a tuned checkpoint, and what plain transformers makes of the pair.

The reference swaps modules in a loaded model and runs its own forward on one unpadded example at a time.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import torch
import transformers as hf
from architectures import Tiny, plain_loss
from torch import nn
from transformers.utils import logging

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe, standard_config
from raysweep.models.expected_tensors import check_tensors
from raysweep.models.loading import load_model
from raysweep.models.pair import check_pair
from raysweep.models.stream import StreamedModel
from raysweep.studies.interventions import check_changes
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair, sweep_losses

WINDOWS = (
    (0, 0),
    (0, 1),
    (1, 3),
)  # and all layers, and the base alone, and the base with layers 1 and 2 of the tuned model
_NOT_SETTINGS = ("vision_config", "audio_config", "model_type", "architectures", "id2label", "label2id")
# What says in which form a program wants its outputs; raysweep drops it, and plain transformers stumbles over some.
_FORM = ("return_dict", "output_attentions", "output_hidden_states", "dtype", "pad_token_id")


@dataclass(frozen=True)
class Change:
    """A setting (a path of keys in config.json) and its new value."""

    path: tuple[str, ...]
    value: Any

    @property
    def text(self) -> str:
        return f"{'.'.join(self.path)}={self.value}"


class Changed:
    """A pair of checkpoints of one architecture on disk, whose tuned config.json is rewritten for each change.

    The lower half of the layers and all that is not a layer are the same in both, so that they may be taken for shared.
    """

    def __init__(self, tiny: Tiny, folder: Path) -> None:
        self._path = tiny.block_path
        base = architectures.build(tiny)
        tuned = copy.deepcopy(base)
        torch.manual_seed(1)
        blocks = tuned.get_submodule(tiny.block_path)
        with torch.no_grad():
            for block in blocks[len(blocks) // 2 :]:
                for weight in block.parameters():
                    weight += 0.1 * torch.randn_like(weight)
        self.base, self.tuned, self._folder = folder / "base", folder / "tuned", folder
        base.save_pretrained(self.base)
        tuned.save_pretrained(self.tuned)
        self._settings = json.loads((self.tuned / "config.json").read_text())
        # Every setting that there is, not only those that differ from their defaults.
        self._all = {**standard_config(self.tuned).to_dict(), **self._settings}

    def changes(self) -> Iterator[Change]:
        """Every setting with a few other values."""
        for name, value in self._all.items():
            if name in _NOT_SETTINGS:
                continue
            yield from _changes((name,), value)

    def outcome(self, change: Change, examples: Sequence[Example], *, streamed: bool = False) -> str:
        """What raysweep makes of the pair after the change: `equal` to the reference, `refused` by name, or what is wrong."""
        settings = copy.deepcopy(self._settings)
        inner, known = settings, self._all
        for key in change.path[:-1]:
            known = known[key]
            inner = inner.setdefault(key, copy.deepcopy(known))
        inner[change.path[-1]] = change.value
        if change.path[-1] in _FORM:
            (self.tuned / "config.json").write_text(json.dumps(self._settings))
            expected = self._plain(examples)
            (self.tuned / "config.json").write_text(json.dumps(settings))
        else:
            (self.tuned / "config.json").write_text(json.dumps(settings))
            try:
                expected = self._plain(examples)
            except Exception as error:
                expected = f"{type(error).__name__}: {error}"
        try:
            found = self._swept(examples, streamed=streamed)
        except InputError as error:
            return "refused" if _names_it(str(error), change) else f"refused without a name: {error}"
        except Exception as error:
            return f"raised {type(error).__name__}: {error}, where the reference has {str(expected)[:100]}"
        if isinstance(expected, str):
            return f"measured, where the reference has {expected[:200]}"
        apart = float(np.abs(found - expected).max())
        close = apart <= 1e-5 * max(1.0, float(np.abs(expected).max()))
        return "equal" if close else f"{apart} apart from the reference"

    def _swept(self, examples: Sequence[Example], *, streamed: bool) -> np.ndarray:
        base, tuned = describe(str(self.base)), describe(str(self.tuned))
        check_tensors(tuned)
        check_pair(base, tuned)
        if streamed:
            pair: Pair = StreamedPair.of(StreamedModel(base), StreamedModel(tuned))
        else:
            pair = Pair(Adapter(load_model(base)), Adapter(load_model(tuned)))
        asked = check_changes(pair.n_layers, [1, 2, pair.n_layers], reverse=True)
        texts = [change.text for change in asked]
        rows = [texts.index(text) for text in self._texts(pair.n_layers)]
        return sweep_losses(pair, examples, [asked[row] for row in rows])

    def _texts(self, n_layers: int) -> list[str]:
        return ["none", "0", "1-2", f"0-{n_layers - 1}", "reverse none", "reverse 1-2"]

    def _plain(self, examples: Sequence[Example]) -> np.ndarray:
        base, tuned = (_plain_model(folder) for folder in (self.base, self.tuned))
        n_layers = len(tuned.get_submodule(self._path))
        swapped = [(tuned, base, window) for window in (*WINDOWS, (0, n_layers))]
        swapped += [(base, tuned, (0, 0)), (base, tuned, (1, 3))]
        losses = []
        for frame, donor, window in swapped:
            model = copy.deepcopy(frame)
            blocks, others = model.get_submodule(self._path), donor.get_submodule(self._path)
            for layer in range(*window):
                blocks[layer] = others[layer]
            losses.append([plain_loss(model, example) for example in examples])
        return np.array(losses)


def _plain_model(folder: Path) -> nn.Module:
    """Loaded by transformers alone; raises where that would not be the checkpoint's own weights."""
    logging.set_verbosity_error()
    model, info = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise ValueError(f"{what}: {sorted(map(str, info[what]))[:3]}")
    return model.eval()


def _names_it(message: str, change: Change) -> bool:
    """Whether a refusal names the setting, a tensor or the config's file."""
    names = (change.path[-1], change.path[-1].removeprefix("is_").replace("_", "-"))
    return any(name in message for name in (*names, "config.json", "tensor", "weight"))


def _changes(path: tuple[str, ...], value: Any) -> Iterator[Change]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _changes((*path, name), inner)
        return
    yield from (Change(path, other) for other in _others(path[-1], value))


def _others(name: str, value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2 or 4, None]
    if isinstance(value, float):
        return [value * 10 or 0.25, None]
    if isinstance(value, list):
        return [value[::-1], value[:-1]] if value else []
    if isinstance(value, str):
        if "act" in name or name == "afn":
            return ["relu", "tanh"] if value != "relu" else ["gelu"]
        return [f"{value}x"]
    return [4, 0.5, True]
