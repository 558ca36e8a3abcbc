"""Python calls on models: everything in `import raysweep as rs` that works without a config or a run folder.

A model is a loaded transformers model, an `Adapter`, or the name or folder of a checkpoint (`lab://tiny`, a hub id, a path).
Named models are checked and loaded as on the command line: float32 on a CPU, the checkpoint's own dtype on a GPU. A loaded
model is used in evaluation mode and restored afterwards: training mode of each module, hooks, gradients, flags of its config,
compiled layers. Two loaded models must not share weights, and must have the same dtype and device.

Examples are what `load_examples` returns, a list of `Example`, or records: dicts, a data frame, a data set of `datasets`, or the
path or name of a data file. Records are tokenised with the named models' tokenizer, or with `tokenizer`; `format` is found from the
first record unless given. The other options are those of `load_examples`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack, cast

import torch

from raysweep.data.examples import Example
from raysweep.errors import InputError, nearest, shown
from raysweep.models.alterations import altered_layers
from raysweep.models.stream import StreamedModel
from raysweep.notebook_examples import ExampleReader, Examples, Reading
from raysweep.notebook_models import Model, opened_model, opened_pair
from raysweep.numerics.dynamics import reach_of
from raysweep.numerics.measures.registry import MEASURES
from raysweep.studies.arguments import (
    Layers,
    Names,
    Numbers,
    Widths,
    Windows,
    names_given,
    numbers_given,
    optional_number,
    sets_given,
    whole_number,
    widths_given,
    windows_given,
)
from raysweep.studies.capture import POOLINGS, Pooling, capture_states
from raysweep.studies.critical import Critical
from raysweep.studies.critical import critical_layers as find_critical
from raysweep.studies.gradient import estimate_losses
from raysweep.studies.interventions import Change, check_changes
from raysweep.studies.substitution import Pair, loss_table, sweep_losses
from raysweep.studies.windows import UNTOUCHED, Window, check_windows

if TYPE_CHECKING:
    import pandas as pd


def sweep_windows(
    base: Model,
    tuned: Model,
    examples: Examples,
    windows: Windows,
    *,
    batch_tokens: int = 8192,
    **reading: Unpack[Reading],
) -> pd.DataFrame:
    """Measure per-example losses with each window of the tuned model's layers replaced with the base model's.

    The untouched tuned model and the window of all layers are always measured too. A layer brings its hooks along.

    Args:
        base: The base model: a loaded transformers model, an `Adapter`, or the name or folder of a checkpoint.
        tuned: The model that was fine-tuned from it, likewise, or the folder of a PEFT adapter. Two loaded models must have the
            same dtype and device and must not share weights.
        examples: What `load_examples` returns, a list of `Example`, or records: dicts, a data frame, a data set of `datasets`, or
            the path or name of a data file.
        windows: Windows [start, stop) of layers: pairs, ranges or slices, an array [W, 2], or a data frame with the columns start
            and stop. A single range or slice is one window.
        batch_tokens: Padded tokens in one batch.
        **reading: How records become examples: `tokenizer`, `format`, and the options of `load_examples`. Only for records.

    Returns:
        One row for each example and change, with the columns of the table `substitution` except model and dataset.
        `loss` is in nats a response token.

    Raises:
        InputError: The models are not a pair or share weights, or a window does not fit.
    """

    def changes(n_layers: int) -> list[Change]:
        chosen = [UNTOUCHED, *windows_given(windows, n_layers), Window(0, n_layers)]
        return [*check_windows(chosen, n_layers)]

    budget = whole_number("batch_tokens", batch_tokens)
    with opened_pair(base, tuned, examples, reading, changes) as (pair, chosen, wanted):
        _warn_of_identical(pair)
        return loss_table(sweep_losses(pair, chosen, wanted, batch_tokens=budget), wanted, chosen)


def sweep(
    base: Model,
    tuned: Model,
    examples: Examples,
    *,
    widths: Widths = None,
    sets: Mapping[str, Layers] | None = None,
    modules: Names = (),
    coefficients: Numbers = (),
    reverse: bool = False,
    batch_tokens: int = 8192,
    **reading: Unpack[Reading],
) -> pd.DataFrame:
    """Measure per-example losses under all changes that a config's `substitution` can ask for, in one pass.

    If a list of numbers or names is expected, a single one is fine too.

    Args:
        base: The base model, as in `sweep_windows`.
        tuned: The tuned model, as in `sweep_windows`.
        examples: Examples or records, as in `sweep_windows`.
        widths: Widths of windows: every window of each width; `"all"`: of every width.
        sets: Lists of layers to replace together, by name. Their rows have the layers, not the name.
        modules: `"attention"` or `"mlp"`: also replace only this part of each window's layers.
        coefficients: Also measure windows and sets with weights (1 − c) · tuned + c · base. 1 is always measured.
        reverse: Also measure the base model with each window of the tuned model's layers.
        batch_tokens: Padded tokens in one batch.
        **reading: How records become examples, as in `sweep_windows`.

    Returns:
        The rows of `sweep_windows`, for every change; windows come first.

    Raises:
        InputError: Something does not fit the models, a layer's attention and MLP cannot be separated, or `coefficients` meet
            layers with hooks.
    """
    budget = whole_number("batch_tokens", batch_tokens)
    changes = _changes(widths, sets, modules, coefficients, reverse)
    with opened_pair(base, tuned, examples, reading, changes) as (pair, chosen, wanted):
        if any(change.coefficient != 1 for change in wanted):
            _refuse_hooks(pair, "coefficients")
        _warn_of_identical(pair)
        return loss_table(sweep_losses(pair, chosen, wanted, batch_tokens=budget), wanted, chosen)


def estimate(
    base: Model,
    tuned: Model,
    examples: Examples,
    *,
    points: int = 1,
    widths: Widths = None,
    sets: Mapping[str, Layers] | None = None,
    modules: Names = (),
    coefficients: Numbers = (),
    reverse: bool = False,
    batch_tokens: int = 8192,
    **reading: Unpack[Reading],
) -> pd.DataFrame:
    """Estimate the losses that `sweep` measures, to first order in the weights.

    loss + Σ ⟨∂loss/∂θ, θ_base − θ_tuned⟩ over the changed layers, for each example. It costs about three layer applications for
    each layer and point, however many changes there are. An estimate is good if a change moves the loss little: measure some of the
    rows with `sweep` before you trust one.

    Args:
        base: The base model, as in `sweep_windows`.
        tuned: The tuned model, as in `sweep_windows`.
        examples: Examples or records, as in `sweep_windows`.
        points: At how many points between tuned and base gradients are computed, 1 or more; the estimate uses their mean.
        widths: As in `sweep`, like `sets`, `modules`, `coefficients` and `reverse`.
        batch_tokens: Padded tokens in one batch.
        **reading: How records become examples, as in `sweep_windows`.

    Returns:
        The rows of `sweep`, with `gradient` as their `estimator`.

    Raises:
        InputError: As `sweep`, and if a layer has hooks.
    """
    budget, count = whole_number("batch_tokens", batch_tokens), whole_number("points", points)
    changes = _changes(widths, sets, modules, coefficients, reverse)
    with opened_pair(base, tuned, examples, reading, changes) as (pair, chosen, wanted):
        _refuse_hooks(pair, "estimate")
        _warn_of_identical(pair)
        with torch.inference_mode(False):  # else there are no gradients
            losses = estimate_losses(pair, chosen, wanted, points=count, batch_tokens=budget)
        return loss_table(losses, wanted, chosen, "gradient")


def capture(
    model: Model, examples: Examples, pooling: Pooling = "last", *, batch_tokens: int = 8192, **reading: Unpack[Reading]
) -> torch.Tensor:
    """Capture the states that every decoder layer puts out, at one position of each example's prompt.

    Args:
        model: A loaded transformers model, an `Adapter`, or the name or folder of a checkpoint.
        examples: Examples or records, as in `sweep_windows`.
        pooling: Which state represents an example: that of the `"last"` prompt token, of the `"first"` token, or the `"mean"` over
            the prompt.
        batch_tokens: Padded tokens in one batch.
        **reading: How records become examples, as in `sweep_windows`.

    Returns:
        States [L, N, D] on the CPU: in the model's dtype for `last` and `first`, float32 for `mean`.

    Raises:
        InputError: The pooling is unknown, or the model or the examples are invalid.
    """
    budget = whole_number("batch_tokens", batch_tokens)
    _check_name("pooling", pooling, POOLINGS)

    def read(reader: ExampleReader) -> Any:
        return reader.examples(examples)

    with opened_model(model, reading, _any_depth, read) as (opened, chosen):
        adapter, layers = (opened.adapter, opened.layers) if isinstance(opened, StreamedModel) else (opened, None)
        return capture_states(adapter, chosen, pooling=pooling, batch_tokens=budget, layers=layers).states


def critical_layers(
    model: Model,
    examples: Examples | Mapping[str, Examples],
    *,
    top: int | None = None,
    metric: str = "cka_linear",
    pooling: Pooling = "last",
    neighbourhood: int = 3,
    diagonal: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    batch_tokens: int = 8192,
    progress: Callable[[str], None] | None = None,
    **reading: Unpack[Reading],
) -> Critical:
    """Find the layers of a base model where representations change most: those with the smallest δ.

    δ of a layer is its mean similarity to its neighbourhood (see `local_dynamics`). Examples whose states are not finite are skipped.

    Args:
        model: A loaded transformers model, an `Adapter`, or the name or folder of a checkpoint.
        examples: Examples or records, as for `capture`; or several data sets, by name. The choice is then by the mean of their δ,
            and their agreement is reported.
        top: How many layers to choose; a fifth of them by default.
        metric: The measure of similarity, as in `similarity`.
        pooling: Which state represents an example, as in `capture`.
        neighbourhood: δ is the mean over this many layers; an odd number.
        diagonal: Count a layer's similarity to itself in its δ.
        resamples: How many half-samples of the examples show how stable the choice is.
        seed: The seed of the half-samples.
        batch_tokens: Padded tokens in one batch.
        progress: Called with the name of each data set before its states are captured.
        **reading: How records become examples, as in `sweep_windows`.

    Returns:
        The chosen layers, how stable the choice is, and the lists for PEFT and for freezing.

    Raises:
        InputError: An argument does not fit, or a data set (which is named) has fewer than two examples with finite states.
    """
    _check_name("metric", metric, MEASURES)
    _check_name("pooling", pooling, POOLINGS)
    numbers = {
        "top": optional_number("top", top),
        "neighbourhood": whole_number("neighbourhood", neighbourhood),
        "resamples": whole_number("resamples", resamples),
        "seed": whole_number("seed", seed, 0),
        "batch_tokens": whole_number("batch_tokens", batch_tokens),
    }

    def check(n_layers: int) -> None:
        if top is not None and top > n_layers:
            raise InputError(f"top is {top}, and the model has {n_layers} decoder layers; give 1 to {n_layers}")

    with _bad_input():
        reach_of(neighbourhood, diagonal)

    def read(reader: ExampleReader) -> Any:
        if not isinstance(examples, Mapping) or hasattr(examples, "column_names"):  # a DatasetDict is one source
            return _several(reader, cast("Examples", examples), "examples")
        return {str(name): _several(reader, given, f"examples['{name}']") for name, given in examples.items()}

    with opened_model(model, reading, check, read) as (opened, chosen), _bad_input():
        return find_critical(
            opened, chosen, metric=metric, pooling=pooling, diagonal=diagonal, progress=progress, **cast("Any", numbers)
        )


# --- checks -------------------------------------------------------------------------------------------------------


def _changes(
    widths: Widths,
    sets: Mapping[str, Layers] | None,
    modules: Names,
    coefficients: Numbers,
    reverse: bool,
) -> Callable[[int], list[Change]]:
    """Every change that is asked for, from the number of layers."""
    chosen, parts = widths_given(widths), cast("Sequence[Any]", names_given("modules", modules))
    steps = numbers_given("coefficients", coefficients)

    def changes(n_layers: int) -> list[Change]:
        return check_changes(
            n_layers, chosen, sets=sets_given(sets, n_layers), modules=parts, coefficients=steps, reverse=reverse
        )

    return changes


def _refuse_hooks(pair: Pair, what: str) -> None:
    """Refuse what is computed from weights alone, while hooks change what a layer computes."""
    for name, adapter in (("base", pair.base), ("tuned", pair.tuned)):
        layers = sorted(altered_layers(adapter))
        if layers:
            raise InputError(
                f"{name} has forward or backward hooks, or a replaced forward, in layer {layers[0]}, and {what} is "
                "computed from the weights alone, which do not include them; remove them first"
            )


def _warn_of_identical(pair: Pair) -> None:
    if len(pair.same.layers) == pair.n_layers and pair.same.rest:
        warnings.warn(
            "base and tuned are identical: every weight is the same, so every window has the same loss; check that "
            "tuned is the checkpoint you meant",
            stacklevel=3,
        )


def _several(reader: ExampleReader, given: Examples, name: str) -> list[Example]:
    found = reader.examples(given, name)
    if len(found) < 2:
        raise InputError(f"{name} has one example, and similarity compares examples; give 2 or more")
    return found


def _any_depth(n_layers: int) -> None:
    """Nothing to check."""


def _check_name(argument: str, value: object, known: Iterable[str]) -> None:
    if value not in (names := list(known)):
        raise InputError(f"unknown {argument} {shown(value)}; {nearest(str(value), names)}")


@contextmanager
def _bad_input() -> Iterator[None]:
    """What the arithmetic refuses is bad input: too few examples for a metric, more layers than there are."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error
