"""What this package raises on purpose: one hierarchy, from `FemHjbError`."""


class FemHjbError(Exception):
    """Base of every error this package raises on purpose."""


class ProblemError(FemHjbError, ValueError):
    """A control problem, or a law it carries, is not well formed."""


class EllipticityError(ProblemError):
    """The diffusion matrix is not symmetric positive definite somewhere."""


class InfiniteValueError(ProblemError):
    """The value of the problem is +infinity (finite-time blow-up of a Riccati equation, divergent tilt)."""


class DomainError(FemHjbError, ValueError):
    """A mesh, a box or a point does not fit the problem."""


class SpaceError(FemHjbError, ValueError):
    """A finite-element class cannot be built, or does not allow what was asked of it."""


class MeasureError(FemHjbError, ValueError):
    """Samples or weights do not make a measure the class can be fitted under."""


class ConstraintError(FemHjbError, ValueError):
    """A convex set is not well formed, or holds no function of the class."""


class PositivityError(FemHjbError, ArithmeticError):
    """f = exp(v / alpha) came out non-positive where its logarithm is needed."""


class ConvergenceError(FemHjbError, RuntimeError):
    """A solver could not do what was asked of it."""


class OutputError(FemHjbError, OSError):
    """A result could not be written or read."""


class MissingPackageError(FemHjbError, ImportError):
    """A part of this package needs another one that is not installed."""


class ComparisonError(FemHjbError, ValueError):
    """What was given to `compare` cannot be compared."""


class TrialError(FemHjbError, ValueError):
    """An experiment was asked for that there is not, or its results do not fit together."""
