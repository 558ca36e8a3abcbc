"""The settings of a config that decide what a model computes, compared between a base and a tuned checkpoint.

A sweep puts the base model's own layers into the tuned model, as if its modules were swapped: each layer keeps the
settings that it was built with. What surrounds the layers (embedding, attention masks, rotary tables, norm, head) is the
tuned model's, or the base's under `reverse`. Every setting is therefore one of three kinds: it changes no output, it has
this defined meaning where it differs, or it must not differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError, shown
from raysweep.models.rotary import rotary_settings

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

# Names, records of how a checkpoint was made, and what only training, generation or other heads read.
# fmt: off
_NO_EFFECT = frozenset([
    "_name_or_path", "name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "auto_map",
    "custom_pipelines", "use_cache", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states",
    "output_router_logits", "torchscript", "id2label", "label2id", "num_labels", "problem_type",
    "task_specific_params", "finetuning_task", "chunk_size_feed_forward", "initializer_range", "initializer_factor",
    "init_std", "init_device", "rescale_prenorm_residual", "time_step_init_scheme", "router_aux_loss_coef",
    "router_z_loss_coef", "router_jitter_noise", "z_loss_coefficient", "aux_loss_alpha", "seq_aux",
    "pretraining_tp", "slow_but_exact", "num_nextn_predict_layers", "mtp_layers_block_type", "num_logits_to_keep",
    "use_mamba_kernels", "use_mambapy", "use_associative_scan", "use_mem_eff_path", "moe_shared_expert_overlap",
    "summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj", "classifier_activation",
    "_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "_experts_implementation",
    "experts_implementation", "quantization_config", "rope_scaling", "rope_theta", "max_position_embeddings",
    "n_positions", "max_seq_len", "n_ctx", "is_encoder_decoder", "tokenizer_class", "prefix", "bad_words_ids",
    "unsloth_fixed", "unsloth_version", "model_max_length", "temperature", "repetition_penalty", "do_sample",
    "max_length", "min_length", "num_beams", "tie_word_embeddings",
])
# fmt: on
_NO_EFFECT_PATTERN = re.compile(r"dropout|_pdrop$|layerdrop|_token_ids?$|_token_index$")
_OF_TRAINING = ("training", "gradient_checkpointing")

_SIZES = ("hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
_SCALED_BY_LENGTH = ("dynamic", "yarn", "longrope")  # rotary types whose tables depend on max_position_embeddings
# What the surroundings hand to every layer in a form that layers of the other setting cannot take.
_STRUCTURE = {
    "model_type": "the two models have different architectures",
    "num_hidden_layers": "both models of a pair must have the same depth",
    "is_causal": "a layer of one model would attend to tokens that the other model masks",
    "use_bidirectional_attention": "a layer of one model would attend to tokens that the other model masks",
    "is_decoder": "a layer of one model would attend to tokens that the other model masks",
    "alibi": "a layer of one model would get the other model's position encoding",
    "use_mem_rope": "a layer of one model would get the other model's position encoding",
    "position_embedding_type": "a layer of one model would get the other model's position encoding",
    "num_kv_shared_layers": "a layer of one model would need keys and values that the other model's layers do not provide",
    "altup_num_inputs": "the layers of the two models carry different numbers of residual streams",
    "altup_active_idx": "the layers of one model write a different residual stream from the one that the other model's layers read",
    "layers_block_type": "layers at the same place are of different types",
    "hybrid_layer_ids": "layers at the same place are of different types",
}


@dataclass(frozen=True)
class Difference:
    """A setting that base and tuned have different values of, and that decides what a model computes.

    `known` is False for a key that the architecture's config class does not define: nothing here can say what it does.
    """

    name: str
    base: Any
    tuned: Any
    known: bool = True

    @property
    def text(self) -> str:
        """The setting and both values, for messages."""
        return f"{self.name} (base {shown(self.base)}, tuned {shown(self.tuned)})"


def check_settings(base: PreTrainedConfig, tuned: PreTrainedConfig, where: str) -> tuple[Difference, ...]:
    """Return the settings that differ and have a defined meaning where they do.

    Configs are compared as transformers reads them: files of different releases name a setting differently and leave out
    what is a default. Raises InputError, naming the setting and both values, for one that must not differ. `where` names
    the two models in its message.
    """
    ours, theirs = base.get_text_config(), tuned.get_text_config()
    for key in _SIZES:
        if getattr(ours, key, None) != getattr(theirs, key, None):
            raise InputError(f"{where} differ in {key}: {getattr(ours, key, None)} and {getattr(theirs, key, None)}")
    for key in ("rope_parameters", *_length_settings(ours)):
        if getattr(ours, key, None) != getattr(theirs, key, None):
            raise InputError(
                f"{where} differ in {key}: {getattr(ours, key, None)} and {getattr(theirs, key, None)}; a layer of the "
                "base model in the tuned model would use the wrong rotary tables"
            )
    found = differences(base, tuned)
    for difference in found:
        if difference.name.rpartition(".")[2] in _STRUCTURE:
            raise InputError(
                f"{where} differ in {difference.name}: {shown(difference.base)} and {shown(difference.tuned)}; "
                f"{_STRUCTURE[difference.name.rpartition('.')[2]]}. Use checkpoints of one model before and after fine-tuning"
            )
    return found


def differences(base: PreTrainedConfig, tuned: PreTrainedConfig) -> tuple[Difference, ...]:
    """The settings that differ between two configs of one architecture, without those that change no output."""
    ours, theirs = _flat(base), _flat(tuned)
    if ours == theirs:
        return ()
    defaults = _flat(type(base)())
    known = {name.rpartition(".")[2] for name in (*defaults, *_flat(type(base.get_text_config())()))}
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = (values.get(name, defaults.get(name)) for values in (ours, theirs))
        leaf = name.rpartition(".")[2]
        if _alike(one, other) or leaf in _NO_EFFECT or _NO_EFFECT_PATTERN.search(leaf):
            continue
        found.append(Difference(name, one, other, leaf in known))
    return tuple(found)


def settings_warning(found: Sequence[Difference], where: str) -> str | None:
    """What a difference in settings means for the results, in words; None where there is none."""
    if not found:
        return None
    text = (
        f"{where} have different settings: {', '.join(d.text for d in found)}. Each layer is computed with its own model's "
        "settings; embedding, attention masks, final norm and head with those of the model around the layers (the tuned "
        "one; the base under reverse)"
    )
    unknown = [d.name for d in found if not d.known]
    if unknown:
        text += f". The architecture does not define {', '.join(unknown)}: check that nothing depends on it"
    return text


def module_settings(module: nn.Module) -> dict[str, Any]:
    """Return the plain values (numbers, texts, flags) that a module and its children hold as attributes, by path.

    Those that only training reads are left out. They are what a user may have set on a loaded model without touching its
    config.
    """
    plain: dict[str, Any] = {}
    for path, child in module.named_modules():
        for name, value in vars(child).items():
            if name in _NO_EFFECT or name in _OF_TRAINING or name.startswith("_") or _NO_EFFECT_PATTERN.search(name):
                continue
            if value is None or isinstance(value, (bool, int, float, str)):
                plain[f"{path}.{name}"] = value
    return plain


def _length_settings(config: PreTrainedConfig) -> tuple[str, ...]:
    """`max_position_embeddings` where the rotary tables depend on it (elsewhere it only says how long a text may be)."""
    kinds = {settings.get("rope_type") for settings in rotary_settings(config)}
    scaled = kinds & set(_SCALED_BY_LENGTH)
    return ("max_position_embeddings", "original_max_position_embeddings") if scaled else ()


def _flat(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings of a config's language model, and of the wrapper around it; those of towers for other input are left out."""
    values = dict(config.to_dict())
    for name in config.sub_configs:
        values.pop(name, None)
    text = config.get_text_config()
    if text is not config:
        values |= {f"text_config.{name}": value for name, value in text.to_dict().items()}
    return {name: value for name, value in values.items() if not _is_of_rope(name)}


def _is_of_rope(name: str) -> bool:
    return name.rpartition(".")[2] == "rope_parameters"  # compared by itself, and refused


def _alike(one: Any, other: Any) -> bool:
    """Whether two values of a setting are one: a list and a tuple of the same, 1 and 1.0, but not 1 and true."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    return bool(one == other)
