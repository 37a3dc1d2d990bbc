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
# # Exit times and rare events
#
# How long does a process stay in a well, through which door does it leave, and how likely is it to leave early? These
# are questions about a stopped process; the answers solve linear equations with data on the boundary. When noise is
# small the numbers become so small that no simulation sees them. The control problem has their logarithm, and its
# policy is what makes simulation work again. Every number is computed here.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy.integrate import cumulative_simpson

import fem_hjb as fh

# %% [markdown]
# ## 1. Three equations
#
# The process $dX = -V'(X)\,dt + \sqrt{2\varepsilon}\,dB$ has the generator $Gu = \varepsilon u'' - V'u'$. Let $\tau$ be
# the time at which it leaves a domain $D$. If $u$ is smooth, Itô's formula says that $u(X_t) - \int_0^t Gu(X_s)\,ds$ is
# a martingale up to $\tau$. Take the expectation at $\tau$, and choose what $Gu$ and the data on $\partial D$ are:
#
# | in $D$ | on $\partial D$ | then $u(x)$ is |
# |---|---|---|
# | $Gu = 0$ | 1 on a part, 0 on the rest | the probability to leave through that part, a *committor* |
# | $Gu = -1$ | 0 | the mean exit time $E_x\tau$ |
# | $Gu = \lambda u$ | 1 | $E_x e^{-\lambda\tau}$ (with Itô's formula for $e^{-\lambda t}u$) |
#
# The third is a control problem. With $f = e^{v/\alpha}$ it is the equation of
#
# $$v(x) = \sup_\pi E\Big[-\alpha\lambda\tau - \frac{\alpha}{2}\int_0^\tau \pi'\Lambda^{-1}\pi\,dt\Big],
#   \qquad \pi^* = \tfrac1\alpha \Lambda \nabla v :$$
#
# time costs $\alpha\lambda$ per unit, and one pays for being quick. Here: the double well $V = (x^2-1)^2$, whose
# barrier between $-1$ and 1 has the height 1. Noise and temperature are small together, $\Lambda = 2\varepsilon$ and
# $\alpha = \varepsilon$. The start is in the left well, the exit at 1. The lower face of the box is "natural": nothing
# happens there, a grid has to end somewhere.

# %%
START = np.array([-1.0])


def drift(x):
    return -4 * x * (x**2 - 1)


def well(epsilon, rate=1.0, box=((-2.0, "natural"), (1.0, "absorbing"))):
    """E exp(-rate tau) as a control problem."""
    (lower, below), (upper, above) = box
    return fh.ExitProblem(
        dim=1,
        temperature=epsilon,
        drift=drift,
        diffusion=2 * epsilon,
        running_reward=lambda x: -epsilon * rate + 0 * x[..., 0],
        domain=fh.Box([lower], [upper], boundary=[(below, above)]),
        name=f"well, epsilon = {epsilon:g}",
    )


print(fh.solve_exit(well(0.1), rtol=1e-3))

# %% [markdown]
# In one dimension the first two equations are integrated by hand. $G u = \varepsilon e^{V/\varepsilon}
# (e^{-V/\varepsilon}u')'$, so that the probability to leave $(-1, 1)$ at 1, and the mean time to get from the left well
# to 1, are
#
# $$q(x) = \frac{\int_{-1}^x e^{V/\varepsilon}}{\int_{-1}^1 e^{V/\varepsilon}},\qquad
#   E_x\tau = \frac1\varepsilon\int_x^1 e^{V(y)/\varepsilon}\int_{-\infty}^y e^{-V(z)/\varepsilon}\,dz\,dy .$$
#
# They are a check of the solver that shares nothing with it.

# %%
y = np.linspace(-2.0, 1.0, 30_001)
V = (y**2 - 1) ** 2


def by_hand(epsilon):
    """The mean exit time from -1 by the double integral."""
    inner = cumulative_simpson(np.exp(-V / epsilon), x=y, initial=0.0)
    outer = cumulative_simpson(np.exp(V / epsilon) * inner, x=y, initial=0.0)
    return (outer[-1] - np.interp(-1.0, y, outer)) / epsilon


def committor_by_hand(epsilon, x):
    inside = y >= -1.0
    outer = cumulative_simpson(np.exp(V[inside] / epsilon), x=y[inside], initial=0.0)
    return np.interp(x, y[inside], outer / outer[-1])


temperatures = (0.4, 0.2, 0.15, 0.1, 0.075, 0.05)
times = {e: float(fh.stationary.mean_exit_time(well(e), rtol=1e-4).value(START)) for e in temperatures}
x = np.linspace(-1.0, 1.0, 201)
two_doors = ((-1.0, "absorbing"), (1.0, "absorbing"))
committors = {
    e: fh.stationary.committor(well(e, box=two_doors), [(0, "upper")], rtol=1e-5).value(x[:, None])
    for e in (0.4, 0.1, 0.02)
}
for e, q in committors.items():
    print(f"epsilon = {e:4g}: committor, largest difference {np.abs(q - committor_by_hand(e, x)).max():.1e}")
