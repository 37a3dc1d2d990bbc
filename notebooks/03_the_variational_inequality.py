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
# # The variational inequality
#
# From trajectories of the uncontrolled process, `fit` learns $f = e^{v/\alpha}$, and with it value and policy. What it
# solves is a variational inequality: a linear equation in expectations, on a convex set of functions. This notebook
# derives it, checks its identities, takes the error apart, and shows what each part of `fit` is for: estimators,
# weighted tests, methods, convex sets, the certificate, and the choice of the class. The method is that of
# W. Mou, [arXiv 2509.02528](https://arxiv.org/abs/2509.02528). Every number is computed here.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import fem_hjb as fh
from fem_hjb.learning.inequality import diagnose
from fem_hjb.learning.population import split_error, yardstick
from fem_hjb.learning.selection import automatic_candidates
from fem_hjb.learning.solve_system import reduce_system
from fem_hjb.learning.solvers import projected
from fem_hjb.spaces.features import HermiteCross
from fem_hjb.spaces.line import LineBasis

# %% [markdown]
# ## 1. From the equation to $B[f, g] = \ell(g)$
#
# Subtract from the rewards their largest values $c_r$, $c_y$ (the *gauge*), which leaves the policy as it is. Then
# $f = e^{v/\alpha}$ has values in $(0, 1]$ and solves a linear equation,
#
# $$\partial_t f + \mathcal G f + \rho f = 0, \qquad f_T = e^{(y - c_y)/\alpha}, \qquad
#   \mathcal G f = \langle b, \nabla f\rangle + \tfrac12 \mathrm{Tr}(\Lambda \nabla^2 f), \qquad
#   \rho = (r - c_r)/\alpha \le 0 .$$
#
# Multiply by a test function $g$ and take expectations along the uncontrolled process $X$. With
#
# $$B[f, g] = -\int_0^T E\big[(\partial_t f + \mathcal G f + \rho f)\, g\big]\,dt + E[f_T\, g_T], \qquad
#   \ell(g) = E\big[e^{(y - c_y)/\alpha} g_T\big]$$
#
# the solution has $B[f, g] = \ell(g)$ for every $g$. That this determines $f$ follows from Itô's formula for
# $f_t(X_t)^2$, the *energy identity*
#
# $$B[f, f] = \tfrac12 E[f_T^2] + \tfrac12 E[f_0^2] + \tfrac12 \int_0^T E\big[\nabla f' \Lambda \nabla f\big]\,dt
#   - \int_0^T E[\rho f^2]\,dt \;\ge\; 0 .$$
#
# If both $f$ and $\tilde f$ solve the equation, then $B[f - \tilde f, f - \tilde f] = 0$, so that they have the same
# values at 0 and $T$ and the same gradient in between.
#
# The test problem is Brownian motion reflected in $[0, 1]$ with uniform start. Its law is the uniform one at all times,
# and $f$ is a cosine series. The class: C¹ cubics in space times quadratics in time.

# %%
problem = fh.zoo.get("reflected", dim=1, coefficients=(1.0, 0.95, 0.1))
space = fh.Space(problem, cells=6, time_cells=4, element="hermite")
law = fh.law_measure(problem, space)
print(space)

figure, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
x = np.linspace(0.0, 1.0, 201)[:, None]
system = fh.learning.assemble(problem, law, space)
for t, style in zip((0.0, 0.5, 1.0), fh.plot.STYLES, strict=False):
    f = system.gauge.u(t, x, problem.exact.value(t, x))
    ax.plot(x[:, 0], f, label=f"$t={t:g}$", **{**style, "marker": None})
ax.set(xlabel="$x$", ylabel="$f_t(x)$", title="what is to be learned")
ax.legend()
plt.show()

