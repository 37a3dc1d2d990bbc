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
# # SDE or ODE?
#
# A diffusion model can be run as a noisy process or as a deterministic flow, with the same law at every time. Sampling
# does not care. Control does: steering is paid for in relative entropy, and without noise there is nothing to pay with.
# This notebook goes from one end to the other. It asks what stays the same, what is lost, and at which rate; and which
# parts of the theory of learning, which assumes noise in every direction (*ellipticity*), survive when the noise fades.
# Every number is computed here.

# %%
from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from scipy.integrate import solve_ivp
from scipy.stats import kstest, norm

import fem_hjb as fh
from fem_hjb.learning.inequality import diagnose
from fem_hjb.learning.population import yardstick
from fem_hjb.learning.solve_system import reduce_system

# %% [markdown]
# ## 1. One family, one law
#
# Data $Y_0$ are noised by $dY = -\tfrac\beta2 Y\,ds + \sqrt\beta\,dB$, and $q_s$ is the law of $Y_s$. Run backward in
# $t = T - s$, the law to be passed through at time $t$ is $p_t = q_{T-t}$. The density of the noising solves
# $\partial_s q = \mathrm{div}(\tfrac\beta2 x q) + \tfrac\beta2 \Delta q$, so that, with the time turned around,
#
# $$\partial_t p = -\mathrm{div}\big(\tfrac\beta2 x\,p\big) - \tfrac\beta2 \Delta p .$$
#
# The wrong sign of the Laplacian is mended by the identity $\Delta p = \mathrm{div}(p\,\nabla\log p)$. Split it, for
# any $\eta$,
#
# $$-\tfrac\beta2\Delta p
#   = -\tfrac{1+\eta^2}2\beta\,\mathrm{div}(p\,\nabla \log p) + \tfrac{\eta^2}2\beta\,\Delta p ,$$
#
# and what stands there is the Fokker–Planck equation of
#
# $$dX = \Big[\tfrac\beta2 X + \tfrac{1+\eta^2}{2}\,\beta\,\nabla\log p_t(X)\Big]dt + \eta\sqrt\beta\,dB,
#   \qquad X_0 \sim p_0 .$$
#
# So $X_t \sim p_t$ **for every $\eta$**: the time reversal of the noising for $\eta = 1$, the *probability-flow ODE*
# for $\eta = 0$ (Song et al., [arXiv 2011.13456](https://arxiv.org/abs/2011.13456)). `fh.problems.MixtureDiffusion` is
# this family for data whose score is known. Here: two Gaussians, and a quadratic reward that prefers the one on the
# right. (There are two data laws: one of well separated Gaussians, and one of overlapping ones for later.)

# %%
T, ALPHA = 1.0, 1.0
separated = fh.GaussianMixture([0.6, 0.4], [[-1.0], [1.0]], [[[0.1]], [[0.1]]]), 6.0  # data, beta
overlapping = fh.GaussianMixture([0.6, 0.4], [[-0.4], [0.6]], [[[0.2]], [[0.25]]]), 2.0


def reward(x):
    return -((x[..., 0] - 1.0) ** 2) / 2


def tilted(eta, model=separated):
    """The control problem of the process with this much noise."""
    data, beta = model
    process = fh.problems.MixtureDiffusion(data, horizon=T, beta=beta, eta=eta)
    return process.tilted(reward, temperature=ALPHA, name=f"eta = {eta:g}")


def flow(x, start=0.0, end=T, model=separated):
    """Where the probability-flow ODE takes points (n, 1): dX/dt = beta/2 (X + score)."""
    drift, beta = tilted(1.0, model).drift, model[1]  # beta/2 (X + 2 score)

    def rate(t, z):
        return (drift(t, z[:, None])[:, 0] + beta / 2 * z) / 2

    return solve_ivp(rate, (start, end), x[:, 0], "DOP853", rtol=1e-9, atol=1e-9).y[:, -1:]


etas = (1.0, 0.5, 0.25)
problems = {eta: tilted(eta) for eta in etas}
laws = {eta: fh.fokker_planck.solve(problem, rtol=1e-3) for eta, problem in problems.items()}

