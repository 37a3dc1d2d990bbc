r"""What is kept of the logarithms of weights W along paths: means, covariances and the heaviest of them.

Two chains with the same noise give two weights per path, W_0 (long steps) and W_1 (short ones). From a fixed start,

    theta = (E W_0, E W_1, log E e^{W_0}, log E e^{W_1}),

the logarithms with the bias of the logarithm of a mean taken out, log m + s^2 / (2 n m^2), and its covariance by the
delta method. Of a random start, each of them is the mean over starts of what the paths from one of them give: the
logarithm of an expectation over mixed starts is another number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from fem_hjb.support.checks import FloatArray

_HEAVIEST = 4096  # weights that are kept, at most
_LEAST_TAIL = 5  # weights, for which an index is fitted
_TAIL = 0.5  # the largest index with which weights have a variance
_ALIKE = 0.1  # what the heaviest weight exceeds their mean by where they are alike


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Sums:
    """Sums over paths (one start) or over starts, which can be added.

    count : of paths or starts.  paths : of paths.
    shift (2,) : what is taken off W_0, W_1 before they are exponentiated; nought for many starts.
    mean (4,), scatter (4, 4) : of (W_0, W_1, e^{W_0 - shift_0}, e^{W_1 - shift_1}), or over starts of theta.
    ess : the effective sample size (sum e^W)^2 / sum e^{2W}, summed over starts; nan for one start.
    heaviest : the largest W_1, descending; for many starts relative to the mean weight of their start.
    seen (4,) : least and largest residual and mismatch along paths, infinities where there are none.
    """

    count: int
    paths: int
    shift: FloatArray
    mean: FloatArray
    scatter: FloatArray
    ess: float
    heaviest: FloatArray
    seen: FloatArray

    def shifted(self, shift: FloatArray) -> Sums:
        """The same with another shift."""
        factor = np.concatenate([np.ones(2), np.exp(self.shift - shift)])
        return Sums(
            count=self.count,
            paths=self.paths,
            shift=shift,
            mean=self.mean * factor,
            scatter=self.scatter * np.outer(factor, factor),
            ess=self.ess,
            heaviest=self.heaviest,
            seen=self.seen,
        )


def add(left: Sums, right: Sums) -> Sums:
    """The sums over both."""
    shift = np.maximum(left.shift, right.shift)
    a, b = left.shifted(shift), right.shifted(shift)
    count = a.count + b.count
    apart = b.mean - a.mean
    heaviest = np.sort(np.concatenate([a.heaviest, b.heaviest]))[::-1][:_HEAVIEST]
    low, high = np.minimum(a.seen, b.seen), np.maximum(a.seen, b.seen)
    return Sums(
        count=count,
        paths=a.paths + b.paths,
        shift=shift,
        mean=a.mean + apart * (b.count / count),
        scatter=a.scatter + b.scatter + np.outer(apart, apart) * (a.count * b.count / count),
        ess=a.ess + b.ess,
        heaviest=heaviest,
        seen=np.where([True, False, True, False], low, high),
    )


def of_one_start(W: FloatArray, seen: FloatArray) -> Sums:
    """The sums over W (2, n), all from the same start."""
    shift = W.max(axis=1)
    rows = np.concatenate([W, np.exp(W - shift[:, None])])
    mean, scatter = _moments(rows)
    n = W.shape[1]
    return Sums(
        count=n,
        paths=n,
        shift=shift,
        mean=mean,
        scatter=scatter,
        ess=np.nan,
        heaviest=np.sort(W[1])[::-1][:_HEAVIEST],
        seen=seen,
    )


def of_many_starts(W: FloatArray, seen: FloatArray) -> Sums:
    """The sums over W (2, starts, paths from each)."""
    inner = W.shape[2]
    shift = W.max(axis=2)
    weights = np.exp(W - shift[..., None])
    mean = weights.mean(axis=2)
    spread = weights.var(axis=2, ddof=1) / mean**2
    logs = shift + np.log(mean)
    theta = np.concatenate([W.mean(axis=2), logs + spread / (2 * inner)])
    middle, scatter = _moments(theta)
    relative = (W[1] - logs[1][:, None]).ravel()
    return Sums(
        count=W.shape[1],
        paths=W.shape[1] * inner,
        shift=np.zeros(2),
        mean=middle,
        scatter=scatter,
        ess=float((mean[1] ** 2 / (weights[1] ** 2).mean(axis=1)).sum() * inner),
        heaviest=np.sort(relative)[::-1][:_HEAVIEST],
        seen=seen,
    )


def _moments(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean (k,) and scatter (k, k) of rows (k, n)."""
    mean = rows.mean(axis=1)
    apart = rows - mean[:, None]
    return mean, apart @ apart.T


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """theta (4,), its covariance (4, 4), of how many independent terms it is the mean; what is known of the weights.

    ess : effective sample size;  tail : the index k of the tail;  excess : of the heaviest weight over the mean of all,
    relative to that; infinite over many starts.
    """

    theta: FloatArray
    covariance: FloatArray
    count: int
    paths: int
    ess: float
    tail: float
    excess: float
    seen: FloatArray

    @property
    def heavy(self) -> bool:
        """Whether the weights seem to have no variance."""
        return self.tail > _TAIL

    @property
    def alike(self) -> bool:
        """Whether the weights are so much alike that their tail, heavy or not, is of next to nothing."""
        return self.excess <= _ALIKE


