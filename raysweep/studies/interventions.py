"""What may be changed in a model beside a whole window put back: sets, parts of layers, steps between, the other direction.

Every change is a function from a layer's index to the version of that layer (windows.py), and says whether embedding, norm
and head are the tuned or the base model's. Pure arithmetic; schedule.py orders the work, substitution.py does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from raysweep.errors import InputError
from raysweep.models.same import NOTHING, Same
from raysweep.studies.windows import BASE, TUNED, Part, Version, Window, windows_of_widths

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["window", "set", "attention", "mlp", "reverse"]
Module = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Intervention:
    """A change of `chosen` layers (ascending, from 0) that is no whole window put back; `Window` is for these.

    kind `window` and `set`: the layers' weights are (1 − coefficient) · tuned + coefficient · base; `attention` and `mlp`:
    that part of the layers alone; `reverse`: the base model (its embedding, norm and head too) with these layers tuned.
    `name` is what a config calls a set: a word for the reader, and no part of what the change is.
    """

    kind: Kind
    chosen: tuple[int, ...]
    coefficient: float = 1.0
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.kind == "window" and self.coefficient == 1:
            raise ValueError("a fully replaced window is a Window")

    @property
    def start(self) -> int | None:
        """First layer of consecutive ones, 0 for none; None for a set."""
        return None if self.kind == "set" else self.chosen[0] if self.chosen else 0

    @property
    def stop(self) -> int | None:
        """One past the last layer of consecutive ones, 0 for none; None for a set."""
        return None if self.kind == "set" else self.chosen[-1] + 1 if self.chosen else 0

    @property
    def width(self) -> int:
        """Number of layers."""
        return len(self.chosen)

    @property
    def centre(self) -> float | None:
        """As a window's; None for a set."""
        return None if self.kind == "set" or not self.chosen else (self.chosen[0] + self.chosen[-1]) / 2

    @property
    def layers(self) -> str:
        """The layers as text: `8-12` for consecutive ones, `3,5,9` for a set."""
        if self.start is None or self.stop is None:
            return ",".join(map(str, self.chosen))
        return Window(self.start, self.stop).layers

    @property
    def in_base(self) -> bool:
        """Whether embedding, norm and head are the base model's."""
        return self.kind == "reverse"

    @property
    def text(self) -> str:
        """The change as plans and events name it: `set early 3,5,9`, `attention 8-12`, `8-12 at 0.5`."""
        if self.name:
            return f"{self.kind} {self.name}{self.words.removeprefix(self.kind)}"
        return self.words.removeprefix("window ")

    @property
    def words(self) -> str:
        """The change in words that its name does not alter: `set 3,5,9`, `attention 8-12`, `window 8-12 at 0.5`."""
        share = "" if self.coefficient == 1 else f" at {self.coefficient:g}"
        return f"{self.kind} {self.layers or 'none'}{share}"

    def version(self, layer: int) -> Version:
        """The version of a layer."""
        inside = layer in self.chosen
        if self.kind == "reverse":
            return TUNED if inside else BASE
        if not inside:
            return TUNED
        part: Part = self.kind if self.kind in ("attention", "mlp") else "layer"
        return Version(part, self.coefficient)


Change = Window | Intervention


