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
# # From the Hamilton–Jacobi–Bellman equation to least squares
#
# A stochastic control problem with an entropy cost is a *linear* problem in disguise. This notebook takes the simplest
# one, linear drift and quadratic reward on the line, through the whole chain: the nonlinear equation for the value, the
# linear equation behind it, its solution on a mesh, and its solution from simulated trajectories alone, which comes
# down to one sparse linear system. The mathematics comes first, the code after it. The method for trajectories is that
# of W. Mou, [arXiv 2509.02528](https://arxiv.org/abs/2509.02528).

# %%
import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve

import fem_hjb as fh
from fem_hjb.problems.gauge import constant_gauge

# %% [markdown]
# ## 1. The problem
#
# An Ornstein–Uhlenbeck particle wanders around the origin,
#
# $$dX = -X\,dt + dB, \qquad X_0 \sim N(0, \tfrac12), \qquad 0 \le t \le T = 1 .$$
#
# We may push it with a force $\pi_t(X)$ of our choice. Being away from the origin costs, and so does pushing, in
# relative entropy with temperature $\alpha$:
#
# $$J(\pi) = E\Big[ y(X_T) + \int_0^T r(X_t)\,dt \Big] - \alpha\, \mathrm{KL}(P^\pi \,\|\, P),
# \qquad \mathrm{KL} = \tfrac12 E\int_0^T |\pi_t|^2 dt, \qquad r(x) = y(x) = -\tfrac12 x^2 .$$
#
# The value $v_t(x)$, the best that can still be achieved from $x$ at time $t$, solves
#
# $$\partial_t v - x\, v' + \tfrac12 v'' + r + \tfrac1{2\alpha} (v')^2 = 0, \qquad v_T = y,$$
#
# and the best push is $\pi^* = v'/\alpha$. For this problem $v = -\tfrac12 P(t) x^2 + c(t)$ with an ordinary (Riccati)
# differential equation for $P$, so that we can judge everything below against the truth.

# %%
problem = fh.zoo.get("lq", dim=1)
exact = problem.exact
alpha, T = problem.temperature, problem.horizon

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for t, style in zip((0.0, T / 2, T), fh.plot.STYLES, strict=False):
    line = {**style, "marker": None}
    fh.plot.solution(exact, t, problem=problem, ax=axes[0], label=f"$t={t:g}$", style=line)
    fh.plot.solution(exact, t, quantity="policy", problem=problem, ax=axes[1], label=f"$t={t:g}$", style=line)
axes[0].set_title("value")
axes[1].set_title("optimal policy")
axes[0].legend()
plt.show()

# %% [markdown]
# ## 2. The equation is linear
#
# Put $f = \exp(v/\alpha)$. Then $v' = \alpha f'/f$ and $v'' = \alpha f''/f - \alpha (f'/f)^2$: the square of the
# gradient cancels, and what is left is
#
# $$\partial_t f - x f' + \tfrac12 f'' + \tfrac{r}{\alpha} f = 0, \qquad f_T = e^{y/\alpha}, \qquad
# \pi^* = (\log f)' .$$
#
# The price is the exponential. Before transforming we subtract the largest reward (the *gauge*): this changes $v$ by a
# known function of time, leaves the policy alone, and keeps $f$ in $(0, 1]$. Here is that $f$, and a check that it
# does solve the linear equation, by central differences of the exact solution.

# %%
grid = np.linspace(-3.0, 3.0, 601)[:, None]
gauge = constant_gauge(problem, grid, [0.0, T])


def f_exact(t, x):
    return gauge.u(t, x, exact.value(t, x))


h, t0 = 1e-4, 0.3
x = np.linspace(-2.0, 2.0, 9)[:, None]
middle, left, right = f_exact(t0, x), f_exact(t0, x - h), f_exact(t0, x + h)
residual = (
    (f_exact(t0 + h, x) - f_exact(t0 - h, x)) / (2 * h)
    - x[:, 0] * (right - left) / (2 * h)
    + 0.5 * (right - 2 * middle + left) / h**2
    + gauge.rate(t0, x, problem.r(t0, x)) * middle
)
print("largest residual of the linear equation:", np.abs(residual).max())

figure, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
for t, style in zip((0.0, T / 2, T), fh.plot.STYLES, strict=False):
    ax.plot(grid[:, 0], f_exact(t, grid), label=f"$t={t:g}$", **{**style, "marker": None})