def found_in(sums: Sums, many: bool) -> Found:
    """What the sums say; many : whether over many starts."""
    n = sums.count
    covariance = sums.scatter / (n * max(n - 1.0, 1.0))  # of one start there is none, and nobody asks for it
    if many:
        theta, ess, excess = sums.mean, sums.ess, np.inf
    else:
        scale = np.concatenate([np.ones(2), 1.0 / sums.mean[2:]])
        covariance = covariance * np.outer(scale, scale)
        variances = np.diag(covariance)[2:]
        theta = np.concatenate([sums.mean[:2], sums.shift + np.log(sums.mean[2:]) + variances / 2])
        ess = n / (1.0 + variances[1] * (n - 1.0))
        excess = 1.0 / sums.mean[3] - 1.0  # the shift is the largest W
    return Found(
        theta=theta,
        covariance=covariance,
        count=n,
        paths=sums.paths,
        ess=float(ess),
        tail=tail_index(sums.heaviest, sums.paths),
        excess=float(excess),
        seen=sums.seen,
    )


def tail_index(heaviest: FloatArray, n: int) -> float:
    """The index k of a generalised Pareto law fitted to the largest of n weights, of which these are the logarithms.

    Moments of order below 1/k exist: the variance of the weights needs k < 1/2. min(n/5, 3 n^{1/2}) weights are used,
    as many as are kept at most; -inf where they are all alike. As in Pareto-smoothed importance sampling, Vehtari et
    al., J. Mach. Learn. Res. 25 (2024) 72; the fit is that of Zhang and Stephens, Technometrics 51 (2009) 316-325.
    """
    size = int(min(n / 5, 3 * np.sqrt(n), len(heaviest) - 1))
    if size < _LEAST_TAIL:
        return np.inf
    weights = np.exp(heaviest[: size + 1] - heaviest[0])
    excess = np.sort(weights[:size] - weights[size])
    quartile = excess[int(size / 4 + 0.5) - 1]
    if excess[-1] <= 1e-12 or quartile <= 0.0:
        return -np.inf
    many = 30 + int(np.sqrt(size))
    b = 1.0 / excess[-1] + (1.0 - np.sqrt(many / (np.arange(1, many + 1) - 0.5))) / (3.0 * quartile)
    k = np.array([np.log1p(-each * excess).mean() for each in b.tolist()])  # a matrix would be most of all the memory
    likelihood = size * (np.log(-b / k) - k - 1.0)
    posterior = np.exp(likelihood - likelihood.max())
    index = float(np.log1p(-(posterior @ b / posterior.sum()) * excess).mean())
    return (size * index + 5.0) / (size + 10.0)  # towards 1/2, as if from ten weights more
