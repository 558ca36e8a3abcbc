"""Kernels that a checkpoint's config names: only those of torch and transformers themselves are used.

transformers takes any `owner/name` in a config's `attn_implementation` for a repository of compiled code, which it downloads and
runs. So such names are dropped wherever they stand, and the attention that a model is built with is set explicitly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError
from raysweep.models.kinds import checkpoint_predicts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ATTENTION = ("sdpa", "eager")
_EXPERTS = ("eager", "batched_mm", "grouped_mm")
# By setting, the values that name code of torch or transformers. What names other code has none.
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "attn_implementation": _ATTENTION,
    "_attn_implementation": _ATTENTION,
    "_attn_implementation_internal": _ATTENTION,
    "experts_implementation": _EXPERTS,
    "_experts_implementation": _EXPERTS,
    "_experts_implementation_internal": _EXPERTS,
    "use_kernels": (),
    "kernel_config": (),
    "allow_all_kernels": (),
    "custom_generate": (),
}


def without_kernels(value: Any) -> Any:
    """A config's JSON without settings that name foreign kernels, in itself and in every config inside it."""
    if isinstance(value, list):
        return [without_kernels(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_kernels(each)
        for key, each in value.items()
        if key not in _KNOWN or each is None or (isinstance(each, str) and each in _KNOWN[key])
    }


def choose_attention(config: PreTrainedConfig) -> None:
    """Set the attention that transformers would choose for the config's model: sdpa if its class has it, else eager.

    Configs inside this one keep their own or none, from which transformers chooses likewise for their parts. So does a config
    of which no model is measured.
    """
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.auto_factory import _get_model_class

    try:
        predicts = checkpoint_predicts(config, "")
    except InputError:  # refused where it is asked for
        return
    made: Any = _get_model_class(config, (AutoModelForCausalLM if predicts else AutoModel)._model_mapping)
    of_text = made.config_class is config.sub_configs.get("text_config")  # transformers gives this class that one alone
    used = config.get_text_config() if of_text else config
    if used._attn_implementation is None:
        used._attn_implementation_internal = "sdpa" if made._supports_sdpa else "eager"
