# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Is it harder than regression?
#
# W. Mou asks in [arXiv 2509.02528](https://arxiv.org/abs/2509.02528) whether fine-tuning a diffusion model to a reward,
# a problem of reinforcement learning, is harder than regression. This notebook puts the question to numbers: two ways
# to learn the same function, from the same trajectories, in the same classes. It shows where the variational equation
# beats regression, why, at what price, and where the advantage ends. Every number is computed here.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from scipy.linalg import solve_continuous_are

import fem_hjb as fh
from fem_hjb.learning.population import yardstick
from fem_hjb.spaces.dictionary import Envelope
from fem_hjb.spaces.features import HermiteCross
from fem_hjb.spaces.line import LineBasis

# %% [markdown]
# ## 1. Two ways to learn $f$
#
# The uncontrolled process $X$ generates samples of a data law, here a mixture of two Gaussians. A reward $y$ of the
# end point is to be raised, at the price of relative entropy with weight $\alpha$. The optimal correction of the drift
# is $\pi^* = \Lambda \nabla \log f$ with
#
# $$f_t(x) = E\big[e^{(y(X_T) - c_y)/\alpha} \,\big|\, X_t = x\big], \qquad
#   \partial_t f + \langle b, \nabla f\rangle + \tfrac12 \mathrm{Tr}(\Lambda \nabla^2 f) = 0, \qquad
#   f_T = e^{(y - c_y)/\alpha}$$
#
# (with a running reward, which is 0 here, there is one more term in each). Either statement is a way to learn:
#
# * **Regression**: the conditional mean. Regress the label $e^{(y(X_T) - c_y)/\alpha}$ of each trajectory on its states
#   $(t, X_t)$. Needs the reward and nothing else.
# * **The variational equation**: in expectation along trajectories, the residual of the equation times any test
#   function is 0 (see the notebook before this one). Needs drift and diffusion as well: estimator `generator`. Two
#   relatives: `increment` takes differences of $f$ along trajectories in place of the generator, and needs no model;
#   `corrected` subtracts from them the noise that the drift explains.
#
# The labels at half time, what the two make of them, and the policies that follow:

# %%
tilt = fh.zoo.get("mixture-diffusion", dim=1)
box = fh.paths.truncation_box(
    tilt, quantile=1e-3, margin=0.0
).box  # leaves out a thousandth of the samples on either side
paths = fh.sample_paths(tilt, n=1000, steps=64, rng=0)
space = fh.Space(tilt, cells=16, time_cells=8, box=box)
names = ("generator", "corrected", "increment", "regression")
how = {"outside": "drop", "verify": False}  # the truth is known
fits = {name: fh.fit(tilt, paths, space, estimator=name, **how) for name in names}
gauge = fits["generator"].gauge

states, labels = paths.x[:, 32, 0], gauge.terminal_u(tilt, paths.x[:, -1])
x = np.linspace(-2.5, 2.5, 201)[:, None]
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
axes[0].plot(states, labels, ".", color="0.75", markersize=3, label="labels")
axes[0].plot(x, gauge.u(0.5, x, tilt.exact.value(0.5, x)), color="0.6", linewidth=5.0, label="exact")
axes[1].plot(x, tilt.exact.policy(0.5, x), color="0.6", linewidth=5.0, label="exact")
for name, style in zip(("generator", "regression"), (fh.plot.STYLES[1], fh.plot.STYLES[2]), strict=True):
    line = {**style, "marker": None}
    axes[0].plot(x, fits[name].f(0.5, x), label=name, **line)
    axes[1].plot(x, fits[name].policy(0.5, x, nonpositive="nan"), label=name, **line)
axes[0].set(xlabel="$x$", ylabel="$f$", title="$f$ at half time")
axes[1].set(xlabel="$x$", ylabel=r"$\pi$", title="policy at half time", ylim=(-1.0, 6.0))
axes[0].legend()
axes[1].legend()
plt.show()

truth = gauge.u(0.5, paths.x[:, 32], tilt.exact.value(0.5, paths.x[:, 32]))
print(f"variance of the labels around f: {np.mean((labels - truth) ** 2):.3f}; of f itself: {truth.var():.3f}\n")
print(fh.compare(fits, tilt.exact, problem=tilt))

