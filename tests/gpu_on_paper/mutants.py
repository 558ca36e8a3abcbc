"""Mistakes made on purpose in raysweep's source while a check runs, to show that the check can fail."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType
from typing import Any


@contextmanager
def mutated(module_name: str, old: str, new: str) -> Iterator[None]:
    """Have `new` in place of `old`, which stands once in the module's source, in all functions that exist already.

    Raises LookupError where the source does not have `old` once, or where no function is another then: the mutant is stale.
    """
    module = importlib.import_module(module_name)
    source = inspect.getsource(module)
    if source.count(old) != 1:
        raise LookupError(f"{module_name} has {old!r} {source.count(old)} times, not once")
    codes = dict(_codes(compile(source.replace(old, new), inspect.getfile(module), "exec")))
    changed = [
        (function, function.__code__)
        for function in _functions(module)
        if function.__qualname__ in codes and _unlike(function.__code__, codes[function.__qualname__])
    ]
    if not changed:
        raise LookupError(f"no function of {module_name} differs with {new!r}")
    for function, _ in changed:
        function.__code__ = codes[function.__qualname__]
    try:
        yield
    finally:
        for function, code in changed:
            function.__code__ = code


def _codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    """All functions' code by qualified name."""
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each.co_qualname, each
            yield from _codes(each)


def _unlike(one: CodeType, other: CodeType) -> bool:
    return (one.co_code, one.co_names, _plain(one)) != (other.co_code, other.co_names, _plain(other)) or any(
        _unlike(a, b) for a, b in zip(_inner(one), _inner(other), strict=False)
    )


def _plain(code: CodeType) -> tuple[str, ...]:
    return tuple(repr(each) for each in code.co_consts if not isinstance(each, CodeType))


def _inner(code: CodeType) -> list[CodeType]:
    return [each for each in code.co_consts if isinstance(each, CodeType)]


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Functions and methods that the module defines, under whatever wraps them."""
    seen: set[int] = set()
    values: list[Any] = list(vars(module).values())
    while values:
        value = values.pop()
        if isinstance(value, type) and value.__module__ == module.__name__ and id(value) not in seen:
            seen.add(id(value))
            values += list(vars(value).values())
        elif isinstance(value, property):
            values += [each for each in (value.fget, value.fset) if each is not None]
        elif isinstance(value, functools.cached_property | staticmethod | classmethod):
            values.append(value.func if isinstance(value, functools.cached_property) else value.__func__)
        elif hasattr(value, "__wrapped__"):
            values.append(value.__wrapped__)
        elif isinstance(value, FunctionType) and value.__module__ == module.__name__ and id(value) not in seen:
            seen.add(id(value))
            yield value