print("\nepsilon   mean exit time   relative difference")
for e, time in times.items():
    print(f"{e:7g} {time:16.6g} {time / by_hand(e) - 1:21.1e}")

# %% [markdown]
# ## 2. Kramers' law
#
# The larger factor of the double integral has its mass at the top of the barrier, $y = 0$, the other one at the bottom
# of the well, $z = -1$. By Laplace's method
#
# $$E_{-1}\tau \;\simeq\; \frac{2\pi}{\sqrt{V''(-1)\,|V''(0)|}}\; e^{[V(0)-V(-1)]/\varepsilon}
#   = \frac{2\pi}{\sqrt{32}}\,e^{1/\varepsilon}\,\big(1 + O(\varepsilon)\big).$$
#
# So $\log E\tau$ against $1/\varepsilon$ is a line whose slope is the **barrier**. It is fitted over the four smallest
# temperatures. The control: the same process, stopped at $-\tfrac12$ already, where $V = \tfrac9{16}$. The slope has to
# see that. Nothing is flat at this door, so that the outer integral is $\varepsilon/|V'|$ times its largest value, and
# the prefactor has a factor $\sqrt\varepsilon$, which is taken off before the fit.

# %%
small = temperatures[2:]
early_door = ((-2.0, "natural"), (-0.5, "absorbing"))
early = {e: float(fh.stationary.mean_exit_time(well(e, box=early_door), rtol=1e-4).value(START)) for e in small}
slopes = {}
for name, series, power in (("the exit at 1", times, 0.0), ("the exit at -1/2", early, 0.5)):
    values = np.log([series[e] / e**power for e in small])
    slopes[name] = np.polyfit(1 / np.array(small), values, 1)[0]
    print(f"slope of log E tau against 1/epsilon, {name:17s} {slopes[name]:.3f}")
print(f"height of the barrier: 1 for the first, {(0.25 - 1) ** 2:.4f} for the second\n")
print("epsilon   E tau / Kramers' law")
for e, time in times.items():
    print(f"{e:7g} {time / (2 * np.pi / np.sqrt(32) * np.exp(1 / e)):12.4f}")

figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
inverse = 1 / np.array(temperatures)
kramers = 2 * np.pi / np.sqrt(32) * np.exp(inverse)
axes[0].semilogy(inverse, list(times.values()), label="solved", **{**fh.plot.STYLES[0], "linestyle": "none"})
axes[0].semilogy(inverse, kramers, color="0.4", label="Kramers' law")
axes[0].set(xlabel=r"$1/\varepsilon$", ylabel=r"$E_{-1}\,\tau$", title="slope = barrier")
for (e, q), style in zip(committors.items(), fh.plot.STYLES, strict=False):
    axes[1].plot(x, q, label=rf"$\varepsilon = {e:g}$", **{**style, "marker": None})
axes[1].set(xlabel="$x$", title="probability to reach 1 before $-1$")
for ax in axes:
    ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 3. Numbers without a chance
#
# To be out soon is rare. $E e^{-\tau}$ for a start in the well falls as $e^{-1/\varepsilon}$, and plain Monte Carlo
# needs ever more paths: the relative variance of one path is
#
# $$\frac{E e^{-2\tau}}{(E e^{-\tau})^2} - 1 ,$$
#
# and $E e^{-2\tau}$ is the same problem with $\lambda = 2$. So the number of paths for an error of 10% is computed, not
# tried. Where $f$ underflows, `solve_exit` solves for $v$ itself.

# %%
solved = {e: fh.solve_exit(well(e), rtol=1e-3) for e in (0.4, 0.2, 0.1, 0.05, 0.02)}
logs = {e: float(of.value(START)) / e for e, of in solved.items()}
print("epsilon   log E exp(-tau)   E exp(-tau)   paths for 10%   form")
for e, of in solved.items():
    second = float(fh.solve_exit(well(e, rate=2.0), rtol=1e-3).value(START)) / e
    needed = 100 * (np.exp(second - 2 * logs[e]) - 1)
    print(f"{e:7g} {logs[e]:17.4f} {np.exp(logs[e]):13.2e} {needed:15.2g}   {of.stats['form']}")