# %% [markdown]
# `assemble` makes the matrix of $B$ and the vector $\ell$ in a basis of the class. Here is the identity for a random
# function of the class (reflection asks for zero slopes at the faces). The same number comes out of
#
# * the right-hand side, summed by hand over the points of the measure;
# * the matrix of `generator`, which is $B$ as written above;
# * that of `weak`, in which the second derivatives have been integrated by parts against the density;
# * up to chance and the time steps, the increments $f_{t+\Delta t} - f_t$ along 1000 trajectories, which stand for
#   $(\partial_t f + \mathcal G f)\,\Delta t$ and a martingale.

# %%
rng = np.random.default_rng(0)
grid = rng.standard_normal(space.shape)
grid[:, space.spatial.reflecting_dofs()] = 0.0
c = grid.ravel()

Lambda = problem.constant_diffusion[0, 0]
slope = space.evaluate(c, law.t, law.x, "gradient")[:, 0]
last, first = space.evaluate(c, problem.horizon, law.terminal_x), space.evaluate(c, 0.0, law.initial_x)
by_hand = 0.5 * (
    law.terminal_weights @ last**2 + law.initial_weights @ first**2 + Lambda * law.weights @ slope**2
)  # r is constant, so rho = 0

forms = {
    "generator, under the law": system.form,
    "weak, under the law": fh.learning.assemble(problem, law, space, estimator="weak").form,
}
for steps in (32, 128, 512):
    paths = fh.sample_paths(problem, n=1000, steps=steps, rng=1)
    forms[f"increment, {steps} steps"] = fh.learning.assemble(problem, paths, space, estimator="increment").form
print(f"the energy, by hand {'':14s} {by_hand:.12f}")
for name, form in forms.items():
    print(f"B[f, f], {name:25s} {c @ form @ c:.12f}")

# %% [markdown]
# The increments have an identity of their own, which holds for *every* sample of any size: a telescoping sum,
#
# $$B_n[f, f] = \tfrac12 \overline{f_T^2} + \tfrac12 \overline{f_0^2}
#   + \tfrac12 \overline{\textstyle\sum_k (f_{k+1} - f_k)^2} \qquad (\rho = 0, \text{ bars are means over paths}).$$
#
# So this form is never negative, however few the samples. The others have no such protection (section 5).

# %%
few = fh.sample_paths(problem, n=3, steps=64, rng=2)
along = space.evaluate(c, np.tile(few.t, few.n), few.x.reshape(-1, 1)).reshape(few.n, -1)
telescoped = 0.5 * (along[:, -1] ** 2 + along[:, 0] ** 2 + (np.diff(along, axis=1) ** 2).sum(axis=1)).mean()
form = fh.learning.assemble(problem, few, space, estimator="increment").form
print(f"three paths: B_n[f, f] = {c @ form @ c:.12f}, telescoped {telescoped:.12f}")

# %% [markdown]
# ## 2. A sample is a quadrature rule
#
# Every term of $B$ and $\ell$ is an integral under the law of $X$. A *measure* is a set of weighted points in space and
# time; `law_measure` has quadrature points weighted with the density, `empirical_measure` the points
# $(t_k, X^i_{t_k})$ of $n$ trajectories with weights $\Delta t/n$. The same code sums both. So the *population*
# solution $\bar f$ and the *learned* one $\hat f$ live in one class, differ by the measure alone, and can be subtracted
# coefficient by coefficient. That takes the error apart:
#
# | part | difference | what makes it smaller |
# |---|---|---|
# | approximation | $f_{best} - f^*$, the best of the class against the solution | a larger class |
# | Galerkin | $\bar f - f_{best}$ | a larger class |
# | observation | $\bar f_K - \bar f$, sums over $K$ times in place of integrals | more observations per path |
# | statistical | $\hat f - \bar f_K$ | more paths |
#
# All in the norm $E[f, f] = E f_T^2 + E f_0^2 + \int E[f^2 + \nabla f' \Lambda \nabla f]\,dt$ under the law, relative
# to the norm of the solution; medians over three seeds. Two estimators, the same trajectories: `generator`, the
# residual at the samples, and `weak`. (A fit also follows its own policy along fresh paths, to say how wrong it is.
# Here the truth is known, and `verify=False` spares that.)

