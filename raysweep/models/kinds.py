"""What a model is for: predicting the next token, or only its states; and what raysweep cannot take apart at all.

Decided by transformers' own registries and a config's own fields; there is no list of architectures here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from raysweep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def checkpoint_predicts(config: PreTrainedConfig, source: str) -> bool:
    """Whether the checkpoint of this config is a causal language model (True) or has states only (False).

    States only: encoders (BERT with whatever head), and decoders saved without the head that predicts. Raises InputError for
    what is neither, naming its class and the reason.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING

    default = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    name = (config.architectures or [default or config.model_type])[0]
    where = f"checkpoint '{source}' ({name})"
    _refuse_two_stacks(config, where)
    if name in _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return not _sees_both_ways(config)
    if config.get_text_config() is not config:
        raise InputError(
            f"{where} takes more than text, and transformers has no causal language model for it; give only the "
            "checkpoint of its language model"
        )
    if type(config) not in MODEL_MAPPING or MODEL_MAPPING[type(config)].main_input_name != "input_ids":
        raise InputError(f"{where} does not take text; give a causal language model or a text encoder")
    return False


def model_predicts(model: PreTrainedModel) -> bool:
    """Whether a loaded model predicts the next token. Raises InputError for an encoder-decoder, and for what takes no text."""
    _refuse_two_stacks(model.config, type(model).__name__)
    if model.main_input_name != "input_ids":
        raise InputError(f"{type(model).__name__} does not take text; give a causal language model or a text encoder")
    return model.can_generate() and not _sees_both_ways(model.config)


def _names(values: Iterable[str | Iterable[str]]) -> set[str]:
    """The class names of a registry, some of whose entries are several."""
    return {name for value in values for name in ([value] if isinstance(value, str) else value)}


def _refuse_two_stacks(config: PreTrainedConfig, where: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{where} is an encoder-decoder: its decoder also reads the states of a separate encoder, and raysweep "
            "sweeps a single stack of layers; give a decoder-only model or an encoder"
        )


def _sees_both_ways(config: PreTrainedConfig) -> bool:
    """A model of a masked-language architecture sees what follows, whatever its head, unless its config makes it a decoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
