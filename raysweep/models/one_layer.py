"""A model of a checkpoint's architecture and sizes with its first layer alone, on made-up weights: something to time.

No weight of the checkpoint is read. What the figures are for is the engine's.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch

from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import Checkpoint, predicts_tokens, standard_config
from raysweep.models.same import layer_of

_VOCABULARY = 512
_MOST_BYTES = 2**30  # a layer larger than this is not made for a plan


def build_one_layer(checkpoint: Checkpoint, dtype: str, device: str, most_bytes: int = _MOST_BYTES) -> Adapter:
    """The first decoder layer between an embedding and a head of few words.

    Raises InputError where one layer does not stand for all (their shapes differ), or is larger than `most_bytes`; whatever
    the architecture raises where it does not come with one layer.
    """
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    kind = getattr(torch, dtype)
    shapes: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for name, shape in checkpoint.shapes.items():
        if (layer := layer_of(name)) is not None:
            shapes[layer].append(tuple(shape))
    if len({tuple(sorted(of_layer)) for of_layer in shapes.values()}) != 1:
        raise InputError(
            f"layers of checkpoint '{checkpoint.source}' have different shapes, so one of them cannot represent all"
        )
    size = sum(map(math.prod, shapes[min(shapes)])) * kind.itemsize
    if size > min(most_bytes, _MOST_BYTES):
        raise InputError(
            f"a layer of checkpoint '{checkpoint.source}' has {size} bytes, which is too large to create one for timing"
        )
    config = standard_config(checkpoint.folder)
    text = config.get_text_config()
    layers = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(text, name, value[:1])
    text.num_hidden_layers, text.vocab_size = 1, min(_VOCABULARY, text.vocab_size)
    for one in (config, text):
        one.pad_token_id = None
    made = AutoModelForCausalLM if predicts_tokens(checkpoint) else AutoModel
    with no_init_weights():
        model = made.from_config(config, dtype=kind, trust_remote_code=False)
    model = model.to(device).requires_grad_(False)
    noise = 0.02 * torch.randn(65_537, generator=torch.Generator().manual_seed(0)).to(device, kind)
    for weight in model.parameters():
        for part in weight.data.view(-1).split(len(noise)):
            part.copy_(noise[: len(part)])
    return Adapter(model)
