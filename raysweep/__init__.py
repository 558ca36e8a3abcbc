"""raysweep finds a language model's critical layers and proves it.

    import raysweep as rs
    rs.run("configs/demo.yaml")                        # a whole run from a config
    rs.sweep_windows(base, tuned, examples, windows)   # losses with windows of layers replaced with the base model's
    rs.sweep(base, tuned, examples, widths="all")      # every window; also sets, modules, coefficients, reverse
    rs.estimate(base, tuned, examples, widths="all")   # the same by first order in the weights, three forwards' cost
    rs.capture(model, examples)                        # states [L, N, D] of every layer
    rs.cka_matrix(X), rs.local_dynamics(S)             # arithmetic on plain arrays
    rs.similarity(X, metric="svcca")                    # other measures, between two models too
    rs.critical_layers(model, examples)                # the one-model answer
    rs.load_examples(source, tokenizer)                # records to token sequences with a label mask

Nothing heavy is imported until one of these is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysweep.api import Run, open_run, run
    from raysweep.data.examples import Example
    from raysweep.data.exclusion import Exclude
    from raysweep.errors import InputError, RaysweepError, StoreError
    from raysweep.models.adapter import Adapter
    from raysweep.models.surgery import removed
    from raysweep.notebook import capture, critical_layers, estimate, sweep, sweep_windows
    from raysweep.notebook_load import load_examples
    from raysweep.numerics.cka import cka_between, cka_matrix
    from raysweep.numerics.dynamics import local_dynamics
    from raysweep.numerics.measures.registry import similarity
    from raysweep.numerics.minibatch import MinibatchCKA
    from raysweep.studies.spectrum import spectrum

__all__ = [
    "Adapter",
    "Example",
    "Exclude",
    "InputError",
    "MinibatchCKA",
    "RaysweepError",
    "Run",
    "StoreError",
    "capture",
    "cka_between",
    "cka_matrix",
    "critical_layers",
    "estimate",
    "load_examples",
    "local_dynamics",
    "open_run",
    "removed",
    "run",
    "similarity",
    "spectrum",
    "sweep",
    "sweep_windows",
]

_HOMES = {
    "Adapter": "models.adapter",
    "Example": "data.examples",
    "Exclude": "data.exclusion",
    "InputError": "errors",
    "RaysweepError": "errors",
    "Run": "api",
    "StoreError": "errors",
    "capture": "notebook",
    "MinibatchCKA": "numerics.minibatch",
    "cka_between": "numerics.cka",
    "cka_matrix": "numerics.cka",
    "critical_layers": "notebook",
    "estimate": "notebook",
    "load_examples": "notebook_load",
    "local_dynamics": "numerics.dynamics",
    "open_run": "api",
    "removed": "models.surgery",
    "run": "api",
    "spectrum": "studies.spectrum",
    "similarity": "numerics.measures.registry",
    "sweep": "notebook",
    "sweep_windows": "notebook",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"raysweep.{_HOMES[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("raysweep")
    raise AttributeError(f"module 'raysweep' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