x = np.linspace(-2.5, 2.5, 401)[:, None]
known = np.exp(problems[1.0].marginal(T).logpdf(x))
for eta, law in laws.items():
    difference = np.abs(law.density(T, x) - known).max()
    print(f"eta = {eta:4g}: density at T by its own equation, largest difference from the data {difference:.1e}")

# %% [markdown]
# The laws agree; the paths could hardly be more different. All four panels begin at the same points. As the noise
# fades, paths stop crossing, and in the end each start has one end.

# %%
few = np.linspace(-1.8, 1.8, 15)[:, None]
figure, axes = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained", sharey=True)
colours = plt.get_cmap("coolwarm")(np.linspace(0.0, 1.0, len(few)))
times = np.linspace(0.0, T, 201)
for ax, eta in zip(axes, etas, strict=False):
    rng = np.random.default_rng(3)
    z, step = few, T / 200
    trace = [z]
    for t in times[:-1]:  # Euler's steps, for the picture
        z = z + problems[eta].b(t, z) * step + eta * np.sqrt(separated[1] * step) * rng.standard_normal(z.shape)
        trace.append(z)
    for path, colour in zip(np.array(trace)[:, :, 0].T, colours, strict=True):
        ax.plot(times, path, color=colour, linewidth=0.8)
    ax.set(xlabel="$t$", title=rf"$\eta = {eta:g}$")
grid = times[::10]
lines = [few]
for before, after in pairwise(grid):
    lines.append(flow(lines[-1], before, after))
for path, colour in zip(np.array(lines)[:, :, 0].T, colours, strict=True):
    axes[3].plot(grid, path, color=colour, linewidth=0.8)
axes[3].set(xlabel="$t$", title=r"$\eta = 0$: the flow")
axes[0].set_ylabel("$X_t$")
plt.show()

# %% [markdown]
# ## 2. What steering can do
#
# Fine-tuning raises $E[y(X_T)]$ at the price of $\alpha\,\mathrm{KL}(P^\pi \| P)$. With $\Lambda = \eta^2\beta$,
#
# $$v_t(x) = \alpha \log E\big[e^{y(X_T)/\alpha} \,\big|\, X_t = x\big], \qquad
#   \pi^* = \tfrac1\alpha \Lambda \nabla v = \tfrac{\eta^2\beta}{\alpha}\,\nabla v .$$
#
# Three statements, for $f = e^{v/\alpha}$ and $Z = E[e^{y(X_T)/\alpha}]$, which is the same for every $\eta$ because
# the law of $X_T$ is:
#
# * $E[f_0(X_0)] = Z$, by the tower property;
# * so $E[v_0(X_0)] \le \alpha\log Z$ by Jensen's inequality, with equality only if $f_0$ is constant: if the start says
#   nothing about the reward at the end;
# * as $\eta \to 0$, $X_T$ is a function $\Phi(X_0)$ of the start, $v_0 = y\circ\Phi$, and $E[v_0(X_0)] \to E[y(X_T)]$:
#   **nothing is gained at all**.
#
# `solve` knows nothing of this. It solves each problem to the tolerance that is asked for.

# %%
levels = (1.0, 0.707, 0.5, 0.354, 0.25, 0.177, 0.125, 0.0884)
solved = {eta: fh.solve(tilted(eta), rtol=1e-4, verify=False) for eta in levels}  # judged below, by E f_0 = Z


def mean_over_starts(values, model=separated):
    """E of values at `starts`, a fine grid that holds all but 1e-4 of the starts."""
    weights = np.exp(tilted(1.0, model).initial_law.logpdf(starts))
    return weights @ values / weights.sum()


starts = np.linspace(-4.0, 4.0, 2001)[:, None]
ends, weights = separated[0].quadrature(60)
Z, mean_reward = weights @ np.exp(reward(ends) / ALPHA), weights @ reward(ends)
gained = {}
print(f"without control E y = {mean_reward:.4f}; the ceiling alpha log Z = {ALPHA * np.log(Z):.4f}\n")
print("     eta     E v_0   of what could be gained   E f_0 / Z - 1   estimated error")
for eta, of in solved.items():
    v, bar = of.value(0.0, starts), of.error_estimate
    mean, away = mean_over_starts(v), mean_over_starts(np.exp(v / ALPHA)) / Z - 1
    gained[eta] = (mean - mean_reward) / (ALPHA * np.log(Z) - mean_reward)
    print(f"{eta:8g} {mean:9.4f} {gained[eta]:25.1%} {away:15.1e} {max(bar.value, bar.policy):17.1e}")

