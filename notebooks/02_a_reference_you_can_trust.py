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
# # A reference you can trust
#
# A learned control is judged against a reference. If the reference is wrong by more than the differences between the
# candidates, the ranking is about the reference. This notebook shows how `solve` reaches a tolerance that you name,
# what its error bar consists of and how far it can be believed, what happens at small temperature, and what all this
# says about a well-known benchmark. Every number is computed here.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
from scipy.linalg import solve_banded
from skfem import MeshLine

import fem_hjb as fh

# %% [markdown]
# ## 1. Ask for a tolerance
#
# The process $dX = b_t(X)\,dt + \Lambda^{1/2} dB$ is steered by a policy $\pi$ at the price of relative entropy. The
# value solves
#
# $$\partial_t v + \langle b, \nabla v\rangle + \tfrac12 \mathrm{Tr}(\Lambda \nabla^2 v) + r
#   + \tfrac1{2\alpha} \nabla v' \Lambda \nabla v = 0, \qquad v_T = y, \qquad \pi^* = \tfrac1\alpha \Lambda \nabla v .$$
#
# A *relative error* is, everywhere in this package, the largest over $t$ of the $L^2(p_t)$ norm of the error, divided
# by the largest over $t$ of the same norm of the truth; $p_t$ is the law of the uncontrolled process, and policies are
# measured pointwise in $|a|^2 = a'\Lambda^{-1}a$. A tolerance bounds this for value *and* policy.
#
# The test: a diffusion model whose data are a mixture of two Gaussians, tilted by a quadratic reward. Nothing in it is
# linear-quadratic, but $v$ is known in closed form.

# %%
problem = fh.zoo.get("mixture-diffusion", dim=1)


def larger(errors):
    """The larger of the relative errors of value and policy: what a tolerance bounds."""
    return max(errors.value, errors.policy)


asked = (1e-3, 1e-5, 1e-7)
found = {rtol: fh.solve(problem, rtol=rtol, verify=False) for rtol in asked}  # the truth is known
truth = fh.compare({str(rtol): of for rtol, of in found.items()}, problem.exact, problem=problem)

print("  asked   estimated       true      space       time  truncation   unknowns  solves  seconds")
for rtol, of in found.items():
    bar, stats = of.error_estimate, of.stats
    true = larger(truth.overall(str(rtol)))
    print(
        f"{rtol:7.0e} {larger(bar):11.1e} {true:10.1e} {bar.space:10.1e} {bar.time:10.1e} {bar.truncation:11.1e}"
        f" {stats['dofs']:10d} {stats['solves']:7d} {stats['seconds']:8.1f}"
    )
stats = found[asked[0]].stats
print(f"\n{stats['form']} form, route {stats['route']!r}: {stats['why']} ({stats['gauge']})")

# %% [markdown]
# ### How the parts are measured
#
# Whatever the problem, its numerical solution has three sources of error, and each is *measured*: the problem is solved
# again with one thing changed at a time, and the difference of the two solutions is taken in the norms above.
#
# | part | what is changed |
# |---|---|
# | space | spectral elements of degree $p + 2$ instead of $p$, on the same cells |
# | time | the tolerance of the time steps divided by 20 |
# | truncation | a box that is 6% of its width larger on every side that is a truncation |
#
# Value and policy each have these three parts; the estimate is their sum, for the value and for the policy. (The table
# shows for each part the larger of the two.) As long as a part exceeds its share of the tolerance, what it stands for
# is refined: cells are halved where the policy is not resolved, or their degree is raised; time steps are tightened;
# the box is widened.
#
# Two things make this an error bar rather than a hope. What is returned is the solution whose error was measured, not
# one of the richer ones it was measured with: those are better, but nobody knows by how much. And a part is the
# difference of *two whole solutions of the nonlinear problem*, not a local residual, so nothing has to be known about
# how local errors add up. What it cannot see is an error that both solutions share, for instance a feature so thin that
# no node of either grid has noticed it.
#
# That the estimate is far below what was asked is no accident either: error falls in jumps when cells are halved, and
# the loop stops at the first grid whose three parts are all small enough.

