"""Arguments of the Python calls, in the forms that users of Python, numpy and pandas have them, as plain checked values.

Everything raises InputError, naming the argument, what was given and what is accepted.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeAlias

from raysweep.errors import InputError, shown
from raysweep.studies.windows import Window

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

WindowLike: TypeAlias = "Window | tuple[int, int] | Sequence[int] | range | slice | np.ndarray"
Windows: TypeAlias = "Iterable[WindowLike] | range | slice | np.ndarray | pd.DataFrame"
Counts: TypeAlias = "int | Iterable[int] | np.ndarray"
Widths: TypeAlias = "Counts | Literal['all'] | None"
Layers: TypeAlias = "int | Iterable[int] | range | slice | np.ndarray"
Names: TypeAlias = "str | Iterable[str]"
Numbers: TypeAlias = "float | Iterable[float] | np.ndarray"

_WINDOW = "a window is (start, stop), range(start, stop) or slice(start, stop)"


def whole_number(name: str, value: object, least: int = 1) -> int:
    """A whole number of at least `least`: an int or a numpy integer, and not a bool."""
    number = _integer(value)
    if number is None or number < least:
        raise InputError(f"{name} is {_described(value)}; give a whole number, {least} or more")
    return number


def optional_number(name: str, value: object, least: int = 1) -> int | None:
    """None, or a whole number as `whole_number` has it."""
    return None if value is None else whole_number(name, value, least)


def windows_given(given: Windows, n_layers: int) -> list[Window]:
    """The windows that were given: pairs, ranges, slices, an array [W, 2], or a table with columns start and stop.

    A range or slice by itself is one window. A slice counts as Python's does: from the end for negative numbers, to the end
    where there is none. Whether windows fit the model is check_windows' to say.
    """
    if isinstance(given, range | slice | Window):
        return [_window("windows", given, n_layers)]
    if hasattr(given, "columns"):
        return _windows_of_table(given)
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InputError(f"windows is {_described(given)}; give a list of windows: {_WINDOW}")
    windows = [_window(f"windows[{place}]", window, n_layers) for place, window in enumerate(_plain(given))]
    if not windows:
        raise InputError(f"windows is empty; give at least one: {_WINDOW}")
    return windows


def _window(name: str, given: object, n_layers: int) -> Window:
    if isinstance(given, range | slice):
        step = given.step
        if step not in (None, 1):
            raise InputError(
                f"{name} is {given!r}, with a step of {step}; a window has consecutive layers, so remove the step"
            )
    if isinstance(given, range):
        return Window(given.start, given.stop)
    if isinstance(given, slice):
        return Window(*_ends(name, given, n_layers, _WINDOW))
    pair = _plain(given)
    numbers = [_integer(end) for end in pair] if isinstance(pair, list | tuple) else []
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        raise InputError(f"{name} is {_described(given)}; {_WINDOW}")
    return Window(numbers[0], numbers[1])


def _ends(name: str, given: slice, n_layers: int, accepted: str) -> tuple[int, int]:
    """Start and stop of a slice, negative ones counted from the end; nothing is cut to the model's layers."""
    found = []
    for end, default in ((given.start, 0), (given.stop, n_layers)):
        number = default if end is None else _integer(end)
        if number is None:
            raise InputError(f"{name} has an end that is {_described(end)}; {accepted}, of whole numbers")
        found.append(number + n_layers if number < 0 else number)
    return found[0], found[1]


def _windows_of_table(table: Any) -> list[Window]:
    lacking = [name for name in ("start", "stop") if name not in table.columns]
    if lacking:
        names = ", ".join(map(str, table.columns)) or "none"
        raise InputError(
            f"windows is a table without the column {lacking[0]} (it has {names}); give columns start and stop"
        )
    columns = ([_plain(value) for value in table[name]] for name in ("start", "stop"))
    found = dict.fromkeys(zip(*columns, strict=True))
    windows = []
    for start, stop in found:
        ends = [int(end) if isinstance(end, float) and end.is_integer() else _integer(end) for end in (start, stop)]
        if ends[0] is None or ends[1] is None:
            raise InputError(
                f"windows is a table with start {start} and stop {stop}; give a whole number for each, and remove rows "
                "that are not windows"
            )
        windows.append(Window(ends[0], ends[1]))
    if not windows:
        raise InputError("windows is a table without rows; give at least one window")
    return windows


