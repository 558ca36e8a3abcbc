"""What inspection finds for texts: the tokens that end them, and the tokenizer that decodes them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from raysweep.config_studies import StudiesConfig
from raysweep.engine.facts import ModelFacts, Texts
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.loading import load_tokenizer
from raysweep.models.text_settings import EndTokens, decoder_digest, end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def writes_text(studies: StudiesConfig) -> bool:
    """Whether some study has models write text."""
    return bool((studies.substitution and studies.substitution.generate) or studies.removal or studies.backdoor)


def with_texts(model: ModelFacts) -> tuple[ModelFacts, list[str]]:
    """The model with what decides its texts, and warnings about end tokens that cannot end one.

    Files are read, and a tokenizer is loaded only if they name no end token. Raises InputError for a generation_config.json
    that is not a JSON object.
    """
    base = _found(model.base, model.base)
    tuned = {name: _found(tuned, model.base) for name, tuned in model.tuned.items() if not tuned.adapter}
    warnings = _warnings(model.base, base)
    for name, found in tuned.items():
        warnings += _warnings(model.tuned[name], found)
    texts = Texts(decoder_digest(model.base), base.ids, {name: found.ids for name, found in tuned.items()})
    return replace(model, texts=texts), list(dict.fromkeys(warnings))


def _found(checkpoint: Checkpoint, base: Checkpoint) -> EndTokens:
    return end_tokens(checkpoint, partial(_tokenizer, checkpoint, base))


def _tokenizer(checkpoint: Checkpoint, base: Checkpoint) -> PreTrainedTokenizerBase | None:
    """The checkpoint's own tokenizer, else its base's; None if neither is here."""
    own = checkpoint if (checkpoint.folder / "tokenizer_config.json").is_file() else base
    return None if own.on_paper else load_tokenizer(own)


def _warnings(checkpoint: Checkpoint, found: EndTokens) -> list[str]:
    said = []
    if found.ignored:
        numbers = ", ".join(map(str, found.ignored))
        said.append(
            f"checkpoint '{checkpoint.source}' names end tokens that its vocabulary does not have ({numbers}); they are ignored"
        )
    if not found.ids and not checkpoint.on_paper:
        said.append(
            f"checkpoint '{checkpoint.source}' names no end token (generation_config.json, config.json, tokenizer), so "
            "every text has the maximum length"
        )
    return said
