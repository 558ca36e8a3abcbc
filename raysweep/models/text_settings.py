"""What decides a checkpoint's texts besides weights and arithmetic: the tokens that end a text, and the tokenizer that decodes it.

Text is greedy by raysweep's own settings. Of what a checkpoint's generation_config.json or config.json says about generation,
only the special tokens count: no beams, penalties, bans, forced tokens or minimum lengths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError
from raysweep.limits import SETTINGS_BYTES, VOCABULARY_BYTES, read_limited
from raysweep.models.checkpoint import Checkpoint, limits, text_config
from raysweep.models.digest_check import VOCABULARY_FILES

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_FILE = "generation_config.json"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class EndTokens:
    """The token ids that end a text, ascending; `ignored` are those named in the files that the vocabulary does not have."""

    ids: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()


@dataclass(frozen=True)
class EndsOfPair:
    """The token ids that end a text of the base model, and of the tuned one."""

    base: tuple[int, ...]
    tuned: tuple[int, ...]

    def of(self, in_base: bool) -> tuple[int, ...]:
        """Those of the model whose embedding, norm and head are used."""
        return self.base if in_base else self.tuned


def end_tokens(checkpoint: Checkpoint, tokenizer: Callable[[], PreTrainedTokenizerBase | None]) -> EndTokens:
    """Read the end tokens of a full checkpoint: generation_config.json's, else config.json's, else the tokenizer's.

    The first of these that names a token of the vocabulary counts. `tokenizer` is called only if neither file does, and may
    give None. Raises InputError if generation_config.json is not a JSON object.
    """
    _, vocabulary = limits(checkpoint)
    config = text_config(checkpoint.config)
    named = [values.get("eos_token_id") for values in (stored_generation(checkpoint), checkpoint.config, config)]
    ignored: set[int] = set()
    for ids in map(_ids, named):
        known = within(ids, vocabulary)
        ignored |= ids - known
        if known:
            return EndTokens(tuple(sorted(known)), tuple(sorted(ignored)))
    found = tokenizer()
    last = within(_ids(found.eos_token_id if found is not None else None), vocabulary)
    return EndTokens(tuple(sorted(last)), tuple(sorted(ignored)))


def end_tokens_of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token ids that end a text of a loaded model: those of its generation config, else the tokenizer's."""
    stored = getattr(model, "generation_config", None)
    for value in (getattr(stored, "eos_token_id", None), tokenizer.eos_token_id):
        if known := within(_ids(value), n_tokens(model)):
            return tuple(sorted(known))
    return ()


def n_tokens(model: PreTrainedModel) -> int:
    """The number of tokens that the model can read: rows of its embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def within(ids: Iterable[int], vocabulary: int | None) -> set[int]:
    """The ids that a vocabulary of this size has; all that are not negative if its size is unknown."""
    return {number for number in ids if number >= 0 and (vocabulary is None or number < vocabulary)}


def stored_generation(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The contents of generation_config.json; empty without one. Raises InputError if it is not a JSON object."""
    path = checkpoint.folder / _FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_limited(path, SETTINGS_BYTES).decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}. Fix or remove the file.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object. Fix or remove the file.")
    return found


def plain_generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    """The checkpoint's generation config with special tokens alone, for a model that is loaded.

    transformers validates the whole file when it loads a model and when it saves one, and refuses contradictions that
    matter to no computation here. A file that is not a JSON object counts as none.
    """
    from transformers import GenerationConfig

    try:
        stored = stored_generation(checkpoint)
    except InputError:
        stored = {}
    sources = (stored, checkpoint.config, text_config(checkpoint.config))
    tokens: dict[str, Any] = {}
    for name in _SPECIAL:
        for source in sources:
            if known := sorted(within(_ids(source.get(name)), None)):
                tokens[name] = known if isinstance(source[name], list) else known[0]
                break
    return GenerationConfig(**tokens)


def decoder_digest(checkpoint: Checkpoint) -> str:
    """Identify the tokenizer that decodes texts by its files' contents, the chat template apart; empty if there are none."""
    digest = hashlib.sha256()
    found = False
    for path in sorted(path for name in VOCABULARY_FILES for path in checkpoint.folder.glob(name)):
        content = read_limited(path, VOCABULARY_BYTES)
        digest.update(f"{path.name} {len(content)} ".encode() + content)
        found = True
    if settings := _tokenizer_settings(checkpoint.folder / "tokenizer_config.json"):
        digest.update(settings)
        found = True
    return digest.hexdigest()[:32] if found else ""


def _tokenizer_settings(path: Path) -> bytes:
    if not path.is_file():
        return b""
    content = read_limited(path, SETTINGS_BYTES)
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not isinstance(settings, dict):
        return content
    return json.dumps({key: settings[key] for key in sorted(settings) if key != "chat_template"}).encode()


def _ids(value: object) -> set[int]:
    """The token ids in a config's value: a number, a list of numbers, or none."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return {
        int(each)
        for each in values
        if not isinstance(each, bool) and (isinstance(each, int) or (isinstance(each, float) and each.is_integer()))
    }
