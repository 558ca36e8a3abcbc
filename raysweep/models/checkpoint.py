"""Checkpoints on disk: finding them, describing them without loading weights, checking pairs, loading.

A checkpoint is a folder as `save_pretrained` writes it, a hub id, or a `lab://` name; a PEFT adapter folder may stand for
a tuned checkpoint and is merged onto its base. Calling the loaded model's layers is adapter.py's.
"""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep import lab
from raysweep.errors import InputError, shown
from raysweep.models.kinds import checkpoint_predicts
from raysweep.models.rotary import rotary_settings
from raysweep.models.tensors import Shape
from raysweep.models.weights import NOT_PLAIN, read_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# What is downloaded of a hub repository: it may keep the same weights under other names as well.
_DOWNLOADED = ("*.json", "model*.safetensors", "adapter_model.safetensors", "*.model", "*.jinja", "*.txt")
_DEEPEST = 10_000  # what a damaged config may ask for is not planned
_SIZES = ("hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
_SCALED_BY_LENGTH = ("dynamic", "yarn", "longrope")  # rotary types whose tables depend on max_position_embeddings


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's identity: its config, `shapes` (tensor → shape), bytes, and the fingerprint of its contents.

    `digests` has each tensor's own (none of `.bin` files). Of one `on_paper`, which is not here, `folder` is the config's file,
    and there are no weights to read; see architecture.py.
    """

    source: str
    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    bytes: int
    adapter: bool
    fingerprint: str
    digests: Mapping[str, str] = field(default_factory=dict)
    on_paper: bool = False

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return int(text_config(self.config)["num_hidden_layers"])

    @property
    def dtype(self) -> str:
        """The dtype that the checkpoint says it is stored in."""
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")

    @property
    def n_parameters(self) -> int:
        """Number of stored parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def find(source: str) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded (configs, tokenizer and safetensors only).

    Raises InputError where there is no such folder, laboratory name or hub repository.
    """
    folder = Path(lab.resolve(source)).expanduser()
    if folder.is_dir():
        return folder
    looks_like_path = source.startswith((".", "/", "~", lab.SCHEME)) or source.count("/") != 1 or folder.exists()
    if looks_like_path:
        kind = "is a file, not a checkpoint folder" if folder.exists() else "does not exist"
        raise InputError(
            f"checkpoint '{source}' {kind}; give a folder written by save_pretrained, or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(_DOWNLOADED)))
    except Exception as error:  # the hub client raises many types; every one means the same to the user
        raise InputError(
            f"checkpoint '{source}' is no folder here, and the hub did not give it ({type(error).__name__}: {error}); "
            "check the name, the network and your access"
        ) from error


def describe(source: str) -> Checkpoint:
    """Read a checkpoint's config, tensor shapes and fingerprint; every byte of its weights is looked at, no model built.

    Raises InputError for a folder without config or weights, with an unreadable one, or with weights that are not finite.
    """
    folder = find(source)
    adapter = (folder / "adapter_config.json").exists()
    config_path = folder / ("adapter_config.json" if adapter else "config.json")
    if not config_path.exists():
        raise InputError(
            f"checkpoint '{source}' has no config.json ({folder}); is it the folder that save_pretrained wrote?"
        )
    config = read_config(config_path, folder, adapter=adapter)
    weights = read_weights(folder, source, config_path, adapter=adapter)
    return Checkpoint(
        source,
        folder,
        config,
        weights.shapes,
        weights.bytes,
        adapter,
        weights.fingerprint,
        weights.digests,
    )


def read_config(path: Path, folder: Path, *, adapter: bool = False) -> Mapping[str, Any]:
    """The config in the file `path`, with its depth under transformers' standard name; `folder` is where transformers finds it.

    Raises InputError where it is no JSON object, or tells of no number of layers.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}; write the checkpoint again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is no JSON object; write the checkpoint again")
    if not adapter and "num_hidden_layers" not in text_config(config):
        config = dict(_standard_names(folder))
    depth = text_config(config).get("num_hidden_layers")
    if not adapter and (type(depth) is not int or not 1 <= depth <= _DEEPEST):
        raise InputError(
            f"{path} tells of {shown(depth)} decoder layers (num_hidden_layers), where a number from 1 to {_DEEPEST} "
            "belongs; write the checkpoint again"
        )
    return config


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) and inner else config


def limits(checkpoint: Checkpoint) -> tuple[int | None, int | None]:
    """(context, vocabulary): the most tokens of a text and the rows of the embedding; None where the config sets none.

    The context is `max_position_embeddings` under whatever name the architecture writes it. An adapter has its base's.
    """
    text = standard_config(checkpoint.folder).get_text_config()
    context, vocabulary = (getattr(text, key, None) for key in ("max_position_embeddings", "vocab_size"))
    return (
        context if isinstance(context, int) and context > 0 else None,
        vocabulary if isinstance(vocabulary, int) else None,
    )


