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
# # Long horizons
#
# What does one earn per unit of time, in the long run, and what does one do for it? As the horizon grows the value
# grows like $\lambda T$, the policy stops changing, and both are found without any horizon: from the principal
# eigenfunction of a linear operator, its *ground state*. The next eigenvalue says how long "long" is. Every number is
# computed here.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh

# %% [markdown]
# ## 1. From an equation in time to an eigenvalue
#
# The function $f_t = e^{v_t/\alpha}$ solves $\partial_t f + Gf + \tfrac r\alpha f = 0$, with $G = \langle b,
# \nabla\rangle + \tfrac12\mathrm{Tr}(\Lambda\nabla^2)$, and nothing depends on time but the data at $T$. So $f_t =
# e^{(T-t)(G + r/\alpha)} e^{y/\alpha}$. Let $\lambda/\alpha$ be the eigenvalue of $G + r/\alpha$ with the largest real
# part. Its eigenfunction $\varphi$ is positive (Krein and Rutman), and it is what remains of $f$:
#
# $$f_t = c\,e^{\lambda (T-t)/\alpha}\big(\varphi + O(e^{-\gamma (T-t)})\big),\qquad
#   v_t = \lambda(T-t) + w + \text{const} + O(e^{-\gamma(T-t)}),\quad w = \alpha\log\varphi ,$$
#
# where the *gap* $\gamma$ is the distance of $\lambda/\alpha$ from the real parts of the rest of the spectrum. Put
# $v = \lambda (T-t) + w$ into the HJB equation:
#
# $$\langle b,\nabla w\rangle + \tfrac12\mathrm{Tr}(\Lambda\nabla^2 w) + r + \tfrac1{2\alpha}\nabla w'\Lambda\nabla w
#   = \lambda ,\qquad \pi = \tfrac1\alpha\Lambda\nabla w .$$
#
# Under this policy the generator is *Doob's transform* $\varphi^{-1}(G + \tfrac r\alpha - \tfrac\lambda\alpha)\varphi$.
# It has the same spectrum, moved so that the first eigenvalue is 0: **the steered process forgets its start at the same
# rate $\gamma$**. If $b = -\nabla V$ and $\Lambda = 2\varepsilon$, it is again a gradient process, and its stationary
# density is known: $p \propto e^{-V/\varepsilon}\varphi^2$.
#
# The setting: a double well with $V = (x^2-1)^2$, and a reward $r = -a(x-1)^2$ for being in the right one.

# %%
ALPHA = 0.5


def well(horizon=1.0, epsilon=ALPHA, a=1.0):
    return fh.ControlProblem(
        dim=1,
        horizon=horizon,
        temperature=epsilon,
        drift=lambda t, x: -4 * x * (x**2 - 1),
        diffusion=2 * epsilon,
        running_reward=lambda t, x: -a * (x[..., 0] - 1) ** 2,
        terminal_reward=lambda x: 0 * x[..., 0],
        initial_law=fh.Gaussian([-1.0], 0.05),
        name="well",
    )


ground = fh.ground_state(well(), rtol=1e-5)
print(ground)

# %% [markdown]
# Three checks that do not use the solver's own equations: the density against $e^{-V/\varepsilon}\varphi^2$; its mass;
# and $\lambda$ as what is earned on average, $\lambda = \int \big(r - \tfrac\alpha2|\pi|^2_{\Lambda^{-1}}\big)\,p$.

# %%
x = np.linspace(*(float(bound[0]) for bound in ground.function.basis.box.bounds), 4001)[:, None]
weights = np.full(len(x), x[1, 0] - x[0, 0])  # the density is 0 at both ends
V, w, density, policy = ((x[:, 0] ** 2 - 1) ** 2, ground.value(x), ground.density(x), ground.policy(x)[:, 0])
known = np.exp(-V / ALPHA + 2 * w / ALPHA)
known /= weights @ known
reward = -((x[:, 0] - 1) ** 2)
cost = ALPHA / 2 * policy**2 / (2 * ALPHA)
print(f"density: largest difference {np.abs(density - known).max():.1e}, mass {weights @ density:.8f}")
print(f"lambda {ground.average_reward:.8f}, mean of reward less cost {weights @ (density * (reward - cost)):.8f}")