# %%
ruler = yardstick(problem, law, space)
steps, sizes, seeds = 64, (50, 200, 800, 3200), range(3)
times = np.linspace(0.0, problem.horizon, steps + 1)
names = ("approximation", "galerkin", "observation", "statistical", "total")
parts = {}
for estimator in ("generator", "weak"):
    how = {"estimator": estimator, "verify": False}
    bar = fh.fit(problem, law, space, **how).coefficients
    observed = fh.fit(problem, fh.law_measure(problem, space, times=times), space, **how).coefficients
    for n in sizes:
        rows = []
        for seed in seeds:
            sampled = fh.sample_paths(problem, n=n, steps=steps, rng=seed)
            learned = fh.fit(problem, sampled, space, **how).coefficients
            split = split_error(ruler, learned, population=bar, observed=observed)
            rows.append([getattr(split, name) for name in names])
        parts[estimator, n] = np.median(rows, axis=0)

print(f"{'':17s}" + "".join(f"{name:>15s}" for name in names))
for (estimator, n), row in parts.items():
    print(f"{estimator:10s}{n:6d} " + "".join(f"{value:15.1e}" for value in row))

figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained", sharey=True)
for ax, estimator in zip(axes, ("generator", "weak"), strict=True):
    table = np.array([parts[estimator, n] for n in sizes])
    for column, name, style in zip(table.T, names, fh.plot.STYLES, strict=False):
        ax.loglog(sizes, column, label=name, **style)
    ax.set(xlabel="paths $n$", title=f"estimator {estimator!r}", xticks=sizes, xticklabels=sizes)
    ax.minorticks_off()
axes[0].set_ylabel("relative to the norm of the solution")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
plt.show()

# %%
for estimator in ("generator", "weak"):
    statistical = [parts[estimator, n][3] for n in sizes]
    rate = np.polyfit(np.log(sizes), np.log(statistical), 1)[0]
    print(f"{estimator:10s} statistical part ~ n^{rate:.2f}; at n = {sizes[0]} it is {statistical[0]:.1e}")

# %% [markdown]
# Both statistical parts fall with $n$, but for `generator` it is so small from the start that the error is that of
# the class and of the time steps. (The norm has a gradient in it; and the four parts are vectors, so their sizes do not
# add up to that of the total.)
#
# ## 3. Why the residual is free of noise at the solution
#
# At the true $f$ the residual $\partial_t f + \mathcal G f + \rho f$ is zero at *every single point*, not only on
# average. The sampled equations then hold without noise: if $f$ lies in the class it is found exactly, from a handful
# of trajectories. If it does not, the noise is proportional to what the class cannot represent.
#
# A problem whose solution is a polynomial makes the point: Brownian motion, $y = \log(1 + x^2)$, so that
# $f = 1 + x^2 + T - t$. The class is cubic in $x$ and quadratic in $t$. And a negative control: the same trajectories,
# read with a drift that is slightly wrong.

# %%
start = fh.Gaussian([0.0], 0.25)
polynomial = fh.ControlProblem(
    dim=1,
    horizon=1.0,
    temperature=1.0,
    drift=fh.LinearDrift([[0.0]], [0.0]),
    diffusion=1.0,
    terminal_reward=lambda x: np.log(1 + x[..., 0] ** 2),
    initial_law=start,
    marginal=lambda t: fh.Gaussian([0.0], 0.25 + t),
)
mistaken = replace(polynomial, drift=lambda t, x: 0.1 * np.sin(3 * x))
cubics = fh.Space.product(LineBasis.uniform(1.0, 2, "P2"), HermiteCross(fh.Gaussian([0.0], 0.75), 3))
estimators = ("generator", "residual", "corrected", "weak", "increment", "regression")


