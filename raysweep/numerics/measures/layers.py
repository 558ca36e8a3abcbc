"""What every measure shares: reading layers, filling an [L, M] matrix, and the reason for each NaN in it.

A measure first makes a view of each layer (its principal components, the ranks of its distances, its neighbours), once
whatever the number of pairs, or says why the layer has none; then it compares views.

Shape suffixes: L layers of the first model, M of the second (the first again where there is only one), N examples,
D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from raysweep.numerics.gram import Array, LinearGram, States, as_float64, read_layers

_View = TypeVar("_View")


@dataclass(frozen=True)
class Compared:
    """A measure between layers [L, M], float64, and why a value is NaN, by its place (i, j); no NaN is without one."""

    values: Array
    reasons: Mapping[tuple[int, int], str]


class Undefined(NamedTuple):
    """Why a layer has no view: `what` is said before the layer's name, `so` after it."""

    what: str
    so: str


CONSTANT = Undefined("all examples have the same state", ", so its similarity is 0/0")


class Layer:
    """One layer's states, read in float64 when asked for."""

    def __init__(self, states_ND: States, gram: LinearGram) -> None:
        self.states = states_ND
        self._gram = gram
        self.examples: int = gram.examples
        self.width: int = gram.width
        self.constant: bool = gram.constant  # see LinearGram

    def raw(self, rows: slice = slice(None)) -> Array:
        """The states as they are [N, D]."""
        return as_float64(self.states[rows])

    def directions(self, rows: slice = slice(None)) -> Array:
        """The states as they are, each divided by its norm [N, D]; NaN for a zero state."""
        X_ND = self.raw(rows)
        peak_N = np.abs(X_ND).max(axis=1, keepdims=True)
        X_ND = X_ND / np.where(peak_N > 0, peak_N, np.nan)  # so that no square over- or underflows
        X_ND /= np.linalg.norm(X_ND, axis=1, keepdims=True)
        return X_ND

    def zero_state(self) -> Undefined | None:
        """The reason of a layer that has a state without a direction."""
        zero_N = ~self.raw().any(axis=1)
        if not zero_N.any():
            return None
        return Undefined(f"example {int(zero_N.argmax())} has the zero state", ", which has no direction")

    def centred(self) -> Array:
        """The states [N, D], centred over the examples and divided by the largest deviation."""
        return self._gram.centred(slice(0, self.examples))


@dataclass(frozen=True)
class Models:
    """The layers to compare: of one model with each other, or (`second`) of one with those of another."""

    first: list[Layer]
    second: list[Layer] | None = None

    @property
    def sides(self) -> tuple[list[Layer], list[Layer]]:
        """The layers of the rows and of the columns."""
        return self.first, self.first if self.second is None else self.second

    @property
    def examples(self) -> int:
        """How many examples every layer has."""
        return self.first[0].examples

    def views(self, see: Callable[[Layer], _View | Undefined]) -> Views[_View]:
        """`see` of every layer, once each."""
        first = [see(layer) for layer in self.first]
        return Views(first, None if self.second is None else [see(layer) for layer in self.second])

    def nowhere(self, reason: str) -> Compared:
        """NaN at every pair, for one reason."""
        rows, columns = self.sides
        values = np.full((len(rows), len(columns)), np.nan)
        return Compared(values, {(int(i), int(j)): reason for i, j in np.ndindex(values.shape)})


def read_models(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None) -> Models:
    """The layers of one or two models; all have the same examples, in the same order.

    Raises ValueError, naming the layer, for shapes that do not fit and for states that are not finite.
    """
    first = _read(X_LND)
    if Y_MND is None:
        return Models(first)
    try:
        second = _read(Y_MND)
    except ValueError as error:
        raise ValueError(f"the other model: {error}") from None
    if first[0].examples != second[0].examples:
        raise ValueError(
            f"the first model has states of {first[0].examples} examples, the other of {second[0].examples}; "
            "give both the same examples"
        )
    return Models(first, second)


def _read(X_LND: Iterable[States]) -> list[Layer]:
    return [Layer(gram.states_ND, gram) for gram in read_layers(X_LND)]


@dataclass(frozen=True)
class Views(Generic[_View]):
    """A view of each layer, or why it has none, of one model or of two."""

    first: Sequence[_View | Undefined]
    second: Sequence[_View | Undefined] | None

    def compared(
        self,
        matrix: Callable[[list[_View], list[_View] | None], Array],
        reason: Callable[[_View, _View], str] | None = None,
    ) -> Compared:
        """Fill in `matrix` of the layers that have a view (its second argument is None for one model).

        `reason` says of two views why their value is NaN; a measure whose matrix never is needs none.
        """
        rows, columns = self.first, self.first if self.second is None else self.second
        seen_rows = [i for i, view in enumerate(rows) if not isinstance(view, Undefined)]
        seen_columns = [j for j, view in enumerate(columns) if not isinstance(view, Undefined)]
        values = np.full((len(rows), len(columns)), np.nan)
        if seen_rows and seen_columns:
            values[np.ix_(seen_rows, seen_columns)] = matrix(
                _defined(rows), None if self.second is None else _defined(columns)
            )
        reasons = {}
        for i, j in zip(*(places.tolist() for places in np.nonzero(np.isnan(values))), strict=True):
            row, column = rows[i], columns[j]
            if isinstance(row, Undefined) or isinstance(column, Undefined):
                reasons[i, j] = self._missing(i, j)
            elif reason:
                reasons[i, j] = reason(row, column)
        return Compared(values, reasons)

    def _missing(self, i: int, j: int) -> str:
        """Why (i, j) has no value, the layers named."""
        if self.second is None:
            places = [(str(layer), self.first[layer]) for layer in sorted({i, j})]
        else:
            places = [(f"{i} of the first model", self.first[i]), (f"{j} of the other model", self.second[j])]
        named: dict[Undefined, list[str]] = {}
        for name, view in places:
            if isinstance(view, Undefined):
                named.setdefault(view, []).append(name)
        return "; ".join(f"{why.what} at layer {' and '.join(at)}{why.so}" for why, at in named.items())


def _defined(views: Sequence[_View | Undefined]) -> list[_View]:
    return [view for view in views if not isinstance(view, Undefined)]


def over_pairs(first: Sequence[_View], second: Sequence[_View] | None, value: Callable[[_View, _View], float]) -> Array:
    """`value` of every two views [L, M]; it is symmetric, and of one model taken above the diagonal only."""
    if second is not None:
        return np.array([[value(row, column) for column in second] for row in first])
    S_LL = np.empty((len(first), len(first)))
    for i, row in enumerate(first):
        for j in range(i, len(first)):
            S_LL[i, j] = S_LL[j, i] = value(row, first[j])
    return S_LL
