"""A list of JSON objects, read element by element: memory holds one element and a block of the file, however long the list is."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysweep.data.compressed import byte_blocks
from raysweep.errors import InputError
from raysweep.limits import RECORD_BYTES, RECORDS

_BLANK = re.compile(r"[ \t\n\r]*")
_NEAR = 32  # characters: an error so near the end of what was read may be one of what is still to come
_DECODER = json.JSONDecoder()


class JsonText:
    """A window on the text of a file, moved on by `drop` and made longer by `more`; `where` names places in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._blocks = byte_blocks(path)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""
        self.ended = False
        self._line, self._column = 1, 1  # of the window's first character
        self._first = True

    def more(self) -> bool:
        """Add a block. Returns False at the file's end. Raises InputError for bytes that are not UTF-8 text."""
        if self.ended:
            return False
        raw = next(self._blocks, b"")
        self.ended = not raw
        if self._first and raw:
            raw = raw.removeprefix(codecs.BOM_UTF8)
            self._first = False
        try:
            new = self._decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            line = self._line + self.text.count("\n") + error.object[: error.start].count(b"\n")
            byte = error.object[error.start]
            raise InputError(f"{self._path}, line {line} is not UTF-8 (byte 0x{byte:02x}); convert the file") from error
        if "\0" in new:
            line = self._line + self.text.count("\n") + new[: new.index("\0")].count("\n")
            raise InputError(
                f"{self._path}, line {line} contains a null byte (is it UTF-16, or binary?); convert the file to UTF-8"
            )
        self.text += new
        return True

    def drop(self, n: int) -> None:
        """Take the first characters away."""
        if lines := self.text.count("\n", 0, n):
            self._line += lines
            self._column = n - self.text.rindex("\n", 0, n)
        else:
            self._column += n
        self.text = self.text[n:]

    def error(self, message: str, at: int) -> InputError:
        """The error for what is wrong at a place in the window."""
        line = self._line + self.text.count("\n", 0, at)
        column = at - self.text.rindex("\n", 0, at) if "\n" in self.text[:at] else self._column + at
        return InputError(f"{self._path}, line {line} is not valid JSON ({message}, column {column}); correct the file")


def read_elements(path: Path) -> Iterator[Any]:
    """Yield the elements of the list in a file, or its one value as `TopLevel` if that is not a list.

    Raises InputError for what is not JSON, and beyond the limits on one record and on the number of records.
    """
    source, at = JsonText(path), 0

    def next_place(at: int) -> int:
        """The place of the next character that is not blank."""
        while (at := _BLANK.match(source.text, at).end()) == len(source.text):  # type: ignore[union-attr]
            source.drop(at)
            at = 0
            if not source.more():
                break
        return at

    at = next_place(at)
    if not source.text:
        return
    if source.text[at] != "[":
        value, at = _value(source, at, path, int(RECORD_BYTES.value()))
        _check_end(source, next_place(at))
        yield TopLevel(value)
        return
    at = next_place(at + 1)
    count, most = 0, RECORDS.value()
    longest = int(RECORD_BYTES.value())
    if source.text[at : at + 1] != "]":
        while True:
            value, at = _value(source, at, path, longest)
            count += 1
            if count > most:
                raise RECORDS.error(count, path, most)
            yield value
            at = next_place(at)
            found = source.text[at : at + 1]
            if found == "]":
                break
            if found != ",":
                raise source.error("Expecting ',' delimiter", at)
            at = next_place(at + 1)
            if at > 2**20:
                source.drop(at)
                at = 0
    _check_end(source, next_place(at + 1))


class TopLevel:
    """The one value of a file that holds no list."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _check_end(source: JsonText, at: int) -> None:
    if source.text[at:]:
        raise source.error("Extra data", at)


def _value(source: JsonText, at: int, path: Path, most: int) -> tuple[Any, int]:
    """The JSON value at a place, and where it ends; reads on, twice as far each time, while it is not complete."""
    while True:
        try:
            value, end = _DECODER.raw_decode(source.text, at)
        except json.JSONDecodeError as error:
            sure = error.pos + _NEAR < len(source.text) and not error.msg.startswith("Unterminated string")
            if sure or source.ended:
                raise source.error(error.msg, error.pos) from error
        else:
            if end < len(source.text) or source.ended:  # else a number may go on
                if end - at > most:
                    raise RECORD_BYTES.error(end - at, path, most)
                return value, end
        if len(source.text) - at > most:
            raise RECORD_BYTES.error(f"more than {most}", path, most)
        wanted = 2 * (len(source.text) - at)
        while len(source.text) - at < wanted and source.more():
            pass
        if not source.ended and len(source.text) == at:
            source.more()
