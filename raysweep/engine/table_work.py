"""What a worker makes of what is committed, without a model: similarity, spectra, correlation, curves compared."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pandas as pd

from raysweep.engine.calls import AdaptationCall, Commit, CorrelateCall, SimilarityCall, SpectrumCall
from raysweep.engine.commits import table_commit
from raysweep.engine.folder import RunFolder
from raysweep.engine.found_layers import found_layers
from raysweep.errors import RunError
from raysweep.store.activation_writing import publish_manifest
from raysweep.store.activations import Activations, activations_of
from raysweep.studies.adaptation import adaptation_table
from raysweep.studies.correlation import correlate_cell
from raysweep.studies.interventions import relabelled
from raysweep.studies.similarity import similarity_tables
from raysweep.studies.spectrum import spectrum


def adapted(call: AdaptationCall, folder: RunFolder) -> list[Commit]:
    """The curves of test loss, compared between the arms."""
    rows = adaptation_table(folder.chunks.read_parts(call.parts).to_pandas(), call.arms)
    return [table_commit("adaptation", call, (call.key,), rows.assign(part=call.key))]


def compared(call: SimilarityCall, folder: RunFolder) -> list[Commit]:
    """Similarity between layers, dynamics, choices of layers and health, a commit a table."""
    activations = _activations(call, folder)
    tables = similarity_tables(
        activations.states(),
        metrics=call.metrics,
        neighbourhood=call.neighbourhood,
        parameters=call.parameters,
        resamples=call.resamples,
        seed=call.seed,
        diagonal=call.diagonal,
        example_ids=activations.example_ids,
    )
    commits = []
    for name, key in call.results.items():
        rows = tables[name].assign(part=key)
        commits.append(table_commit(name, call, (key,), rows))
    return commits


def spectra(call: SpectrumCall, folder: RunFolder) -> list[Commit]:
    """Spectra of the cell's states."""
    rows = spectrum(_activations(call, folder), call.components).assign(part=call.key)
    return [table_commit("spectrum", call, (call.key,), rows)]


def correlated(call: CorrelateCall, folder: RunFolder) -> list[Commit]:
    """Correlation of the cell's dynamics with its losses."""
    chunks = folder.chunks
    parts = [(key, window) for window, keys in call.losses.items() for key in keys]
    owners = pd.DataFrame({"part": [key for key, _ in parts]})
    rows = chunks.read_parts(owners["part"].unique()).to_pandas()
    losses = relabelled(rows, owners, [window for _, window in parts])
    activations = _activations(call, folder)
    states = activations.states()
    correlation = correlate_cell(
        states,
        activations.example_ids,
        losses,
        metrics=call.metrics,
        neighbourhood=call.neighbourhood,
        parameters=call.parameters,
        resamples=call.resamples,
        seed=call.seed,
        drop_ends=call.drop_ends,
        diagonal=call.diagonal,
        untrained=_untrained(call, len(states), folder),
    ).assign(part=call.key)
    return [table_commit("correlation", call, (call.key,), correlation)]


def _untrained(call: CorrelateCall, n_layers: int, folder: RunFolder) -> Collection[int]:
    """The layers that base and tuned have in common."""
    choice = call.choice
    if choice is None or choice.found is None:
        return call.untrained
    layers = found_layers(choice.found, n_layers, choice.seed, folder)
    return replace(choice, trained=replace(choice.trained, layers=layers)).untrained(n_layers)


def _activations(call: SimilarityCall | SpectrumCall | CorrelateCall, folder: RunFolder) -> Activations:
    """The cell's captured chunks as one store; its manifest is published anew, for an earlier config may have had others."""
    chunks = folder.find(call.parts)
    lost = [key for key in call.parts if key not in chunks]
    if lost:
        raise RunError(
            f"{len(lost)} of the {len(call.parts)} chunks of activations that were captured from model '{call.model}' "
            "on data set "
            f"'{call.dataset}' are gone; the first is chunk {call.parts.index(lost[0])}: {folder.why_lost(lost[0])}. "
            "Run again to capture what is missing"
        )
    manifests = [chunks[key] for key in call.parts]
    first = manifests[0].extra
    store = folder.activations(call.model, call.dataset)
    manifest = publish_manifest(
        store,
        [m.extra["part"] for m in manifests],
        [entry for m in manifests for entry in m.files],
        layers=first["layers"],
        width=first["width"],
        torch_dtype=first["torch_dtype"],
        pooling=call.pooling,
        model=call.model,
        dataset=call.dataset,
    )
    return activations_of(store, manifest)
