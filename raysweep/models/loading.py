"""Loading what checkpoint.py describes: models for measurement, adapters merged onto their base, tokenizers.

Calling the loaded model's layers is adapter.py's.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint, predicts_tokens, standard_config
from raysweep.models.weights import NOT_PLAIN

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def resolve_dtype(asked: str, stored: str, device: str) -> str:
    """The dtype to compute in: `auto` is the checkpoint's own on an accelerator, float32 on a CPU."""
    if asked != "auto":
        return asked
    return "float32" if device == "cpu" else stored


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    device_map: str | Mapping[str, Any] | None = None,
    base: Checkpoint | None = None,
) -> PreTrainedModel:
    """Load a model for measurement (eval mode, no gradients): a causal language model, or the states of another alone.

    What predicts no next token (kinds.py) is loaded without its head and without a pooler: both come after the last layer.
    With `device_map` ("auto", or a map as accelerate takes it) the model is spread over devices; else it goes to
    `device`. A PEFT adapter needs `base` and is merged onto it. Raises InputError where loading fails or where weights are
    missing.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForCausalLM

    if checkpoint.adapter:
        if base is None:
            raise InputError(f"'{checkpoint.source}' is a PEFT adapter; name the base checkpoint it belongs to")
        return _merge_adapter(checkpoint, base, dtype=dtype, device=device, device_map=device_map)
    placed: dict[str, Any] = {"device_map": device_map if device_map is not None else {"": device}}
    predicts = predicts_tokens(checkpoint)
    if not predicts and may_pool(checkpoint):
        placed["add_pooling_layer"] = False
    try:
        model, info = (AutoModelForCausalLM if predicts else AutoModel).from_pretrained(
            checkpoint.folder,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            output_loading_info=True,
            **placed,
        )
    except pickle.UnpicklingError as error:
        raise InputError(f"checkpoint '{checkpoint.source}' {NOT_PLAIN}") from error
    except (ValueError, OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"checkpoint '{checkpoint.source}' could not be loaded: {error}") from error
    if info["missing_keys"]:
        raise InputError(
            f"checkpoint '{checkpoint.source}' lacks {len(info['missing_keys'])} weights, "
            f"{sorted(info['missing_keys'])[0]} among them; it would run on random values"
        )
    return model.eval().requires_grad_(False)


def _merge_adapter(
    adapter: Checkpoint, base: Checkpoint, *, dtype: str, device: str, device_map: str | Mapping[str, Any] | None
) -> PreTrainedModel:
    """The base with the adapter's update added to its weights."""
    model = load_model(base, dtype=dtype, device=device, device_map=device_map)
    return merge_adapter(adapter, model, f"its base '{base.source}'")


def merge_adapter(adapter: Checkpoint, model: PreTrainedModel, where: str) -> PreTrainedModel:
    """The model with the adapter's update added to its weights, in place; every stored tensor must have found its place.

    `where` names the model in messages. Raises InputError for an adapter that does not fit it, or cannot be merged.
    """
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    unfit = f"PEFT adapter '{adapter.source}' does not fit {where}"
    try:
        config = PeftConfig.from_pretrained(adapter.folder)
        if config.is_prompt_learning:
            raise InputError(
                f"PEFT adapter '{adapter.source}' is of type {config.peft_type.value}, which changes no layer's weights "
                "and cannot be merged; give an adapter of weights (LoRA and its kin) or a full checkpoint"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under a name it is giving up
            tuned = PeftModel(model, config)
            placed = tuned.load_adapter(adapter.folder, "default")
        for problem, names in (("lacks", placed.missing_keys), ("has no place for", placed.unexpected_keys)):
            if names:
                who = "it" if problem == "lacks" else "the base"
                raise InputError(f"{unfit}: {who} {problem} {len(names)} of its tensors, {sorted(names)[0]} among them")
        return tuned.merge_and_unload(safe_merge=True).eval().requires_grad_(False)
    except pickle.UnpicklingError as error:
        raise InputError(f"PEFT adapter '{adapter.source}' {NOT_PLAIN}") from error
    except (ValueError, OSError, RuntimeError, KeyError, SafetensorError) as error:
        first = " ".join(" ".join(str(error).splitlines()[:2]).split())  # of unlike shapes PEFT lists every tensor
        raise InputError(f"{unfit}: {first}") from error


def may_pool(checkpoint: Checkpoint) -> bool:
    """Whether the encoder's class can be built without a pooler, which a checkpoint with another head does not have."""
    from transformers import AutoModel

    model_class = AutoModel._model_mapping[type(standard_config(checkpoint.folder))]
    return "add_pooling_layer" in signature(model_class.__init__).parameters


def skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """The causal language model without weights (on the meta device), to look at how it is made."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(standard_config(checkpoint.folder), trust_remote_code=False)


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. Raises InputError where it has none that transformers can read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # a damaged file raises whatever its reader stumbled over
        raise InputError(f"checkpoint '{checkpoint.source}' has no usable tokenizer: {error}") from error
