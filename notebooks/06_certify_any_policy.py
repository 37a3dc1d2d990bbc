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
# # Certify any policy
#
# Somebody hands you a policy: a network, a rule of thumb, the output of a solver. How much does it earn, how much could
# be earned, and how much does it lose? In a few dimensions one can solve for the optimum and compare. But paths that
# *follow the policy* are enough: in any dimension, without a reference, with intervals that hold at their level. This
# notebook derives the two lines behind it, writes them down by hand, and then tries to break them. Every number is
# computed here.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.stats import binom

import fem_hjb as fh

# %% [markdown]
# ## 1. One random variable
#
# The process $dX = b\,dt + \Lambda^{1/2}dB$ starts at $x_0$, is steered by a policy $\pi$, $dX = (b + \pi)\,dt +
# \Lambda^{1/2}dB$, and earns $J(\pi) = E^\pi\big[y(X_T) + \int_0^T r\,dt\big] - \alpha\,\mathrm{KL}(P^\pi\|P)$. Along
# the paths of $\pi$ let
#
# $$W = \frac1\alpha\Big(y(X_T) + \int_0^T r\,dt\Big) - \log\frac{dP^\pi}{dP}, \qquad
#   \log\frac{dP^\pi}{dP} = \int_0^T (\Lambda^{-1/2}\pi)' dB + \frac12\int_0^T |\pi|^2_{\Lambda^{-1}} dt$$
#
# (Girsanov's theorem; $B$ is the noise that the steered path has seen). Then, *whatever the policy is*,
#
# $$\alpha\,E^\pi W = J(\pi) \;\le\; v^*(x_0) = \alpha\log E^\pi e^W .$$
#
# * On the left stands the definition of $J$: the mean of the log-likelihood ratio is the relative entropy.
# * On the right, the likelihood ratio cancels: $E^\pi e^W = E^P e^{(y + \int r)/\alpha} = f_0(x_0)$.
# * In the middle is Jensen's inequality. What it gives away is what the policy loses,
#   $v^* - J(\pi) = \alpha\,\mathrm{KL}(P^\pi\|P^*)$, and it gives nothing away exactly if $W$ is constant.
#
# So one sample of $W$ has a bound from below, an estimate of the optimum, and a test of optimality: its variance.
#
# A particle sits in the left one of two wells and is to be in the right one at the end. It has to cross a barrier.

# %%
ALPHA, LAMBDA, T, START = 0.5, 0.5, 1.0, -1.0


def drift(t, x):
    return x - x**3


def reward(x):
    return -((x[..., 0] - 1.0) ** 2)


def crossing(initial_law):
    """The problem, from this start."""
    coefficients = {"drift": drift, "diffusion": LAMBDA, "terminal_reward": reward}
    how = {"dim": 1, "horizon": T, "temperature": ALPHA, "name": "crossing"}
    return fh.ControlProblem(**how, **coefficients, initial_law=initial_law)


problem = crossing(fh.PointMass([START]))
optimum = fh.solve(problem, rtol=1e-5)
truth = float(optimum.value(0.0, [[START]])[0])
print(f"v*(x0) = {truth:.6f}, by solving the equation\n{optimum.error_estimate}")

# Looked up so often below that a table is made of it: times x points, linear in between.
times, points = np.linspace(0.0, T, 129), np.linspace(-2.9, 3.9, 545)
table = RegularGridInterpolator(
    (times, points),
    np.array([optimum.policy(t, points[:, None])[:, 0] for t in times]),
    bounds_error=False,
    fill_value=None,
)


def best(t, x):
    return table((np.full(len(x), t), x[:, 0]))[:, None]


policies = {
    "optimal": best,
    "spring": lambda t, x: 1.0 - x,
    "push": lambda t, x: np.ones_like(x),
    "nothing": lambda t, x: np.zeros_like(x),
}

# %% [markdown]
# ### By hand
#
# Of Euler's chain with $N$ steps both statements hold *exactly*, without any error in time, if the likelihood ratio is
# that of its own Gaussian increments. That is these few lines:


# %%
def weights(policy, n, steps, rng, start=START):
    """W of n paths that follow the policy, and the paths' ends."""
    x, W, dt = np.broadcast_to(start, (n, 1)), np.zeros(n), T / steps
    for k in range(steps):
        a, dB = policy(k * dt, x), np.sqrt(dt) * rng.standard_normal((n, 1))
        W -= (a * dB)[:, 0] / np.sqrt(LAMBDA) + 0.5 * a[:, 0] ** 2 / LAMBDA * dt
        x = x + (drift(k * dt, x) + a) * dt + np.sqrt(LAMBDA) * dB
    return W + reward(x) / ALPHA, x[:, 0]


rng = np.random.default_rng(0)
drawn = {name: weights(policy, 10_000, 128, rng) for name, policy in policies.items()}
print(f"{'':20s} J = alpha E W    v* = alpha log E e^W    alpha Var W / 2   effective samples")
for name, (W, _) in drawn.items():
    e = np.exp(W - W.max())
    estimate = ALPHA * (W.max() + np.log(e.mean()))
    margins = 1.96 * ALPHA * np.array([W.std(), e.std() / e.mean()]) / np.sqrt(W.size)
    print(
        f"{name:20s} {ALPHA * W.mean():7.4f} +- {margins[0]:.4f} {estimate:12.4f} +- {margins[1]:.4f}"
        f" {ALPHA * W.var() / 2:16.4f} {e.sum() ** 2 / (e**2).sum():19.0f}"
    )

# %% [markdown]
# All four policies say the same of $v^*$, as they must, the bad ones less precisely (the last misses it by a little
# more than its interval: of four intervals of 95 per cent one does so in every fifth set). What they earn is very
# different. The picture shows why: under the optimal policy $W$ is as good as constant, however different the paths
# are.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for (name, (W, x)), style in zip(drawn.items(), fh.plot.STYLES, strict=False):
    how = {"density": True, "histtype": "step", "color": style["color"], "linestyle": style["linestyle"], "label": name}
    axes[0].hist(x, np.linspace(-2.0, 2.2, 71), **how)
    axes[1].hist(W, np.linspace(-14.0, -1.0, 131), **how)
