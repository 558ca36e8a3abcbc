"""Whether a checkpoint's weights are quantised, which its tensors tell, and whether this machine can load them.

A config.json may say that they are long after they were merged or dequantised: the files decide.
"""

from __future__ import annotations

import re

import torch

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.machine_errors import is_machine_error

# Scales, zeros and packed values that quantised layers store beside, or in place of, their weights.
_PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|weight_scale(_inv|_2)?|weight_zero_point|weight_packed|input_scale|SCB|absmax|quant_map|"
    r"nested_absmax|quant_state\.\S+|\S+_blocks|\S+_scales)$"
)
_PACKED_DTYPE = re.compile(r"^(U8|I8|U16|I16|U32|I32|F4|F6)")
_FLOAT8 = re.compile(r"^F8_")  # plain values where there is nothing to scale them by


def is_quantised(checkpoint: Checkpoint) -> bool:
    """Whether weights are stored as what only their quantisation's own code can unpack.

    True for packed integers and for weights with scales next to them, whatever the config says; for 8-bit floats only if
    the config says so.
    """
    return _first(checkpoint) is not None


def check_quantised(checkpoint: Checkpoint, device: str) -> None:
    """Raise InputError where quantised weights cannot be loaded on this machine, with transformers' reason."""
    if checkpoint.adapter or checkpoint.on_paper or not is_quantised(checkpoint):
        return
    name = _method(checkpoint)
    if name is None:
        raise InputError(
            f"checkpoint '{checkpoint.source}' has quantised weights ({_first(checkpoint)}), and its config.json has "
            "no quantization_config that describes how; dequantise it, or restore the config"
        )
    from transformers.quantizers import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(dict(checkpoint.config["quantization_config"]), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except Exception as error:  # each method raises what it likes
        if is_machine_error(error):
            raise
        if device != "cpu" and not isinstance(error, ImportError) and not torch.cuda.is_available():
            return  # this machine only drives those that compute
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"checkpoint '{checkpoint.source}' is quantised ({name}), and cannot be loaded here: {reason}. Install what is "
            "missing, or dequantise the checkpoint and save it in bfloat16 or float32"
        ) from error


def _method(checkpoint: Checkpoint) -> str | None:
    settings = checkpoint.config.get("quantization_config")
    return str(settings.get("quant_method")) if isinstance(settings, dict) else None


def _first(checkpoint: Checkpoint) -> str | None:
    """The first tensor that shows it, and how it is stored."""
    said = bool(checkpoint.config.get("quantization_config"))
    for name, dtype in checkpoint.dtypes.items():
        packed = _PACKED_DTYPE.match(dtype) or (said and _FLOAT8.match(dtype))
        if _PACKED.search(name) or (name.endswith("weight") and packed):
            return f"{name} is stored as {dtype}"
    return None
