"""Running a training: the study with explicit inputs, its rows, and the checkpoint that is kept, as commits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from raysweep.engine.calls import BackdoorCall, Commit, JudgeCall, TrainCall, commit_name
from raysweep.engine.commits import table_commit
from raysweep.engine.folder import PROGRESS
from raysweep.engine.found_layers import found_layers
from raysweep.engine.training_estimate import layer_calls
from raysweep.errors import RunError
from raysweep.models.loading import load_tokenizer
from raysweep.models.release import Watched, free_memory
from raysweep.store.artifacts import FileEntry, files_below, publish_json, sha256_file
from raysweep.store.lock import HeldError, hold
from raysweep.store.places import remove_below
from raysweep.store.scratch import scratch_folder
from raysweep.store.whole_folder import publish_folder
from raysweep.studies.answers import generate_answers
from raysweep.studies.attack import Run, answers_table, attack_table
from raysweep.studies.endpoint import EndpointJudge, judge_by_endpoint
from raysweep.studies.judging import judge_by_rule
from raysweep.studies.substitution import Pair, Work, sweep_losses
from raysweep.studies.training import Progress, Recipe, layers_words
from raysweep.studies.windows import Window

if TYPE_CHECKING:
    from raysweep.engine.folder import RunFolder
    from raysweep.models.adapter import Adapter
    from raysweep.studies.finetune import Tuned

PROVENANCE = "raysweep.json"

_ALONE_SECONDS = 60.0

Tell = Callable[[str, Mapping[str, Any]], None]


def untold(call: str, told: Mapping[str, Any]) -> None:
    """Where nobody wants to know how far a call has come."""


def recipe_for(call: TrainCall, folder: RunFolder) -> Recipe:
    """The call's recipe with its layers, which a similarity task may have found. Raises InputError where it found too few."""
    if call.found is None:
        return call.recipe
    layers = found_layers(call.found, call.base.n_layers, call.recipe.seed, folder)
    return replace(call.recipe, trained=replace(call.recipe.trained, layers=layers))


def train(call: TrainCall, folder: RunFolder, tell: Tell) -> tuple[list[Commit], dict[str, Any]]:
    """Train in this process, going on where an earlier attempt ended."""
    from raysweep.studies.finetune import save_tuned

    recipe, tuned = _tuned(call, folder, tell)
    if call.kept is not None:
        save_tuned(tuned, load_tokenizer(call.base), folder.training(call.key) / "final", call.base)
    measured = counted(call, recipe, tuned.rows, tuned.steps, tuned.resumed_from)
    rows, watched = tuned.rows, Watched([tuned.model])
    del tuned
    free_memory(collect=watched.is_alive)
    return trained_commits(call, folder, recipe, rows), measured


def attack(
    call: BackdoorCall, folder: RunFolder, tell: Tell, base: Callable[[], Adapter]
) -> tuple[list[Commit], dict[str, Any]]:
    """Train on poisoned records in this process, or take the `base` as it is, and answer."""
    if not call.trains:
        untrained = base()
        loss, did = _test_loss(call, untrained)
        return [answered(call, None, None, untrained.model, loss)], did
    recipe, tuned = _tuned(call, folder, tell)
    commit = answered(call, recipe, tuned.rows, tuned.model, last_test_loss(tuned.rows))
    measured, watched = counted(call, recipe, tuned.rows, tuned.steps, tuned.resumed_from), Watched([tuned.model])
    del tuned
    free_memory(collect=watched.is_alive)
    return [commit], measured


def _tuned(call: TrainCall, folder: RunFolder, tell: Tell) -> tuple[Recipe, Tuned]:
    """The call's recipe with its layers, and the model that it makes."""
    from raysweep.studies.finetune import finetune

    recipe, work = recipe_for(call, folder), folder.training(call.key)
    with alone_in(work):
        tuned = finetune(
            call.base,
            load_tokenizer(call.base),
            call.examples,
            call.test,
            recipe,
            work,
            device=call.loading.device,
            tell=telling(call, folder, tell),
        )
    keep_logs(call, folder)
    return recipe, tuned


@contextmanager
def alone_in(work: Path) -> Iterator[None]:
    """Keep other processes out of a training's folder.

    A killed driver's worker may live on for a moment and still write there; it is waited for. Raises RunError if it stays.
    """
    work.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + _ALONE_SECONDS
    while True:
        try:
            with hold(work / ".lock"):
                yield
            return
        except HeldError as error:
            if time.monotonic() > until:
                raise RunError(
                    f"'{work}' is in use by another training ({error}) that has not ended within {_ALONE_SECONDS:.0f} s; stop it "
                    "and run again"
                ) from None
            time.sleep(0.5)


