"""A model that belongs to somebody else: used in evaluation mode, and returned in the state in which it came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from raysweep.models.given import is_compiled

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Flags of a config that decide what a forward returns, and the value with which it returns what the adapter reads.
_OUTPUTS = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "output_router_logits": False,
}


@contextmanager
def borrowed(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode and no compiled code while the context lasts; afterwards each module is as it was.

    Compiled layers are replaced by the layers inside them for as long: raysweep calls layers in its own order, which
    compiled code would be compiled anew for each time.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(without_compilation(model))
            stack.enter_context(_in_evaluation_mode(model))
        yield


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    if not any(training for _, training in before):
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train(before[0][1])  # for modules that do more than remember it
        for module, training in before:
            module.training = training


@contextmanager
def without_compilation(model: nn.Module) -> Iterator[None]:
    """Layers as they were before torch.compile while the context lasts; the compiled ones are back when it ends."""
    wrapped = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if is_compiled(child) and not is_compiled(parent)
    ]
    compiled: list[tuple[nn.Module, Any]] = []
    try:
        for parent, name, child in wrapped:
            parent._modules[name] = _innermost(child)
        for module in model.modules():
            if module._compiled_call_impl is not None:
                compiled.append((module, module._compiled_call_impl))
                module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
        for parent, name, child in wrapped:
            parent._modules[name] = child


def _innermost(module: nn.Module) -> nn.Module:
    while is_compiled(module):
        inner = module._modules["_orig_mod"]
        assert inner is not None
        module = inner
    return module


def configs_of(model: PreTrainedModel) -> list[Any]:
    """The different config objects that the model and its parts look at."""
    found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return list(found.values())


@contextmanager
def plain_outputs(configs: Iterable[Any]) -> Iterator[None]:
    """A forward returns named outputs, and no states or attention maps, while the context lasts, whatever the configs say."""
    changed: list[tuple[Any, str, Any]] = []
    try:
        for config in configs:
            for flag, plain in _OUTPUTS.items():
                value = getattr(config, flag, plain)
                if value != plain:
                    changed.append((config, flag, value))
                    setattr(config, flag, plain)
        yield
    finally:
        for config, flag, value in reversed(changed):
            setattr(config, flag, value)
