"""Loading what checkpoint.py describes: models for measurement, adapters merged onto their base, tokenizers.

Calling the loaded model's layers is adapter.py's.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from weakref import finalize

from raysweep.errors import InputError, shortened
from raysweep.models.bin_weights import NOT_PLAIN
from raysweep.models.checkpoint import Checkpoint, describe, predicts_tokens, standard_config
from raysweep.models.digest_check import SETTINGS_FILES, TOKENIZER_FILES, unchanged
from raysweep.models.file_sizes import check_file_sizes
from raysweep.models.lazy_tensors import LazyTensors, can_be_lazy
from raysweep.models.machine_errors import is_machine_error
from raysweep.models.own_copy import own_copy, with_tensor_digests
from raysweep.models.peft_check import check_adapter
from raysweep.models.peft_merge import merge_adapter
from raysweep.models.peft_types import read_peft_config
from raysweep.models.quantisation import is_quantised
from raysweep.models.text_settings import plain_generation_config
from raysweep.models.tied_weights import shared_names

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


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
    `device`. A PEFT adapter needs `base`, and is checked and merged onto it in float32. Raises InputError where loading fails,
    where weights are missing, and for a file or tensor that is not what the checkpoint was described with.
    """
    if checkpoint.adapter:
        if base is None:
            raise InputError(f"'{checkpoint.source}' is a PEFT adapter; give the base checkpoint that it belongs to")
        return _load_merged(checkpoint, base, dtype=dtype, device=device, device_map=device_map)
    with unchanged(checkpoint, SETTINGS_FILES):
        model, info = _loaded(checkpoint, dtype, device_map if device_map is not None else {"": device})
    if info["missing_keys"]:
        raise InputError(
            f"checkpoint '{checkpoint.source}' lacks {len(info['missing_keys'])} weights, "
            f"{sorted(info['missing_keys'])[0]} among them; it would run with random values"
        )
    return model.eval().requires_grad_(False)


def _loaded(
    checkpoint: Checkpoint, dtype: str, device_map: str | Mapping[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers says of loading it."""
    import torch
    from safetensors import SafetensorError

    made, config = _class_of(checkpoint)
    options: dict[str, Any] = {
        "config": config,
        "dtype": getattr(torch, dtype),
        "trust_remote_code": False,
        "output_loading_info": True,
        "device_map": device_map,
        **_options(checkpoint),
    }
    spread = isinstance(device_map, str) or len({*device_map.values()}) > 1 or "disk" in device_map.values()
    with ExitStack() as held:
        if spread:  # of what no device has room for
            options["offload_folder"] = held.enter_context(TemporaryDirectory(prefix="raysweep-"))
        folder: Path | None = checkpoint.folder
        quantised = is_quantised(checkpoint)
        if spread and not quantised:
            checkpoint = with_tensor_digests(checkpoint)
        if can_be_lazy(checkpoint) and not quantised:
            tensors = LazyTensors(checkpoint)
            held.callback(tensors.close)
            folder, options["state_dict"] = None, tensors.by_name
        elif checkpoint.digests or checkpoint.files:
            folder = held.enter_context(own_copy(checkpoint))
        try:
            model, info = made.from_pretrained(folder, **options)
        except pickle.UnpicklingError as error:
            raise InputError(f"checkpoint '{checkpoint.source}' {NOT_PLAIN}") from error
        except (ValueError, OSError, RuntimeError, KeyError, SafetensorError) as error:
            logged = _logged(error)
            if is_machine_error(error):
                raise
            if logged is not None and is_machine_error(logged):
                raise logged from error
            raise InputError(f"checkpoint '{checkpoint.source}' could not be loaded: {logged or error}") from error
        if spread and "disk" in getattr(model, "hf_device_map", {}).values():  # those files are read for every call
            finalize(model, held.pop_all().close)
    for each in (model, model.config):
        each.name_or_path = str(checkpoint.folder)
    return model, info


def _logged(error: BaseException) -> RuntimeError | None:
    """Return what transformers logged of the first weights that it could not convert: what it raises later does not say it."""
    traceback = error.__traceback__
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        if frame.f_code.co_name == "log_state_dict_report":
            errors = getattr(frame.f_locals.get("loading_info"), "conversion_errors", None) or {}
            for text in errors.values():  # a traceback, and which weights it is about
                lines = [line for line in str(text).splitlines() if line and not line.startswith((" ", "Traceback"))]
                return RuntimeError(shortened(" ".join(dict.fromkeys(lines)), 400))
    return None


def _class_of(checkpoint: Checkpoint) -> tuple[Any, PreTrainedConfig]:
    """The class of transformers that a checkpoint is loaded with, and its config for that."""
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.auto_factory import _get_model_class

    config = standard_config(checkpoint.folder)
    if hasattr(config, "quantization_config") and not is_quantised(checkpoint):
        del config.quantization_config  # of before its weights were merged or dequantised
    known: Any = (AutoModelForCausalLM if predicts_tokens(checkpoint) else AutoModel)._model_mapping
    if type(config) not in known:
        raise InputError(
            f"checkpoint '{checkpoint.source}' could not be loaded: transformers has no model for a {type(config).__name__}"
        )
    made: Any = _get_model_class(config, known)
    inner = config.sub_configs.get("text_config")
    if (
        inner is not None and made.config_class is inner
    ):  # of a model with images, say, whose text model is loaded alone
        quantised = getattr(config, "quantization_config", None)
        config = config.get_text_config()
        if quantised is not None:
            config.quantization_config = quantised
    return made, config


def _load_merged(
    adapter: Checkpoint, base: Checkpoint, *, dtype: str, device: str, device_map: str | Mapping[str, Any] | None
) -> PreTrainedModel:
    """The base with the adapter merged into its weights in float32, then rounded to the dtype once.

    A float32 model is merged where it stays. Another is merged on the CPU, whose memory has to hold it in float32.
    """

    with own_copy(adapter) if adapter.files else nullcontext(adapter.folder) as folder:
        if not adapter.config:  # a run made it after its plan was made
            adapter = replace(describe(str(folder)), source=adapter.source)
        adapter = replace(adapter, folder=folder)
        return _merged_onto(adapter, base, dtype=dtype, device=device, device_map=device_map)


def _merged_onto(
    adapter: Checkpoint, base: Checkpoint, *, dtype: str, device: str, device_map: str | Mapping[str, Any] | None
) -> PreTrainedModel:
    """The base with the adapter, whose folder nobody changes any more, merged onto it."""
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
        why=f"the layers of '{base.source}' share weights, which PEFT adapter '{adapter.source}' changes separately",
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
        raise InputError(f"{why}, and the model cannot be built like that in {dtype}; set the model's dtype to float32")
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
    """The checkpoint's tokenizer.

    Raises InputError where it has none that transformers can read, and for files that are not those it was described with.
    """
    from transformers import AutoTokenizer

    check_file_sizes(checkpoint.folder)
    with unchanged(checkpoint, ("config.json", *TOKENIZER_FILES)):
        try:
            return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        except Exception as error:  # a damaged file raises whatever its reader stumbled over
            if is_machine_error(error):
                raise
            raise InputError(f"checkpoint '{checkpoint.source}' has no usable tokenizer: {error}") from error