ax.set(xlabel="$x$", ylabel="$f_t(x)$", title=r"$f = \exp(v/\alpha)$, gauged")
ax.legend()
plt.show()

# %% [markdown]
# ## 3. The reference: on a mesh
#
# In one, two or three dimensions a linear parabolic equation is what finite elements are for. Asked for an element,
# `solve` covers a box that the process hardly ever leaves with it and marches backward from $T$ with adaptive implicit
# steps. (Asked for a tolerance, it does better: see the next notebook.)

# %%
reference = fh.solve_on_mesh(problem, element="P2")
print({key: reference.stats[key] for key in ("dofs", "steps", "min_f")})
print(fh.compare({"mesh": reference}, exact, problem=problem))

# %% [markdown]
# ## 4. The equation under the law of the process
#
# A mesh is out of the question in high dimension, but trajectories of the uncontrolled process can always be
# simulated. So let us write the equation in expectations along $X$. Multiply by any test function $g$ and integrate:
#
# $$B[f,g] := -\int_0^T E\Big[\big(\partial_t f + \mathcal G f + \tfrac{r}{\alpha} f\big)(X_t)\, g_t(X_t)\Big] dt
#   + E\big[f_T(X_T)\, g_T(X_T)\big] \;=\; E\big[e^{y(X_T)/\alpha} g_T(X_T)\big] =: \ell(g),$$
#
# with $\mathcal G f = -x f' + \tfrac12 f''$. Itô's formula for $f_t(X_t)^2$ shows why this determines $f$:
#
# $$B[f,f] = \tfrac12 E f_T^2 + \tfrac12 E f_0^2 + \tfrac12 \int_0^T E|f'|^2 dt
#   - \int_0^T E\big[\tfrac{r}{\alpha} f^2\big] dt \;\ge\; 0 \quad\text{for } r \le 0 .$$
#
# Now choose a finite-dimensional class: C¹ cubics in space times quadratics in time, $f = \sum_i c_i \varphi_i$.
# Testing with every $\varphi_j$ turns the equation into a linear system $\mathbf B c = \boldsymbol\ell$ whose entries
# are expectations, and expectations are what samples estimate.

# Samples teach nothing where there are none, so the class covers the interval that holds the process 99.8% of the time.

# %%
paths = fh.sample_paths(problem, n=5000, steps=64, rng=0)
box = fh.Box([-2.2], [2.2])
space = fh.Space(problem, cells=8, time_cells=4, element="hermite", box=box)
print(space)

figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
ax.plot(paths.t, paths.x[:40, :, 0].T, color="0.6", linewidth=0.6)
for node in space.spatial.axes[0].points:
    ax.axhline(node, color="#0072B2", linewidth=0.8)
ax.set(xlabel="$t$", ylabel="$X_t$", title="40 of 5000 trajectories, and the class's grid in space")
plt.show()

# %% [markdown]
# ### By hand
#
# Nothing is hidden in this: a sample is a quadrature point. `space.tabulate` gives the basis functions that live at
# each point, with their derivatives. Written as sparse matrices with a row per sample and a column per basis function,
# $\Phi$ for values and $R$ for minus the residual of the equation, the system is a weighted product of the two.

# %%
gauge = constant_gauge(problem, space.spatial.nodes, space.time.nodes)


def design(table, basis, space):
    """A sparse matrix with a row per sample and a column per basis function."""
    dofs = space.cell_dofs(basis.cells)
    rows = np.repeat(np.arange(len(dofs)), space.local_size)
    return sp.csr_matrix((table.ravel(), (rows, dofs.ravel())), shape=(len(dofs), space.n_dofs))


x, t = paths.x[:, :-1].reshape(-1, 1), np.tile(paths.t[:-1], paths.n)
inside = box.contains(x)
x, t = x[inside], t[inside]
basis = space.tabulate(t, x, order=2)
generator = -x * basis.gradients[..., 0] + 0.5 * basis.hessians[..., 0, 0]
rate = gauge.rate(t, x, problem.r(t, x))[:, None]
Phi = design(basis.values, basis, space)
R = design(-(basis.time_derivatives + generator + rate * basis.values), basis, space)

end = paths.x[:, -1][box.contains(paths.x[:, -1])]
basis = space.tabulate(T, end, order=0)
Phi_T = design(basis.values, basis, space)

