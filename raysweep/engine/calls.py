"""Calls: what a worker is handed, and what it hands back.

A call fuses the parts of all tasks that share checkpoints and a chunk. It carries names, paths, tokens and keys, never a
model. Which calls a graph still needs is pending.py's to say; running them is work.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from raysweep.data.examples import Example
from raysweep.fingerprint import fingerprint
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.same import Same
from raysweep.models.text_settings import EndsOfPair
from raysweep.numerics.measures.registry import Parameters
from raysweep.store.artifacts import FileEntry
from raysweep.studies.interventions import Change
from raysweep.studies.windows import Window

if TYPE_CHECKING:
    import pyarrow as pa

    from raysweep.studies.capture import Pooling
    from raysweep.studies.endpoint import EndpointJudge
    from raysweep.studies.judging import Keywords, Pattern
    from raysweep.studies.removal import Removal
    from raysweep.studies.training import Recipe, Trained


Failure = Literal["refused", "raised", "lost", "unstarted"]


@dataclass(frozen=True)
class Loading:
    """How a call's models are loaded, and the padded tokens of one block call."""

    dtype: str
    device: str
    device_map: str | Mapping[str, Any] | None
    batch_tokens: int
    stream: bool = False
    memory: int | None = None
    spill: str | None = None


@dataclass(frozen=True)
class Call:
    """One unit for a worker. `tasks` are the names of the tasks it works on.

    `chunks` names the commits that have what it reads, so that a worker does not have to look through all of them.
    """

    name: str
    model: str
    dataset: str
    tasks: tuple[str, ...]
    chunks: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def affinity(self) -> tuple[str, ...]:
        """Fingerprints of the checkpoints that a worker must have loaded for it, the base's first."""
        return ()

    @property
    def kind(self) -> str:
        """What it does, in a word: the first of its name."""
        return self.name.partition(" ")[0]