free = np.exp(-V / ALPHA) / (weights @ np.exp(-V / ALPHA))
print(f"without a policy one earns {weights @ (free * reward):.4f} on average")

figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
axes[0].plot(x, w, color="k")
axes[0].set(xlabel="$x$", title="$w$: what a place is worth", ylim=(-3.2, 0.3))
axes[1].plot(x, -4 * x[:, 0] * (x[:, 0] ** 2 - 1), color="0.6", label="$b$")
axes[1].plot(x, -4 * x[:, 0] * (x[:, 0] ** 2 - 1) + policy, color="#D55E00", label=r"$b + \pi$")
axes[1].axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
axes[1].set(xlabel="$x$", title="drift", ylim=(-4, 4))
axes[2].plot(x, free, color="0.6", label="without a policy")
axes[2].plot(x, density, color="#D55E00", label="with it")
axes[2].set(xlabel="$x$", title="stationary density")
for ax in axes:
    ax.set_xlim(-1.8, 1.8)
for ax in axes[1:]:
    ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 2. How long is long?
#
# Solve with a horizon, by a solver that knows of no eigenvalue, and look at $v_t - w$ and $\pi_t - \pi$ with a time
# $s = T - t$ to go: the standard deviation and the root mean square under the stationary law. Both should fall as
# $e^{-\gamma s}$, the mean of $v_t$ should grow as $\lambda s$. The control is the gap of the process that is not
# steered.

# %%
T = 10 / ground.gap
timed = fh.solve(well(T), rtol=1e-6, box=ground.function.basis.box, verify=False)
print(f"T = {T:.3f}, solve: {timed.status}, policy to {timed.error_estimate.policy:.0e}")
free_gap = fh.ground_state(well(a=0.0), rtol=1e-4).gap

inner = np.abs(x[:, 0]) < 1.7
at, p = x[inner], (weights * density)[inner]
p /= p.sum()
togo = np.linspace(0.5, 9.0, 18) / ground.gap
spread, apart, mean = [], [], []
for s in togo:
    off = timed.value(T - s, at) - ground.value(at)
    mean.append(p @ off)
    spread.append(np.sqrt(p @ (off - mean[-1]) ** 2))
    apart.append(np.sqrt(p @ (timed.policy(T - s, at) - ground.policy(at))[:, 0] ** 2))
late = togo * ground.gap > 4.9
for name, values in (("value", spread), ("policy", apart)):
    rate = -np.polyfit(togo[late], np.log(values)[late], 1)[0]
    print(f"{name:6s}: rate {rate:.4f}, over the gap {rate / ground.gap:.4f}, over the free gap {rate / free_gap:.1f}")
slope = np.polyfit(togo[late], np.array(mean)[late], 1)[0]
print(f"growth of the mean value {slope:.6f} per unit of time, lambda = {ground.average_reward:.6f}")

figure, ax = plt.subplots(figsize=(4.8, 3.3), layout="constrained")
ax.semilogy(togo, spread, label="value", **fh.plot.STYLES[0])
ax.semilogy(togo, apart, label="policy", **fh.plot.STYLES[1])
ax.semilogy(togo, 2 * np.exp(-ground.gap * togo), color="0.6", label=r"$e^{-\gamma s}$")
ax.semilogy(togo, np.exp(-free_gap * togo), color="0.6", linestyle=":", label="with the free gap")
ax.set(xlabel="time to go, $s$", title="distance to the ground state")
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 3. The gap and the barrier
#
# Without rewards $\varphi = 1$, $\lambda = 0$, and the gap is that of the process itself. A double well with little
# noise is nearly two states, left and right, with the rate $k = 1/m$ of jumps each way, where $m$ is the mean time from
# one well to the other (notebook 8). The eigenvalues of two states are 0 and $-2k$, so that
#
# $$\gamma \simeq \frac2m \simeq \frac{2\sqrt{32}}{2\pi}\,e^{-1/\varepsilon}:$$
#
# the slope of $\log\gamma$ against $1/\varepsilon$ is minus the barrier. A reward changes this altogether. It makes one
# well worth more than the other, the policy leads there, and what remains to be forgotten is forgotten within that
# well. The gap no longer knows of the barrier. It is large *because* of the policy.