axes[1].axvline(truth / ALPHA, color="0.7", linewidth=4.0, zorder=0)
axes[0].set(xlabel="$X_T$", ylabel="density", title="where paths end")
axes[1].set(xlabel="$W$", title=r"their $W$; the bar is $v^*/\alpha$", ylim=(0.0, 1.6))
axes[0].legend(fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# ## 2. `certify`
#
# `fh.certify` is the same with everything that makes it fit for use: any dimension, faces, random starts, chains of $N$
# and $N/2$ steps with the same noise, extrapolated to the diffusion, intervals, and a judgement of whether the weights
# $e^W$ have a variance at all. The `chain` of the certificate is what was done by hand.

# %%
certificates = {name: fh.certify(problem, policy, n=8192, steps=128, rng=1) for name, policy in policies.items()}
for name, found in certificates.items():
    print(f"{name}\n{found}\n")

# %%
figure, ax = plt.subplots(figsize=(7.0, 2.8), layout="constrained")
rows = np.arange(len(certificates))
for of, shift, label, style in (
    ("reward", -0.12, r"$J(\pi)$", fh.plot.STYLES[2]),
    ("optimal", 0.12, "$v^*$", fh.plot.STYLES[0]),
):
    intervals = [getattr(found.diffusion, of) for found in certificates.values()]
    ax.errorbar(
        [one.estimate for one in intervals],
        rows + shift,
        xerr=[one.half_width for one in intervals],
        fmt=style["marker"],
        color=style["color"],
        capsize=3,
        markersize=4,
        label=label,
    )
ax.axvline(truth, color="0.6", linewidth=1.0, zorder=0)
ax.set_yticks(rows, list(certificates))
ax.set(xlabel="intervals of 95 %; the line is the optimum")
ax.invert_yaxis()
ax.legend(loc="lower center")
plt.show()

# %% [markdown]
# What a policy earns can be had without sampling, too, in a few dimensions: `evaluate_policy` solves the linear
# backward equation of the policy. It is a witness of its own.

# %%
for name in ("push", "nothing"):
    earned = fh.evaluate_policy(problem, policies[name], rtol=1e-4)
    J, interval = float(earned.value(0.0, [[START]])[0]), certificates[name].diffusion.reward
    print(f"{name:10s} J by its equation {J:.5f}, certified {interval}: {'inside' if J in interval else 'OUTSIDE'}")
    print(f"{'':10s} lost {truth - J:.5f}, certified {certificates[name].gap}")

# %% [markdown]
# ## 3. The variance is the loss
#
# Near the optimum the gap is about $\alpha\,\mathrm{Var}(W)/2$: expand $\log E e^W = E W + \tfrac12\mathrm{Var}\,W +
# \dots$ Both are of second order in the error of the policy, as the optimum is a maximum. Take policies
# $\pi_\theta = \pi^* + \theta h$ and fit the exponents. The policy that is optimal for the diffusion is not quite so
# for the chain, so that steps leave some variance at $\theta = 0$; it is taken off. The negative control takes the
# distance from a policy that is not the optimal one.

# %%
thetas = np.array([0.1, 0.2, 0.4, 0.8])


def bent(theta, base):
    """The policy, off by a wave that moves about."""
    return lambda t, x: base(t, x) + theta * np.cos(2 * x + 3 * t)


def variance(policy):
    """Alpha Var W / 2, of the chain."""
    return ALPHA * weights(policy, 8192, 64, np.random.default_rng(2))[0].var() / 2


floor = variance(best)
print(f"at theta = 0 steps put {floor:.4f} into alpha Var W / 2")
for name, base in (("optimal", best), ("push, control", policies["push"])):
    gaps = np.array([fh.certify(problem, bent(theta, base), n=8192, steps=64, rng=2).gap.estimate for theta in thetas])
    halves = np.array([variance(bent(theta, base)) - floor for theta in thetas])
    rates = [np.polyfit(np.log(thetas), np.log(row), 1)[0] for row in (gaps, halves)]
    print(f"around {name}: gap ~ theta^{rates[0]:.2f}, alpha Var W / 2 ~ theta^{rates[1]:.2f}")
    for label, row in (("theta", thetas), ("gap", gaps), ("Var", halves)):
        print(f"  {label:6s}" + "".join(f"{value:10.2e}" for value in row))

# %% [markdown]
# ## 4. Steps
#
# The chain's bounds are exact for the chain. For the diffusion they are off by what its steps put in, of first order in
# $1/N$. The certificate of the diffusion takes this out by extrapolation, and tells how much it was (`bias`). With too
# few steps the difference is larger than the interval, and the status says so.

# %%
exact = float(fh.evaluate_policy(problem, policies["push"], rtol=1e-5).value(0.0, [[START]])[0])
print(f"J by its equation {exact:.5f}\n")
print("   N   steps put in   chain holds it   extrapolated holds it   half-width   status")
put = {}
for steps in (8, 16, 32, 64, 128):
    found = fh.certify(problem, policies["push"], n=20_000, steps=steps, rng=3)
    chain, diffusion = found.chain.reward, found.diffusion.reward
    put[steps] = found.bias.reward.estimate
    held = ("yes" if exact in interval else "no" for interval in (chain, diffusion))
    print(
        f"{steps:4d} {put[steps]:14.4f}"
        + "{:>17s}{:>24s}".format(*held)
        + f" {diffusion.half_width:12.4f}   {found.status[:48]}"
    )
N, size = np.array(list(put)), np.array(list(put.values()))
rates = [np.polyfit(np.log(N[k:]), np.log(size[k:]), 1)[0] for k in (0, 2)]
print(f"steps put in ~ N^{rates[0]:.2f}, from 32 on ~ N^{rates[1]:.2f}")

# %% [markdown]
# What extrapolation leaves is of second order: at 8 and 16 steps it is still seen.
#
# ## 5. Do the intervals hold?
#
# A level of 95 per cent is a claim about repetitions, so repeat: 120 certificates with fresh paths, and count. The
# counts themselves are random; in brackets is the band in which a true 95 per cent would lie in all but one of a
# hundred cases. Where the weights have degenerated there is no interval to count, and the status says so; the lower
# bound holds. The control is the chain of few steps, taken for the diffusion.

# %%
RUNS = 120
band = binom.ppf([0.005, 0.995], RUNS, 0.95) / RUNS
print(f"expected of 95 %: {band[0]:.1%} to {band[1]:.1%}")
for name in ("optimal", "push", "nothing"):
    runs = [fh.certify(problem, policies[name], n=768, steps=24, rng=100 + seed) for seed in range(RUNS)]
    told = [one for one in runs if np.isfinite(one.value)]
    inside = f"{np.mean([truth in one.diffusion.optimal for one in told]):.1%}" if told else "-"
    above = np.mean([truth >= one.lower for one in runs])
    print(f"{name:8s} v* in its interval {inside:>6s} of {len(told)}; v* >= lower {above:6.1%} of {RUNS}")
coarse = [fh.certify(problem, policies["push"], n=2048, steps=8, rng=100 + seed) for seed in range(RUNS)]
print(
    f"control: J in the interval of the chain of 8 steps {np.mean([exact in one.chain.reward for one in coarse]):.1%}"
)

# %% [markdown]
# ## 6. In many dimensions
#
# Nothing above knew of the dimension. A linear-quadratic problem has a known optimum in any. The policy: the optimal
# one times 0.7. What changes with the dimension is $\mathrm{Var}(W)$, which adds up over coordinates, and with it the
# share of the paths that count: about $e^{-\mathrm{Var}(W)}$ of them. Importance sampling pays exponentially for the
# distance of the policy from the optimum; the *lower* bound, a plain mean of $W$, does not.

# %%
print("  d   policy              v*      lower      upper       gap (v* known)   effective of 2048   status")
for d in (1, 10, 40):
    lq = fh.zoo.get("lq", dim=d)
    x0, best_d = np.full(d, 0.5), lq.exact.policy
    v = float(lq.exact.value(0.0, x0[None])[0])
    for name, policy in {
        "0.7 of it": lambda t, x, best_d=best_d: 0.7 * best_d(t, x),
        "pushed by 1/2": lambda t, x, best_d=best_d: best_d(t, x) + 0.5,
    }.items():
        found = fh.certify(lq, policy, x0=x0, n=2048, steps=128, rng=0)
        lost = v - found.diffusion.reward.estimate
        print(
            f"{d:3d}   {name:13s} {v:9.4f} {found.lower:10.4f} {found.upper:10.4f} {found.gap.estimate:8.3f}"
            f" ({lost:6.3f}) {found.ess:18.0f}   {found.status[:40]}"
        )

# %% [markdown]
# A policy that is far off says so itself: the weights degenerate, the upper bound is refused, and the lower one stays.
#
# ## 7. With an approximate value
#
# Most of the noise in $W$ is a stochastic integral. Whoever has a guess $w$ of the value, and not only a policy, can
# take it out by Itô's formula: with the residual $R = \partial_t w + \langle b, \nabla w\rangle +
# \tfrac12\mathrm{Tr}(\Lambda \nabla^2 w) + r + \tfrac1{2\alpha}\nabla w'\Lambda\nabla w$ and $D = y - w_T$,
#
# $$v^*(x_0) = w_0(x_0) + \alpha \log E^{\pi_w} \exp\Big(\tfrac1\alpha\Big(\int_0^T R\,dt + D(X_T)\Big)\Big),$$
#
# and what is left is as small as the residual. The guess here is what is learned from 1000 uncontrolled paths.

# %%
spread = crossing(fh.Gaussian([-0.5], 0.5))  # the same process from many places, to learn from
learned = fh.fit(spread, fh.sample_paths(spread, n=500, steps=64, rng=0), "auto", terminal="interpolated", verify=False)
alone = fh.certify(problem, learned, n=2048, steps=64, rng=4)
both = fh.certify(problem, learned, n=2048, steps=64, rng=4, value=learned)
for name, found in (("its policy alone", alone), ("with its value", both)):
    interval = found.diffusion.optimal
    print(f"{name:17s} v* {interval}, half-width {interval.half_width:.1e}: {found.status}")
print(f"{'by the equation':17s} v* {truth:.6f}")

# %% [markdown]
# With `bounds=` on $R$ and $D$ the upper bound needs no tail at all (Hoeffding's lemma). What is true, what is
# estimated and when weights degenerate: [certificates](../docs/certificates.md). The command is `fem-hjb certify
# PROBLEM POLICY`.
#
# ## What to remember
#
# * $\alpha E W = J \le v^* = \alpha\log E e^W$ for any policy, in any dimension, without a reference.
# * $J$ is a mean and always at hand. $v^*$ needs weights with a variance: look at `status` and `ess`.
# * The loss is of second order in the error of a policy, and about $\alpha\,\mathrm{Var}(W)/2$.
# * Steps bias the chain; the certificate extrapolates, and says so when they are too few.
#
# ## Exercises
#
# 1. *On paper.* Show that $W$ is constant if and only if $\pi = \pi^*$ (almost everywhere along the paths), and that
#    the constant is $v^*(x_0)/\alpha$.
# 2. *Compute.* Springs of strength $a$, $\pi_a(t, x) = a\,(1 - x)$: which $a$ earns most? Use the same random numbers
#    for all $a$. Is it the one with the smallest variance of $W$?
# 3. *Compute.* Ask for intervals at a level of 80 per cent. Do they hold at that level?
# 4. *Compute.* For a random start, $X_0 \sim N(-\tfrac12, \tfrac12)$, compare $\alpha \log E e^W$ over all paths with
#    the mean $E v_0(X_0)$ by `solve`, and with what `certify` says. What is the first number?
#
# ### Solutions
#
# **1.** By Itô's formula for $v(t, X_t)$ under $\pi$ and the equation for $v$,
# $\alpha W = v_0(x_0) + \int (\Lambda^{1/2}\nabla v - \alpha\Lambda^{-1/2}\pi)' dB
# - \tfrac{1}{2\alpha}\int |\Lambda\nabla v - \alpha\pi|^2_{\Lambda^{-1}} dt$. With $\pi = \Lambda\nabla v/\alpha$ both
# integrals are 0. If $W$ is constant, Jensen's inequality is an equality, so $J(\pi) = v^*$, and taking means the last
# integral has the mean 0: $\pi = \pi^*$ along the paths.
#
# **2.**

# %%
print("    a   J(pi_a)   alpha Var W / 2")
for a in np.arange(0.6, 2.01, 0.2):
    W = weights(lambda t, x, a=a: a * (1 - x), 20_000, 64, np.random.default_rng(5))[0]
    print(f"{a:5.1f} {ALPHA * W.mean():9.4f} {ALPHA * W.var() / 2:17.4f}")

# %% [markdown]
# The two are not the same criterion far from the optimum; they agree to leading order near it. (Maximising $J$ is what
# policy-gradient methods do; minimising $\mathrm{Var}\,W$ is the log-variance loss of Nüsken and Richter,
# [arXiv 2005.05409](https://arxiv.org/abs/2005.05409).)
#
# **3.**

# %%
loose = [fh.certify(problem, policies["push"], n=768, steps=24, rng=500 + k, level=0.8) for k in range(RUNS)]
low, high = binom.ppf([0.005, 0.995], RUNS, 0.8) / RUNS
share = np.mean([truth in one.diffusion.optimal for one in loose])
print(f"v* in intervals of 80 %: {share:.1%} of {RUNS}, expected {low:.1%} to {high:.1%}")

# %% [markdown]
# **4.** Mixed starts give $\alpha \log E f_0(X_0)$, by Jensen's inequality more than $E\,\alpha\log f_0(X_0)$.
#  `certify`
# takes a logarithm for each start.

# %%
everywhere = fh.solve(spread, rtol=1e-5)
x0, w0 = spread.initial_law.quadrature(40)
inside = everywhere.space.box.contains(x0)
mean = w0[inside] @ everywhere.value(0.0, x0[inside]) / w0[inside].sum()
rng = np.random.default_rng(6)
W = weights(best, 40_000, 64, rng, start=spread.initial_law.sample(40_000, rng))[0]
print(f"alpha log E e^W over all paths {ALPHA * np.log(np.exp(W).mean()):.4f}")
mixed = ALPHA * np.log(w0[inside] @ np.exp(everywhere.value(0.0, x0[inside]) / ALPHA))
print(f"alpha log E f_0 by solve       {mixed:.4f}")
print(f"E v_0 by solve                 {mean:.4f}")
print(f"certify                        {fh.certify(spread, best, n=8192, steps=64, rng=6).diffusion.optimal}")