# %% [markdown]
# ## 2. The error bar
#
# One problem proves little. Here are random ones: Brownian motion with a Gaussian start is steered to a random mixture
# of two Gaussians, at a random temperature; this too has a closed form. Points below the diagonal are safe: there the
# true error is smaller than the estimate.

# %%
rng = np.random.default_rng(0)
bars = {rtol: [] for rtol in (1e-2, 1e-4)}
for _ in range(3):
    random = fh.zoo.get(
        "brownian-mixture",
        dim=1,
        means=rng.normal(size=(2, 1)),
        covariances=rng.uniform(0.15, 0.6, (2, 1, 1)),
        temperature=float(np.exp(rng.uniform(np.log(0.3), np.log(3.0)))),
    )
    for rtol, rows in bars.items():
        solution = fh.solve(random, rtol=rtol, verify=False)
        true = fh.compare({"it": solution}, random.exact, problem=random).overall("it")
        rows.append((larger(solution.error_estimate), larger(true)))

figure, ax = plt.subplots(figsize=(4.8, 4.2), layout="constrained")
for (rtol, rows), style in zip(bars.items(), fh.plot.STYLES[1:], strict=False):
    ax.loglog(*np.transpose(rows), label=f"asked for {rtol:.0e}", **{**style, "linestyle": "none"})
    ax.axvline(rtol, **{**style, "marker": None, "linestyle": ":", "linewidth": 1.0})
ends = np.array([1e-7, 2e-2])
ax.loglog(ends, ends, color="0.6", linewidth=1.0, zorder=0, label="true = estimated")
ax.set(xlabel="estimated relative error", ylabel="true relative error", xlim=ends, ylim=ends, aspect="equal")
ax.legend(loc="upper left")
plt.show()

ratios = np.array([true / estimated for rows in bars.values() for estimated, true in rows])
print(f"true / estimated: {ratios.min():.2f} to {ratios.max():.2f}; above 1 in {(ratios > 1).sum()} of {ratios.size}")

# %% [markdown]
# Six runs are an illustration, not a statistic; `benchmarks/bench_reliability.py` does the same with hundreds.
#
# ## 3. In two dimensions
#
# Two coupled double wells have no closed form: this is what a reference is needed for. The coupling makes the wells at
# $(1, -1)$ and $(-1, 1)$ the deep ones, the reward asks for $(1, 1)$. The boxes are tensor products of spectral
# elements; all work is done along one axis at a time. The calls are the same.

# %%
coupled = fh.zoo.get("double-well-2d-coupled")
reference = fh.solve(coupled, rtol=1e-3)
print(reference.error_estimate)
print({key: reference.stats[key] for key in ("form", "route", "why", "shape", "steps")})

figure, axes = plt.subplots(1, 2, figsize=(10, 4.0), layout="constrained")
for ax, quantity in zip(axes, ("value", "policy"), strict=True):
    fh.plot.solution(reference, 0.0, quantity=quantity, ax=ax)
    ax.set(aspect="equal")
axes[0].set_title("value, $t=0$; the arrows are the policy")
axes[1].set_title("size of the policy, $t=0$")
plt.show()

# %% [markdown]
# The pushes are strongest along the ridges between the wells, where a little force early decides a lot.
#
# ## 4. Small temperature
#
# Let the noise fade along with the temperature, $\Lambda = \alpha$, as $\alpha \to 0$: in the limit steering costs
# $\tfrac12|\pi|^2$ and nothing is random any more.
#
# With $f = \exp(v/\alpha)$ the equation becomes linear. In double precision this is a trap: $f$ underflows where $v$
# lies about $700\,\alpha$ below its maximum, and long before that what is left of $f$ in the tails is the rounding
# error of its largest values, so that $\nabla \log f$ there is noise. Here is the range of the terminal $y/\alpha$
# alone for the double well, $y = -3(x^2-1)^2$, on the box that `solve` would choose:

# %%
temperatures = (1.0, 0.1, 0.03)
wells = {alpha: fh.zoo.get("double-well", dim=1, temperature=alpha, Lambda=alpha) for alpha in temperatures}
cold = {alpha: fh.solve(well, rtol=1e-2, verify=False) for alpha, well in wells.items()}