def standard_config(folder: Path) -> PreTrainedConfig:
    """The config as transformers reads it: standard names, and defaults for what the file leaves out."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a value of a wrong type raises whatever the config's class stumbled over
        raise InputError(f"{folder / 'config.json'} is no config that transformers knows: {error}") from error


def _standard_names(folder: Path) -> Mapping[str, Any]:
    """The config under transformers' standard names (GPT-2 and others name their sizes differently)."""
    config = standard_config(folder)
    text = config.get_text_config()
    sizes = {
        "num_hidden_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
    }
    return {**config.to_dict(), **sizes}


def check_pair(base: Checkpoint, tuned: Checkpoint) -> None:
    """Refuse (InputError) two checkpoints that are not the same architecture, depth, shapes, vocabulary and rotary setting.

    Names the first tensor that differs, with both shapes. A PEFT adapter is checked when it is merged.
    """
    where = f"base '{base.source}' and tuned '{tuned.source}'"
    if base.adapter:
        raise InputError(f"base '{base.source}' is a PEFT adapter; give the full checkpoint that it was trained on")
    if tuned.adapter or base.on_paper or tuned.on_paper:  # names on paper are the model's, those of files may be older
        return
    if base.config.get("model_type") != tuned.config.get("model_type"):
        raise InputError(
            f"{where} are different architectures: {base.config.get('model_type')} and {tuned.config.get('model_type')}; "
            "a pair must be one model before and after fine-tuning"
        )
    for name in sorted(base.shapes.keys() & tuned.shapes.keys()):
        if base.shapes[name] != tuned.shapes[name]:
            raise InputError(
                f"{where} differ in tensor {name}: {list(base.shapes[name])} and {list(tuned.shapes[name])}; "
                "a pair must have the same width and vocabulary"
            )
    if base.n_layers != tuned.n_layers:
        only = _only_in_one(base, tuned)
        raise InputError(f"{where} differ in depth: {base.n_layers} and {tuned.n_layers} decoder layers{only}")
    check_settings(standard_config(base.folder), standard_config(tuned.folder), where)


def check_settings(base: PreTrainedConfig, tuned: PreTrainedConfig, where: str) -> None:
    """Refuse (InputError) two configs of unlike sizes or rotary settings.

    They are compared as transformers reads them: files written by different versions name the same setting differently,
    and leave out what is a default.
    """
    ours, theirs = base.get_text_config(), tuned.get_text_config()
    for key in _SIZES:
        if getattr(ours, key, None) != getattr(theirs, key, None):
            raise InputError(f"{where} differ in {key}: {getattr(ours, key, None)} and {getattr(theirs, key, None)}")
    for key in ("rope_parameters", *_length_settings(ours)):
        if getattr(ours, key, None) != getattr(theirs, key, None):
            raise InputError(
                f"{where} differ in {key}: {getattr(ours, key, None)} and {getattr(theirs, key, None)}; "
                "a layer put back would see the other model's rotary tables"
            )


def _length_settings(config: PreTrainedConfig) -> tuple[str, ...]:
    """`max_position_embeddings` where the rotary tables depend on it (elsewhere it only says how long a text may be)."""
    kinds = {settings.get("rope_type") for settings in rotary_settings(config)}
    return ("max_position_embeddings",) if kinds & set(_SCALED_BY_LENGTH) else ()


def _only_in_one(base: Checkpoint, tuned: Checkpoint) -> str:
    deeper, shallower = (base, tuned) if base.n_layers > tuned.n_layers else (tuned, base)
    extra = sorted(deeper.shapes.keys() - shallower.shapes.keys())
    if not extra:
        return ""
    return f" (tensor {extra[0]}: {list(deeper.shapes[extra[0]])} and none)"


def resolve_dtype(asked: str, stored: str, device: str) -> str:
    """The dtype to compute in: `auto` is the checkpoint's own on an accelerator, float32 on a CPU."""
    if asked != "auto":
        return asked
    return "float32" if device == "cpu" else stored


def predicts_tokens(checkpoint: Checkpoint) -> bool:
    """Whether it is a causal language model, whose loss can be measured, or has states only (an encoder).

    Raises InputError for what is neither.
    """
    return checkpoint_predicts(standard_config(checkpoint.folder), checkpoint.source)


def may_pool(checkpoint: Checkpoint) -> bool:
    """Whether the encoder's class can be built without a pooler, which a checkpoint with another head does not have."""
    from transformers import AutoModel

    model_class = AutoModel._model_mapping[type(standard_config(checkpoint.folder))]
    return "add_pooling_layer" in signature(model_class.__init__).parameters


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


def skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """The causal language model without weights (on the meta device), to look at how it is made."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(standard_config(checkpoint.folder), trust_remote_code=False)


def _merge_adapter(
    adapter: Checkpoint, base: Checkpoint, *, dtype: str, device: str, device_map: str | Mapping[str, Any] | None
) -> PreTrainedModel:
    """The base with the adapter's update added to its weights; every stored tensor must have found its place."""
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    unfit = f"PEFT adapter '{adapter.source}' does not fit its base '{base.source}'"
    model = load_model(base, dtype=dtype, device=device, device_map=device_map)
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


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. Raises InputError where it has none that transformers can read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # a damaged file raises whatever its reader stumbled over
        raise InputError(f"checkpoint '{checkpoint.source}' has no usable tokenizer: {error}") from error
