"""Loading what checkpoint.py describes: models for measurement, adapters merged onto their base, tokenizers.

Calling the loaded model's layers is adapter.py's.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint, describe, predicts_tokens, standard_config
from raysweep.models.file_sizes import check_file_sizes
from raysweep.models.peft_check import check_adapter
from raysweep.models.peft_merge import merge_adapter
from raysweep.models.peft_types import read_peft_config
from raysweep.models.quantisation import is_quantised
from raysweep.models.text_settings import plain_generation_config
from raysweep.models.tied_weights import shared_names
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
    `device`. A PEFT adapter needs `base`, and is checked and merged onto it in float32. Raises InputError where loading fails or
    where weights are missing.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForCausalLM

    if checkpoint.adapter:
        if base is None:
            raise InputError(f"'{checkpoint.source}' is a PEFT adapter; name the base checkpoint it belongs to")
        return _load_merged(checkpoint, base, dtype=dtype, device=device, device_map=device_map)
    config = standard_config(checkpoint.folder)
    if hasattr(config, "quantization_config") and not is_quantised(checkpoint):
        del config.quantization_config  # of before its weights were merged or dequantised
    try:
        model, info = (AutoModelForCausalLM if predicts_tokens(checkpoint) else AutoModel).from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            output_loading_info=True,
            device_map=device_map if device_map is not None else {"": device},
            **_options(checkpoint),
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


def _load_merged(
    adapter: Checkpoint, base: Checkpoint, *, dtype: str, device: str, device_map: str | Mapping[str, Any] | None
) -> PreTrainedModel:
    """The base with the adapter merged into its weights in float32, then rounded to the dtype once.

    A float32 model is merged where it stays. Another is merged on the CPU, whose memory has to hold it in float32.
    """

    if not adapter.config:  # a run made it after its plan was made
        adapter = describe(adapter.source)
    check_adapter(adapter, base, dry_run=False)  # the real weights are next
    config = read_peft_config(adapter)
    if dtype == "float32":
        model = load_model(base, dtype=dtype, device=device, device_map=device_map)
        return merge_adapter(adapter, base, config, model)
    merged = merge_adapter(adapter, base, config, load_model(base))
    return in_dtype(
        merged,
        dtype,
        device_map if device_map is not None else {"": device},
        why=f"the layers of '{base.source}' share weights, which PEFT adapter '{adapter.source}' changes apart",
        options=_options(base),
    )


def in_dtype(
    merged: PreTrainedModel, dtype: str, device_map: str | Mapping[str, Any], *, why: str, options: Mapping[str, Any]
) -> PreTrainedModel:
    """Cast a merged model as a checkpoint of it would be on loading: some architectures keep some weights in float32.

    `options` are for its class. Raises InputError if weights are not shared as in the merged model; `why` says what may be the
    reason.
    """
    import torch

    model = type(merged).from_pretrained(
        None,
        config=merged.config,
        state_dict=merged.state_dict(),
        dtype=getattr(torch, dtype),
        device_map=device_map,
        **options,
    )
    if shared_names(model) != shared_names(merged):
        raise InputError(f"{why}, and the model cannot be made so in {dtype}; set the model's dtype to float32")
    return model.eval().requires_grad_(False)


def _options(checkpoint: Checkpoint) -> dict[str, Any]:
    """Generation settings for a model that predicts; for another, to be built without a pooler if its class can be."""
    if predicts_tokens(checkpoint):
        return {"generation_config": plain_generation_config(checkpoint)}
    return {"add_pooling_layer": False} if may_pool(checkpoint) else {}


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

    check_file_sizes(checkpoint.folder)
    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # a damaged file raises whatever its reader stumbled over
        raise InputError(f"checkpoint '{checkpoint.source}' has no usable tokenizer: {error}") from error
