"""Which submodules of a decoder layer are its attention and which its MLP, on any architecture, told by their names.

Attention is whatever mixes tokens: linear attention and state-space mixers too. A norm goes with the module that it
precedes, the one norm before both (parallel residuals: Falcon, GPT-J, Phi, Cohere) with the attention, and the norm of a
module's own output (Gemma 2, OLMo 2) with that module. A layer of which this does not place every parameter is refused.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from raysweep.errors import InputError

_PARTS: dict[str, frozenset[str]] = {
    "attention": frozenset(
        [
            "self_attn",
            "attn",
            "attention",
            "self_attention",
            "linear_attn",
            "linear_attention",
            "mamba",
            "input_layernorm",
            "ln_1",
            "norm_1",
            "ln_attn",
            "self_attn_layer_norm",
            "pre_attention_layernorm",
        ]
    ),
    "mlp": frozenset(
        [
            "mlp",
            "ffn",
            "feed_forward",
            "block_sparse_moe",
            "moe",
            "shared_mlp",
            "fc1",
            "fc2",
            "ln_2",
            "norm_2",
            "ln_mlp",
            "final_layer_norm",
            "pre_ff_layernorm",
            "pre_mlp_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ]
    ),
}
_BETWEEN = (
    "post_attention_layernorm"  # before the MLP in Llama and its kin; behind the attention where the MLP has others
)


def parts_of(block: nn.Module) -> dict[Literal["attention", "mlp"], tuple[str, ...]]:
    """The names of the layer's children that make its attention, and those that make its MLP.

    Raises InputError, naming the layer's class and the child, where a child with parameters (or a parameter of the
    layer's own) is neither, or a part is empty.
    """
    names = [name for name, child in block.named_children() if any(True for _ in child.parameters())]
    names += [name for name, _ in block.named_parameters(recurse=False)]
    own = {"pre_feedforward_layernorm", "post_feedforward_layernorm"} & set(names)
    found: dict[Literal["attention", "mlp"], list[str]] = {"attention": [], "mlp": []}
    for name in names:
        if name == _BETWEEN:
            found["attention" if own else "mlp"].append(name)
        elif name in _PARTS["attention"]:
            found["attention"].append(name)
        elif name in _PARTS["mlp"]:
            found["mlp"].append(name)
        else:
            raise InputError(
                f"{type(block).__name__} has the part '{name}', and raysweep does not know whether it belongs to the "
                "attention or the MLP; remove `modules` for this architecture"
            )
    for part, members in found.items():
        if not members:
            raise InputError(
                f"{type(block).__name__} has no {part} among its submodules ({', '.join(names)}); remove `modules` for this "
                "architecture"
            )
    return {part: tuple(members) for part, members in found.items()}
