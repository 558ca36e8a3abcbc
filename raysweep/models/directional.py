"""What a step Δ in a block's weights does to a scalar, to first order, for each example of a batch: ⟨∂scalar/∂θ, Δ⟩.

No gradient by weight is needed for most of it. A module that is affine in its own weights (a product, a norm, a bias)
moves its output by its output with the weights that the step leads to, less its own; the scalar product of that with the
gradient by the output, summed over an example's tokens, is the example's share. One backward pass by states serves a batch.

What does not go that way (decay rates of a state-space mixer, fused experts, sinks of an attention, outputs whose rows are
not the examples') is found by `goes_by_outputs`; such a block goes by its weights' gradients, one example at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from raysweep.models.transfers import to_host

# Of the largest share: rounding is far less, curvature over the probe's step and a wrong row far more.
_TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}

Shares = dict[str, torch.Tensor]  # by the module that owns the weights: float64 [B]
Run = Callable[[], tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]]  # → what goes in, what comes out


def own_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The floating tensors that the module itself stores: parameters, and buffers that belong to a checkpoint."""
    passing = module._non_persistent_buffers_set
    named = [*module._parameters.items(), *((n, b) for n, b in module._buffers.items() if n not in passing)]
    return {name: tensor for name, tensor in named if tensor is not None and tensor.is_floating_point()}


def owners(block: nn.Module) -> dict[str, nn.Module]:
    """The modules of a block that store weights of their own, by name (the block itself is "")."""
    return {name: module for name, module in block.named_modules() if own_weights(module)}


def differing(block: nn.Module, other: nn.Module) -> frozenset[str]:
    """The modules whose own weights are not equal in both. On a device, the host waits once for all of them."""
    equal = {name: _equal(module, other.get_submodule(name)) for name, module in owners(block).items()}
    return frozenset(name for name, same in zip(equal, to_host(list(equal.values())), strict=True) if not same)


def _equal(module: nn.Module, theirs: nn.Module) -> torch.Tensor:
    ours, others = own_weights(module), own_weights(theirs)
    return torch.stack([(tensor == others[name].to(tensor.device)).all() for name, tensor in ours.items()]).all()


@contextmanager
def noted(
    block: nn.Module, other: nn.Module, n_examples: int, shares: Shares, names: Collection[str]
) -> Iterator[None]:
    """Note what goes through the block; a later backward pass through it adds the step's shares, block → `other`.

    Outputs have the examples' rows first, one or several for each. Only the modules called `names` (`differing`) take part.
    """
    with ExitStack() as stack:
        for name, module in owners(block).items():
            if name in names:
                shares[name] = torch.zeros(n_examples, dtype=torch.float64, device=_device(module))
                hook = _noting(other.get_submodule(name), shares, name, n_examples)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _device(module: nn.Module) -> torch.device:
    return next(iter(own_weights(module).values())).device


def _noting(theirs: nn.Module, shares: Shares, name: str, n_examples: int) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
        with torch.no_grad():  # now, for some blocks add to an output in its place
            moved = _moved(module, theirs, args, kwargs, output)

        def take(gradient: torch.Tensor) -> None:
            rows = gradient * moved
            by_example = (
                rows.reshape(n_examples, -1) if len(rows) % n_examples == 0 else rows.new_full((1, 1), torch.nan)
            )
            shares[name] += by_example.sum(1, dtype=torch.float64).to(shares[name].device)

        output.register_hook(take)  # type: ignore[no-untyped-call]

    return note


def _moved(
    module: nn.Module, theirs: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
) -> torch.Tensor:
    """How much the output moves; of a plain product from the weights' difference, which in 16 bits says more than the outputs'."""
    if type(module) is nn.Linear and type(theirs) is nn.Linear and not kwargs:
        weight = theirs.weight.to(module.weight.device) - module.weight
        bias = None if module.bias is None else theirs.bias.to(module.bias.device) - module.bias
        return nn.functional.linear(args[0], weight, bias)
    moved: torch.Tensor = theirs(*args, **kwargs) - output
    return moved


def by_weights(
    block: nn.Module, other: nn.Module, run: Run, gradients: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor | None], Shares]:
    """The gradients by what went in, and the shares [1] of the step block → `other`, from the gradients by weights.

    `run` sends one example through the block; `gradients` are by what came out.
    """
    weights = [(name, key, t) for name, module in owners(block).items() for key, t in own_weights(module).items()]
    before = [tensor.requires_grad for _, _, tensor in weights]
    try:
        for _, _, tensor in weights:
            tensor.requires_grad_(True)
        inputs, outputs = run()
        found = torch.autograd.grad(outputs, [*inputs, *(t for _, _, t in weights)], gradients, allow_unused=True)
    finally:
        for (_, _, tensor), required in zip(weights, before, strict=True):
            tensor.requires_grad_(required)
    shares: Shares = {}
    with torch.no_grad():
        for (name, key, tensor), gradient in zip(weights, found[len(inputs) :], strict=True):
            share = shares.setdefault(name, torch.zeros(1, dtype=torch.float64, device=tensor.device))
            if gradient is not None:
                step = own_weights(other.get_submodule(name))[key].to(tensor.device) - tensor
                share += (gradient * step).sum(dtype=torch.float64).to(share.device)
    return list(found[: len(inputs)]), shares


def goes_by_outputs(block: nn.Module, together: Run, alone: Sequence[Run]) -> bool:
    """Whether the shares of a block's modules can be told from their outputs, for several examples at once.

    `together` sends some examples through it in one batch, `alone` each of them by itself; the first that comes out are the
    states [..., B, T, D]. A random step of the weights' own size is tried both ways.
    """
    generator = torch.Generator().manual_seed(0)
    kept = {id(module.config): module.config for module in block.modules() if hasattr(module, "config")}
    other = copy.deepcopy(block, kept)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.device, like.dtype)

    with torch.no_grad():
        for module in owners(other).values():
            for tensor in own_weights(module).values():
                tensor += normal(tensor) * tensor.float().square().mean().sqrt().clamp(min=1e-3).to(tensor.dtype)
    shares: Shares = {}
    with noted(block, other, len(alone), shares, differing(block, other)):
        inputs, outputs = together()
    gradients = [normal(output) for output in outputs]
    torch.autograd.grad(outputs, list(inputs), gradients, allow_unused=True)
    tolerance = _TOLERANCES[outputs[0].dtype]
    for index, run in enumerate(alone):
        rows = [row_of(gradient, index, of_states=not place) for place, gradient in enumerate(gradients)]
        _, plain = by_weights(block, other, run, rows)
        found = to_host([*plain.values(), *(shares[name][index : index + 1] for name in plain)])
        expected, noted_shares = found[: len(plain)], found[len(plain) :]
        scale = max(float(share.abs().max()) for share in expected)
        if any(
            not float((ours - share).abs()) <= tolerance * scale
            for ours, share in zip(noted_shares, expected, strict=True)
        ):
            return False
    return True


def row_of(tensor: torch.Tensor, index: int, *, of_states: bool) -> torch.Tensor:
    """One example of states [..., B, T, D], or of what has the examples first; the axis is kept."""
    return tensor.narrow(tensor.ndim - 3 if of_states else 0, index, 1)