# %% [markdown]
# Regression has to average the noise of the labels away, for every unknown of the class. For `generator` it is not
# there: the true $f$ has residual 0 at every single sample. What counts in the end is the policy, whose error enters
# the reward that is lost squared.
#
# ## 2. Self-mitigation
#
# More precisely: in a class that does not hold $f$, the noise of `generator` carries the residual of the best
# approximation as a factor. The better the class, the less noise. For regression the noise is that of the labels,
# whatever the class. The experiment measures $\sqrt n$ times the scatter of what is learned, over repetitions, against
# the approximation error $|f_{best} - f^*|_E$: exponent 1 for one, 0 for the other. In a fixed class the truth is moved
# away from the class step by step; in growing classes, whose dimension $N$ increases, it is the noise over $\sqrt N$.
# Controls are the same claims about something broken on purpose, and must fail: regression does not have exponent 1,
# nor has the equation with a drift that is wrong, so that it has no solution in the class.

# %%
mitigation = fh.experiments.run("self-mitigation", quick=True, seeds=4, classes=((4, 2), (8, 4), (12, 6)))


def report(trial):
    """The claims of an experiment and what was found."""
    for claim in trial.claims:
        kind = "control" if claim.control else "claim"
        print(f"{kind:8s}{'holds' if claim.holds else 'fails':6s} found {claim.value:6.2f}: {claim.text}")


report(mitigation)

# %%
fh.experiments.get("self-mitigation").figure(mitigation)

# %% [markdown]
# ## 3. The error against the number of trajectories
#
# Regression balances approximation against noise. With splines of degree $p$ in $D = d + 1$ variables (space and time)
# its best class, of $N \sim n^{D/(2p + D)}$ unknowns, has the error $n^{-p/(2p + D)}$ in the energy norm: never better
# than $n^{-1/2}$, and worse the higher the dimension. The variational equation has no such balance to strike. Its class
# may grow much faster ($N \sim n^{2/3}$ for $p = 3$, $d = 1$), and the error is the approximation error all along.

# %%
harder = fh.experiments.run("harder-than-regression", quick=True, seeds=3)
report(harder)

# %%
fh.experiments.get("harder-than-regression").figure(harder)

# %% [markdown]
# ### With less than a model
#
# Back to the diffusion model. `increment` needs no more than regression does: states along trajectories, and rewards.
# Yet it uses that $f$ is a martingale from every step to the next, not only that its mean is that of the label at the
# end; it stands between the two. Each estimator gets the best of three classes, chosen with the errors known (relative,
# in the norm $E f_T^2 + E f_0^2 + \int E[f^2 + \Lambda |f'|^2]dt$); medians over seeds.

# %%
ladder = {cells: fh.Space(tilt, cells=cells[1], time_cells=cells[0], box=box) for cells in ((2, 4), (4, 8), (8, 16))}
rulers = {cells: yardstick(tilt, fh.law_measure(tilt, of), of) for cells, of in ladder.items()}
sizes = {5: 3, 10: 3, 30: 3, 100: 2, 1000: 1, 5000: 1}  # trajectories: seeds


def error(sampled, cells, estimator, believed=tilt):
    """Relative error of what is learned, in the norm of the energy."""
    system = fh.learning.assemble(believed, sampled, ladder[cells], estimator=estimator, outside="drop")
    learned = fh.learning.solve_system(system, figures=False)
    return rulers[cells].distance(learned.coefficients) / rulers[cells].size


best = {}
for n, seeds in sizes.items():
    samples = [fh.sample_paths(tilt, n=n, steps=64, rng=100 + seed) for seed in range(seeds)]
    for name in ("generator", "increment", "regression"):
        medians = {cells: np.median([error(sampled, cells, name) for sampled in samples]) for cells in ladder}
        cells = min(medians, key=medians.get)
        best[name, n] = medians[cells], cells

print(f"{'n':>8s}" + "".join(f"{name:>24s}" for name in ("generator", "increment", "regression")))
for n in sizes:
    row = (best[name, n] for name in ("generator", "increment", "regression"))
    print(f"{n:8d}" + "".join(f"{f'{value:.1e} ({k} x {m} cells)':>24s}" for value, (k, m) in row))