def recovery_error(believed, sampled, estimator):
    """Relative root mean square error of f over the states at half time."""
    learned = fh.fit(believed, sampled, cubics, estimator=estimator, verify=False)
    states = sampled.x[:, sampled.steps // 2]
    truth = learned.gauge.u(0.5, states, np.log(1 + states[:, 0] ** 2 + 0.5))
    return np.sqrt(np.mean((learned.f(0.5, states) - truth) ** 2) / np.mean(truth**2))


counts = (50, 200, 800)
recovered = {name: [] for name in (*estimators, "generator, wrong drift")}
for n in counts:
    sampled = fh.sample_paths(polynomial, n=n, steps=64, rng=n)
    for name in estimators:
        recovered[name].append(recovery_error(polynomial, sampled, name))
    recovered["generator, wrong drift"].append(recovery_error(mistaken, sampled, "generator"))
for name, row in recovered.items():
    print(f"{name:24s}" + "".join(f"  n={n}: {error:.0e}" for n, error in zip(counts, row, strict=True)))

figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
grey = {**fh.plot.STYLES[0], "color": "0.5"}
styles = [*fh.plot.STYLES, {**grey, "marker": "x"}, {**grey, "marker": "+"}]
for (name, row), style in zip(recovered.items(), styles, strict=False):
    ax.loglog(counts, row, label=name, **style)
ax.set(xlabel="paths $n$", ylabel="relative error of $f$", xticks=counts, xticklabels=counts)
ax.minorticks_off()
figure.legend(loc="outside right center")
plt.show()

# %% [markdown]
# `generator` and `residual` are exact to rounding from 50 paths. A wrong drift leaves an error that no number of paths
# removes: the method solves the equation it is told. `increment` needs no drift, and pays with noise; `corrected` takes
# most of that noise out again.
#
# ## 4. Boundedness, and the projected iteration
#
# Let $E$ be the matrix of the norm, and $\mathsf B$ that of $B$. Large problems are solved by the iteration
#
# $$f^{m+1} = P_F\big(f^m - \gamma\, E^{-1}(\mathsf B f^m - \ell)\big),$$
#
# $P_F$ the projection onto a convex set $F$ in the norm $E$ (nothing, if $F$ is the whole class). Three figures of
# $E^{-1}\mathsf B$ govern it:
#
# * its *coercivity* $\mu$, the smallest eigenvalue of the symmetric part;
# * its *norm* $L$;
# * the *contraction* $q = |I - \gamma E^{-1}\mathsf B|_E$ at the best step $\gamma$. It is less than 1 for
#   $0 < \gamma < 2\mu/L^2$ at least.
#
# The trouble is $L$: $B$ holds a time derivative, $E$ does not. Testing with $g - \delta\,\partial_t g$ instead of $g$
# puts $\delta \int E[(\partial_t f)^2]\,dt$ into $B_\delta[f, f]$ and into $E_\delta$, and $L$ stays bounded as the
# time mesh is refined. It also heals a gap: for $\rho = 0$ the energy identity says nothing about functions of time
# alone that vanish at 0 and $T$, so that without it $\mu = 0$.

# %%
print("delta  time cells      mu       L       q")
for delta in (0.0, 0.2):
    for count in (2, 4, 8, 16):
        refined = fh.Space(problem, cells=6, time_cells=count, element="hermite")
        assembled = fh.learning.assemble(
            problem, fh.law_measure(problem, refined), refined, estimator="weak", delta=delta
        )
        figures = diagnose(reduce_system(assembled).inequality)
        mu = round(figures.coercivity, 6) + 0.0  # no minus sign for rounding errors
        print(f"{delta:5g} {count:11d} {mu:7.3f} {figures.norm:7.2f} {figures.contraction:7.3f}")

# %% [markdown]
# Now with samples: 2000 trajectories, $\delta = 0.2$. The figure shows an upper bound of the *natural residual* $|f -
# P_F(f - E^{-1}(\mathsf B f - \ell))|_E$ after each step. It vanishes at the solution only, however a candidate was
# found, and $(1 + L)/\mu$ times it bounds the error: that is the certificate `stats["residual"]`. The prediction $q^m$
# is a worst case over all starts. A convex set (here one that cuts off the top of $f$) makes the rate no worse, since
# projections do not lengthen. Extrapolating from the last ten steps (`accelerate`, the default) goes faster, and a step
# that is much too long diverges: the negative control.

# %%
learning = fh.sample_paths(problem, n=2000, steps=64, rng=5)
sampled_system = fh.learning.assemble(problem, learning, space, delta=0.2)
free = reduce_system(sampled_system, smoothing=0.05).inequality
in_set = reduce_system(sampled_system, smoothing=0.05, constraint=fh.Bounds(0, 0.9)).inequality
sampled_figures = diagnose(free)
gamma = sampled_figures.gamma
runs = {
    "plain": projected(free, accelerate=False, maxiter=100),
    "plain, 0 <= f <= 0.9": projected(in_set, accelerate=False, maxiter=100),
    "accelerated": projected(free, maxiter=100),
    "step 5 times as long": projected(free, gamma=5 * gamma, accelerate=False, maxiter=100),
}
print(
    f"mu = {sampled_figures.coercivity:.3f}, L = {sampled_figures.norm:.2f}, best step {gamma:.3f},"
    f" 2 mu / L^2 = {2 * sampled_figures.coercivity / sampled_figures.norm**2:.3f}"
)
for name, run in runs.items():
    print(f"{name:22s} predicted factor {run.predicted:.3f}, observed {run.contraction:.3f}, {run.iterations} steps")
print(f"\nstep 5 times as long: {runs['step 5 times as long'].message}")

figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for (name, run), style in zip(runs.items(), fh.plot.STYLES, strict=False):
    ax.semilogy(np.arange(1, len(run.history) + 1), run.history, label=name, **{**style, "marker": None})
m = np.arange(1, 101)
ax.semilogy(m, runs["plain"].history[0] * runs["plain"].predicted ** (m - 1), ":", color="0.4", label="predicted bound")
ax.set(xlabel="step $m$", ylabel="natural residual (bound)", ylim=(1e-11, 1e3))
figure.legend(loc="outside right center")
plt.show()

# %% [markdown]
# ## 5. When the sampled form loses coercivity
#
# Coercivity is a statement about the law. The sampled $B_n$ of `generator` need not be coercive, and with few
# trajectories in a fine class it is not. What then?
#
# * `direct` needs no coercivity, only that the matrix is not nearly singular; its figure is the smallest singular value
#   (`stability`). It goes on giving good answers long after coercivity is gone.
# * Smoothing, which `fit` does by default, determines $f$ where no trajectory has been.
# * Estimator `residual` is least squares: its form is symmetric and never negative, so that everything is allowed, sets
#   as well.
# * `projected` has no step that contracts, and says so. The minimal-residual method, which minimises
#   $|E^{-1}(\mathsf B f - \ell)|_E$ over the class or a set, asks for no coercivity, but takes many steps.

# %%
fine = fh.Space(problem, cells=12, time_cells=6, element="hermite")
judge = yardstick(problem, fh.law_measure(problem, fine), fine, norm="mass")
remedies = {
    "generator, no smoothing": {"smoothing": 0.0},
    "generator": {},
    "residual, no smoothing": {"estimator": "residual", "smoothing": 0.0},
    "residual, no smoothing, in [0, 1]": {"estimator": "residual", "smoothing": 0.0, "constraint": fh.Bounds(0, 1)},
    "residual": {"estimator": "residual"},
}
small = (10, 30, 100)
crowds = {n: [fh.sample_paths(problem, n=n, steps=64, rng=seed) for seed in range(3)] for n in small}
print(f"{'median error, coercivity':34s}" + "".join(f"{f'n={n}':>16s}" for n in small))
for name, how in remedies.items():
    line = ""
    for crowd in crowds.values():
        tries = [fh.fit(problem, sampled, fine, **how, verify=False) for sampled in crowd]
        error = np.median([judge.distance(one.coefficients) / judge.size for one in tries])
        line += f"{error:9.0e} {np.median([one.stats['coercivity'] for one in tries]):6.2f}"
    print(f"{name:34s}{line}")

# %%
ten = crowds[10][0]
print("status:", fh.fit(problem, ten, fine, smoothing=0.0).status)
try:
    fh.fit(problem, ten, fine, method="projected", delta=0.2)
except fh.errors.ConvergenceError as refusal:
    print(f"\nprojected: {type(refusal).__name__}: {refusal}")
least = fh.fit(problem, crowds[100][0], fine, method="minimal-residual", verify=False)
print(
    f"\nminimal residual, n = 100: {least.stats['iterations']} steps to the natural residual"
    f" {least.stats['residual']:.0e}; coercivity {least.stats['coercivity']:.2f},"
    f" stability {least.stats['stability']:.2f}, error {judge.distance(least.coefficients) / judge.size:.0e}"
)

# %% [markdown]
# ## 6. A convex set that binds
#
# What is known of $f$ can be asked for. Here $f$ decreases in $x$. Learned model-free (`increment`) from a hundred
# trajectories in the fine class it does not; `Monotone` restricts the class to functions that decrease *everywhere*,
# not only at nodes. The solution in the set $F$ solves the inequality
#
# $$B[\hat f, g - \hat f] \ge \ell(g - \hat f) \quad \text{for all } g \in F .$$

# %%
hundred = fh.sample_paths(problem, n=100, steps=64, rng=0)
decreasing = fh.Monotone(0, increasing=False)
sets = {"whole class": None, "decreasing": decreasing, "decreasing, in [0, 1]": decreasing & fh.Bounds(0, 1)}
little = {"estimator": "increment", "smoothing": 0.01, "verify": False}
inside = {name: fh.fit(problem, hundred, fine, constraint=of, **little) for name, of in sets.items()}
energy = yardstick(problem, fh.law_measure(problem, fine), fine)
print(f"{'':24s} error of f, in E   steepest rise   certificate")
t, x = np.linspace(0.0, 1.0, 41), np.linspace(0.0, 1.0, 401)[:, None]
for name, one in inside.items():
    rise = one.space.evaluate(one.coefficients, t[:, None], x, "gradient").max()
    print(
        f"{name:24s} {judge.distance(one.coefficients) / judge.size:10.4f}"
        f" {energy.distance(one.coefficients) / energy.size:7.4f}"
        f" {rise:15.1e} {one.stats['residual']:13.0e}"
    )

figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
line = {**fh.plot.STYLES[0], "marker": None}
axes[0].plot(x[:, 0], problem.exact.value(0.5, x), color="0.5", linewidth=3.0, label="exact")
axes[1].plot(x[:, 0], problem.exact.policy(0.5, x)[:, 0], color="0.5", linewidth=3.0)
for (name, one), style in zip(list(inside.items())[:2], fh.plot.STYLES, strict=False):
    fh.plot.solution(one, 0.5, ax=axes[0], label=name, style={**style, "marker": None})
    fh.plot.solution(one, 0.5, quantity="policy", ax=axes[1], style={**style, "marker": None})
axes[0].set_title("value, $t = 0.5$")
axes[1].set_title("policy, $t = 0.5$")
axes[0].legend()
plt.show()

# %% [markdown]
# ### Positivity
#
# The value is $\alpha \log f$, so a learned $f$ must be positive, and nothing in a linear class makes it so. A
# linear-quadratic problem with a severe terminal reward, $y = -3x^2$, has an $f$ that is tiny in the tails, where
# hardly a trajectory goes; there the learned one falls below 0. Then there is no value, and nothing is clipped: asking
# for one is an error that says what to do. `Bounds(0)` learns a non-negative $f$ instead; `with_floor` is the blunt
# remedy.

# %%
severe = fh.zoo.get("lq", dim=1, R=6.0)
wide = fh.Space(severe, cells=12, time_cells=4, box=fh.Box([-2.2], [2.2]))
some = fh.sample_paths(severe, n=50, steps=64, rng=0)
how = {"estimator": "increment", "outside": "drop", "verify": False}
signed = fh.fit(severe, some, wide, **how)
bounded = fh.fit(severe, some, wide, constraint=fh.Bounds(0), **how)
line = np.linspace(-2.0, 2.0, 401)[:, None]
print(f"f <= 0 on {signed.stats['nonpositive_mass']:.2%} of the mass of the samples")
try:
    signed.value(1.0, line)
except fh.errors.PositivityError as refusal:
    print(f"{type(refusal).__name__}: {refusal}\n")
for name, one in {"as learned": signed, "Bounds(0)": bounded, "with_floor(1e-4)": signed.with_floor(1e-4)}.items():
    f, v = one.f(1.0, line), one.value(1.0, line, nonpositive="nan")
    print(f"{name:18s} lowest f {f.min():9.1e}; no value on {np.isnan(v).mean():4.0%} of [-2, 2] at T")

# %% [markdown]
# ## 7. Which class?
#
# A class that is too small cannot represent $f$, one that is too large drowns in noise. With `space="auto"` classes of
# growing size are fitted to four fifths of the trajectories and judged on the rest, in turn. There are two judges. The
# labels of regression see the squared error of $f$ itself, through noise: classes that they find worse than the best by
# more than two standard errors are out. Among the others the residual of the equation decides, which is free of noise
# at the solution: the choice is the smallest class no worse than the best by more than a standard error. The table of
# what was tried comes with the result. A Gaussian-mixture diffusion model with a quadratic reward, 400 trajectories:

# %%
tilt = fh.zoo.get("mixture-diffusion", dim=1)
trajectories = fh.sample_paths(tilt, n=400, steps=64, rng=0)
automatic = {
    name: fh.fit(tilt, trajectories, "auto", estimator=name, verify=False) for name in ("generator", "increment")
}

print("time cells  cells  unknowns" + "".join(f"{name:>14s}: excess of the residual" for name in automatic))
for rows in zip(*(one.stats["tried"] for one in automatic.values()), strict=True):
    text = f"{rows[0]['time_cells']:10d} {rows[0]['cells']:6d} {rows[0]['dofs']:9d}"
    for row in rows:
        text += f"{row['residual excess']:25.1e} +- {row['residual error']:.0e}"
        text += "  <--" if row["chosen"] else "     "
    print(text)
print()
print(fh.compare(automatic, tilt.exact, problem=tilt))

figure, ax = plt.subplots(figsize=(4.6, 3.3), layout="constrained")
lowest = min(row["risk"] for one in automatic.values() for row in one.stats["tried"])
for (name, one), style in zip(automatic.items(), fh.plot.STYLES, strict=False):
    tried = one.stats["tried"]
    ax.semilogx([row["dofs"] for row in tried], [row["risk"] - lowest for row in tried], label=name, **style)
unknowns = [row["dofs"] for row in tried]
ax.set(xlabel="unknowns", ylabel="risk above the lowest", xticks=unknowns, xticklabels=unknowns)
ax.minorticks_off()
ax.legend()
plt.show()

# %% [markdown]
# The same trajectories bear classes of very different size. The residual at the samples adds next to no noise, so that
# the largest class on offer (no more unknowns than trajectories) is the best; increments are noisy, and the best class
# is a small one.
#
# Why two judges? The residual is free of noise, but it is not the error: it weighs the equation's terms as they come.
# Where the drift is strong and no class on offer resolves the solution, as for this double well, it can prefer a class
# in which little happens. The labels are noisy, but of $f$ itself. A reference (`solve`) tells how far off all are.

# %%
well = fh.zoo.get("double-well", dim=1)
visits = fh.sample_paths(well, n=300, steps=64, rng=0)
reference = fh.solve(well, rtol=1e-3, verify=False)
offered = automatic_candidates(well, visits.n)
judged = {by: fh.learning.cross_validate(well, visits, offered, criterion=by) for by in ("residual", "labels", None)}
each = {str(one.space.n_dofs): fh.fit(well, visits, one.space, outside="drop", verify=False) for one in offered}
true = fh.compare(each, reference)

print("unknowns   true error of v   chosen by")
for name, *rows in zip(each, *(selection.table for selection in judged.values()), strict=True):
    by = [judge or "both" for judge, row in zip(judged, rows, strict=True) if row["chosen"]]
    print(f"{name:>8s}{true.overall(name).value:14.2f}        {', '.join(by)}")
print()
print(judged[None])

# %% [markdown]
# ## What to remember
#
# * Start with `fit(problem, paths, "auto")` and read `status`; where the policy matters, `terminal="interpolated"`.
# * `generator` where drift and diffusion are known: its error is that of the class. `residual` where samples are few.
#   `increment` where there is no model.
# * `delta > 0` and `method="projected"` for large problems; the certificate is the same for all methods.
# * Convex sets for what is known of $f$: they hold everywhere. `Bounds(0)` where positivity is in doubt.

# %% [markdown]
# ## Exercises
#
# 1. *On paper.* Show the telescoping identity of section 1: $\sum_k f_k (f_k - f_{k+1}) + f_K^2 = \tfrac12 f_0^2 +
#    \tfrac12 f_K^2 + \tfrac12\sum_k (f_{k+1} - f_k)^2$.
# 2. *On paper.* Let $T = E^{-1}\mathsf B$ with coercivity $\mu$ and norm $L$ in the metric $E$. Show that
#    $|I - \gamma T|_E^2 \le 1 - 2\gamma\mu + \gamma^2 L^2$, and find the best $\gamma$ of this bound.
# 3. *Compute.* Compare that bound with the contraction that `diagnose` finds, for $\delta$ from 0.025 to 0.8. Which
#    $\delta$ is best?
# 4. *Compute.* Put the exact $f$ out of the set on purpose: ask for $f \le 0.7$ (section 4 has $0.9$). Where does the
#    solution in the set differ from the truth, only where the bound is active?
#
# ### Solutions
#
# **1.** Write $f_k(f_k - f_{k+1}) = \tfrac12\big(f_k^2 - f_{k+1}^2 + (f_k - f_{k+1})^2\big)$ and sum.
#
# **2.** $|c - \gamma T c|_E^2 = |c|_E^2 - 2\gamma\,c'\mathsf B c + \gamma^2|Tc|_E^2 \le (1 - 2\gamma\mu +
#  \gamma^2L^2)|c|_E^2$. The
# minimum is at $\gamma = \mu/L^2$, with $1 - \mu^2/L^2$.
#
# **3.**

# %%
print("delta       mu       L   contraction   bound of exercise 2")
for delta in (0.025, 0.05, 0.1, 0.2, 0.4, 0.8):
    form = fh.learning.assemble(problem, law, space, estimator="weak", delta=delta)
    found = diagnose(reduce_system(form).inequality)
    bound = np.sqrt(1 - (found.coercivity / found.norm) ** 2)
    print(f"{delta:5g} {found.coercivity:8.3f} {found.norm:7.2f} {found.contraction:13.3f} {bound:21.3f}")

# %% [markdown]
# **4.** It differs elsewhere, too: the set is one of functions of time *and* space, and what is cut off at the end is
# missing in the mean before.

# %%
capped = fh.fit(problem, learning, space, constraint=fh.Bounds(0, 0.7), delta=0.2, verify=False)
x = np.linspace(0.0, 1.0, 6)[:, None]
for t in (0.0, 0.5, 1.0):
    f = capped.gauge.u(t, x, problem.exact.value(t, x))
    print(f"t = {t:g}: exact  " + "".join(f"{value:7.3f}" for value in f))
    print("       capped " + "".join(f"{value:7.3f}" for value in capped.f(t, x)))
