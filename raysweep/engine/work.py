"""The worker: runs calls, keeping the checkpoints it used last in memory.

It calls a study with explicit inputs and turns the table into commits. It writes activations itself (they are large) and
hands everything else back; making commits visible is the driver's.
"""

from __future__ import annotations

import secrets
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatchmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raysweep.engine.calls import (
    AdaptationCall,
    BackdoorCall,
    Call,
    CaptureCall,
    CapturePart,
    Commit,
    CorrelateCall,
    EstimateCall,
    Failure,
    GenerateCall,
    JudgeCall,
    ModelCall,
    Outcome,
    RemovalCall,
    SimilarityCall,
    SpectrumCall,
    SubstituteCall,
    TrainCall,
    VerifyCall,
    commit_name,
)
from raysweep.engine.commits import table_commit
from raysweep.engine.device_failure import dead_context
from raysweep.engine.disk import is_lasting, storage_failed
from raysweep.engine.folder import RunFolder
from raysweep.engine.kept import as_committed
from raysweep.engine.memory import Budgets, DoesNotFitError, Unfit, is_training, too_large, too_much_to_train
from raysweep.engine.residents import Residents
from raysweep.engine.table_work import adapted, compared, correlated, spectra
from raysweep.engine.training_work import Tell, attack, evaluated, judged, train, untold
from raysweep.errors import InputError, RaysweepError, RunError
from raysweep.models.loading import load_tokenizer
from raysweep.models.machine_errors import is_out_of_memory
from raysweep.models.memory import Peak, held_bytes
from raysweep.models.release import drop_locals, free_memory
from raysweep.numerics.dynamics import change_points
from raysweep.store.activation_writing import write_part
from raysweep.studies.capture import Captured, Collector, capture_states
from raysweep.studies.generation import generate_text
from raysweep.studies.gradient import estimate_losses
from raysweep.studies.interventions import labels
from raysweep.studies.removal_tables import nowhere_to_remove, remove_at_layer
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Work, loss_table, sweep_losses
from raysweep.studies.verification import apart, true_losses, within

if TYPE_CHECKING:
    from raysweep.store.places import Location