figure, ax = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
for name, style in zip(("generator", "increment", "regression"), fh.plot.STYLES, strict=False):
    ax.loglog(list(sizes), [best[name, n][0] for n in sizes], label=name, **style)
floor = rulers[8, 16].approximation / rulers[8, 16].size
ax.axhline(floor, color="0.6", linewidth=1.0, label="best approximation, 8 x 16 cells")
ax.set(xlabel="trajectories $n$", ylabel="relative error of $f$")
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 4. Where the advantage ends
#
# ### With a handful of trajectories
#
# The left end of the figure. With five trajectories nothing is known about most of the cells, and no method is good:
# all they can do is to extend $f$ smoothly from where they saw it.
#
# ### With a wrong model
#
# `generator` solves the equation it is told. Scale the drift by $1 + \varepsilon$ in the equation, not in the
# trajectories: the error now has a part that no number of trajectories removes. What was learned without a model does
# not notice. So the model must be the better, the more data there are.

# %%
mistakes = (0.0, 0.03, 0.1, 0.2, 0.4, 0.8)
wrong = {}
for n in (1000, 5000):
    sampled = fh.sample_paths(tilt, n=n, steps=64, rng=100)
    for mistake in mistakes:
        believed = replace(tilt, drift=lambda t, x, factor=1 + mistake: factor * tilt.b(t, x))
        wrong[n, mistake] = error(sampled, (8, 16), "generator", believed)

print("drift wrong by" + "".join(f"{mistake:9.0%}" for mistake in mistakes) + "  | increment regression")
for n in (1000, 5000):
    row = "".join(f"{wrong[n, mistake]:9.1e}" for mistake in mistakes)
    print(f"n = {n:<10d}{row}  | {best['increment', n][0]:9.1e} {best['regression', n][0]:10.1e}")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
for ax, n in zip(axes, (1000, 5000), strict=True):
    ax.semilogy(100 * np.array(mistakes), [wrong[n, m] for m in mistakes], label="generator", **fh.plot.STYLES[0])
    for name, style in zip(("increment", "regression"), fh.plot.STYLES[1:], strict=False):
        ax.axhline(best[name, n][0], label=name, **{**style, "marker": None})
    ax.set(xlabel="drift wrong by, per cent", title=f"$n = {n}$")
axes[0].set_ylabel("relative error of $f$")
axes[0].legend()
plt.show()

# %% [markdown]
# ### In a class that does not hold $f$
#
# The variational equation removes the noise, not the approximation error. In many dimensions it is the class that one
# is short of, and then the two do equally well, or rather equally badly.
#
# A linear-quadratic problem in $d$ dimensions whose solution is $f = e^{-x'Px/2}\,c(t)$. The class: polynomials of
# degree 2 along each axis, times $e^{-\theta x'Px/2}$, times quadratics in time. With $\theta = 1$ the class knows the
# shape of the solution, and with smaller $\theta$ less and less of it. 1000 trajectories; root mean square errors of
# $f$ at fresh samples.

# %%
thetas = (1.0, 0.95, 0.8, 0.0)


def steady(d):
    """Terminal cost P with A'P + PA + 1 = P Lambda P, so that the shape of f does not change in time."""
    free = fh.zoo.get("lq", dim=d)
    A, _ = free.drift.coefficients
    P = solve_continuous_are(A, np.linalg.cholesky(free.constant_diffusion), np.eye(d), np.eye(d))
    return fh.zoo.get("lq", dim=d, Q=1.0, R=P), P


poor = {}
for d in (2, 8):
    problem, P = steady(d)
    sampled = fh.sample_paths(problem, n=1000, steps=16, rng=d)
    fresh = problem.initial_law.sample(4000, np.random.default_rng(0))
    for theta in thetas:
        features = Envelope(HermiteCross(problem.initial_law, 2), theta * P, np.zeros(d))
        dictionary = fh.Space.product(LineBasis.uniform(1.0, 2, "P2"), features)
        for name in ("generator", "regression"):
            learned = fh.learning.solve_system(
                fh.learning.assemble(problem, sampled, dictionary, estimator=name), figures=False
            )
            truth = learned.gauge.u(0.5, fresh, problem.exact.value(0.5, fresh))
            square = np.mean((learned.f(0.5, fresh) - truth) ** 2) / np.mean(truth**2)
            poor[d, theta, name] = np.sqrt(square), dictionary.n_dofs