print("   alpha   range of y/alpha   smallest exp(y/alpha)    estimate   unknowns   steps   seconds")
for alpha, of in cold.items():
    lower, upper = of.space.spatial.box.bounds
    y = wells[alpha].y(np.linspace(lower, upper, 2001))
    least = np.exp((y.min() - y.max()) / alpha)
    print(
        f"{alpha:8g} {(y.max() - y.min()) / alpha:18.0f} {least:23.1e} {larger(of.error_estimate):11.1e}"
        f" {of.stats['dofs']:10d} {of.stats['steps']:7d} {of.stats['seconds']:9.1f}"
    )

# %% [markdown]
# So `solve` takes the *value form*, the equation for $v$ itself, in which nothing is exponentiated:
#
# $$-\partial_t v = \langle b, \nabla v\rangle + \tfrac12 \mathrm{Tr}(\Lambda \nabla^2 v) + r
#   + \tfrac{1}{2\alpha} \nabla v^\top \Lambda \nabla v.$$
#
# Its last term is met explicitly, the diffusion exactly. What small $\alpha$ costs is resolution: as the noise fades,
# $v$ gets a kink, and the policy a jump, where the process must choose between the wells. The grid follows: cells
# become small where the gradient asks for it, panel by panel in time.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
window = fh.Box([-1.6], [1.6])
for (alpha, of), style in zip(cold.items(), fh.plot.STYLES, strict=False):
    line = {**style, "marker": None}
    for ax, quantity in zip(axes, ("value", "policy"), strict=True):
        fh.plot.solution(of, 0.9, quantity=quantity, box=window, ax=ax, label=rf"$\alpha={alpha:g}$", style=line)
axes[0].set_title("value, $t=0.9$")
axes[1].set_title("policy, $t=0.9$")
axes[0].legend()
plt.show()

# %% [markdown]
# Where $f$ spans few orders of magnitude both forms work. They do not share the unknown, so that their agreement is a
# check of both. Brownian motion reflected in an interval, with a closed form to judge both:

# %%
mild = fh.zoo.get("reflected", dim=1)
forms = {form: fh.solve(mild, rtol=1e-6, form=form) for form in ("linear", "value")}
for form, of in forms.items():
    print(f"{form:>7} form: route {of.stats['route']!r}, estimate {larger(of.error_estimate):.1e}")
print(fh.compare({"linear": forms["linear"]}, forms["value"]))
print(fh.compare(forms, mild.exact, problem=mild))

# %% [markdown]
# ## 5. A benchmark and its ground truth
#
# "Double well" is a standard test of learned control (Nüsken and Richter,
# [arXiv 2005.05409](https://arxiv.org/abs/2005.05409); in the version taken here Domingo-Enrich et al.,
# [arXiv 2312.02027](https://arxiv.org/abs/2312.02027)): in dimension 10, from $X_0 = 0$, minimise
#
# $$E\Big[ \int_0^1 \tfrac12 |u|^2 dt + \sum_i \nu_i \big((X_1^i)^2 - 1\big)^2 \Big], \qquad
#   dX^i = \big(-4\kappa_i X^i ((X^i)^2 - 1) + u^i\big) dt + dB^i,$$
#
# with $(\kappa_i, \nu_i) = (5, 3)$ on three axes and $(1, 1)$ on seven. The coordinates do not know of each other, so
# $v$ is a sum of one-dimensional values. `solve` finds this out by probing the coefficients, and
# parts that are alike share one solution.

# %%
benchmark = fh.zoo.get("soc-double-well")
coarse, fine = (fh.solve(benchmark, rtol=rtol, verify=False) for rtol in (1e-2, 1e-3))
for of in (coarse, fine):
    cost = -float(of.value(0.0, np.zeros(10)))
    print(f"optimal cost {cost:.6f}; estimated relative errors: {of.error_estimate}")
print(f"{fine.stats['why']}, of which {len({id(part) for _, part in fine.parts})} were solved")