# %% [markdown]
# **Importance sampling.** Follow *any* policy $\pi$ and give each path its weight. With the likelihood ratio of
# Girsanov's theorem, for
#
# $$W = -\lambda\tau - \log\frac{dP^\pi}{dP},\qquad E^\pi\big[e^{W}\big] = E\big[e^{-\lambda\tau}\big]
#   \quad\text{whatever } \pi ,$$
#
# and for $\pi^*$ the weight $W$ is the *constant* $v(x)/\alpha$: Itô's formula for $v(X_t)$, with the equation of $v$,
# says so. A perfect policy needs one path. Steps of finite length leave a scatter, which falls with the step. One
# thousand paths for a number that a plain simulation would need more than $10^{10}$ for:

# %%
rare = 0.05
problem, best = well(rare), solved[rare]
print(f"log E exp(-tau) by the equation: {logs[rare]:.4f}\n")
print("   step   log of the mean weight   scatter of W   longest path")
scatter = []
for step in (0.02, 0.01, 0.005):
    paths = fh.stationary.sample_exit(problem, START, n=1000, rng=0, step=step, policy=best.policy)
    W = paths.log_weights(problem)
    weights = np.exp(W - W.max())
    estimate, error = W.max() + np.log(weights.mean()), weights.std() / weights.mean() / np.sqrt(len(W))
    scatter.append(W.std())
    print(f"{step:7g} {estimate:16.4f} +- {1.96 * error:.4f} {W.std():14.3f} {paths.time.max():14.3g}")
print(f"the scatter falls as step^{np.polyfit(np.log([0.02, 0.01, 0.005]), np.log(scatter), 1)[0]:.2f}")

plain = fh.stationary.sample_exit(problem, START, n=1000, rng=0, step=0.01, max_time=10.0)
print(f"without the policy {int(plain.left.sum())} of 1000 paths have left by the time 10")

# %% [markdown]
# ## 4. The way out is the way in, backward
#
# As $\varepsilon\to0$ the paths that do leave follow one path (Freidlin and Wentzell). In the equation of $v$ the
# second-order term drops out and $-V'v' + (v')^2 = 0$ remains (time is cheap, $\alpha\lambda\to0$): $v' = V'$ on the
# way up, $\pi^* = 2v' \to 2V'$, and the controlled drift is $-V' + 2V' = +V'$. Uphill the process runs as it would fall
# down, with the time turned around; beyond the top it needs no help. So $v \to -[V(0) - V(x)]$ between $-1$ and the
# top, and $v\to0$ beyond.

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
line = np.linspace(-1.5, 1.0, 301)[:, None]
for e, style in zip((0.2, 0.05, 0.02), fh.plot.STYLES, strict=False):
    look = {**style, "marker": None, "label": rf"$\varepsilon = {e:g}$"}
    axes[0].plot(line, solved[e].value(line), **look)
    axes[1].plot(line, drift(line) + solved[e].policy(line), **look)
up = (line > -1) & (line < 0)
limit = np.where(line < 0, np.where(line < -1, 0, (line**2 - 1) ** 2) - 1, 0)
axes[0].plot(line, limit, color="0.6", linewidth=4, zorder=0, label="limit")
axes[1].plot(line, np.where(up, -drift(line), drift(line)), color="0.6", linewidth=4, zorder=0, label="limit")
axes[0].set(xlabel="$x$", title="$v$")
axes[1].set(xlabel="$x$", ylim=(-2, 3.5), title=r"drift under the policy")
rng, steps, h = np.random.default_rng(1), 1000, 0.005
for colour, policy, label in (("0.6", None, "plain"), ("#D55E00", best.policy, "steered")):
    z, noise = np.full((8, 1), -1.0), np.sqrt(2 * rare * h)
    trace = [z]
    for _ in range(steps):  # Euler's steps, for the picture
        push = 0.0 if policy is None else policy(z)
        moved = z + (drift(z) + push) * h + noise * rng.standard_normal(z.shape)
        z = np.where(z < 1.0, np.clip(moved, -2.0, 1.0), z)
        trace.append(z)
    lines = axes[2].plot(h * np.arange(steps + 1), np.array(trace)[:, :, 0], color=colour, linewidth=0.7)
    lines[0].set_label(label)
axes[2].set(xlabel="$t$", title=rf"eight paths each, $\varepsilon = {rare:g}$")
for ax in axes:
    ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 5. With a clock
#
# With a horizon the process is stopped at $\min(\tau, T)$, and $f_0 = E e^{-\min(\tau, T)}$ solves a parabolic equation
# with the same data on the face. `until` makes it a `ControlProblem`, for `solve`, whose error bar is made in time and
# space. It is larger than $E e^{-\tau}$, by $e^{-T}$ at most; and the policy of the stationary problem, followed with a
# clock, loses only what the clock changes.