# %%
temperatures = (0.5, 0.3, 0.2, 0.15, 0.1)
gaps, steered, exits = {}, {}, {}
for e in temperatures:
    gaps[e] = fh.ground_state(well(epsilon=e, a=0.0), rtol=1e-2).gap
    steered[e] = fh.ground_state(well(epsilon=e), rtol=1e-2).gap
    out = fh.ExitProblem(
        dim=1,
        temperature=e,
        drift=lambda x: -4 * x * (x**2 - 1),
        diffusion=2 * e,
        domain=fh.Box([-2.0], [1.0], boundary=[("natural", "absorbing")]),
    )
    exits[e] = float(fh.stationary.mean_exit_time(out, rtol=1e-3).value([-1.0]))

print("epsilon   gap, free    gap * m / 2   gap / Kramers   gap, steered")
for e in temperatures:
    kramers = np.sqrt(32) / np.pi * np.exp(-1 / e)
    print(f"{e:7g} {gaps[e]:11.4g} {gaps[e] * exits[e] / 2:14.4f} {gaps[e] / kramers:15.4f} {steered[e]:14.3f}")
inverse, small = 1 / np.array(temperatures), slice(2, None)
for name, series in (("free", gaps), ("steered", steered)):
    values = np.log(list(series.values()))
    print(f"slope of log gap against 1/epsilon, {name:8s} {np.polyfit(inverse[small], values[small], 1)[0]:+.3f}")

# %% [markdown]
# ## 4. Along paths
#
# The law of large numbers for one long path: under the stationary policy the average of $r -
# \tfrac\alpha2|\pi|^2_{\Lambda^{-1}}$ tends to $\lambda$. Paths start in the wrong well, their first part is thrown
# away, and the interval is that of 200 independent ones. Euler's steps have a bias of the order of their length, so
# that two lengths are followed. The controls: no policy, and twice the policy; nothing may earn more than $\lambda$.

# %%
lower, upper = ground.function.basis.box.bounds


def stationary(t, x):
    return ground.policy(np.clip(x, lower, upper))


horizon, skipped = 12.0, 1 / 6


def averages(policy, steps):
    """Of r less the price of steering, one per path."""
    paths = fh.sample_paths(well(horizon), n=200, steps=steps, rng=0, policy=policy)
    z = paths.x[:, int(skipped * steps) : -1]
    pi = np.zeros_like(z) if policy is None else policy(0.0, z)
    earned = -((z[..., 0] - 1) ** 2) - ALPHA / 2 * pi[..., 0] ** 2 / (2 * ALPHA)
    return earned.mean(axis=1), z


print(f"lambda = {ground.average_reward:.4f}")
for name, followed, steps in (
    ("the stationary policy", stationary, 1200),
    ("the stationary policy", stationary, 2400),
    ("no policy", None, 1200),
    ("twice the policy", lambda t, x: 2 * stationary(t, x), 1200),
):
    each, places = averages(followed, steps)
    error = 1.96 * each.std(ddof=1) / np.sqrt(len(each))
    print(f"{name:22s} steps of {horizon / steps:.3f}: {each.mean():+.4f} +- {error:.4f}")
    if steps == 2400:
        visited = places.ravel()

figure, ax = plt.subplots(figsize=(4.8, 3.1), layout="constrained")
ax.hist(visited, bins=80, density=True, color="0.8", label="where paths were")
ax.plot(x, density, color="#D55E00", label="stationary density")
ax.set(xlabel="$x$", xlim=(-1.8, 1.8))
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# Without a policy one is still far from the stationary average of section 1: that gap is 0.23, and a time of 12 is not
# long. A certificate says the same with a horizon. Paid $w$ at the end, the problem has the value $\lambda T + w$ at
# any $T$, and the stationary policy loses nothing.