print("                theta" + "".join(f"{theta:10g}" for theta in thetas))
for d in (2, 8):
    for name in ("generator", "regression"):
        row = "".join(f"{poor[d, theta, name][0]:10.1e}" for theta in thetas)
        print(f"d = {d}, {name:10s}    {row}   ({poor[d, 1.0, name][1]} unknowns)")

figure, ax = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
for d, style in zip((2, 8), fh.plot.STYLES, strict=False):
    gain = [poor[d, theta, "regression"][0] / poor[d, theta, "generator"][0] for theta in thetas]
    ax.semilogy(1 - np.array(thetas), gain, label=f"$d = {d}$", **style)
ax.axhline(1.0, color="0.6", linewidth=1.0)
ax.set(xlabel=r"what the class does not know, $1 - \theta$", ylabel="error of regression / error of generator")
ax.legend()
plt.show()

# %% [markdown]
# ## The answer
#
# * With drift and diffusion known, and a class that can hold $f$, it is *easier* than regression: the noise goes away
#   together with the approximation error. A diffusion model has exactly this: its drift is what was trained.
# * Without a model, `increment` is still a better use of the same trajectories than regression.
# * The advantage is one over *noise*. It is gone where something else dominates: a wrong drift, a class that cannot
#   hold $f$ (the usual case in high dimension, unless something is known of the solution), or hardly any samples.

# %% [markdown]
# ## Exercises
#
# 1. *On paper.* A class of $N$ unknowns has the approximation error $N^{-p/D}$ and regression the noise $\sqrt{N/n}$.
#    Which $N$ is best, and what is the error then? What is left of it if the noise has the approximation error as a
#    factor?
# 2. *Compute.* How much of the labels' variance is explained by $f$ at each time? Print it at $t = 0, T/4, T/2, 3T/4$;
#    where would you expect regression to do best?
# 3. *Compute.* Regression may be helped by more labels per state, `generator` by nothing of the kind. How many
#    trajectories does regression need in the class of $4 \times 8$ cells to be as good as `generator` with 100?
# 4. *Compute.* Take the *wrong* drift in the trajectories and the right one in the equation: does `generator` mind?
#
# ### Solutions
#
# **1.** $N^{-2p/D} = N/n$ gives $N = n^{D/(2p+D)}$ and the error $n^{-p/(2p+D)}$. With the factor the noise is
# $N^{-p/D}\sqrt{N/n}$, smaller than the approximation error as long as $N < n$: the class may grow like $n$, and the
# error is $n^{-p/D}$.
#
# **2.**

# %%
ends = gauge.terminal_u(tilt, paths.x[:, -1])
for k in (0, 16, 32, 48):
    f = gauge.u(k / 64, paths.x[:, k], tilt.exact.value(k / 64, paths.x[:, k]))
    print(f"t = {k / 64:4g}: f explains {f.var() / ends.var():.0%} of the variance of the labels")

# %% [markdown]
# Near the end the label is nearly a function of the state.
#
# **3.**

# %%
goal = np.median(
    [error(fh.sample_paths(tilt, n=100, steps=64, rng=100 + seed), (4, 8), "generator") for seed in range(3)]
)
print(f"generator, 100 trajectories: {goal:.1e}")
for n in (400, 1600, 6400):
    print(f"regression, {n}: {error(fh.sample_paths(tilt, n=n, steps=64, rng=n), (4, 8), 'regression'):.1e}")

# %% [markdown]
# By its rate $n^{-1/2}$ it would take some ten thousand and more.
#
# **4.**

# %%
for factor in (1.0, 1.2, 1.5):
    other = replace(tilt, drift=lambda t, x, factor=factor: factor * tilt.b(t, x), exact=None, marginal=None)
    sampled = fh.sample_paths(other, n=1000, steps=64, rng=7)
    found = error(sampled, (8, 16), "generator"), error(sampled, (4, 8), "increment")
    print(f"drift of the trajectories times {factor:g}: error of generator {found[0]:.1e}, of increment {found[1]:.1e}")

# %% [markdown]
# Hardly: trajectories only say where the equation is tested. They are quadrature points, and other points serve as
# well, as long as they cover what matters. `increment` takes the equation itself from them.