# %% [markdown]
# Its figure of merit is the squared error of the control under the law $P^*$ of the optimally controlled process,
#
# $$\frac1T\, E^*\int_0^T |u_t - u^*_t|^2\, dt ,$$
#
# where $u^*$ stands for whatever ground truth is at hand. There is none in closed form, and finite differences have
# taken its place: implicit Euler steps for $f$ on a uniform grid, differences of $\log f$ between neighbouring points
# for the control, looked up in a table that is constant on every cell of the grid. Here is a scheme of that kind, of
# first order, with the drift upwind and the control linear in time between steps, which flatters it. What is measured
# below is *this* script, at equal steps in time and space, not the tables behind any publication.

# %%
EDGE = 2.75


def finite_differences(kappa, nu, h):
    """f on a grid of step h in time and space: rows t = 0, h, .., 1, columns x; and the control between grid points."""
    x, steps = np.linspace(-EDGE, EDGE, round(2 * EDGE / h) + 1), round(1.0 / h)
    drift = -4 * kappa * x * (x**2 - 1)
    to_right, to_left = 0.5 / h**2 + np.maximum(drift, 0) / h, 0.5 / h**2 + np.maximum(-drift, 0) / h
    to_right[-1] = to_left[0] = 0.0  # reflected at the ends
    band = np.zeros((3, x.size))
    band[0, 1:], band[1], band[2, :-1] = -h * to_right[:-1], 1 + h * (to_right + to_left), -h * to_left[1:]
    f = np.empty((steps + 1, x.size))
    f[-1] = np.exp(-nu * (x**2 - 1) ** 2)
    for k in range(steps - 1, -1, -1):
        f[k] = solve_banded((1, 1), band, f[k + 1])
    return f, np.diff(np.log(f), axis=1) / h


def tabulated(h):
    """The table of the ten controls as a policy, and its optimal cost."""
    (deep, deep_control), (flat, flat_control) = finite_differences(5.0, 3.0, h), finite_differences(1.0, 1.0, h)

    def policy(t, x):
        k = min(int(t / h), len(deep_control) - 2)
        later = t / h - k
        cell = np.clip(np.floor((x + EDGE) / h + 1e-9).astype(int), 0, deep_control.shape[1] - 1)
        rows = [(1 - later) * control[k] + later * control[k + 1] for control in (deep_control, flat_control)]
        return np.concatenate([rows[0][cell[:, :3]], rows[1][cell[:, 3:]]], axis=1)

    middle = deep.shape[1] // 2
    return policy, float(-3 * np.log(deep[0, middle]) - 7 * np.log(flat[0, middle]))


tables = {h: tabulated(h) for h in (0.008, 0.004, 0.002)}

# %% [markdown]
# `control_error` computes the figure of merit without sampling: the law of the optimally controlled process is a
# product of densities, each from a Fokker–Planck equation, and the expectation is a quadrature. First the floor of our
# own reference: how much does the coarse solution differ from the fine one? (Its box is smaller, and a solution says so
# when asked outside of its box. There the policy is continued constantly.)

# %%
bounds = np.array([[float(end[0]) for end in part.space.spatial.box.bounds] for _, part in coarse.parts]).T


def continued(t, x):
    return coarse.policy(t, np.clip(x, *bounds))


quadrature = {"times": 16, "rtol": 1e-2}
floor = fh.control_error(benchmark, continued, fine, **quadrature)
nothing = fh.control_error(benchmark, lambda t, x: np.zeros_like(x), fine, **quadrature)
by_step = {h: fh.control_error(benchmark, policy, fine, **quadrature).value for h, (policy, _) in tables.items()}

print("                                       squared error    optimal cost")
print(f"no control at all                    {nothing.value:15.1e}")
for h, value in by_step.items():
    print(f"finite differences, steps {h:<10g} {value:15.1e} {tables[h][1]:15.4f}")
print(f"solve, rtol 1e-2 (against rtol 1e-3) {floor.value:15.1e} {-coarse.value(0.0, np.zeros(10)):15.4f}")
print(f"solve, rtol 1e-3                                     {-fine.value(0.0, np.zeros(10)):15.4f}")
rate = np.polyfit(np.log(list(by_step)), np.log(list(by_step.values())), 1)[0]
print(f"\nsquared error of the finite differences ~ step^{rate:.2f}; at steps {h:g} it is")
print(f"{by_step[h] / floor.value:.0f} times that of the coarse solution ({floor.how})")