def check_changes(
    n_layers: int,
    widths: Sequence[int] | Literal["all"],
    *,
    sets: Mapping[str, Sequence[int]] | None = None,
    modules: Sequence[Module] = (),
    coefficients: Sequence[float] = (),
    reverse: bool = False,
    where: str = "",
) -> list[Change]:
    """Every change of a sweep, whole windows first: the windows of the widths, and what is asked for beside them.

    `coefficients` are for windows (all layers among them) and sets, 1 always included; `modules` and `reverse` for each
    window; the base untouched comes with `reverse`. Raises InputError for a width or a set that does not fit, a module that
    is neither of the two, and a coefficient outside 0 … 1.
    """
    for part in modules:
        if part not in get_args(Module):
            raise InputError(f"modules has {part!r}, which is neither 'attention' nor 'mlp'; give one of them, or both")
    for step in coefficients:
        if not 0 <= step <= 1:
            raise InputError(f"coefficient {step} is not between 0 (tuned) and 1 (base); give steps from 0 to 1")
    windows = windows_of_widths(n_layers, widths, where)
    real = [tuple(range(window.start, window.stop)) for window in windows if window.width]
    steps = [c for c in dict.fromkeys(map(float, coefficients)) if c != 1]
    changes: list[Change] = [*windows]
    changes += [Intervention("window", chosen, c) for c in steps for chosen in real]
    for name, layers in (sets or {}).items():
        chosen = tuple(sorted(set(layers)))
        if not chosen:
            raise InputError(f"set '{name}' has no layer; give layers from 0 to {n_layers - 1}")
        for layer in chosen:
            if not 0 <= layer < n_layers:
                raise InputError(
                    f"set '{name}' has layer {layer}, which is not among the {n_layers} decoder layers{where}; "
                    f"give layers from 0 to {n_layers - 1}"
                )
        changes += [Intervention("set", chosen, c, name) for c in (1.0, *steps)]
    changes += [Intervention(part, chosen) for part in modules for chosen in real]
    if reverse:
        changes += [Intervention("reverse", chosen) for chosen in ((), *real)]
    return list(dict.fromkeys(changes))


Signature = tuple[bool, tuple[Version, ...]]  # whose embedding, norm and head (the base's?), and each layer's version


def signature(change: Change, n_layers: int, same: Same = NOTHING) -> Signature:
    """What decides a change's losses: two changes of one signature give the same model, and are computed once.

    A layer that is identical in both models has one version.
    """
    versions = (TUNED if layer in same.layers else change.version(layer) for layer in range(n_layers))
    return change.in_base and not same.rest, tuple(TUNED if v.share == 0 else v for v in versions)


def identity(change: Change, n_layers: int, same: Same = NOTHING) -> dict[str, Any]:
    """The signature as plain values for a fingerprint: a window where it is one, else the layers that are not tuned."""
    in_base, versions = signature(change, n_layers, same)
    changed = [layer for layer, version in enumerate(versions) if version != TUNED]
    window = Window(changed[0], changed[-1] + 1) if changed else Window(0, 0)
    if not in_base and all(versions[layer] == BASE for layer in range(*window)):
        return {"window": list(window)}
    return {"in_base": in_base, "versions": [[layer, *versions[layer]] for layer in changed]}


def labels(change: Change, estimator: str = "exact") -> dict[str, Any]:
    """The columns of the substitution table that say what was changed."""
    return {
        "kind": change.kind,
        "layers": change.layers,
        "start": change.start,
        "stop": change.stop,
        "width": change.width,
        "centre": change.centre,
        "coefficient": change.coefficient,
        "estimator": estimator,
    }


def relabelled(rows: pd.DataFrame, owners: pd.DataFrame, changes: Iterable[Change]) -> pd.DataFrame:
    """Committed rows (with a column `part`) as those of `changes`, one for each row of `owners` (`part` and others).

    Changes that make the same model share a part, whose rows carry the words of the change that it was computed for.
    """
    import pandas as pd

    told = pd.DataFrame(map(labels, changes)).drop(columns="estimator")
    told = told.astype({"centre": float, "start": "Int64", "stop": "Int64"})
    joined = pd.concat([owners, told], axis="columns").merge(rows.drop(columns=told.columns), on="part")
    return joined if joined["start"].hasnans else joined.astype({"start": int, "stop": int})


def change_from_json(value: Any) -> Change:
    """The change that `to_json` wrote."""
    if isinstance(value, Mapping):
        return Intervention(value["kind"], tuple(value["chosen"]), value["coefficient"], value.get("name", ""))
    return Window(*value)


def to_json(change: Change) -> Any:
    """Plain values: [start, stop] for a window."""
    if isinstance(change, Window):
        return list(change)
    named = {"name": change.name} if change.name else {}
    return {"kind": change.kind, "chosen": list(change.chosen), "coefficient": change.coefficient, **named}