B = (T / paths.steps) * Phi.T @ R / paths.n + Phi_T.T @ Phi_T / paths.n
load = Phi_T.T @ gauge.terminal_u(problem, end) / paths.n
by_hand = spsolve(B.tocsc(), load)

# %% [markdown]
# One sparse linear solve, and it gives what `fit` gives. (`fit` also asks for a little smoothness, here with the weight
# of a hundredth of a trajectory in every cell: next to nothing where samples are, and a sensible continuation where
# they are not. For the comparison it is switched off.)

# %%
plain = fh.fit(problem, paths, space, smoothing=1e-9, outside="drop")
learned = fh.fit(problem, paths, space, smoothing=0.01, outside="drop")
x = np.linspace(-2.0, 2.0, 9)[:, None]
difference = space.evaluate(by_hand, 0.0, x) - plain.f(0.0, x)
print("largest difference of the two f at t = 0:", np.abs(difference).max())
print({key: learned.stats[key] for key in ("samples", "dropped", "dofs")})

# %% [markdown]
# ## 5. The learned solution, and its limit
#
# Exact expectations in place of averages over samples, in the same class and through the same code, give the *Galerkin*
# solution: what infinitely many trajectories would give. It separates the two sources of error: galerkin against exact
# is what the class costs, learned against galerkin what the finite number of samples costs. Here it is the class.

# %%
galerkin = fh.fit(problem, fh.law_measure(problem, space), space)
table = fh.compare({"learned": learned, "galerkin": galerkin, "mesh": reference}, exact, problem=problem)
print(table)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
fh.plot.compare(table, column="value", ax=axes[0])
fh.plot.compare(table, column="policy", ax=axes[1])
axes[1].set_ylim(bottom=1e-6)  # the mesh's policy at T is exact: v is quadratic there
plt.show()

# %%
figure = fh.plot.report(problem, learned, reference, galerkin=galerkin, figure=plt.figure(figsize=(9, 6.5)))
plt.show()

# %% [markdown]
# ## 6. Is it harder than regression?
#
# There is an obvious rival on the same data. By Feynman–Kac,
# $f_t(x) = E[\exp((y(X_T) + \int_t^T r\,ds)/\alpha) \mid X_t = x]$: compute this label along each trajectory and
# regress it on $(t, X_t)$, in the same class. The labels are noisy even if $f$ lies in the class; the residual of the
# equation is zero at every sample then. So the error of regression is that of its labels, while the error of the
# equation shrinks with the approximation error of the class.

# %%
rates = gauge.rate(paths.t, paths.x, problem.r(paths.t, paths.x))
steps = 0.5 * (rates[:, 1:] + rates[:, :-1]) * np.diff(paths.t)
to_go = np.concatenate([np.cumsum(steps[:, ::-1], axis=1)[:, ::-1], np.zeros((paths.n, 1))], axis=1)
labels = gauge.terminal_u(problem, paths.x[:, -1])[:, None] * np.exp(to_go)


def regression(n, space):
    """Least squares of the first n paths' labels on a class: value and gradient as plain functions."""
    x, t, y = paths.x[:n].reshape(-1, 1), np.tile(paths.t, n), labels[:n].ravel()
    inside = box.contains(x)
    basis = space.tabulate(t[inside], x[inside], order=0)
    Phi = design(basis.values, basis, space)
    c = np.linalg.lstsq((Phi.T @ Phi).toarray(), Phi.T @ y[inside], rcond=1e-12)[0]

    def f(t, x):
        values = space.evaluate(c, t, x, outside="nan")
        return np.where(values > 0, values, np.nan)

    def value(t, x):
        return gauge.value(t, x, f(t, x))

    def gradient(t, x):
        return alpha * space.evaluate(c, t, x, "gradient", outside="nan") / f(t, x)[:, None]

    return value, gradient


sizes = [300, 1000, 5000]
classes = {f"{k} x {m}": fh.Space(problem, cells=m, time_cells=k, box=box) for k, m in ((2, 4), (4, 8), (8, 16))}
candidates = {}
for name, each in classes.items():
    for n in sizes:
        fewer = fh.paths.Paths(t=paths.t, x=paths.x[:n])
        how = {"smoothing": 0.01, "outside": "drop", "verify": False}  # `compare` judges it
        candidates["equation", name, n] = fh.fit(problem, fewer, each, **how)
        candidates["regression", name, n] = regression(n, each)
errors = fh.compare({str(key): of for key, of in candidates.items()}, exact, problem=problem)

figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", sharey=True)
for ax, name in zip(axes, classes, strict=True):
    for method, style in zip(("equation", "regression"), fh.plot.STYLES, strict=False):
        ax.loglog(sizes, [errors.overall(str((method, name, n))).value for n in sizes], label=method, **style)
    ax.set(xlabel="trajectories", title=f"{name} cells", xticks=sizes, xticklabels=sizes)
    ax.minorticks_off()
axes[0].set_ylabel("relative error of $v$")
axes[0].legend()
plt.show()

# %% [markdown]
# Any two functions can be judged like this. Here the regression was given to `compare` as a pair of plain callables
# (value, gradient); a neural network is wrapped in the same way.

# %% [markdown]
# ## Exercises
#
# 1. *On paper.* Derive the energy identity of section 4 from Itô's formula for $f_t(X_t)^2$. Where is $r \le 0$ used,
#    and what if $r$ is positive somewhere?
# 2. *Compute.* Double the temperature, halve it: how does $f$ change, how do value and policy? What does $\alpha \to
#    \infty$ lead to?
# 3. *Compute.* The learned solution was limited by its class. Halve the cells in space, in time, in both: which of the
#    two matters?
# 4. *Compute.* Check Feynman–Kac at one point: simulate 20 000 paths from $x = 1$ at $t = 0$ and compare the mean label
#    with $f_0(1)$. How many paths would an error of $10^{-4}$ take?
#
# ### Solutions
#
# **1.** $d(f^2) = 2f\,df + f'^2 dt$ with $df = (\partial_t f + \mathcal G f)\,dt + f' dB$. Take expectations,
#  integrate,
# and insert $\int E[(\partial_t f + \mathcal G f) f] = E[f_T^2] - B[f,f] - \int E[\tfrac r\alpha f^2]$. The sign of $r$
# makes the last term of the identity non-negative. It can always be had by the gauge, if $r$ is bounded from above;
# with $r$ unbounded $f$ may be infinite in finite time.
#
# **2.**

# %%
for factor in (0.5, 1.0, 2.0, 100.0):
    warmer = fh.zoo.get("lq", dim=1, temperature=factor * alpha).exact
    v, pi = float(warmer.value(0.0, [[1.0]])[0]), float(warmer.policy(0.0, [[1.0]])[0, 0])
    f = np.exp(v / (factor * alpha))
    print(f"alpha = {factor * alpha:5g}: v_0(1) = {v:.4f}, policy {pi:.4f}, exp(v_0(1) / alpha) = {f:.4f}")
fading = np.exp(-2.0)
print(f"doing nothing earns {-0.5 * (fading + (1 - fading) / 2) - 0.5 * ((1 - fading) / 4 + 0.5):.4f}")

# %% [markdown]
# Steering gets dearer, the policy goes to 0 like $1/\alpha$, and the value to what is earned without steering: from 1,
# $E X_t^2 = e^{-2t} + \tfrac12(1 - e^{-2t})$.
#
# **3.**

# %%
halved = {}
for m, k in ((8, 4), (4, 4), (8, 2), (4, 2)):
    smaller = fh.Space(problem, cells=m, time_cells=k, element="hermite", box=box)
    halved[f"{m} cells, {k} in time"] = fh.fit(problem, paths, smaller, smoothing=0.01, outside="drop", verify=False)
print(fh.compare(halved, exact, problem=problem))

# %% [markdown]
# Time: with half of its cells the error is five times as large, with half of those in space not even twice.
#
# **4.**

# %%
from_one = fh.sample_paths(fh.zoo.get("lq", dim=1, mean=1.0, cov=1e-12), n=20_000, steps=128, rng=1)
rate = gauge.rate(from_one.t, from_one.x, problem.r(from_one.t, from_one.x))
area = (0.5 * (rate[:, 1:] + rate[:, :-1]) * np.diff(from_one.t)).sum(axis=1)
label = gauge.terminal_u(problem, from_one.x[:, -1]) * np.exp(area)
truth = float(gauge.u(0.0, np.array([[1.0]]), exact.value(0.0, [[1.0]]))[0])
print(f"mean label {label.mean():.4f} +- {1.96 * label.std() / np.sqrt(label.size):.4f}, f_0(1) = {truth:.4f}")
print(f"for a standard error of 1e-4: {(label.std() / 1e-4) ** 2:.0e} paths")
