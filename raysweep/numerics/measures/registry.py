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
    """Compute one measure of similarity between every two layers, or between the layers of two models.

    The formulas and sources of the measures, and what each one cannot see, are in the reference of measures.

    Args:
        X_LND: States [L, N, D]: an array, a torch tensor, or a sequence of arrays [N, D], which may differ in width.
        metric: The measure's name, such as `"cka_linear"` or `"mutual_knn"`.
        other: States of a second model, of the same examples in the same order.
        components: For cca_top_k: how many principal components are compared.
        neighbours: For mutual_knn and cknna: how many nearest examples are compared.
        variance: For svcca and pwcca: the share of the variance that each layer's components keep.

    Returns:
        The values [L, L], or [L, M] with `other`; float64. A value that cannot be computed is NaN.

    Raises:
        ValueError: The measure is unknown, shapes do not fit, or states are not finite (the message names the layer).
    """
    return compare(X_LND, metric, other, Parameters(components, neighbours, variance)).values