class Worker:
    """Runs calls on one device (or one device map), for one run folder, with at most so many checkpoints `resident`."""

    def __init__(self, folder: Location, resident: int = 2, tell: Tell = untold) -> None:
        self.folder = RunFolder(folder)
        self._tell = tell
        self._models = Residents(resident, lambda checkpoint: as_committed(checkpoint, self.folder))
        self._budgets, self._unfit = Budgets(), Unfit()
        self._dead = ""  # why no call can run in this process any more

    def attempt(self, call: Call) -> Outcome:
        """Run the call; whatever it raises becomes an outcome with the traceback, except StorageFailedError: it ends the run.

        A call that leaves the CUDA context dead is `lost`, as is any later one, without being run: this process must end.
        """
        if self._dead:
            return Outcome(
                call, error=f"not run, because its process has a dead CUDA context: {self._dead}", failure="lost"
            )
        started = time.monotonic()
        self.folder.chunks.expect(call.chunks)
        self._models.begin()
        device = call.loading.device if isinstance(call, ModelCall) else "cpu"
        peak = Peak(device)
        try:
            with peak:
                commits, measured = self._within_memory(call)
            measured = {**measured, **_held(call)}
        except Exception as error:
            if is_lasting(error, self.folder.root):  # the run ends: no other call could be committed either
                raise storage_failed(self.folder.root, error) from error
            self._dead = dead_context(error, device)
            ours = isinstance(error, RaysweepError)
            words = str(error) if ours else f"{type(error).__name__}: {error}"
            if self._dead not in words:
                words += f" (the CUDA context is dead: {self._dead})"
            failure: Failure = "refused" if ours and not isinstance(error, DoesNotFitError) else "raised"
            return Outcome(
                call, error=words, traceback=traceback.format_exc(), failure="lost" if self._dead else failure
            )
        seconds = round(time.monotonic() - started, 4)
        read = self._models.bytes_read + measured.get("bytes_read", 0)
        used = {"bytes_read": read, "peak_bytes": peak.bytes, "seconds": seconds}
        if isinstance(call, ModelCall):
            used |= self._models.counted
        return Outcome(call, tuple(commits), {**measured, **used})

    def _within_memory(self, call: Call) -> tuple[list[Commit], dict[str, Any]]:
        """Run the call; out of memory, again without other checkpoints in it, then in batches of half as many tokens.

        The batch is remembered for the call's model. A model that cannot be loaded is loaded once more, with nothing else in
        memory. Raises DoesNotFitError if that fails too.
        """
        if not isinstance(call, ModelCall):
            return self._run(call)
        self._unfit.check(call, self._models.keep_only)
        times = loads = 0
        while True:
            tokens = self._budgets.of(call)
            try:
                commits, measured = self._run(replace(call, loading=replace(call.loading, batch_tokens=tokens)))
            except Exception as error:
                short, loads = is_out_of_memory(error), loads + isinstance(error, DoesNotFitError)
                drop_locals(error)  # they hold what the attempt had in memory
                free_memory()
                if not short:
                    raise
                if is_training(call):  # its batches are its recipe's, and a smaller one is another training
                    raise RunError(too_much_to_train(call, error)) from error
                if self._models.keep_only(call.affinity):
                    pass
                elif isinstance(error, DoesNotFitError):  # smaller batches are no help
                    if loads > 1:
                        self._unfit.add(call, error)
                        raise
                elif not self._budgets.halve(call):
                    raise RunError(too_large(call, error)) from error
            else:
                return commits, {**measured, **({"out_of_memory": times, "batch_tokens": tokens} if times else {})}
            times += 1

    def unload(self) -> None:
        """Let go of all models."""
        self._models.clear()

    @singledispatchmethod
    def _run(self, call: Call) -> tuple[list[Commit], dict[str, float]]:
        raise TypeError(f"no way to run a {type(call).__name__}")

    @_run.register
    def _(self, call: SubstituteCall) -> tuple[list[Commit], dict[str, float]]:
        pair, work = self._models.pair(call), Work()
        if not call.same.layers <= pair.same.layers or (call.same.rest and not pair.same.rest):
            raise InputError(
                f"checkpoints '{call.base.source}' and '{call.tuned.source}' have the same digests for layers "
                f"{sorted(call.same.layers)}, but of these only {sorted(pair.same.layers & call.same.layers)} are the same once "
                "loaded; they may have been rewritten since they were checked. Run again"
            )
        budget = call.loading.batch_tokens
        riding = [example for part in call.captures for example in call.examples[part.first : part.stop]]
        collector = Collector(pair.base, riding, call.pooling, budget) if riding else None
        losses = sweep_losses(pair, call.examples, call.windows, batch_tokens=budget, work=work, collector=collector)
        commits = _loss_commits(call, losses, "exact")
        if collector is not None:
            commits += self._captured(call, call.captures, collector.captured())
        measured = _did(work)
        if isinstance(pair, StreamedPair):
            measured |= {"states_on_disk": work.bytes_on_disk}
        return commits, measured

    @_run.register
    def _(self, call: EstimateCall) -> tuple[list[Commit], dict[str, float]]:
        pair, work = self._models.pair(call), Work()
        losses = estimate_losses(
            pair, call.examples, call.windows, points=call.points, batch_tokens=call.loading.batch_tokens, work=work
        )
        return _loss_commits(call, losses, "gradient"), _did(work)

    @_run.register
    def _(self, call: VerifyCall) -> tuple[list[Commit], dict[str, float]]:
        pair, ids = self._models.pair(call), [e.id for e in call.examples]
        swept = self.folder.chunks.read_parts(dict.fromkeys(call.parts)).to_pandas().set_index(["part", "example_id"])
        tables = []
        for change, part in zip(call.windows, call.parts, strict=True):
            losses = swept.loc[part].loc[ids, "loss"].to_numpy(dtype=float)
            recomputed = true_losses(pair, call.examples, change)
            difference = apart(losses, recomputed)
            close = within(difference, losses, call.loading.dtype)
            if not close.all():
                at = int(close.argmin())
                raise RaysweepError(
                    f"'{change.text}' recomputed by swapping the modules has a different loss for record {ids[at]}: "
                    f"{recomputed[at]:.6f}, but the sweep has {losses[at]:.6f}, which rounding in {call.loading.dtype} does "
                    "not explain. Do not trust this run's losses, and report the architecture"
                )
            told = {key: labels(change)[key] for key in ("kind", "layers", "coefficient")}
            figures = {"example_id": ids, "loss": losses, "recomputed": recomputed, "difference": difference}
            tables.append(pd.DataFrame({**told, **figures}))
        rows = pd.concat(tables, ignore_index=True).assign(part=call.keys[0])
        return [table_commit("verification", call, call.keys, rows)], {}

    @_run.register
    def _(self, call: GenerateCall) -> tuple[list[Commit], dict[str, float]]:
        pair, tokenizer = self._models.pair(call), load_tokenizer(call.base)
        texts = generate_text(
            pair,
            tokenizer,
            call.examples,
            call.windows,
            new_tokens=call.new_tokens,
            batch_tokens=call.loading.batch_tokens,
            ends=call.ends,
        )
        rows = pd.concat(
            [
                pd.DataFrame(
                    {
                        "example_id": [e.id for e in call.examples],
                        "intervention": change.words,
                        "prompt": [e.prompt for e in call.examples],
                        "reference": [e.response for e in call.examples],
                        "text": written,
                        "part": key,
                    }
                )
                for change, key, written in zip(call.windows, call.keys, texts, strict=True)
            ],
            ignore_index=True,
        )
        return [table_commit("generate", call, call.keys, rows)], {}

    @_run.register
    def _(self, call: RemovalCall) -> tuple[list[Commit], dict[str, float]]:
        layer = call.layer if call.dynamics is None else self._critical_layer(call, call.dynamics)
        if layer is None:
            tables = nowhere_to_remove(call.removals, f"fewer than {call.top} layers have a δ in {call.metric}")
        else:
            model = (
                self._models.adapter(call.base, call.loading)
                if call.tuned is None
                else self._models.adapter(call.tuned, call.loading, base=call.base)
            )
            tables = remove_at_layer(
                model,
                load_tokenizer(call.base),
                call.examples,
                layer,
                call.removals,
                shown=call.shown,
                new_tokens=call.new_tokens,
                batch_tokens=call.loading.batch_tokens,
                ends=call.ends,
            )
        tables["removal"] = tables["removal"].assign(of="tuned" if call.tuned else "base")
        return [
            table_commit(name, call, (key,), tables[name].assign(part=pd.Series(key, tables[name].index, dtype="str")))
            for name, key in call.results.items()
        ], {}

    def _critical_layer(self, call: RemovalCall, dynamics: str) -> int | None:
        """The layer at the call's place among those with the smallest δ; None where too few have one."""
        rows = self.folder.chunks.read_parts([dynamics]).to_pandas()
        delta_L = rows[rows["metric"] == call.metric].sort_values("layer")["delta"].to_numpy(dtype=float)
        chosen = change_points(delta_L, call.top)
        return int(chosen[call.layer]) if call.layer < len(chosen) else None

    @_run.register
    def _(self, call: CaptureCall) -> tuple[list[Commit], dict[str, float]]:
        source = self._models.streamed(call.base, call.loading) if call.loading.stream else None
        adapter = source.adapter if source else self._models.adapter(call.base, call.loading)
        layers = source.layers if source else None
        captured = capture_states(
            adapter,
            call.examples,
            pooling=call.pooling,
            batch_tokens=call.loading.batch_tokens,
            layers=layers,
        )
        return self._captured(call, call.captures, captured), {"layer_applications": adapter.n_layers}

    def _captured(self, call: Call, parts: Sequence[CapturePart], captured: Captured) -> list[Commit]:
        """Write the states to the store, a part a chunk; `captured` has the chunks' examples one after the other."""
        folder, commits, first = self.folder.activations(call.model, call.dataset), [], 0
        depth, _, width = captured.states.shape
        for part in parts:
            rows = slice(first, first + part.stop - part.first)
            first = rows.stop
            name = f"{part.name}-{secrets.token_hex(4)}"  # no other writer's, who may be writing the same chunk
            files = write_part(
                folder,
                name,
                captured.states[:, rows],
                captured.example_ids[rows],
                captured.token_pos[rows],
                captured.token_ids[rows],
            )
            extra = {
                "part": name,
                "folder": f"activations/{call.model}/{call.dataset}",
                "layers": depth,
                "width": width,
                "torch_dtype": str(captured.states.dtype).removeprefix("torch."),
            }
            commit = commit_name("capture", call.model, call.dataset, [part.key])
            commits.append(Commit(commit, (part.key,), None, tuple(files), extra))
        return commits

    @_run.register
    def _(self, call: TrainCall) -> tuple[list[Commit], dict[str, float]]:
        if call.made is not None:
            tuned = self._models.adapter(call.made, call.loading, base=call.base)
            commit, did = evaluated(call, self.folder, tuned)
            return [commit], did
        self._models.clear()  # training wants the memory
        return train(call, self.folder, self._tell)

    @_run.register
    def _(self, call: BackdoorCall) -> tuple[list[Commit], dict[str, float]]:
        if call.trains:
            self._models.clear()
        return attack(call, self.folder, self._tell, lambda: self._models.adapter(call.base, call.loading))

    @_run.register
    def _(self, call: JudgeCall) -> tuple[list[Commit], dict[str, float]]:
        return judged(call, self.folder), {}

    @_run.register
    def _(self, call: AdaptationCall) -> tuple[list[Commit], dict[str, float]]:
        return adapted(call, self.folder), {}

    @_run.register
    def _(self, call: SimilarityCall) -> tuple[list[Commit], dict[str, float]]:
        return compared(call, self.folder), {}

    @_run.register
    def _(self, call: SpectrumCall) -> tuple[list[Commit], dict[str, float]]:
        return spectra(call, self.folder), {}

    @_run.register
    def _(self, call: CorrelateCall) -> tuple[list[Commit], dict[str, float]]:
        return correlated(call, self.folder), {}


def _held(call: Call) -> dict[str, int]:
    """The tokens that a model was run on, and the memory that is held after it."""
    if isinstance(call, ModelCall):
        return {"tokens": call.n_tokens, "held_bytes": held_bytes(call.loading.device)}
    return {"held_bytes": held_bytes("cpu")}


def _loss_commits(call: SubstituteCall | EstimateCall, losses: np.ndarray, estimator: str) -> list[Commit]:
    """A commit a chunk of losses [W, N]."""
    commits, first, n = [], 0, len(call.windows)
    for chunk, size in enumerate(call.sizes or (len(call.examples),)):
        examples = call.examples[first : first + size]
        keys = call.keys[chunk * n : (chunk + 1) * n]
        rows = loss_table(losses[:, first : first + size], call.windows, examples, estimator)
        rows["part"] = [key for key in keys for _ in examples]
        commits.append(table_commit(call.kind, call, keys, rows))
        first += size
    return commits


def _did(work: Work) -> dict[str, float]:
    return {"layer_applications": work.applications, "token_applications": work.token_applications}