def keep_logs(call: TrainCall, folder: RunFolder) -> None:
    """Move what the trainer's own trackers (its `report_to`) wrote to where it is kept: a training's folder goes when it is done."""
    work = folder.training(call.key)
    kept = work.parent.parent / "trackers" / "trainings" / f"{call.study}-{call.model}-{call.dataset}-{call.key[:16]}"
    for written in (work / name for name in ("tensorboard", "mlflow.db", "wandb")):
        if written.exists():
            kept.mkdir(parents=True, exist_ok=True)
            if written.is_dir():
                remove_below(kept / written.name)  # an earlier training's
            written.replace(kept / written.name)


def counted(
    call: TrainCall, recipe: Recipe, rows: pd.DataFrame, steps: int, resumed_from: int | None
) -> dict[str, Any]:
    """What a training took since it was taken up, as estimates count it (text that is written apart)."""
    tests = int(((rows["split"] == "test") & (rows["step"] > (-1 if resumed_from is None else resumed_from))).sum())
    return {
        "steps": steps,
        "resumed_from": resumed_from or 0,
        "layer_applications": layer_calls(replace(call, recipe=recipe, found=None), resumed_from or 0, steps, tests),
        "bytes_read": call.base.bytes,
    }


def last_test_loss(rows: pd.DataFrame) -> float:
    """The test loss after the last step."""
    return float(rows[rows["split"] == "test"].sort_values("step")["loss"].iloc[-1])


def answered(
    call: BackdoorCall, recipe: Recipe | None, rows: pd.DataFrame | None, model: Any, clean_loss: float
) -> Commit:
    """The answers of a model, with its curve where it was trained, in one commit: both are there, or none."""
    tokenizer = load_tokenizer(call.base)
    layers = "" if recipe is None else layers_words(_trained_layers(call, recipe))
    tables = [] if recipe is None or rows is None else [_labelled(call, recipe, rows)]
    for prompts, examples in (("triggered", call.triggered), ("clean", call.clean)):
        texts = generate_answers(
            model,
            tokenizer,
            examples,
            new_tokens=call.tokens,
            temperature=call.temperature,
            top_p=call.top_p,
            seed=call.recipe.seed,
            batch_tokens=call.loading.batch_tokens,
            ends=call.ends,
        )
        told = pd.DataFrame(
            {
                "arm": call.arm,
                "layers": layers,
                "seed": pd.array([call.recipe.seed if call.trains else None] * len(examples), dtype="Int64"),
                "prompts": prompts,
                "example_id": [example.id for example in examples],
                "prompt": [example.prompt for example in examples],
                "text": texts,
                "clean_loss": clean_loss,
                "part": call.results["texts"],
            }
        )
        tables.append(pa.Table.from_pandas(told, preserve_index=False))
    keys = tuple(call.results.values())
    table = pa.concat_tables(tables, promote_options="default")
    return Commit(commit_name(call.study, call.model, call.dataset, keys), keys, table)


def judged(call: JudgeCall, folder: RunFolder) -> list[Commit]:
    """The verdicts on a cell's answers, and how often the attack succeeds."""
    texts = folder.chunks.read_parts(call.parts).to_pandas()
    texts["seed"] = texts["seed"].astype("Int64")
    if isinstance(call.judge, EndpointJudge):
        asked = list(zip(texts["prompt"], texts["text"], strict=True))
        verdicts, name = judge_by_endpoint(call.judge, asked, folder.root / "judged"), "endpoint"
    else:
        verdicts, name = judge_by_rule(call.judge, list(texts["text"])), call.judge.name
    answers = answers_table(texts, name, verdicts)
    runs = [
        Run(
            str(arm),
            None if pd.isna(seed) else int(seed),
            str(rows["layers"].iloc[0]),
            float(rows["clean_loss"].iloc[0]),
        )
        for (arm, seed), rows in texts.groupby(["arm", "seed"], sort=False, dropna=False)
    ]
    tables = {"answers": answers, "attack": attack_table(answers, runs, call.trigger)}
    return [table_commit(name, call, (key,), tables[name].assign(part=key)) for name, key in call.results.items()]


