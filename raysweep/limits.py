"""Limits on untrusted input: every one with its default, its unit, and the environment variable that raises it.

A limit is checked before the work that it bounds. Its environment variable holds a number, also with a decimal or binary
suffix (`500M`, `2Gi`), and is read at each check, so that a process can change it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from raysweep.errors import InputError

_PREFIX = "RAYSWEEP_MAX_"
_NUMBER = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?([kKMGT]?)(i?)B?")
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Limit:
    """The most of something that is accepted: `default` in `unit`s; `what` begins a sentence (`a safetensors header has`)."""

    name: str
    default: float
    unit: str
    what: str

    @property
    def variable(self) -> str:
        """The environment variable that sets another value."""
        return _PREFIX + self.name

    def value(self) -> float:
        """Return the value in force. Raises InputError if the environment variable holds no positive number."""
        text = os.environ.get(self.variable)
        if text is None or not text.strip():
            return self.default
        found = _NUMBER.fullmatch(text.strip())
        value = float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]] if found else 0
        if not value > 0:
            raise InputError(
                f"environment variable {self.variable} is '{text[:80]}': set it to a number of {self.unit}"
            )
        return value

    def check(self, found: float, place: object) -> None:
        """Raise InputError if `found` is more than the limit; `place` names the file, field, or record."""
        if found > (most := self.value()):
            raise self.error(found, place, most)

    def error(self, found: float | str, place: object, most: float | None = None) -> InputError:
        """Return the error for `found`, a number or words for one that is not known exactly."""
        most = self.value() if most is None else most
        number = found if isinstance(found, str) else f"{found:.15g}"
        return InputError(
            f"{place}: {self.what} {number} {self.unit}, and at most {most:.15g} are accepted. If you trust it, set the "
            f"environment variable {self.variable} to a higher number"
        )


_MIB = 2**20

# Checkpoints
HEADER_BYTES = Limit("HEADER_BYTES", 25 * _MIB, "bytes", "a safetensors header has")
TENSORS = Limit("TENSORS", 250_000, "tensors", "a checkpoint has")
SETTINGS_BYTES = Limit("SETTINGS_BYTES", 8 * _MIB, "bytes", "a settings file of a checkpoint has")
VOCABULARY_BYTES = Limit("VOCABULARY_BYTES", 64 * _MIB, "bytes", "a tokenizer or index file of a checkpoint has")
SHARD_INDEX_BYTES = Limit("SHARD_INDEX_BYTES", 64 * _MIB, "bytes", "an index of sharded weights has")
LAYERS = Limit("LAYERS", 2_000, "layers or blocks", "a setting of the model asks for")
MODULES = Limit("MODULES", 300_000, "modules", "the model of a config has")
TABLE_BYTES = Limit("TABLE_BYTES", 8 * 2**30, "bytes", "the tables that a model computes from its config have")
ADAPTER_NAMES = Limit("ADAPTER_NAMES", 20_000, "names and patterns of modules", "an adapter's config has")

# Records
RECORD_BYTES = Limit("RECORD_BYTES", 16 * _MIB, "bytes", "one record has")
RECORD_DEPTH = Limit("RECORD_DEPTH", 100, "nested levels", "one record has more than")
RECORDS = Limit("RECORDS", 1_500_000, "records", "the part of a source that has to be read has")
SOURCE_BYTES = Limit("SOURCE_BYTES", 2**30, "bytes", "the records that are used need more than")
COLUMNS = Limit("COLUMNS", 100_000, "columns", "a table of records has")
COMPRESSION_RATIO = Limit("COMPRESSION_RATIO", 200, "times its compressed size", "the decompressed data has more than")
MESSAGES = Limit("MESSAGES", 5_000, "messages and parts of messages", "a conversation has")
MESSAGE_KEYS = Limit("MESSAGE_KEYS", 200, "different keys of messages", "a conversation has")
TEXT_CHARS = Limit("TEXT_CHARS", 10_000_000, "characters", "a prompt with its response has")

# Configs and what runs inside them
CONFIG_BYTES = Limit("CONFIG_BYTES", _MIB, "bytes", "a config has")
CONFIG_VALUES = Limit("CONFIG_VALUES", 100_000, "values (a repeated alias counts each time)", "a config has more than")
TEMPLATE_BYTES = Limit("TEMPLATE_BYTES", 2**28, "bytes", "a template makes texts and lists of")
TEMPLATE_SOURCE = Limit("TEMPLATE_SOURCE", 200_000, "characters", "a template has")
TEMPLATE_SECONDS = Limit("TEMPLATE_SECONDS", 10, "seconds", "a template takes more than")
PATTERN_SECONDS = Limit("PATTERN_SECONDS", 10, "seconds", "a regular expression takes more than")

ALL = tuple(value for value in list(globals().values()) if isinstance(value, Limit))


def overrides() -> dict[str, str]:
    """Return the environment variables that set limits here, for processes on other machines."""
    return {limit.variable: os.environ[limit.variable] for limit in ALL if limit.variable in os.environ}


def read_limited(path: Path, limit: Limit) -> bytes:
    """Return a file's contents. Raises InputError if they are more bytes than the limit, and OSError if it cannot be read."""
    most = int(limit.value())
    with path.open("rb") as file:
        data = file.read(most + 1)
        if len(data) > most:
            size = path.stat().st_size
            raise limit.error(size if size > most else f"more than {most}", path)
    return data
