"""What a plan takes for granted of what is not on this machine: checkpoints by their architecture, data by what is expected.

A run takes nothing for granted: it reads the checkpoints and the records, or refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from raysweep.config import Config, ModelConfig
from raysweep.config_datasets import RecordsConfig
from raysweep.config_expected import ExpectedConfig
from raysweep.data.examples import Loaded, Room
from raysweep.data.expected import expected_examples
from raysweep.data.formats import find_format
from raysweep.data.records import are_here
from raysweep.data.wording import find_wording
from raysweep.errors import InputError
from raysweep.models.architecture import describe_architecture, is_here, tuned_on_paper
from raysweep.models.checkpoint import Checkpoint


def will_assume(config: Config) -> bool:
    """Whether something that the config describes for plans is not here, so that this machine is not where it will run."""
    lacking = any(model.architecture is not None and not is_here(model.base) for model in config.models)
    return lacking or any(dataset.expected and not are_here(dataset.path) for dataset in config.datasets)


def checkpoint_on_paper(model: ModelConfig, source: str, base: Checkpoint | None = None) -> Checkpoint | None:
    """The checkpoint `source` of the model by its architecture; None where it has none, or the checkpoint is here.

    A tuned one has the sizes of its `base`. Raises InputError for an architecture that cannot be used.
    """
    if model.architecture is None or is_here(source):
        return None
    if base is not None:
        return tuned_on_paper(base, source)
    return describe_architecture(source, Path(model.architecture).expanduser())


def examples_on_paper(
    model: ModelConfig,
    base: Checkpoint,
    name: str,
    source: RecordsConfig,
    room: Room,
    *,
    record_format: str,
    prompts_only: bool = False,
) -> Loaded | None:
    """The examples that are expected of a source, as `load_examples` would give them; None where records can be read.

    They can where they are here and so is the model, whose tokenizer is needed. `name` is the data set's, for messages.
    Raises InputError where they cannot and nothing is expected.
    """
    here = are_here(source.path)
    if not base.on_paper and (here or source.expected is None):
        return None
    if source.expected is None:
        raise InputError(
            f"data set '{name}' cannot be tokenised: checkpoint '{base.source}' of model '{model.name}' is not on this "
            "machine, and its tokenizer is needed; for a plan, give expected: "
            "{examples, prompt_tokens, response_tokens}"
        )
    find_format(record_format, source.prompt, source.response, prompts_only=prompts_only)
    find_wording(model.template)
    return expected_examples(
        source.expected.examples,
        source.expected.prompt_tokens,
        source.expected.response_tokens,
        limit=source.limit,
        max_tokens=source.max_tokens,
        room=room,
        too_long=source.too_long,
        prompts_only=prompts_only,
        last=source.last,
        all_but_last=source.all_but_last,
    )


def assumptions(models: Mapping[str, list[Checkpoint]], expected: Mapping[str, ExpectedConfig]) -> tuple[str, ...]:
    """What a plan assumes, in words: each model's checkpoints that are not here, and each data set that was not read."""
    said = []
    for name, checkpoints in models.items():
        lacking = [checkpoint for checkpoint in checkpoints if checkpoint.on_paper]
        if lacking:
            first, more = lacking[0], f" and {len(lacking) - 1} tuned from it" if len(lacking) > 1 else ""
            said.append(
                f"checkpoint '{first.source}'{more} of {name} {'are' if more else 'is'} not on this machine: assuming {first.n_layers} layers "
                f"and {first.n_parameters / 1e9:.2f} "
                f"billion parameters each, stored in {first.dtype} (from {first.folder})"
            )
    for name, told in expected.items():
        said.append(
            f"records of {name} are not read: assuming {told.examples} of {told.prompt_tokens} prompt and "
            f"{told.response_tokens} response tokens, before any limit (from `expected`)"
        )
    return tuple(said)
