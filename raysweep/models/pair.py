"""Whether two checkpoints are one model before and after fine-tuning, and where they differ if they are not."""

from __future__ import annotations

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint, predicts_tokens, standard_config
from raysweep.models.settings import Difference, check_settings


def check_pair(base: Checkpoint, tuned: Checkpoint) -> tuple[Difference, ...]:
    """Return the settings that differ between two checkpoints of one model, and that have a defined meaning where they do.

    Raises InputError where the two are not the same architecture, depth, shapes and vocabulary, or differ in a setting
    that must not differ (settings.py). Names the first tensor that differs, with both shapes. A PEFT adapter has its
    base's settings.
    """
    where = f"base '{base.source}' and tuned '{tuned.source}'"
    if base.adapter:
        raise InputError(f"base '{base.source}' is a PEFT adapter; give the full checkpoint that it was trained on")
    if tuned.adapter or base.on_paper or tuned.on_paper:  # names on paper are the model's, those of files may be older
        return ()
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
    found = check_settings(standard_config(base.folder), standard_config(tuned.folder), where)
    if predicts_tokens(base) and not predicts_tokens(tuned):
        raise InputError(
            f"{where} are for different tasks: the base predicts the next token, and tuned is saved as "
            f"{', '.join(tuned.config.get('architectures') or [])}, which does not. If its files have the head, correct "
            f"`architectures` in {tuned.folder / 'config.json'}"
        )
    return found


def _only_in_one(base: Checkpoint, tuned: Checkpoint) -> str:
    deeper, shallower = (base, tuned) if base.n_layers > tuned.n_layers else (tuned, base)
    extra = sorted(deeper.shapes.keys() - shallower.shapes.keys())
    if not extra:
        return ""
    return f" (tensor {extra[0]}: {list(deeper.shapes[extra[0]])} and none)"