# %% [markdown]
# The left picture shows $v_0$: flat where the process forgets its start, the reward seen through the flow where it
# remembers. The right one shows where the optimally controlled process ends, by its own Fokker–Planck equation. Only
# with enough noise does fine-tuning reach the tilted law $p_T e^{y/\alpha}/Z$; with little it stays with the data.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
line = np.linspace(-2.5, 2.5, 301)[:, None]
after = reward(flow(line))
for eta, style in zip((1.0, 0.5, 0.25, 0.125), fh.plot.STYLES, strict=False):
    axes[0].plot(line, solved[eta].value(0.0, line), label=rf"$\eta = {eta:g}$", **{**style, "marker": None})
axes[0].plot(line, after, color="0.6", linewidth=4.0, zorder=0, label=r"$y(\Phi(x))$, the flow")
axes[0].set(xlabel="$x$", ylabel="$v_0(x)$", title="what a start is worth")
axes[0].legend(fontsize=8)
for eta, style in zip(etas, fh.plot.STYLES, strict=False):
    of = solved[eta]
    steered = fh.fokker_planck.solve(problems[eta], policy=of.policy, box=of.space.box, rtol=1e-3)
    axes[1].plot(x, steered.density(T, x), label=rf"controlled, $\eta = {eta:g}$", **{**style, "marker": None})
