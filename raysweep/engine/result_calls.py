"""The calls that make a task's tables out of what is committed: pure functions of config, facts and graph."""

from __future__ import annotations

from dataclasses import replace

from raysweep.config import Config
from raysweep.engine.calls import (
    AdaptationCall,
    CorrelateCall,
    JudgeCall,
    RemovalCall,
    SimilarityCall,
    SpectrumCall,
    VerifyCall,
)
from raysweep.engine.facts import Facts
from raysweep.engine.graph import Graph, Task
from raysweep.engine.loading import loading_of
from raysweep.engine.removal_plan import most_critical, removals_of, removed_at
from raysweep.engine.substitution_plan import VERIFIED, drawn
from raysweep.engine.training_calls import adaptation_call, judge_call
from raysweep.numerics.measures.registry import Parameters
from raysweep.studies.windows import Window


def result_call(
    config: Config, facts: Facts, graph: Graph, task: Task
) -> SimilarityCall | SpectrumCall | CorrelateCall | VerifyCall | RemovalCall | AdaptationCall | JudgeCall:
    """The call that makes a task's tables out of what is committed."""
    if task.kind == "adaptation":
        return adaptation_call(config, graph, task)
    if task.kind == "judge":
        return judge_call(config, graph, task)
    if task.kind == "verify":
        return _verification(config, facts, graph, task)
    if task.kind == "removal":
        return removal_call(config, facts, graph, task)
    if task.kind == "spectrum":
        assert config.studies.spectrum is not None
        assert config.studies.pooling is not None
        return SpectrumCall(
            task.name,
            task.model,
            task.dataset,
            (task.name,),
            task.results["spectrum"],
            task.parts,
            config.studies.pooling,
            tuple(config.studies.spectrum.components),
        )
    similarity = config.studies.similarity
    assert similarity is not None
    parameters = Parameters(similarity.components, similarity.neighbours, similarity.variance)
    correlation = config.studies.correlation
    resamples, seed = (correlation.resamples, correlation.seed) if correlation else (1000, 0)
    if task.kind == "similarity":
        return SimilarityCall(
            task.name,
            task.model,
            task.dataset,
            (task.name,),
            task.parts,
            task.results,
            tuple(similarity.metrics),
            similarity.neighbourhood,
            parameters,
            similarity.pooling,
            resamples,
            seed,
            similarity.diagonal,
        )
    assert correlation is not None
    cell = (task.model, task.dataset)
    swept = graph.cell("estimate", *cell) or graph.cell("substitute", *cell)
    losses = {t.window: t.parts for t in swept if isinstance(t.window, Window)}
    model = facts.models[task.model]
    choice = model.choices.get(task.dataset)
    return CorrelateCall(
        task.name,
        task.model,
        task.dataset,
        (task.name,),
        task.results["correlation"],
        graph.cell("similarity", task.model, task.dataset)[0].parts,
        similarity.pooling,
        losses,
        tuple(similarity.metrics),
        similarity.neighbourhood,
        parameters,
        resamples,
        seed,
        correlation.drop_ends,
        similarity.diagonal,
        tuple(sorted(model.untrained(task.dataset))),
        choice if choice is not None and choice.found else None,
    )


def _verification(config: Config, facts: Facts, graph: Graph, task: Task) -> VerifyCall:
    model, cell = facts.models[task.model], facts.cells[task.model, task.dataset]
    chosen = drawn(config, graph.cell("substitute", task.model, task.dataset))
    return VerifyCall(
        task.name,
        task.model,
        task.dataset,
        (task.name,),
        model.base,
        loading_of(config, facts, model),
        cell.swept[0][:VERIFIED],
        model.tuned[task.dataset],
        tuple(t.window for t in chosen if t.window is not None),
        (task.results["verification"],),
        tuple(t.parts[0] for t in chosen),
    )


def removal_call(config: Config, facts: Facts, graph: Graph, task: Task) -> RemovalCall:
    """The call for components removed at one layer."""
    asked, similarity = config.studies.removal, config.studies.similarity
    assert asked is not None
    model, cell = facts.models[task.model], facts.cells[task.model, task.dataset]
    call = RemovalCall(
        task.name,
        task.model,
        task.dataset,
        (task.name,),
        model.base,
        loading_of(config, facts, model),
        tuple(cell.examples),
        model.tuned[task.dataset] if asked.of == "tuned" else None,
        task.results,
        removed_at(asked, model.base.n_layers)[task.at],
        removals_of(asked),
        asked.examples,
        asked.tokens,
        model.texts.ends(task.dataset).of(asked.of == "base"),
    )
    if asked.layers != "critical":
        return call
    assert similarity is not None
    found = graph.cell("similarity", task.model, task.dataset)[0]
    return replace(
        call,
        dynamics=found.results["dynamics"],
        metric=similarity.metrics[0],
        top=most_critical(asked, model.base.n_layers),
    )
