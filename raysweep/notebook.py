"""The Python calls on models: everything that `import raysweep as rs` offers without a config or a run folder.

A model is a loaded transformers model, an `Adapter`, or the name or folder of a checkpoint (`lab://tiny`, a hub id, a path).
Named models are described, checked and loaded as the command line does it: float32 on a CPU, the checkpoint's own dtype on a
GPU. A loaded model is used in evaluation mode, and is afterwards as it was: training mode of each module, hooks, gradients,
flags of its config, compiled layers. Two loaded models must not share weights, and must have one dtype and device.

Examples are what `load_examples` returns, a list of `Example`, or records: dicts, a data frame, a data set of `datasets`, or the
path or name of a data file. Records are tokenised by the named models' tokenizer, or by `tokenizer`; `format` is that of the
first record unless given, and the other options are those of `load_examples`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

import torch

from raysweep.data.examples import Example, Loaded
from raysweep.data.examples import load_examples as load_from
from raysweep.data.formats import FORMATS
from raysweep.errors import InputError, nearest, shown
from raysweep.models.alterations import altered_layers
from raysweep.models.stream import StreamedModel
from raysweep.notebook_examples import (
    ExampleReader,
    Examples,
    LoadOptions,
    Reading,
    Tokenizer,
    checked,
    format_given,
    tokenizer_given,
    warn_of_texts,
)
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

    from raysweep.data.sources import Source


def sweep_windows(
    base: Model,
    tuned: Model,
    examples: Examples,
    windows: Windows,
    *,
    batch_tokens: int = 8192,
    **reading: Unpack[Reading],
) -> pd.DataFrame:
    """Measure per-example losses with each window [start, stop) of the tuned model replaced by the base model's layers.

    `windows` are pairs, ranges or slices, an array [W, 2], or a data frame with columns start and stop; a range or slice by itself
    is one window. The untouched tuned model (0, 0) and all layers (0, L) are always among the rows. A layer brings its hooks
    along. Raises InputError for models that are no pair or share weights, and for a window that does not fit.
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
    """Measure per-example losses of everything that a config's `substitution` may ask for, in one pass.

    `widths`: every window of each (`all`: of every one); `sets`: layers replaced together, by name; `modules` (`attention`,
    `mlp`): that part of each window's layers alone; `coefficients`: windows and sets at steps between tuned (0) and base (1,
    always there); `reverse`: the base model with each window of the tuned one. Where a list of numbers or names is expected, one
    by itself will do. Models, rows and their order are as `sweep_windows` has them, windows first; a set's rows name its layers.

    Raises InputError for what does not fit the models, where a layer's attention and MLP cannot be told apart, and for
    `coefficients` on layers with hooks.
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
    """Estimate what `sweep` measures, by first order in the weights (estimator `gradient`).

    It costs about three layer applications for each layer and point, however many changes are asked for. Everything else is as
    `sweep` has it, the errors too; `points` is 1 or more. An estimate is good if the step from tuned to base is small: measure
    some of the rows with `sweep` before you trust one. Raises InputError for layers with hooks.
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
    """Capture the states [L, N, D] of every decoder layer's output at the chosen position of each example's prompt.

    In the model's own dtype for `last` and `first`, float32 for `mean`; on the CPU. Raises InputError for an unknown pooling.
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
    """Find the layers of a base model where representations change most (smallest δ); `top` of them, a fifth by default.

    `examples` may be of several data sets, by name: the choice is then by the mean of their δ, and their agreement is reported.
    Examples whose states are not finite are left out. `progress` is called with the name of each data set before it is captured.
    Raises InputError, naming the data set, where fewer than two examples are left.
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
            raise InputError(f"top is {top}, and the model has {n_layers} decoder layers; give 1 to as many")

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


@overload
def load_examples(
    source: Source, format: str | None, tokenizer: Tokenizer, **options: Unpack[LoadOptions]
) -> Loaded: ...


@overload
def load_examples(
    source: Source, tokenizer: Tokenizer, *, format: str | None = None, **options: Unpack[LoadOptions]
) -> Loaded: ...


def load_examples(
    source: Source,
    *given: Any,
    format: str | None = None,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> Loaded:
    """Make examples of records: each one's texts, their tokens, and how many of them are the prompt.

    `source` is a file, a folder of Hugging Face `datasets`, a hub data set or a laboratory name, as text or `Path`; or records in
    memory: a list of dicts, a pandas data frame or a data set of `datasets`. `format` names how a record is read; by default it is
    the one format that the first record fits (`columns` with the options `prompt` and `response`). `tokenizer` is a tokenizer, or
    the name or folder of a checkpoint. It may come second, without a format before it.

    The other options are `limit`, `split`, `template`, `max_tokens`, `too_long`, `prompt`, `response`, `exclude`, `last`,
    `all_but_last`, `template_date` and `prompts_only`, as raysweep.data.examples.load_examples has them. Warns of what the
    prompt template does not read or changes, and if it reads the clock. Raises InputError as load_examples there does.
    """
    if len(given) > 2:
        raise TypeError(
            f"load_examples takes a source, a format and a tokenizer; got {1 + len(given)} positional arguments"
        )
    if len(given) == 2:
        format, tokenizer = given
    elif given and (tokenizer is not None or given[0] in (None, "columns", *FORMATS)):
        format = given[0]
    elif given:
        tokenizer = given[0]
    if tokenizer is None:
        raise InputError("load_examples needs a tokenizer; give one, or the name or folder of a checkpoint")
    if format is not None and not isinstance(format, str):
        raise InputError(f"format is of type {type(format).__name__}; give the name of a format, then the tokenizer")
    found, source = checked(options, LoadOptions), list(source) if isinstance(source, Iterator) else source
    record_format = format_given(source, {**found, "format": format})
    loaded = load_from(source, record_format, tokenizer_given(tokenizer), **found)
    warn_of_texts(loaded, record_format, found)
    return loaded


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
                f"{name} has forward or backward hooks, or a replaced forward, in layer {layers[0]}, and {what} is made of weights, which "
                "say nothing of them: remove them first"
            )


def _warn_of_identical(pair: Pair) -> None:
    if len(pair.same.layers) == pair.n_layers and pair.same.rest:
        warnings.warn(
            "base and tuned are identical: every weight is the same, so every window gives the same loss; is tuned the checkpoint "
            "that you mean?",
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