# %%
epsilon, T = 0.2, 8.0
door = fh.Box([-np.inf], [1.0], boundary=[("natural", "absorbing")])
timed = well(epsilon).until(T, initial_law=fh.PointMass(START), domain=door)
clocked = fh.solve(timed, rtol=1e-3, verify=False)
f_T, f = np.exp(clocked.value(0.0, START) / epsilon), np.exp(logs[epsilon])
print(f"E exp(-min(tau, T)) = {f_T:.4e}, E exp(-tau) = {f:.4e}")
print(f"their difference is {f_T - f:.2e}, e^-T = {np.exp(-T):.2e}, status {clocked.status!r}")

# %% [markdown]
# ## What to remember
#
# * Hitting probabilities, exit times and their Laplace transforms solve one equation with different data.
# * Mean exit times grow as $e^{\text{barrier}/\varepsilon}$; the fit of the slope is the barrier.
# * Rare events are control problems. The value is the logarithm of the probability, and has no underflow.
# * The policy is the perfect change of measure. How far a policy is from it is the scatter of $W$.
#
# ## Exercises
#
# 1. *On paper.* Derive the double integral of section 1 and Kramers' law from it. Where does the factor come from if
#    the process is stopped at the top, $x = 0$, instead of at 1?
# 2. *Compute.* $\tau$ is nearly exponential. Then $E e^{-\lambda\tau} = 1/(1 + \lambda m)$ with $m = E\tau$. Test it
#    for $\lambda m = 0.1, 1, 10$ at $\varepsilon = 0.4, 0.2, 0.1$. Why does it fail for $\lambda = 1$?
# 3. *Compute.* How good has the policy to be? For $\varepsilon = 0.2$ follow $\theta\pi^*$ with $\theta = 0.5, 0.75, 1,
#    1.25$ and print the estimate with its interval and the effective sample size $(\sum e^W)^2/\sum e^{2W}$.
#
# ### Solutions
#
# **1.** $(e^{-V/\varepsilon}m')' = -e^{-V/\varepsilon}/\varepsilon$, and the flux $e^{-V/\varepsilon}m'$ is 0 at
# $-\infty$: $m'(y) = -\tfrac1\varepsilon e^{V(y)/\varepsilon}\int_{-\infty}^y e^{-V/\varepsilon}$. Integrate from $x$
# to 1, where $m = 0$. Near the bottom $\int e^{-V/\varepsilon} \simeq \sqrt{2\pi\varepsilon/V''(-1)}$, near the top
# $\int e^{V/\varepsilon} \simeq e^{V(0)/\varepsilon}\sqrt{2\pi\varepsilon/|V''(0)|}$; the product over $\varepsilon$ is
# Kramers' law. With the exit at the top only the left half of the second Gaussian is integrated: half of the time, as
# from the top the process falls to either side with probability $\tfrac12$.

# %%
half = ((-2.0, "natural"), (0.0, "absorbing"))
for e in (0.2, 0.1, 0.05):
    top = float(fh.stationary.mean_exit_time(well(e, box=half), rtol=1e-4).value(START))
    print(f"epsilon = {e:4g}: time to the top over time to 1: {top / times[e]:.4f}")

# %% [markdown]
# **2.** The process forgets its start long before it leaves, so that leaving has no memory. It takes a time of order 1
# to forget: for $\lambda = 1$ and small $\varepsilon$ the exits that count are those of paths that leave at once.

# %%
print("epsilon" + "".join(f"   lambda m = {k:4g}" for k in (0.1, 1, 10)) + "   lambda = 1")
for e in (0.4, 0.2, 0.1):
    rates = [k / times[e] for k in (0.1, 1.0, 10.0)] + [1.0]
    row = [np.exp(float(fh.solve_exit(well(e, rate), rtol=1e-3).value(START)) / e) for rate in rates]
    print(f"{e:7g}" + "".join(f"{f * (1 + rate * times[e]):18.4f}" for f, rate in zip(row, rates, strict=True)))

# %% [markdown]
# **3.** Every $\theta$ estimates the same number; they differ in what it costs. Half of the policy is not half as good.

# %%
print(f"by the equation {logs[0.2]:.3f}\ntheta   log of the mean weight   effective sample size of 1000   mean time")
policy = solved[0.2].policy
for theta in (0.5, 0.75, 1.0, 1.25):
    scaled = fh.stationary.sample_exit(
        well(0.2), START, n=1000, rng=3, step=0.01, policy=lambda x, theta=theta: theta * policy(np.clip(x, -2.0, 1.0))
    )
    W = scaled.log_weights(well(0.2))
    weights = np.exp(W - W.max())
    error = 1.96 * weights.std() / weights.mean() / np.sqrt(len(W))
    size = weights.sum() ** 2 / (weights**2).sum()
    print(f"{theta:5g} {W.max() + np.log(weights.mean()):12.3f} +- {error:.3f} {size:22.0f} {scaled.time.mean():24.2f}")