axes[1].plot(x, known, color="0.6", label="data $p_T$")
axes[1].plot(x, known * np.exp(reward(x) / ALPHA) / Z, color="0.8", linewidth=5.0, zorder=0, label="tilted law")
axes[1].set(xlabel="$x$", ylabel="density at $T$", title="where it ends")
axes[1].set_ylim(top=1.6)
axes[1].legend(fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# ## 3. At which rate?
#
# The drift differs from that of the flow by $\tfrac{\eta^2}2\beta\,\nabla\log p_t$, the diffusion is $\eta^2\beta$, and
# the quadratic term of the equation has the factor $\Lambda/2\alpha = \eta^2\beta/2\alpha$. Everything that $\eta$
# changes has the factor $\eta^2$, so that $|v^\eta - y\circ\Phi| \sim \eta^2$, **where the flow is smooth as seen by
# the noise**: the expansion in $\eta^2$ has derivatives of $y\circ\Phi$ in it. A flow that splits its starts between
# two separated modes is steep at the watershed, and the rate is then seen only for an $\eta$ that is small against the
# width of it.
#
# The negative control: keep the drift of $\eta = 1$ while the noise fades. This is a process, too, but its limit is
# another flow, which does not pass through $p_t$.

# %%
small = (0.25, 0.177, 0.125, 0.0884)
milder = {eta: fh.solve(tilted(eta, overlapping), rtol=1e-4, verify=False) for eta in (1.0, 0.5, *small, 0.0625)}
other = {
    eta: fh.solve(replace(tilted(eta, overlapping), drift=tilted(1.0, overlapping).drift, marginal=None), rtol=1e-3)
    for eta in small
}


def distance(solution, model):
    """Of v_0 from its limit, in L2(p_0), relative to the limit."""
    limit = reward(flow(starts, model=model))
    squares = mean_over_starts((solution.value(0.0, starts) - limit) ** 2, model), mean_over_starts(limit**2, model)
    return np.sqrt(squares[0] / squares[1])


series = {
    "overlapping": (milder, overlapping),
    "overlapping, drift of eta = 1": (other, overlapping),
    "separated": (solved, separated),
}
rows = {name: [distance(found[eta], model) for eta in small] for name, (found, model) in series.items()}
for name, row in rows.items():
    rate = np.polyfit(np.log(small), np.log(row), 1)[0]
    print(f"{name:30s}" + "".join(f"{value:9.1e}" for value in row) + f"   ~ eta^{rate:.2f}")
for name, model in (("overlapping", overlapping), ("separated", separated)):
    steepest = np.abs(np.diff(flow(starts, model=model)[:, 0]) / np.diff(starts[:, 0])).max()
    print(f"{name}: the flow stretches distances by {steepest:.3g} at most")

figure, ax = plt.subplots(figsize=(4.8, 3.4), layout="constrained")
for (name, row), style in zip(rows.items(), fh.plot.STYLES, strict=False):
    ax.loglog(small, row, label=name, **style)
fh.plot.ticks_at(ax.xaxis, small)
ax.set(xlabel=r"$\eta$", ylabel="distance from the flow's value")
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 4. What survives as ellipticity fails
#
# Learning $f$ means to solve $B[f, g] = \ell(g)$ in a class of functions (notebook 3). The theory measures errors in
#
# $$E_\delta[f, f] = E f_T^2 + E f_0^2
#   + \int E\big[f^2 + |\nabla f|_\Lambda^2 + \delta\,(\partial_t f)^2\big]\,dt + \dots$$
#
# and $|\nabla f|_\Lambda^2 = \eta^2\beta|\nabla f|^2$ fades with the noise. Tests are $g - \delta\,\partial_t g$, and
# the product of $\delta\,\partial_t g$ with the drift term $b\nabla f$ is no longer held by the norm. Three figures say
# what this does, for the overlapping data:
#
# * $\mu$, the *coercivity*: what the projected iteration needs. At the best $\delta$ its rate gives the steps to 1e-3;
# * $\sigma$, the *inf-sup constant*: what a direct solve of the equations needs;
# * the error of $f$, solved directly in the class, over that of the best approximation in the class.

# %%
box = fh.Box([-3.0], [3.0])
ladder = [0.04 * 2.0**-k for k in range(5)]
figures = {}
for eta in (1.0, 0.5, 0.25, 0.125, 0.0625):
    problem = tilted(eta, overlapping)
    space = fh.Space(problem, cells=12, time_cells=6, element="B3", time_degree=3, time_smooth=True, box=box)
    law = fh.law_measure(problem, space)
    forms = [
        diagnose(reduce_system(fh.learning.assemble(problem, law, space, estimator="weak", delta=delta)).inequality)
        for delta in ladder
    ]
    best = min(forms, key=lambda form: form.contraction)
    steps = np.log(1e-3) / np.log(best.contraction)
    ruler = yardstick(problem, law, space, exact=milder[eta], norm="mass")
    direct = fh.learning.solve_system(fh.learning.assemble(problem, law, space), smoothing=0.0, figures=False)
    error = ruler.distance(direct.coefficients)
    figures[eta] = best.coercivity, steps, forms[0].stability, error / ruler.size, error / ruler.approximation

print("   eta       mu   steps to 1e-3   sigma   error of f   over the best of the class")
for eta, (mu, steps, sigma, error, ratio) in figures.items():
    print(f"{eta:6g} {mu:8.3f} {steps:15.0f} {sigma:7.2f} {error:12.1e} {ratio:12.1f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
eta, (mu, steps, sigma, error, ratio) = list(figures), np.transpose(list(figures.values()))
axes[0].loglog(eta, mu, label=r"$\mu$, for the iteration", **fh.plot.STYLES[2])
axes[0].loglog(eta, sigma, label=r"$\sigma$, for a direct solve", **fh.plot.STYLES[0])
axes[0].set_ylabel("figures of the form")
axes[1].loglog(eta, steps, label="steps of the iteration to 1e-3", **fh.plot.STYLES[2])
axes[1].loglog(eta, ratio, label="error of $f$ over the best of the class", **fh.plot.STYLES[0])
for ax in axes:
    fh.plot.ticks_at(ax.xaxis, eta)
    ax.set_xlabel(r"$\eta$")
    ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# The iteration is lost, the equation is not: $\sigma$ stays, and the error of the function that is found stays within a
# few times that of the best of the class, fewer as the noise fades. The same holds where noise acts in one of two
# coordinates only (a kinetic process): adding a little to the other, for the sake of the theory, costs a bias of its
# order and buys steps, not accuracy. `fem-hjb experiment ellipticity` measures both series with finer ladders; its
# claims are in the table of [experiments](../docs/experiments.md).
#
# ## What to remember
#
# * All $\eta$ have the same marginals. What an unsteered sampler returns does not depend on $\eta$.
# * What fine-tuning can reach does. $E f_0 = Z$ always; $E v_0$ falls from near $\alpha\log Z$ to $E y$ as the noise
#   fades. The tilted law is reached only if the start is forgotten.
# * Towards the flow $v$ converges at rate $\eta^2$, if the drift goes with it and the flow is not steep.
# * Small noise spoils the coercivity of the form, hence the iteration, and not the direct solve.
#
# ## Exercises
#
# 1. *On paper.* Let $\eta_t \ge 0$ depend on time. Do the marginals stay the same? May it depend on $x$?
# 2. *Compute.* Draw 4000 paths for $\eta = 1$ and $\eta = 1/4$ with Euler steps (`fh.sample_paths`) and test their ends
#    against the data law (Kolmogorov–Smirnov). How many steps does each need?
# 3. *Compute.* At which $\eta$ is half of what steering gains at $\eta = 1$ lost?
# 4. *Compute.* If $v^\eta = v^0 + \eta^2 v^1 + O(\eta^4)$, then $(4 v^{\eta/2} - v^\eta)/3$ is right to $\eta^4$. Check
#    it on the mean $E v_0$ of the overlapping data.
#
# ### Solutions
#
# **1.** The splitting was made at one time, so $\eta_t$ may depend on time. If it depends on $x$, the noise brings
# $\tfrac12\beta\,\Delta(\eta^2 p) = \tfrac12\beta\,\mathrm{div}\big(p\,(\eta^2\nabla\log p + \nabla\eta^2)\big)$: the
# marginals stay if the drift gets the additional $\tfrac\beta2\nabla(\eta^2)$.
#
# **2.** The density of the data is a sum of two, so is its distribution function:


# %%
def data_cdf(z):
    return 0.6 * norm.cdf(z, -1.0, np.sqrt(0.1)) + 0.4 * norm.cdf(z, 1.0, np.sqrt(0.1))


print(
    "distance of the ends' distribution function from the data's (chance alone: about 0.014, above 0.021 in one of 20)"
)
for eta in (1.0, 0.25):
    row = []
    for steps in (8, 16, 32, 64, 128):
        ends = fh.sample_paths(problems[eta], n=4000, steps=steps, rng=1).x[:, -1, 0]
        row.append(f"{steps:4d}: {kstest(ends, data_cdf).statistic:.3f}")
    print(f"eta = {eta:4g}   " + "  ".join(row))

# %% [markdown]
# With 128 steps both are as good as chance allows, about $0.87/\sqrt n$; the less noisy process gets there with half as
# many. With 16 it is the noisy one that does better: drift is strong, errors of early steps are large, and noise
# forgets them.
#
# **3.** The table of section 2, interpolated in $\log\eta$:

# %%
rising = np.array(levels)[::-1]
half = np.interp(gained[1.0] / 2, [gained[eta] for eta in rising], np.log(rising))
print(f"half of the gain is lost at eta = {np.exp(half):.2f}")

# %% [markdown]
# **4.** The mean of the limit is $E y$ under the data law.

# %%
ends, weights = overlapping[0].quadrature(60)
means = {
    eta: mean_over_starts(of.value(0.0, starts), overlapping) - weights @ reward(ends) for eta, of in milder.items()
}
pairs = ((0.5, 0.25), (0.25, 0.125), (0.177, 0.0884), (0.125, 0.0625))
plain, better = [], []
print("   eta   E v^eta - E v^0   extrapolated from eta and eta/2")
for eta, half in pairs:
    plain.append(means[eta])
    better.append((4 * means[half] - means[eta]) / 3)
    print(f"{eta:6g} {plain[-1]:17.1e} {better[-1]:20.1e}")
rates = [np.polyfit(np.log([eta for eta, _ in pairs]), np.log(np.abs(row)), 1)[0] for row in (plain, better)]
print(f"rates: {rates[0]:.2f} and {rates[1]:.2f}")

# %% [markdown]
# On their way to 2 and 4: the first pair is still large as seen by the data, whose width is one half.