def widths_given(given: Widths) -> list[int] | Literal["all"]:
    """The widths that were given: one or several whole numbers, or `all`; no widths for None."""
    if given is None:
        return []
    if isinstance(given, str):
        if given == "all":
            return "all"
        raise InputError(f"widths is {shown(given)}; give a number, a list of numbers, or 'all'")
    widths = [
        whole_number("widths", width) for width in _several("widths", given, "a number, a list of numbers, or 'all'")
    ]
    if not widths:
        raise InputError("widths is empty; give at least one, or remove widths")
    return widths


def components_given(given: Counts) -> list[int]:
    """The numbers of components that were given, of which one may be given by itself."""
    values = _several("components", given, "a list of numbers, 1 or more")
    numbers = [number for value in values if (number := _integer(value)) is not None]
    if not numbers or len(numbers) < len(values) or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise InputError(f"components must be different numbers, 1 or more, and at least one; got {shown(values)}")
    return numbers


def sets_given(given: Mapping[str, Layers] | None, n_layers: int) -> dict[str, list[int]]:
    """The sets of layers that were given, by name: each a number, several, a range or a slice."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(f"sets is {_described(given)}; give a mapping of names to layers: {{'ends': [0, 11]}}")
    return {str(name): layers_given(f"set '{name}'", layers, n_layers) for name, layers in given.items()}


def layers_given(name: str, given: Layers, n_layers: int) -> list[int]:
    """Layers, as numbers from 0. Whether they are the model's is the caller's to check."""
    accepted = "give layer numbers: [0, 3], range(0, 4) or slice(0, 4)"
    if isinstance(given, slice):
        start, stop = _ends(name, given, n_layers, accepted)
        step = 1 if given.step is None else whole_number(f"{name}: the step of {given!r}", given.step)
        given = range(start, stop, step)
    found = []
    for layer in _several(name, given, accepted.removeprefix("give ")):
        number = _integer(layer)
        if number is None:
            raise InputError(f"{name} has the layer {_described(layer)}; {accepted}")
        found.append(number)
    return found


def names_given(name: str, given: Names) -> list[str]:
    """Names, of which one may be given by itself."""
    found: list[str] = []
    for each in [given] if isinstance(given, str) else _several(name, given, "a list of names"):
        if not isinstance(each, str):
            raise InputError(f"{name} has {_described(each)}; give a list of names")
        found.append(each)
    return found


def numbers_given(name: str, given: Numbers) -> list[float]:
    """Numbers, of which one may be given by itself."""
    found = []
    for each in _several(name, given, "a list of numbers"):
        if isinstance(each, bool) or not isinstance(each, int | float):
            raise InputError(f"{name} has {_described(each)}; give a list of numbers")
        found.append(float(each))
    return found


def _several(name: str, given: object, accepted: str) -> list[Any]:
    """A sequence of values, of which one number may be given by itself."""
    values = _plain(given)
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping):
        return [_plain(value) for value in values]
    if isinstance(values, int | float) and not isinstance(values, bool):
        return [values]
    raise InputError(f"{name} is {_described(given)}; give {accepted}")


def _plain(value: Any) -> Any:
    """Numbers and lists of Python's for those of numpy, torch and pandas."""
    return value.tolist() if hasattr(value, "tolist") else value


def _integer(value: object) -> int | None:
    """An int of what counts as one: no bool, and no float."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    return operator.index(value)


def _described(value: object) -> str:
    return shown(value) if type(value) in (int, str, type(None)) else f"{shown(value)}, of type {type(value).__name__}"
