"""Regular expressions with a time limit, with the results of Python's own `re`.

`re` can take exponential time, and holds the interpreter while it does. Expressions that cannot repeat without end are searched
for here; others in a process of their own, which is ended when it takes too long. It starts once and serves every search.
"""

from __future__ import annotations

import contextlib
import math
import re
import selectors
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from functools import cached_property
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from raysweep.errors import InputError, shown
from raysweep.limits import PATTERN_SECONDS

_BOUNDED = 100  # ways to try an expression at one place, for it to be searched for here
_SHORT = 256  # characters of a text in which any single, not nested repetition is quick
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)
# The process reads an expression, then texts, each as its length and UTF-8, and answers each text with one byte.
_SEARCHER = """
import re, signal, struct, sys
read, write = sys.stdin.buffer.read, sys.stdout.buffer
def take():
    head = read(8)
    if len(head) < 8:
        sys.exit()
    return read(struct.unpack("<Q", head)[0]).decode("utf-8", "surrogatepass")
mode, pattern = take(), take()
found = getattr(re.compile(pattern), mode)
while True:
    seconds, texts = int(take()), [take() for _ in range(int(take()))]
    signal.alarm(seconds)  # ends it even if whoever asked is gone
    answer = b"1" if any(map(found, texts)) else b"0"
    signal.alarm(0)
    write.write(answer)
    write.flush()
"""


class LimitedPattern:
    """A regular expression. `mode` is the method of `re` that decides: search, match, or fullmatch.

    Raises re.error, OverflowError or RecursionError for one that does not compile.
    """

    def __init__(self, regex: str, mode: str = "search") -> None:
        self.regex, self._mode = regex, mode
        self._here = re.compile(regex)
        self._searcher: _Searcher | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"regex": self.regex, "_mode": self._mode}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["regex"], state["_mode"])  # type: ignore[misc]

    @cached_property
    def _quick(self) -> tuple[bool, bool]:
        """Whether a search in any text, and in a short one, takes little time."""
        try:
            ways, endless, nested = _tries(_parser.parse(self.regex))
        except OverflowError:
            return False, False
        few = ways <= _BOUNDED
        return few and endless == 0, few and endless <= 1 and not nested

    def can_be_slow(self) -> bool:
        """Whether a search may take more than a moment."""
        return not self._quick[1]

    def found(self, text: str) -> bool:
        """Say whether the text matches. Raises InputError if that takes too long."""
        if self._quick[len(text) <= _SHORT]:
            return getattr(self._here, self._mode)(text) is not None
        return self._ask([text], f"the pattern {shown(self.regex)} in a text of {len(text)} characters")

    def found_in_any(self, texts: Sequence[str]) -> bool:
        """Say whether one of the texts matches. Raises InputError if all of them together take too long."""
        return self._ask(texts, f"the pattern {shown(self.regex)} in {len(texts)} texts")

    def _ask(self, texts: Sequence[str], place: str) -> bool:
        most = PATTERN_SECONDS.value()
        with self._lock:
            if self._searcher is None:
                self._searcher = _Searcher(self._mode, self.regex)
            answer = self._searcher.ask(texts, most)
            if answer is None:
                self._searcher.stop()
                self._searcher = None
                raise PATTERN_SECONDS.error(f"{most:.15g}", place, most)
        return answer


class _Searcher:
    """The process that searches for one expression."""

    def __init__(self, mode: str, regex: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SEARCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.stop = weakref.finalize(self, _end, self._process)
        self._greeting = _packed(mode) + _packed(regex)

    def ask(self, texts: Sequence[str], seconds: float) -> bool | None:
        """Whether one of the texts matches; None if there is no answer in time. Raises InputError if the process is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        ends = time.monotonic() + seconds
        asked = [str(int(seconds) + 5), str(len(texts)), *texts]
        data = self._greeting + b"".join(map(_packed, asked))
        sending = threading.Thread(target=self._send, args=(data,), daemon=True)
        self._greeting = b""
        sending.start()  # a process that is searching does not read
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, ends - time.monotonic())):
                return None
        answer = self._process.stdout.read(1)
        if not answer:
            raise InputError("the process that searches for a regular expression ended; is there enough memory?")
        return answer == b"1"

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # it was ended
            assert self._process.stdin is not None
            self._process.stdin.write(data)
            self._process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.close()


def _packed(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _tries(parsed: Any) -> tuple[float, int, bool]:
    """(ways to try an expression at one place, without endless repetitions; how many of those it has; whether any multiply)."""
    ways, endless, nested = 1.0, 0, False
    for code, argument in parsed:
        if code in _REPEATS:
            low, high, inner = argument
            each, inside, deeper = _tries(inner)
            nested |= deeper or (int(high) > 1 and (each > 1 or inside > 0))
            if high is codes.MAXREPEAT:
                endless += 1 + inside
            else:
                ways *= (int(high) - int(low) + 1) * each ** min(int(high), 50)
                endless += inside
        else:
            parts = [_tries(part) for part in (argument[1] if code is codes.BRANCH else _parts(argument))]
            found = [each for each, _, _ in parts]
            ways *= (sum(found) if code is codes.BRANCH else math.prod(found)) if found else 1
            endless += sum(inside for _, inside, _ in parts)
            nested |= any(deeper for _, _, deeper in parts)
    return ways, endless, nested


def _parts(argument: Any) -> list[Any]:
    """The expressions inside what the parser made of a group, a branch, or an assertion."""
    if isinstance(argument, _parser.SubPattern):
        return [argument]
    if isinstance(argument, (list, tuple)):
        return [part for each in argument for part in _parts(each)]
    return []