@dataclass(frozen=True)
class ModelCall(Call):
    """A call that runs a model over examples."""

    base: Checkpoint
    loading: Loading
    examples: tuple[Example, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of its examples, padding apart."""
        return sum(example.length for example in self.examples)

    @property
    def affinity(self) -> tuple[str, ...]:
        """The base's fingerprint."""
        return (self.base.fingerprint,)


@dataclass(frozen=True)
class CapturePart:
    """A chunk whose activations are captured: its key, its name in the store, and which of the call's examples it is."""

    key: str
    name: str
    first: int
    stop: int


@dataclass(frozen=True)
class PairCall(ModelCall):
    """A call that runs a tuned model with `windows` of its layers put back to the base's; `keys` has one a window."""

    tuned: Checkpoint
    windows: tuple[Change, ...]
    keys: tuple[str, ...]

    @property
    def affinity(self) -> tuple[str, ...]:
        """The fingerprints of base and tuned."""
        return (self.base.fingerprint, self.tuned.fingerprint)


@dataclass(frozen=True)
class SubstituteCall(PairCall):
    """One pass over one chunk for all windows; over several where layers are streamed.

    `same` is what the plan took base and tuned to have in common. `sizes` are the examples of each chunk, and `keys` has one
    a window for the first chunk, then for the next, … The activations of the chunks in `captures` are taken in the same
    pass, so that the base's layers are read once for both.
    """

    same: Same
    sizes: tuple[int, ...]
    captures: tuple[CapturePart, ...] = ()
    pooling: Pooling = "last"


@dataclass(frozen=True)
class EstimateCall(PairCall):
    """Losses of all changes by first order in the weights, from gradients at so many points; `sizes` and `keys` as of a sweep."""

    sizes: tuple[int, ...]
    points: int


@dataclass(frozen=True)
class VerifyCall(PairCall):
    """Losses of a few examples under a few changes, taken again; `parts` has the sweep's own for each. One key for all."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class GenerateCall(PairCall):
    """Text of a few examples under each of the windows or other changes; `ends` are the tokens that end a text."""

    new_tokens: int
    ends: EndsOfPair


@dataclass(frozen=True)
class CaptureCall(ModelCall):
    """Activations of one chunk; of several where layers are streamed."""

    captures: tuple[CapturePart, ...]
    pooling: Pooling

    @property
    def n_tokens(self) -> int:
        """Tokens of its examples' prompts, padding apart."""
        return sum(example.n_prompt for example in self.examples)


@dataclass(frozen=True)
class RemovalCall(ModelCall):
    """Principal components taken out at one layer of the base model, or of the tuned one where there is one.

    `layer` is its index, or where `dynamics` has the key of δ, its place among the `top` layers where the metric's is
    smallest. Text is of the first `shown` examples, and ends with the first of the tokens `ends`. `results` has the keys of the
    tables.
    """

    tuned: Checkpoint | None
    results: Mapping[str, str]
    layer: int
    removals: tuple[Removal, ...]
    shown: int
    new_tokens: int
    ends: tuple[int, ...] = ()
    dynamics: str | None = None
    metric: str = ""
    top: int = 1

    @property
    def affinity(self) -> tuple[str, ...]:
        """The fingerprints of the base, and of the tuned model where that is what is run."""
        return (self.base.fingerprint, *([self.tuned.fingerprint] if self.tuned else []))


@dataclass(frozen=True)
class Found:
    """Layers that a similarity task finds: the `top` where δ of the metric is smallest, or (not `critical`) as many others.

    `dynamics` is the key of δ; the others are drawn with the training's seed.
    """

    critical: bool
    top: int
    dynamics: str
    metric: str


@dataclass(frozen=True)
class Choice:
    """Which layers a fine-tune of the run trains: `trained`, whose layers a similarity task finds if there is a `found`.

    `unreached` are layers in which low-rank updates have no place. `seed` is the training's.
    """

    trained: Trained
    seed: int
    found: Found | None = None
    unreached: frozenset[int] = frozenset()

    def untrained(self, n_layers: int) -> frozenset[int]:
        """The layers that stay as the base has them."""
        return self.unreached | {layer for layer in range(n_layers) if not self.trained.trains(layer)}


@dataclass(frozen=True)
class TrainCall(ModelCall):
    """Trains the base on the examples, measuring the loss of the `test` examples along the way.

    `found` says where the recipe's layers come from, unless it has them. `key` is the identity of what is made, `results` has
    the keys of the tables. `kept` is where a checkpoint goes, below the run folder, with `steps` beside it by the keys of their
    weights; None where rows are all that is wanted. `made` is the checkpoint where it is there already, and only the loss of
    other test examples is asked for.
    """

    test: tuple[Example, ...]
    study: str
    arm: str
    recipe: Recipe
    found: Found | None
    key: str
    results: Mapping[str, str]
    kept: str | None = None
    steps: Mapping[str, str] = field(default_factory=dict)
    made: Checkpoint | None = None
    processes: int = 1
    strategy: Literal["fsdp", "ddp"] = "fsdp"


@dataclass(frozen=True)
class BackdoorCall(TrainCall):
    """Trains on records with a backdoor in them, or not at all, and has the model answer prompts, clean and triggered.

    Answers are `tokens` long, the likeliest, or sampled with the training's seed where there is a `temperature`. They end before
    the first of the tokens `ends`.
    """

    trains: bool = True
    clean: tuple[Example, ...] = ()
    triggered: tuple[Example, ...] = ()
    tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class JudgeCall(Call):
    """Judges the answers of all arms of a cell; `parts` has the keys of their texts, `results` those of the tables."""

    parts: tuple[str, ...]
    results: Mapping[str, str]
    judge: Keywords | Pattern | EndpointJudge
    trigger: str


@dataclass(frozen=True)
class AdaptationCall(Call):
    """Curves of test loss compared between the arms; `parts` has the keys of each training's rows."""

    key: str
    parts: tuple[str, ...]
    arms: tuple[str, ...]


@dataclass(frozen=True)
class SimilarityCall(Call):
    """Similarity, dynamics, choices of layers and health of all captured chunks of a cell."""

    parts: tuple[str, ...]
    results: Mapping[str, str]
    metrics: tuple[str, ...]
    neighbourhood: int
    parameters: Parameters
    pooling: Pooling
    resamples: int
    seed: int
    diagonal: bool = True


@dataclass(frozen=True)
class SpectrumCall(Call):
    """Spectra of all captured chunks of a cell."""

    key: str
    parts: tuple[str, ...]
    pooling: Pooling
    components: tuple[int, ...]


@dataclass(frozen=True)
class CorrelateCall(Call):
    """Correlation of a cell's dynamics with its losses; both are read from what is committed.

    `untrained` are layers that base and tuned have in common; with a `choice`, they are known once its layers are found.
    """

    key: str
    parts: tuple[str, ...]
    pooling: Pooling
    losses: Mapping[Window, tuple[str, ...]]
    metrics: tuple[str, ...]
    neighbourhood: int
    parameters: Parameters
    resamples: int
    seed: int
    drop_ends: int
    diagonal: bool = True
    untrained: tuple[int, ...] = ()
    choice: Choice | None = None


@dataclass(frozen=True)
class Commit:
    """Rows (with a column `part`) and files to commit together, and the keys that this makes done."""

    name: str
    keys: tuple[str, ...]
    table: pa.Table | None
    files: tuple[FileEntry, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of a call: commits, or an error with its traceback; `measured` has seconds and counts.

    Of a call with an error `failure` says what kind: `refused` for one of raysweep's own errors, which would come again;
    `raised` for any other exception; `lost` if the worker died while it ran the call, or its CUDA context did, so that it
    has to be replaced; `unstarted` if the worker died before, so that the call is not to blame.
    """

    call: Call
    commits: tuple[Commit, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    traceback: str | None = None
    failure: Failure = "raised"


def made_by(call: Call) -> tuple[str, ...]:
    """The keys of the parts that a call makes; none of one whose tasks all depend on it whole."""
    keys = call.keys if isinstance(call, PairCall) else ()
    captures = call.captures if isinstance(call, SubstituteCall | CaptureCall) else ()
    return (*keys, *(part.key for part in captures))


def commit_name(kind: str, model: str, dataset: str, keys: Sequence[str]) -> str:
    """A file name for a commit: readable, and unique for the set of keys."""
    return f"{kind}-{model[:40]}-{dataset[:40]}-{fingerprint(sorted(keys))[:16]}"
