"""Whether a checkpoint's files hold the tensors that its config's model has: none missing, none passed over.

transformers fills what is missing with random values and passes over what it has no place for. Here both are found from
the names and shapes in the files' headers, with transformers' own renaming rules, before any weight is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint, predicts_tokens
from raysweep.models.conversion import Recipe, adjusted, find_recipes, missing_tensors, refuse_missing
from raysweep.models.quantisation import is_quantised
from raysweep.models.trial import tried_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Buffers that models of earlier releases stored: masks, positions and rotary tables, which are made anew when a model is built.
_BUFFERS = re.compile(
    r"(\.attn|\.attention)\.(masked_)?bias$|(^|\.)masked_bias$|rotary_emb\.|rope\.freqs$|(^|\.)position_ids$|(^|\.)token_type_ids$"
)
# Parts that have nothing to do with text, and layers that predict several tokens ahead.
_OTHER_PARTS = re.compile(
    r"(^|\.)(vision|visual|image|audio|video|speech|mtp|multi_modal|mm_)\w*\.|(^|\.)(vq|v)_?head\.|(^|\.)value_head\."
)
_IN_LAYER = re.compile(r"(^|\.)\d+\.")
_AROUND_LAYERS = re.compile(
    r"(^|\.)(lm_head|embed_out|embed_\w+|\w+_embeddings?|wte|wpe|ln_f|norm|final_layernorm|final_layer_norm)\."
)
# What a wrapper puts into the names of a model's tensors, and who does.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel or DistributedDataParallel",
    "base_model.model.": "PEFT",
    "base_layer.": "PEFT",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "language_model.": "a multimodal model",
    "model.language_model.": "a multimodal model",
    "text_model.": "a multimodal model",
    "transformer.": "another class of model",
    "model.": "another class of model",
}


def check_tensors(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Compare a full checkpoint's stored tensors with those of its config's model; return the names that are passed over.

    Those are heads and towers that a text model does not have. Old buffers are not among them. Nothing is looked at in
    adapters, quantised checkpoints, and those that are not on this machine. Raises InputError for a tensor of a layer,
    the embedding, the final norm or the head that the model has no place for, for one that is missing, and for one of
    another shape.
    """
    if checkpoint.adapter or checkpoint.on_paper or is_quantised(checkpoint):
        return ()
    refuse_empty(checkpoint)
    model = tried_model(checkpoint)
    try:
        recipes = find_recipes(model, checkpoint.shapes)
    except InputError as error:
        raise InputError(f"checkpoint '{checkpoint.source}': {error}") from error
    missing, unexpected = missing_tensors(model, recipes), _unexpected(model, checkpoint.shapes, recipes)
    _refuse_wrapped(checkpoint, model, missing, unexpected)
    refuse_missing(checkpoint.source, missing)
    wrong = [name for name in unexpected if _is_of_model(name, predicts=predicts_tokens(checkpoint))]
    if wrong:
        raise InputError(
            f"checkpoint '{checkpoint.source}' has {len(wrong)} tensors that its config does not include, {wrong[0]} among "
            f"them; transformers would ignore them, and load a different model than the one that was trained. Correct the settings in "
            f"{checkpoint.folder / 'config.json'} (biases, number of layers, tied head), or remove the tensors"
        )
    return tuple(unexpected)


def _unexpected(model: PreTrainedModel, shapes: Mapping[str, object], recipes: Iterable[Recipe]) -> list[str]:
    used = {name for recipe in recipes for _, name in recipe.sources}
    left = adjusted(model, unexpected=set(shapes) - used)[1]
    return sorted(name for name in left if not _BUFFERS.search(name))


def _is_of_model(name: str, *, predicts: bool) -> bool:
    """Whether a tensor without a place belongs to what is measured; a model without a head is measured without it."""
    if _OTHER_PARTS.search(name):
        return False
    return bool(_IN_LAYER.search(name) or (predicts and _AROUND_LAYERS.search(name)))


def refuse_empty(checkpoint: Checkpoint) -> None:
    """Raise InputError where a tensor has no values."""
    empty = [name for name, shape in checkpoint.shapes.items() if 0 in shape]
    if empty:
        raise InputError(
            f"checkpoint '{checkpoint.source}' has {len(empty)} tensors without values, {empty[0]} of shape "
            f"{list(checkpoint.shapes[empty[0]])} among them, as DeepSpeed ZeRO-3 leaves them if a model is saved without "
            "gathering its parameters; save it again with stage3_gather_16bit_weights_on_model_save, or convert with zero_to_fp32.py"
        )


def _refuse_wrapped(
    checkpoint: Checkpoint, model: PreTrainedModel, missing: Sequence[str], unexpected: Sequence[str]
) -> None:
    """Raise InputError where tensors only lack a place because a wrapper's name is part of theirs."""
    if not missing or not unexpected:
        return
    wanted = set(missing)
    for part, who in _WRAPPERS.items():
        for name in unexpected:
            plain = name.replace(part, "", 1)
            if plain != name and plain in wanted:
                raise InputError(
                    f"checkpoint '{checkpoint.source}' has a tensor named {name}, but the model has {plain}; {who} "
                    f"adds '{part}' to the names. Save the model without its wrapper, or rename the tensors"
                )
