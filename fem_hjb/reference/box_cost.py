"""What a run on boxes takes, told from one before it."""

import math
from dataclasses import dataclass
from typing import final

from fem_hjb.reference.box_asked import Tolerances
from fem_hjb.support.progress import LOGGER


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


def announce(name: str, before: Cost | None, judged: float, shape: tuple[int, ...], tolerances: Tolerances) -> None:
    """Log how long a run, with what judges it, may take; nothing where no earlier one says so.

    judged : times what the run alone takes.
    """
    if before is not None:
        seconds = judged * before.of(math.prod(shape), tolerances, len(shape))
        LOGGER.info("%s: %s, about %.2g s", name, " x ".join(map(str, shape)), seconds)