# %%
posed = replace(well(2.0), terminal_reward=lambda x: ground.value(np.clip(x, lower, upper)))
print(fh.certify(posed, stationary, n=2048, steps=400, rng=1))
start, mass = posed.initial_law.quadrature(24)
expected = ground.average_reward * 2.0 + mass @ ground.value(np.clip(start, lower, upper))
print(f"\nlambda T + E w(X_0) = {expected:.4f}")

# %% [markdown]
# ## What to remember
#
# * $v_t \approx \lambda(T-t) + w$: one eigenpair has average reward, policy and law of the long run.
# * Value, policy and law approach it at the rate of the gap. A horizon is long if it is many times $1/\gamma$.
# * Without rewards a gap is as small as wells are deep. A reward that prefers one well makes it large.
#
# ## Exercises
#
# 1. *On paper.* For $b = -x$, a number $\Lambda$, and $r = -\tfrac q2x^2$ in one dimension find $w$, $\lambda$, the
#    stationary law and the gap.
# 2. *Compute.* Check exercise 1 for $\Lambda = 1$, $\alpha = \tfrac12$ and $q = 0.5, 2, 8$.
# 3. *Compute.* Show that $d\lambda/da = \int \partial_a r\,p$ (the policy may be held fixed: *envelope theorem*), and
#    check it for the well at $a = 1$ by a difference quotient. In which direction is $\lambda$ curved as a function of
#    $a$, and why?
#
# ### Solutions
#
# **1.** Try $w = -\tfrac p2x^2$. The equation is $px^2 - \tfrac12\Lambda p - \tfrac q2x^2 + \tfrac{\Lambda}{2\alpha}
# p^2x^2 = \lambda$, so that $\tfrac\Lambda{2\alpha}p^2 + p - \tfrac q2 = 0$ and $\lambda = -\tfrac12\Lambda p$, with
# $p = \tfrac\alpha\Lambda(k - 1)$, $k = \sqrt{1 + q\Lambda/\alpha}$. The steered process has the drift
# $-x - \tfrac\Lambda\alpha px = -kx$. It is an Ornstein–Uhlenbeck process: stationary variance $\Lambda/2k$, gap $k$.
#
# **2.**

# %%
print("    q   lambda    on paper   gap      on paper   variance   on paper")
for q in (0.5, 2.0, 8.0):
    linear = fh.ControlProblem(
        dim=1,
        horizon=1.0,
        temperature=0.5,
        drift=lambda t, x: -x,
        diffusion=1.0,
        running_reward=lambda t, x, q=q: -q / 2 * x[..., 0] ** 2,
        terminal_reward=lambda x: 0 * x[..., 0],
        initial_law=fh.Gaussian([0.0], 0.5),
    )
    state, k = fh.ground_state(linear, rtol=1e-4), np.sqrt(1 + q / 0.5)
    grid = np.linspace(*(float(bound[0]) for bound in state.function.basis.box.bounds), 2001)[:, None]
    variance = (grid[1, 0] - grid[0, 0]) * state.density(grid) @ grid[:, 0] ** 2
    row = state.average_reward, -(k - 1) / 4, state.gap, k, variance, 1 / (2 * k)
    print(f"{q:5g}" + "".join(f"{value:10.6f}" for value in row))

# %% [markdown]
# **3.** $\lambda(a)$ is the largest of $\int(r_a - \tfrac\alpha2|\pi|^2)\,p^\pi$ over policies. At the best one the
# derivative by the policy is 0. As $r_a$ is linear in $a$, $\lambda$ is the largest of linear functions of $a$: convex.
# (It is also $\tfrac\alpha T\log E e^{\int r/\alpha}$ for large $T$, a cumulant generating function.)

# %%
h = 0.05
below, at_one, above = (fh.ground_state(well(a=1 + k * h), rtol=1e-5).average_reward for k in (-1, 0, 1))
print(f"difference quotient {(above - below) / (2 * h):.5f}, mean of -(x - 1)^2 {weights @ (density * reward):.5f}")
print(f"second difference {(above - 2 * at_one + below) / h**2:.4f}, positive: convex")
