"""Jinja templates with limits: a sandbox whose templates can neither change what they are given nor run without end.

Templates come with checkpoints and configs. Every loop step, call, filter, operator, and piece of output of a limited template
counts against limits on seconds and on bytes. Sizes are checked before a text or list is made where one operation can multiply
them (`'a' * n`, `replace`, `center`, …), and after it where it cannot; so nothing much larger than the limit ever exists.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

from raysweep.data.template_sizes import most_of_call, most_of_filter, most_of_operator, size_of
from raysweep.limits import TEMPLATE_BYTES, TEMPLATE_SECONDS, TEMPLATE_SOURCE

_COUNTED = 2**16  # bytes of a text from which on it counts, for as long as the rendering goes on
_LARGEST_CONTAINER = 2**25  # bytes
_FREE_SECONDS = 0.25  # of one record, that do not count
_STEPS = "raysweep_steps"  # the filter around what a loop iterates over


class _Budget(threading.local):
    """What the rendering that this thread is in may still use. Outside of one, single sizes are limited."""

    def __init__(self) -> None:
        self.ends = float("inf")
        self.bytes = TEMPLATE_BYTES.default
        self.chat = False

    def step(self) -> None:
        """Count one step. Raises InputError once the time is over."""
        if time.monotonic() > self.ends:
            raise TEMPLATE_SECONDS.error(f"{TEMPLATE_SECONDS.value():.15g}", "this record")

    def admit(self, size: float) -> None:
        """Raise InputError if so many bytes are more than what is left."""
        if size > self.bytes:
            most = TEMPLATE_BYTES.value()
            found = f"{most - self.bytes + size:.15g}" if size < float("inf") else f"more than {most:.15g}"
            raise TEMPLATE_BYTES.error(found, "this record", most)

    def count(self, value: Any) -> Any:
        """Count a step and the size of its result, a text or a container; return the result."""
        self.step()
        kind = type(value)
        if kind is str or kind is bytes:
            size = sys.getsizeof(value)
            if size >= _COUNTED:
                self.admit(size)
                self.bytes -= size
        elif kind is list or kind is dict or kind is tuple:
            self.admit(size_of(value, min(self.bytes, _LARGEST_CONTAINER)))
        elif isinstance(value, str):  # marked as safe
            self.admit(sys.getsizeof(value))
        return value


_budget = _Budget()


class Allowance:
    """Seconds for the templates of all records of one source: those beyond a quarter of a second for one record count."""

    def __init__(self) -> None:
        self._left = TEMPLATE_SECONDS.value()

    @contextlib.contextmanager
    def one_record(self) -> Iterator[None]:
        """Limit what templates rendered by this thread inside the block use together. Blocks inside of it change nothing."""
        if is_limited():
            yield
            return
        begun = time.monotonic()
        _budget.ends, _budget.bytes = begun + self._left + _FREE_SECONDS, TEMPLATE_BYTES.value()
        try:
            yield
        finally:
            self._left -= max(0.0, time.monotonic() - begun - _FREE_SECONDS)
            _budget.ends, _budget.bytes = float("inf"), TEMPLATE_BYTES.default


def is_limited() -> bool:
    """Say whether this thread renders under limits at the moment."""
    return _budget.ends < float("inf")


class _Generator(CodeGenerator):
    """Jinja's compiler, with the values that it makes without asking its environment passed through `count`."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's names
        self.write("environment.joined((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._counted(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._counted(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._counted(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            self._counted(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _counted(self, visit: Callable[..., None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.counted(")
        visit(node, frame)
        self.write(")")


@jinja2.pass_context  # keeps the compiler from making a constant of it
def _steps(_: Context, iterable: Any) -> Iterator[Any]:
    for each in iterable:
        _budget.step()
        yield each


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with limits. Rendering raises InputError beyond them."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit_filters()

    def limit_filters(self) -> None:
        """Count what the filters make; to be called again once filters are added."""
        self.filters = {name: _limited_filter(name, filter) for name, filter in self.filters.items()}
        self.filters[_STEPS] = _steps

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        TEMPLATE_SOURCE.check(len(source), "a template")
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _STEPS, [], [], None, None, lineno=loop.lineno)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator to operands whose result is not too large."""
        _budget.admit(most_of_operator(operator, left, right))
        return _budget.count(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as Jinja has it
        """Call what a template calls, if its result is not too large."""
        _budget.step()
        size, args = most_of_call(__obj, args, kwargs, __self._steps_of)
        _budget.admit(size)
        return _budget.count(super().call(__context, __obj, *args, **kwargs))

    @staticmethod
    def _steps_of(iterable: Iterable[Any]) -> list[Any]:
        return list(map(_budget.count, iterable))

    def call_test(self, *args: Any, **kwargs: Any) -> Any:
        """Count the tests that filters such as `select` call."""
        _budget.step()
        return super().call_test(*args, **kwargs)

    def joined(self, parts: tuple[Any, ...]) -> str:
        """Join values to a text, as `~` does."""
        _budget.admit(sum(size_of(part, _budget.bytes) for part in parts))
        text: str = _budget.count(str_join(parts))
        return text

    def counted(self, value: Any) -> Any:
        """Count a value that the template made."""
        return _budget.count(value)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join the pieces of output."""
        found, total = [], 0
        for part in parts:
            _budget.step()
            total += len(part)
            _budget.admit(total)
            found.append(part)
        text: str = _budget.count("".join(found))
        return text


def _limited_filter(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    if getattr(filter, "raysweep_limited", False):
        return filter
    leading = getattr(filter, "jinja_pass_arg", None) is not None

    @functools.wraps(filter)
    def call(*args: Any, **kwargs: Any) -> Any:
        first, given = args[:leading], args[leading:]
        size, given = most_of_filter(name, given, kwargs, LimitedEnvironment._steps_of)
        _budget.admit(size)
        return _budget.count(filter(*first, *given, **kwargs))

    call.raysweep_limited = True  # type: ignore[attr-defined]
    return call


def limited_twin(environment: jinja2.Environment) -> jinja2.Environment:
    """An environment that equals the sandbox `environment`, with the limits."""
    twin = environment.overlay()
    twin.__class__ = LimitedEnvironment
    twin.limit_filters()  # type: ignore[attr-defined]
    return twin


@contextlib.contextmanager
def limited_chat_templates() -> Iterator[None]:
    """Render transformers' chat templates with the limits inside the block, in this thread; elsewhere they are as they were."""
    _install()
    before, _budget.chat = _budget.chat, True
    try:
        yield
    finally:
        _budget.chat = before


@functools.lru_cache(maxsize=1)
def _install() -> None:
    """Have transformers ask here for a compiled template. It compiles one to a constant where it can, before any limit."""
    from transformers.utils import chat_template_utils

    theirs = chat_template_utils._compile_jinja_template

    @functools.lru_cache(maxsize=64)
    def ours(source: str) -> jinja2.Template:
        return limited_twin(theirs("").environment).from_string(source)

    chat_template_utils._compile_jinja_template = lambda source: ours(source) if _budget.chat else theirs(source)
