"""A checkpoint's model built without weights and run without arithmetic, so that settings that contradict are found early."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING

import torch

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.skeleton import empty_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 8
# What a model's own code raises about its settings. Others may come from tensors without memory, which prove nothing.
_ABOUT_SETTINGS = (ValueError, KeyError, TypeError)


def tried_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """Build the model of a full checkpoint's config on the device `meta` and run its forward on a few tokens.

    Raises InputError, with transformers' reason, where the config makes no model or its forward refuses the settings.
    """
    try:
        model = empty_model(checkpoint, torch.float32)
    except InputError:
        raise
    except Exception as error:  # settings that do not fit one another raise whatever the architecture stumbled over
        raise _refusal(checkpoint, error) from error
    known = signature(model.forward).parameters
    for inputs in ({"use_cache": False}, {}) if "use_cache" in known else ({},):
        try:
            with torch.no_grad():
                model.eval()(input_ids=torch.zeros(1, _TOKENS, dtype=torch.long, device="meta"), **inputs)
            break
        except _ABOUT_SETTINGS as error:
            raise _refusal(checkpoint, error) from error
        except (
            Exception
        ):  # a tensor without memory cannot be looked at (a mixture's routing, a mask); that proves nothing
            continue
    return model


def _refusal(checkpoint: Checkpoint, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300]
    return InputError(
        f"checkpoint '{checkpoint.source}': the settings in {checkpoint.folder / 'config.json'} do not build a model "
        f"that runs ({type(error).__name__}: {reason}); correct them"
    )
