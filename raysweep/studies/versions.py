"""The modules behind the versions of a layer: the two models' own blocks, or one made of both for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from raysweep.models.parts import parts_of
from raysweep.models.surgery import interpolated, mixed
from raysweep.studies.windows import BASE, TUNED, Version


@contextmanager
def version_of(tuned: nn.Module, base: nn.Module, version: Version) -> Iterator[nn.Module]:
    """A layer in one version, from its block in either model; both are as before when the context ends.

    Raises InputError where the layer's attention and MLP cannot be told apart, or its weights not be interpolated.
    """
    if version == TUNED:
        yield tuned
    elif version == BASE:
        yield base
    else:
        names = None if version.part == "layer" else parts_of(tuned)[version.part]
        if version.share == 1 and names is not None:
            with mixed(tuned, base, names) as block:
                yield block
        else:
            yield interpolated(tuned, base, version.share, names)
