"""What a run on boxes takes, told from one before it."""

from dataclasses import dataclass
from typing import final

from fem_hjb.reference.box_asked import Tolerances


@final
@dataclass(frozen=True)
class Cost:
    """What a run took: the unknowns it began with, what it was to resolve, and seconds, without its judge."""

    size: int
    tolerances: Tolerances
    seconds: float

    def of(self, size: int, tolerances: Tolerances, dim: int) -> float:
        """The seconds of another run.

        Steps are of order 4, matrices along axes, and there are as many more cells as elements of these degrees ask
        for, or as there are in the beginning.
        """
        before = self.tolerances
        steps = (before.time / tolerances.time) ** 0.25
        more = (before.space / tolerances.space) ** (dim / tolerances.degree)
        return float(self.seconds * steps * max(more, size / self.size) ** (1.0 + 1.0 / dim))