figure, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
ax.loglog(list(by_step), list(by_step.values()), label="finite differences", **fh.plot.STYLES[2])
ax.axhline(floor.value, label="solve, rtol = 1e-2", **{**fh.plot.STYLES[1], "marker": None})
ax.set(xlabel="step in time and space", ylabel="squared error of the control")
ax.set_xticks(list(by_step), [f"{h:g}" for h in by_step])
ax.minorticks_off()
ax.legend()
plt.show()

# %% [markdown]
# The finite differences converge as they should: an error of first order, so a squared error of second. As a ground
# truth for this metric they are poor all the same: with thousands of points and hundreds of steps for each axis their
# own squared error is still some $10^{-4}$. Against such a table a control that is better than this cannot
# be told from one that is as good, for what is reported is the error of the table. The reference costs some seconds,
# and its floor is orders of magnitude lower.
#
# ## 6. The marginal law
#
# The density of the process, controlled or not, solves the Fokker–Planck equation $\partial_t p = -\mathrm{div}((b +
# \pi)p) + \tfrac12 \mathrm{Tr}\nabla^2(\Lambda p)$, on a box with the adjoint of the matrix that the value was solved
# with, so that mass is conserved to rounding. For the controlled law the policy must be known on all of the box: give
# it the box of the solution it comes from. A density is known no better than the policy that drives it, and no more is
# asked for than the error bar of that policy says.

# %%
well = wells[1.0]
law = fh.fokker_planck.solve(well, rtol=1e-5)
steering = fh.solve(well, rtol=1e-5, verify=False)
steered = fh.fokker_planck.solve(well, policy=steering.policy, box=steering.space.box, rtol=1e-5)
for name, density in (("uncontrolled", law), ("controlled", steered)):
    mass = density.stats["mass"]
    print(f"{name:>12}: largest change of the mass {mass['drift']:.0e}, lowest value {density.stats['lowest']:.0e}")
    print(f"{'':>14}{density.status}")

x = np.linspace(-2.0, 2.0, 401)[:, None]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained", sharey=True)
for ax, density, title in zip(axes, (law, steered), ("uncontrolled", "optimally controlled"), strict=True):
    for t, style in zip((0.0, 0.05, 0.5, 1.0), fh.plot.STYLES, strict=False):
        ax.plot(x[:, 0], density.density(t, x), label=f"$t={t:g}$", **{**style, "marker": None})
    ax.set(xlabel="$x$", title=title)
axes[0].set_ylabel("density $p_t(x)$")
axes[1].legend()
plt.show()

# %% [markdown]
# The wells pull the mass apart in any case (from $t=0.5$ on the uncontrolled density hardly changes); the control
# narrows what arrives at the end, where $y = -3(x^2-1)^2$ is paid. In the far tails the density oscillates around zero
# at the level of the tolerance, and the status says how far below zero it gets: nothing is clipped.
#
# How good is the control? The reward is a matter of integrals over this law:
# $J(\pi) = E^\pi[y(X_T) - \tfrac\alpha2 \int_0^T |\pi_t|^2_{\Lambda^{-1}} dt]$. For the optimal policy it must
# be the mean of $v_0$ over the initial law, which is found on a different route, backward in time.

# %%
nodes, weights = np.polynomial.legendre.leggauss(48)
effort = 0.0
for t, weight in zip((1 + nodes) / 2, weights / 2, strict=True):
    x, w = steered.law(float(t)).quadrature(8)
    effort += weight * (w @ steering.policy(float(t), x)[:, 0] ** 2)
x, w = steered.law(1.0).quadrature(8)
earned = w @ well.y(x) - 0.5 * well.temperature * effort
x, w = steered.law(0.0).quadrature(8)
print(f"reward under the controlled law {earned:.6f}, mean of v_0 {w @ steering.value(0.0, x):.6f}")

