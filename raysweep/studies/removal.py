"""Principal components to take out of a layer's states, as values: which, how, and at which tokens.

The components are those of the examples' states at the layer, each at its last prompt token. A state's part in them is
taken from the origin, so that after `project` the inner product of what is left with each of them is zero: the share that
the mean of these states has in them goes as well. With `keep_mean` it is taken from the mean, which then stays; the two
differ much where the mean is large. Positions `last` are, as in generation with a cache, the prompt's last token and
every token behind it; `all` are the prompt's others too.

What removals do to predictions is removal_effects.py's; texts, and the tables, are removal_tables.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raysweep.models.surgery import Mode, Positions


@dataclass(frozen=True)
class Removal:
    """Principal components to take out at a layer (indices from 0, the largest first), how, and at which tokens.

    `keep_mean`: parts are those of the states' difference from the mean of the examples' states.
    """

    chosen: tuple[int, ...]
    mode: Mode = "project"
    position: Positions = "last"
    keep_mean: bool = False

    @property
    def components(self) -> str:
        """The components as the tables have them: `top 3` for the first three, else `0,2`."""
        if self.chosen == tuple(range(len(self.chosen))):
            return f"top {len(self.chosen)}"
        return ",".join(map(str, self.chosen))

    @property
    def labels(self) -> dict[str, str]:
        """The columns that tell removals at one layer apart."""
        mean = "kept" if self.keep_mean else "removed"
        return {"components": self.components, "mode": self.mode, "mean": mean, "position": self.position}

    def words(self, layer: int) -> str:
        """The removal at this layer as the table of generated text has it: `removal top 3 at 8 project last`.

        What is written with nothing removed is `removal none at 8`.
        """
        if not self.chosen:
            return f"removal none at {layer}"
        mean = " mean kept" if self.keep_mean else ""
        return f"removal {self.components} at {layer} {self.mode} {self.position}{mean}"


NOTHING = Removal(())