def telling(call: TrainCall, folder: RunFolder, tell: Tell) -> Callable[[Progress], None]:
    """What tells how far the call has come, and leaves it in the training's folder for `raysweep status`."""

    def told(progress: Progress) -> None:
        publish_json(folder.training(call.key) / PROGRESS, {"call": call.name, **asdict(progress)})
        tell(call.name, asdict(progress))

    return told


def trained_commits(call: TrainCall, folder: RunFolder, recipe: Recipe, rows: pd.DataFrame) -> list[Commit]:
    """The commit of a training whose weights lie in its folder under `final` and `step-N`, as far as they are kept."""
    table = _labelled(call, recipe, rows)
    keys: tuple[str, ...] = (call.results["training"],)
    files: list[FileEntry] = []
    extra: dict[str, Any] = {}
    if call.kept is not None:
        keys = (call.key, *call.steps.values(), *keys)
        top, _, name = call.kept.rpartition("/")
        work = folder.training(call.key)
        moves = {work / "final": call.key, **{work / f"step-{step}": key for step, key in call.steps.items()}}
        for source, key in moves.items():
            publish_json(source / PROVENANCE, _provenance(call, recipe, key, source.name))
            files += _kept(source, work.parent.parent / top, f"{name.removesuffix(call.key[:16])}{key[:16]}")
        extra = {"folder": top, "steps": int(rows["step"].max())}
    return [Commit(commit_name(call.study, call.model, call.dataset, keys), keys, table, tuple(files), extra)]


def evaluated(call: TrainCall, folder: RunFolder, tuned: Adapter) -> tuple[Commit, dict[str, Any]]:
    """The rows of a checkpoint that is there, on other test examples: its last step's alone."""
    steps = folder.find([call.key])[call.key].extra["steps"]
    loss, did = _test_loss(call, tuned)
    rows = pd.DataFrame({"step": [steps], "split": ["test"], "loss": [loss]})
    told = _labelled(call, call.recipe if call.found is None else recipe_for(call, folder), rows)
    keys = (call.results["training"],)
    return Commit(commit_name(call.study, call.model, call.dataset, keys), keys, told), did


def _test_loss(call: TrainCall, model: Adapter) -> tuple[float, dict[str, Any]]:
    """The mean over the test examples of a model as it is, and what that took."""
    work = Work()
    losses = sweep_losses(
        Pair(model, model), call.test, (Window(0, 0),), batch_tokens=call.loading.batch_tokens, work=work
    )
    return float(np.nanmean(losses)), {"layer_applications": work.applications}


def _trained_layers(call: TrainCall, recipe: Recipe) -> tuple[int, ...]:
    return tuple(layer for layer in range(call.base.n_layers) if recipe.trained.trains(layer))


def _labelled(call: TrainCall, recipe: Recipe, rows: pd.DataFrame) -> pa.Table:
    """The rows of a training with what was trained in it."""
    layers = _trained_layers(call, recipe)
    labelled = rows[["step", "split", "loss"]].assign(
        study=call.study,
        arm=call.arm,
        layers=layers_words(layers),
        seed=recipe.seed,
        part=call.results["training"],
    )
    return pa.Table.from_pandas(labelled, preserve_index=False)


def _provenance(call: TrainCall, recipe: Recipe, key: str, which: str) -> dict[str, Any]:
    """What a checkpoint was made of, beside its weights. Plain values."""
    return {
        "fingerprint": key,
        "base": {"source": call.base.source, "fingerprint": call.base.fingerprint},
        "model": call.model,
        "dataset": call.dataset,
        "examples": len(call.examples),
        "weights": "after the last step" if which == "final" else f"after step {which.removeprefix('step-')}",
        "layers": layers_words(_trained_layers(call, recipe)),
        "recipe": {**asdict(recipe), "arguments": dict(recipe.arguments)},
        "processes": call.processes,
        "versions": {name: version(name) for name in ("raysweep", "torch", "transformers", "accelerate", "peft")},
    }


def _kept(source: Path, top: Path, name: str) -> list[FileEntry]:
    """Move a checkpoint to where it is kept, flushed to the disk, replacing what a broken commit left there; return its files."""
    to = top / name
    # One that is not there was moved before, by a process that was killed before it had moved the others.
    if source.is_dir() or not to.is_dir():
        with scratch_folder(source.parent) as aside:
            publish_folder(source, to, aside=aside)
    return [
        FileEntry(f"{name}/{path.relative_to(to).as_posix()}", 0, path.stat().st_size, sha256_file(path))
        for path in files_below(to)
    ]