# %% [markdown]
# ## 7. Limits
#
# * Tolerances go from 0.1 to 1e-10; below, double precision has nothing to offer, and the call says so.
# * Dimension: up to three coordinates that hang together. A problem that falls apart into such groups may have any
#   dimension, as above; others must be learned from paths.
# * If a tolerance is not met, the best that was reached is returned, a `ToleranceWarning` says which part of the error
#   stopped it, and the status keeps the message. Here on purpose, by allowing very few unknowns:

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", fh.ToleranceWarning)
    starved = fh.solve(well, rtol=1e-4, max_dofs=80)
for warning in caught:
    print(f"{warning.category.__name__}: {warning.message}\n")
error = fh.compare({"starved": starved}, steering).overall("starved")
print(f"estimated {larger(starved.error_estimate):.1e}, error against a solution to 1e-5: {larger(error):.1e}\n")

for name, call in {
    "rtol too small": lambda: fh.solve(well, rtol=1e-12),
    "too many coordinates": lambda: fh.solve(fh.zoo.get("lq", dim=4)),
}.items():
    try:
        call()
    except fh.FemHjbError as refusal:
        print(f"{name}: {type(refusal).__name__}: {refusal}")

# %% [markdown]
# ## Exercises
#
# 1. *On paper.* Two solutions that are independent of each other agree to $10^{-4}$. What is known of the error of
#    each? And if one is computed with a smaller step than the other by the same code?
# 2. *Compute.* Ask for tolerances from $10^{-2}$ to $10^{-6}$ on `brownian-mixture`. How do unknowns and the true error
#    grow and fall? Is the estimate ever below the truth?
# 3. *Compute.* Make a mistake on purpose: solve the double well on a mesh (`solve_on_mesh`) with 16, 32, 64, 128 cells
#    of P2, and compare with `steering`. Which order do you see?
# 4. *Compute.* Does the temperature at which the *linear* form still works depend on the reward? Solve the double well
#    at $\alpha = 0.1$ with `form="linear"` and read what happens.
#
# ### Solutions
#
# **1.** Only that the errors differ by $10^{-4}$; it is an estimate of the larger of the two, unless they are equal.
#  Made
# by one code with two steps, they share whatever the step does not change: a box that is too small, a wrong boundary
# condition, a bug. That is why three things are changed one at a time, and why paths are a second witness.
#
# **2.**

# %%
target = fh.zoo.get("brownian-mixture", dim=1)
print("  asked   estimated       true   unknowns")
for rtol in (1e-2, 1e-4, 1e-6):
    of = fh.solve(target, rtol=rtol, verify=False)
    true = larger(fh.compare({"it": of}, target.exact, problem=target).overall("it"))
    print(f"{rtol:7.0e} {larger(of.error_estimate):11.1e} {true:10.1e} {of.stats['dofs']:10d}")

# %% [markdown]
# The elements are of high degree, so that the unknowns grow with the logarithm of the tolerance, not with a power.
#
# **3.**

# %%
counts, errors = (16, 32, 64, 128), []
for count in counts:
    meshed = fh.solve_on_mesh(well, MeshLine(np.linspace(-3.0, 3.0, count + 1)), element="P2", rtol_time=1e-6)
    at = fh.compare({"it": meshed}, steering, times=np.linspace(0.0, 0.9, 10)).overall("it")
    errors.append((at.value, at.policy))
    print(f"{count:4d} cells: value {at.value:.1e}, policy {at.policy:.1e}")
rates = np.polyfit(np.log(counts), np.log(errors), 1)[0]
print(f"value ~ cells^{rates[0]:.2f}, policy ~ cells^{rates[1]:.2f}")

# %% [markdown]
# P2 has the order 3 in the value. The policy has no less: gradients are recovered from the values around a point, where
# those of the elements themselves would be of order 2.
#
# **4.**

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore", fh.ToleranceWarning)  # the status says the same
    for temperature in (1.0, 0.1):
        try:
            forced = fh.solve(wells[temperature], rtol=1e-2, form="linear", verify=False)
            print(f"alpha = {temperature:g}: {forced.status}")
        except fh.FemHjbError as refusal:
            print(f"alpha = {temperature:g}: {type(refusal).__name__}: {refusal}")

# %% [markdown]
# It is the range of $y/\alpha$ that counts, so a reward that is ten times as large does what a temperature that is ten
# times as small does.
