"""Every measure by its name, with what it declares: range, direction, symmetry, and what it is blind to.

The property tests go over this table and hold each measure to it, both that what is declared to change nothing
changes nothing, and that what is not declared does change the value somewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from raysweep.numerics.gram import Array, States
from raysweep.numerics.measures import alignment, canonical, directions, neighbours
from raysweep.numerics.measures.layers import Compared

# "each": every layer may be transformed by itself; "common": all layers by one and the same transformation; "none".
Invariance = Literal["each", "common", "none"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a measure of similarity is, beside its numbers.

    `range` holds every value; `itself` is that of a layer with itself. `larger` says whether a larger value means more
    alike or farther apart. `orthogonal` (rotations and reflections), `scaling` (a positive factor), `translation` (one
    vector added to every example's state) and `linear` (an invertible matrix) say what transformations of the states
    change no value. `equal_widths` measures refuse layers of unequal width. `parameters` are what `compare` takes beside
    the states.
    """

    label: str
    compare: Callable[..., Compared]
    range: tuple[float, float]
    larger: Literal["alike", "apart"] = "alike"
    symmetric: bool = True
    orthogonal: Invariance = "each"
    scaling: Invariance = "each"
    translation: Invariance = "each"
    linear: Invariance = "none"
    equal_widths: bool = False
    parameters: tuple[str, ...] = ()

    @property
    def itself(self) -> float:
        """The value of a layer with itself."""
        return 1.0 if self.larger == "alike" else 0.0

    def likeness(self, values: Array) -> Array:
        """The values as a similarity, larger where more alike: themselves, or 1 − value of a measure of distance."""
        return values if self.larger == "alike" else 1 - values


MEASURES: Mapping[str, Measure] = {
    "cka_linear": Measure(label="linear CKA", compare=alignment.cka_linear, range=(0, 1)),
    "cka_linear_debiased": Measure(label="debiased linear CKA", compare=alignment.cka_linear_debiased, range=(-1, 1)),
    "cka_rbf": Measure(label="RBF CKA", compare=alignment.cka_rbf, range=(0, 1)),
    "svcca": Measure(label="SVCCA", compare=canonical.svcca, range=(0, 1), parameters=("variance",)),
    "pwcca": Measure(
        label="PWCCA",
        compare=canonical.pwcca,
        range=(0, 1),
        symmetric=False,
        orthogonal="none",
        parameters=("variance",),
    ),
    "cca_top_k": Measure(
        label="CCA of the top components",
        compare=canonical.cca_top_k,
        range=(0, 1),
        parameters=("components",),
    ),
    "procrustes": Measure(label="Procrustes similarity", compare=canonical.procrustes, range=(0, 1)),
    "rsa": Measure(label="RSA", compare=neighbours.rsa, range=(-1, 1)),
    "mutual_knn": Measure(
        label="mutual nearest neighbours",
        compare=neighbours.mutual_knn,
        range=(0, 1),
        translation="none",
        parameters=("neighbours",),
    ),
    "cknna": Measure(
        label="CKNNA",
        compare=neighbours.cknna,
        range=(-1, 1),
        translation="none",
        parameters=("neighbours",),
    ),
    "angular": Measure(
        label="angular distance",
        compare=directions.angular,
        range=(0, 1),
        larger="apart",
        orthogonal="common",
        translation="none",
        equal_widths=True,
    ),
    "block_influence": Measure(
        label="block influence",
        compare=directions.block_influence,
        range=(0, 2),
        larger="apart",
        orthogonal="common",
        translation="none",
        equal_widths=True,
    ),
    "cosine": Measure(
        label="cosine",
        compare=directions.cosine,
        range=(-1, 1),
        orthogonal="common",
        translation="none",
        equal_widths=True,
    ),
}


@dataclass(frozen=True)
class Parameters:
    """What some measures take beside the states: see `cca_top_k`, `mutual_knn` and `cknna`, and `svcca` and `pwcca`."""

    components: int = 10
    neighbours: int = 10
    variance: float = 0.99

    def of(self, metric: str) -> dict[str, float]:
        """Those that a metric takes, by name."""
        return {name: getattr(self, name) for name in MEASURES[metric].parameters}


DEFAULTS = Parameters()


def compare(
    X_LND: Iterable[States],
    metric: str = "cka_linear",
    other: Iterable[States] | None = None,
    parameters: Parameters = DEFAULTS,
) -> Compared:
    """`similarity` with the reason of each NaN."""
    if metric not in MEASURES:
        raise ValueError(f"unknown metric '{metric}'; known: {', '.join(MEASURES)}")
    return MEASURES[metric].compare(X_LND, other, **parameters.of(metric))


def similarity(
    X_LND: Iterable[States],
    metric: str = "cka_linear",
    other: Iterable[States] | None = None,
    *,
    components: int = 10,
    neighbours: int = 10,
    variance: float = 0.99,
) -> Array:
    """One measure between every two layers [L, L], or between each layer of X and each of `other` [L, M]; float64.

    X and `other` are numpy arrays or torch tensors [L, N, D], or sequences of [N, D] of unlike width, with states of the
    same examples in the same order. `metric` is a name in `MEASURES`, which says what each measure is blind to; its formula
    and source are at its own function. `components` is for cca_top_k, `neighbours` for mutual_knn and cknna, `variance`
    (the share that is kept) for svcca and pwcca.

    A value that cannot be computed is NaN; `compare` gives the reasons. Raises ValueError, naming the layer, for shapes
    that do not fit and states that are not finite, and for an unknown metric.
    """
    return compare(X_LND, metric, other, Parameters(components, neighbours, variance)).values
