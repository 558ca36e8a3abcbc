"""Lines of files as bytes, decompressed on the way: gzip, bzip2, xz and Zstandard, by the file's ending."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from raysweep.errors import InputError
from raysweep.limits import COMPRESSION_RATIO, RECORD_BYTES

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}  # by ending

# What a file of each compression begins with; of bzip2 more than `BZh`, which text may begin with too.
_SIGNATURES = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "bzip2": re.compile(rb"BZh[1-9](\x31\x41\x59\x26|\x17\x72\x45\x38)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "Zstandard": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}
_LONGEST_SIGNATURE = 8
_BLOCK = 2**16
_LARGE_BLOCK = 2**20
_FREE_BYTES = 2**26  # decompressed before the ratio counts


class LineTooLongError(InputError):
    """A line of more bytes than one record may have."""


def compression_of(path: PurePath) -> str | None:
    """Name the compression that the file's ending stands for; None if it stands for none."""
    return COMPRESSIONS.get(path.suffix.lower())


def byte_lines(path: Path) -> Iterator[bytes]:
    """Yield the file's lines, each with its line break, decompressed if its ending says so.

    Nothing is decompressed beyond the lines that are taken. Raises InputError if the file's first bytes contradict its
    ending, if its compressed data is damaged or cut short, and for a line or a ratio of compression beyond the limits; OSError
    if the file cannot be read.
    """
    most = int(RECORD_BYTES.value())

    def lines(stream: IO[bytes]) -> Iterator[bytes]:
        for number in itertools.count(1):
            line = stream.readline(most + 1)
            if len(line) > most:
                raise LineTooLongError(str(RECORD_BYTES.error(f"more than {most}", f"{path}, line {number}", most)))
            if not line:
                return
            yield line

    yield from _pieces(path, lines)


def byte_blocks(path: Path) -> Iterator[bytes]:
    """Yield the file's contents in blocks, decompressed if its ending says so. Raises as byte_lines, of lines apart."""
    yield from _pieces(path, lambda stream: iter(lambda: stream.read(_LARGE_BLOCK), b""))


def _pieces(path: Path, cut: Callable[[Any], Iterator[bytes]]) -> Iterator[bytes]:
    """Yield what `cut` makes of the file's stream."""
    compression = compression_of(path)
    with path.open("rb") as file:
        start = file.peek(_LONGEST_SIGNATURE)[:_LONGEST_SIGNATURE]
        if start:
            _check_signature(path, start, compression)
        if compression is None:
            yield from cut(file)
            return
        try:
            yield from _within_ratio(path, file, cut(_OPENERS[compression](file)))
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} is damaged: its {compression} data cannot be decompressed to the end ({reason}). Copy or compress "
                "the file again"
            ) from error


def _within_ratio(path: Path, file: IO[bytes], pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces. Raises InputError once they are many times what was read of the compressed file."""
    most = COMPRESSION_RATIO.value()
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > _FREE_BYTES and size > most * max(1, file.tell()):
            raise COMPRESSION_RATIO.error(f"{most:.15g}", path, most)
        yield piece


def _check_signature(path: Path, start: bytes, compression: str | None) -> None:
    found = next((name for name, signature in _SIGNATURES.items() if signature.match(start)), None)
    if found == compression:
        return
    if found is not None:
        ending = next(ending for ending, name in COMPRESSIONS.items() if name == found)
        stem = path.name if compression is None else path.stem
        raise InputError(f"{path} is {found} data by its first bytes. Rename it to {stem}{ending}")
    raise InputError(
        f"{path} is not {compression} data by its first bytes. If it is plain text, rename it to {path.stem}"
    )


def _open_zstandard(file: IO[bytes]) -> io.BufferedIOBase:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd"), _BLOCK)


class _Members(io.RawIOBase):
    """The content of a file's compressed streams, one after the other.

    The bz2 and lzma modules ignore what follows the last stream they can read; here it is an error.
    """

    def __init__(self, file: IO[bytes], new: Callable[[], Any], *, padding: bool) -> None:
        self._blocks = _decompressed(file, new, padding)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = block
        n = min(len(buffer), len(self._rest))
        buffer[:n], self._rest = self._rest[:n], self._rest[n:]
        return n


def _decompressed(file: IO[bytes], new: Callable[[], Any], padding: bool) -> Iterator[bytes]:
    """Yield decompressed blocks; `padding` says whether null bytes may stand between and after streams."""
    data = file.read(_BLOCK)
    while data:
        stream = new()
        while not stream.eof:
            if stream.needs_input and not data and not (data := file.read(_BLOCK)):
                raise EOFError("the file ends before its stream does")
            yield stream.decompress(data, _BLOCK)
            data = b""
        data = stream.unused_data or file.read(_BLOCK)
        while padding and data and not (data := data.lstrip(b"\0")):
            data = file.read(_BLOCK)


_OPENERS: dict[str, Callable[[IO[bytes]], io.BufferedIOBase]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bzip2": lambda file: io.BufferedReader(_Members(file, bz2.BZ2Decompressor, padding=False), _BLOCK),
    "xz": lambda file: io.BufferedReader(_Members(file, lzma.LZMADecompressor, padding=True), _BLOCK),
    "Zstandard": _open_zstandard,
}
