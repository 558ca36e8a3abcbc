"""How large the result of a template's operation can become at most, estimated from its operands; in bytes, roughly.

Only operations that can multiply sizes are known here: of any other, the result is no larger than a few times its operands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Listed = Callable[[Any], list[Any]]

_NODE = 32  # bytes of a value that is no text
_MOST_BITS = 100_000  # of a whole number
_MOST_NUMBER = 1_000_000  # for arguments that are counts
_SLOW = 2**16  # characters for filters that take quadratic time
_SLOW_FILTERS = ("urlize", "striptags", "pprint", "xmlattr", "wordwrap", "title")
_COUNTING_FILTERS = ("batch", "slice", "round", "filesizeformat", "truncate", "random")
_DIGITS = re.compile(r"\d+")
_PERCENT = re.compile(r"(?:\([^()]*\))?[-+ #0-9.*]*")
_NESTED = re.compile(r"\{[^{}]*+\{")
_NO_LIMIT = float("inf")


def size_of(value: Any, most: float) -> float:
    """Bytes of a value written as text, what is inside several times counted each time; stops beyond `most`."""
    total, open_values = 0, [value]
    while open_values:
        each = open_values.pop()
        total += len(each) if isinstance(each, (str, bytes)) else _NODE
        if isinstance(each, (list, tuple, set, frozenset)):
            open_values.extend(each)
            total += _NODE * len(each)
        elif isinstance(each, Mapping):
            open_values.extend(each.keys())
            open_values.extend(each.values())
        if total > most or len(open_values) * _NODE > most:
            return _NO_LIMIT
    return total


def most_of_operator(operator: str, left: Any, right: Any) -> float:
    """The most bytes of `left operator right`."""
    if operator == "%":
        return _formatted(left, right) if isinstance(left, (str, bytes)) else 0
    if operator == "+":
        return sum(len(each) for each in (left, right) if isinstance(each, (str, bytes, list, tuple)))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        return _NO_LIMIT if bits > _MOST_BITS else bits
    if operator == "*":
        for repeated, times in ((left, right), (right, left)):
            if isinstance(repeated, (str, bytes, list, tuple)) and isinstance(times, int):
                weight = 8 if isinstance(repeated, (list, tuple)) else 1  # lists are limited more tightly
                return size_of(repeated, _MOST_BITS * 1e6) * max(0, times) * weight
    return 0


def most_of_filter(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], listed: Listed
) -> tuple[float, tuple[Any, ...]]:
    """The most bytes of a filter's result, and its arguments, with what is iterated over once as a list."""
    value, rest = (args[0] if args else None), [*args[1:], *kwargs.values()]
    if name in _COUNTING_FILTERS and _largest(rest) > _MOST_NUMBER // (1 if name != "round" else 1000):
        return _NO_LIMIT, args
    if name in _SLOW_FILTERS and (
        size_of(value, _SLOW) > _SLOW or _size_of_all(rest) > _SLOW or _largest(rest) > _SLOW
    ):
        return _NO_LIMIT, args
    if name == "replace":
        texts = [*map(str, rest[:2])] if len(rest) >= 2 else []
        return (_replaced(str(value), *texts) if texts else 0), args
    if name in ("join", "sum"):
        value = listed(value)
        args = (value, *args[1:])
        size = _size_of_all(value)
        if name == "join":
            return size + len(value) * _size_of_all(rest), args
        return size * (len(value) if any(isinstance(each, (list, tuple)) for each in rest) else 1), args
    if name in ("center", "indent"):
        width = max(_largest(rest), _size_of_all(each for each in rest if isinstance(each, str)))
        text = str(value)
        return len(text) + width * (len(text.splitlines()) + 1 if name == "indent" else 1), args
    if name == "format":
        return _formatted(str(value), rest), args
    if name == "tojson":
        width = max(
            [0, *(each if isinstance(each, int) else len(each) for each in rest if isinstance(each, (int, str)))]
        )
        size = size_of(value, _MOST_BITS * 1e6)
        return size * 6 + (size / 8) * width * 20, args
    if name in ("string", "e", "escape", "forceescape", "urlencode", "safe", "upper", "lower"):
        return size_of(value, _MOST_BITS * 1e6), args
    return 0, args


def most_of_call(
    called: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], listed: Listed
) -> tuple[float, tuple[Any, ...]]:
    """The most bytes of what a template's call returns, and the call's arguments, with what is iterated over once as a list."""
    called = getattr(called, "__wrapped__", called)
    owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
    given = [*args, *kwargs.values()]
    if isinstance(owner, (str, bytes)):
        if name == "join" and len(args) == 1:
            args = (listed(args[0]),)
            return _size_of_all(args[0]) + len(owner) * len(args[0]), args
        return _most_of_method(owner, name, given), args
    if isinstance(owner, int) and name == "to_bytes":
        return _largest(given), args
    if name == "generate_lorem_ipsum" and _largest(given) > 1000:
        return _NO_LIMIT, args
    return 0, args


def _most_of_method(owner: str | bytes, name: str, given: list[Any]) -> float:
    if name in ("format", "format_map"):
        return _formatted(owner, given)
    if name in ("ljust", "rjust", "center", "zfill"):
        return max(len(owner), _largest(given))
    if name == "expandtabs":
        return len(owner) * max(8, _largest(given))
    if name == "replace" and len(given) >= 2 and all(isinstance(each, type(owner)) for each in given[:2]):
        return _replaced(owner, given[0], given[1])
    if name == "translate":
        tables = [each for each in given if isinstance(each, Mapping)]
        return len(owner) * max([1, *(len(v) for table in tables for v in table.values() if isinstance(v, str))])
    return 0


def _replaced(text: Any, old: Any, new: Any) -> float:
    found = text.count(old) if old else len(text) + 1
    return len(text) + found * max(0, len(new) - len(old))


def _formatted(text: str | bytes, given: Any) -> float:
    """A bound for a text with fields that may be as wide as any number in it, or in what is filled in."""
    plain = text if isinstance(text, str) else text.decode("latin-1")
    filled = size_of(given, _MOST_BITS * 1e6)
    if filled == _NO_LIMIT:
        return filled
    fields = [found[0] for part in plain.split("%")[1:] if (found := _PERCENT.match(part))]
    fields += [part.partition("}")[0].partition(":")[2] for part in plain.split("{")[1:]]
    widest = max([0, *(_number(digits) for field in fields for digits in _DIGITS.findall(field))])
    if any("*" in field for field in fields) or _NESTED.search(plain):  # a width that is filled in
        widest = max([widest, *_numbers_in(given)])
    return len(plain) + len(fields) * (min(widest, 10**12) + filled)


def _numbers_in(given: Any) -> list[float]:
    values = given if isinstance(given, (list, tuple)) else [*given.values()] if isinstance(given, Mapping) else [given]
    numbers: list[float] = []
    for value in values:
        if isinstance(value, (list, tuple, Mapping)):
            numbers += _numbers_in(value)
        elif isinstance(value, int):
            numbers.append(abs(value))
    return numbers


def _number(digits: str) -> float:
    return int(digits) if len(digits) < 13 else _NO_LIMIT


def _largest(given: Any) -> float:
    return max([0, *(abs(each) for each in given if isinstance(each, (int, float)))])


def _size_of_all(values: Any) -> float:
    return sum(size_of(value, _MOST_BITS * 1e6) for value in values)
