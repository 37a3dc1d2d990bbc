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
# # Fine-tuning a diffusion model
#
# The whole way, once, on a problem small enough for everything to be checked: from points to a score, from the score to
# a generating process, from a reward to a control problem; then the optimal policy by solving the equation, the same
# policy learned from trajectories alone, and a certificate that needs neither. In the last part the score itself is
# learned. Every number is computed here.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import brentq, minimize

import fem_hjb as fh

# %% [markdown]
# ## 1. From points to a score
#
# Smooth the points $m_1, \dots, m_k$ with a Gaussian kernel of bandwidth $h$: the data law is
# $q_0 = \frac1k \sum_j N(m_j, h^2 I)$. The noising $dY = -\tfrac12\beta_s Y\,ds + \sqrt{\beta_s}\,dB$ shrinks by
# $\kappa_s = e^{-\frac12\int_0^s\beta}$ and adds noise of variance $1 - \kappa_s^2$, so that the law of $Y_s$ is a
# kernel density again,
#
# $$q_s = \frac1k\sum_j N\big(\kappa_s m_j,\; S_s^2 I\big), \qquad S_s^2 = \kappa_s^2 h^2 + 1 - \kappa_s^2, \qquad
#   \nabla\log q_s(x) = \frac1{S_s^2}\Big(\sum_j w_j(x)\,\kappa_s m_j - x\Big),$$
#
# $w_j(x) \propto e^{-|x - \kappa_s m_j|^2/2S_s^2}$: the score points to a weighted mean of the (shrunken) points. The
# model that generates is the time reversal, in $t = T - s$,
#
# $$dX = \beta\big[\tfrac12 X + \nabla\log q_{T-t}(X)\big]\,dt + \sqrt\beta\,dB, \qquad X_0 \sim q_T, \qquad X_T \sim
# q_0 .$$

# %%
angles = np.linspace(0.0, 2 * np.pi, 24, endpoint=False)
points = np.stack([1.5 * np.cos(angles), 1.2 * np.sin(2 * angles)], axis=1)  # yours: (k, d)
process = fh.problems.from_points(points, 0.4, horizon=1.0, beta=(0.1, 12.0))  # bandwidth, noise schedule
kappa, _ = process.noising(0.0)
print(f"after the noising {float(kappa):.3f} of a point is left")

side = np.linspace(-3.2, 3.2, 81)
plane = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1)
arrows = np.stack(np.meshgrid(side[4::8], side[4::8], indexing="ij"), axis=-1)
figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained", sharey=True)
for ax, t in zip(axes, (0.0, 0.7, 0.9, 1.0), strict=True):
    ax.contourf(side, side, np.exp(process.marginal(t).logpdf(plane)).T, 12, cmap="Blues")
    score = process.score(t, arrows)
    ax.quiver(*np.moveaxis(arrows, -1, 0), *np.moveaxis(score, -1, 0), color="0.3", width=0.005)
    ax.set(aspect="equal", xlabel="$x_1$", title=f"$t={t:g}$")
axes[3].plot(*points.T, ".", color="#D55E00", markersize=4)
axes[0].set_ylabel("$x_2$")
figure.suptitle("law of $X_t$ and its score")
plt.show()

# %% [markdown]
# ## 2. From a reward to a control problem
#
# Somebody prefers samples in the first and third quadrant: $y(x) = \tanh(x_1 x_2)$. Fine-tuning changes the drift of
# the process by a policy $\pi$, to maximise
#
# $$E^\pi[y(X_T)] - \alpha\,\mathrm{KL}(P^\pi\|P), \qquad \text{solved by} \quad \pi^* = \Lambda\nabla\log f, \quad
#   f_t(x) = E\big[e^{y(X_T)/\alpha}\,\big|\,X_t = x\big], \quad \Lambda = \beta I .$$
#
# Where is it to end? If $X_0$ tells nothing of $X_T$ (here a twentieth of it is left), in the *tilted law*
# $q_0\,e^{y/\alpha}/Z$, which `tilted_density` has by quadrature.

# %%
ALPHA = 0.5


def reward(x):
    return np.tanh(x[..., 0] * x[..., 1])


problem = process.tilted(reward, temperature=ALPHA)
goal = fh.problems.tilted_density(process.data, reward, temperature=ALPHA)

# %% [markdown]
# ## 3. The truth
#
# In two dimensions the equation is solved to a tolerance. The solution says how wrong it is, and there are checks that
# it does not know of: $E f_0(X_0) = Z$, and where its paths end.

# %%
solution = fh.solve(problem, rtol=1e-2)
print(solution)

x0, w0 = problem.initial_law.quadrature(24)
inside = solution.space.box.contains(x0)
f0 = np.exp(solution.value(0.0, x0[inside]) / ALPHA)
Z = np.exp(goal.log_normaliser)
print(f"\nE f_0(X_0) = {w0[inside] @ f0 / w0[inside].sum():.4f}, Z = {Z:.4f} by quadrature of the data law")

lower, upper = solution.space.box.bounds


def optimal(t, x):
    return solution.policy(t, np.clip(x, lower, upper))


before = fh.sample_paths(problem, n=1000, steps=128, rng=0)
after = fh.sample_paths(problem, n=1000, steps=128, rng=0, policy=optimal)
for name, ends in (("without control", before.x[:, -1]), ("with the optimal policy", after.x[:, -1])):
    y = reward(ends)
    print(f"mean reward {name:24s} {y.mean():.3f} +- {1.96 * y.std() / np.sqrt(y.size):.3f}")
print(f"mean reward {'of the tilted law':24s} {goal.weights @ reward(goal.points):.3f}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
axes[0].contourf(side, side, np.exp(process.data.logpdf(plane)).T, 12, cmap="Blues")
axes[0].contour(side, side, reward(plane).T, [-0.8, 0.0, 0.8], colors="0.4", linewidths=0.8)
axes[0].plot(*before.x[:400, -1].T, ".", color="#D55E00", markersize=2)
axes[0].set_title("data, levels of the reward, 400 ends")
fh.plot.policy_field(solution, 0.8, ax=axes[1])
axes[1].set_title("the policy at $t = 0.8$")
axes[2].contourf(side, side, goal.density(plane).T, 12, cmap="Blues")
axes[2].plot(*after.x[:400, -1].T, ".", color="#D55E00", markersize=2)
axes[2].set_title("tilted law, 400 steered ends")
for ax in axes:
    ax.set(aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
plt.show()

# %% [markdown]
# ## 4. Learned from trajectories
#
# In many dimensions there is no grid, and what one has are paths of the process. `fit` learns $f$ from them, by the
# variational equation of notebook 3, in a class of splines; `compare` says how far it is from the truth, up to
# $t = 0.9$. The rival on the same paths is regression of $e^{y(X_T)/\alpha}$ on $(t, X_t)$ (notebook 4).

# %%
box = fh.paths.truncation_box(problem, quantile=1e-3, margin=0.0).box
classes = {cells: fh.Space(problem, cells=cells[0], time_cells=cells[1], box=box) for cells in ((8, 4), (10, 5))}
paths = fh.sample_paths(problem, n=300, steps=256, rng=1)
how = {"outside": "drop", "terminal": "interpolated", "verify": False}
fits = {f"{m} x {m} x {k} cells": fh.fit(problem, paths, space, **how) for (m, k), space in classes.items()}
fits["regression, 8 x 8 x 4"] = fh.fit(problem, paths, classes[8, 4], estimator="regression", **how)
print(fh.compare(fits, solution, times=np.linspace(0.0, 0.9, 7)))
for name, of in fits.items():
    print(f"{name}: {of.status}")

# %% [markdown]
# The finer class has the smaller error, although the sampled form has lost its coercivity, of which the status warns: a
# direct solution needs none, only that the matrix is far from singular (notebook 3, section 5). Regression has the
# noise of the labels on top.
#
# ## 5. Certified
#
# The comparison needed the truth. A certificate does not (notebook 6): paths that follow the learned policy bound what
# could be earned and what this policy loses.

# %%
learned = fits["8 x 8 x 4 cells"]
policies = {"learned": learned, "regression": fits["regression, 8 x 8 x 4"], "nothing": lambda t, x: np.zeros_like(x)}
for name, policy in policies.items():
    try:
        print(f"{name}\n{fh.certify(problem, policy, n=2048, steps=192, rng=2)}\n")
    except fh.FemHjbError as refusal:
        print(f"{name}\n{type(refusal).__name__}: {refusal}\n")
mean_v = w0[inside] @ solution.value(0.0, x0[inside]) / w0[inside].sum()
print(f"E v_0 by solving the equation: {mean_v:.4f}")

# %% [markdown]
# ## 6. A score that is learned, too
#
# In practice the score is not known but trained, by *denoising score matching*: with $X = \kappa m_J + S Z$ for a
# random point $m_J$ and standard normal $Z$,
#
# $$\text{minimise}\quad E\big|S\,s(X) + Z\big|^2 ,$$
#
# whose minimum is the score, as $-Z/S$ is the score of $X$ given $J$ and means given $X$ are what least squares finds.
# So $S\,s(x) + x$ is fitted to $X - Z$, as a function of $x$ and $\log S$, in two ways with about 400 numbers each:
#
# * random Fourier features, $\sum_k c_k \cos(\omega_k\cdot(x, \log S) + \phi_k)$, 200 of them, of which only the $c_k$
#   are trained: one linear system, and the only minimum there is;
# * a network with one hidden layer, $\sum_k c_k \tanh(a_k\cdot(x, \log S) + b_k)$, of 64 units, all of whose numbers
#   are trained, by L-BFGS from a random start. That is not convex: where it ends depends on the start, and that it is
#   the least possible nobody says.
#
# The network is as small as the problem, and written out in NumPy; nothing below knows which of the two it is given.
# (`examples/train_network.py` trains a larger one, with PyTorch, for a policy; [networks](../docs/torch.md) says how
# one comes in as a score.)

# %%
draws = np.random.default_rng(0)
frequencies, phases = draws.standard_normal((3, 200)) / [[0.9], [0.9], [0.6]], draws.uniform(0.0, 2 * np.pi, 200)
UNITS = 64


def spread(t):
    """kappa and S at times t."""
    kappa, noise = process.noising(t)
    return kappa, np.sqrt(kappa**2 * 0.4**2 + noise)


def seen(t, x):
    """(x, log S)."""
    log_S = np.broadcast_to(np.log(spread(t)[1]), x.shape[:-1])
    return np.concatenate([x, log_S[..., None]], axis=-1)


def noised(count):
    """So many (x, log S), and X - Z."""
    rng = np.random.default_rng(count)
    t, Z = 1.0 - rng.uniform(0.0, 1.0, count) ** 2, rng.standard_normal((count, 2))  # more times near T
    kappa, S = (part[:, None] for part in spread(t))
    x = kappa * points[rng.integers(len(points), size=count)] + S * Z
    return seen(t, x), x - Z


def features(inputs):
    return np.cos(inputs @ frequencies + phases)


def trained_features(inputs, target):
    Phi = features(inputs)
    c = np.linalg.solve(Phi.T @ Phi + 1e-3 * np.eye(len(phases)), Phi.T @ target)
    return lambda inputs: features(inputs) @ c


def layers(theta):
    """a, b and c."""
    return theta[: 3 * UNITS].reshape(3, UNITS), theta[3 * UNITS : 4 * UNITS], theta[4 * UNITS :].reshape(UNITS, 2)


def loss(theta, inputs, target, decay=1e-6):
    """Half the mean square, with a little weight decay, and its gradient by the chain rule."""
    a, b, c = layers(theta)
    hidden = np.tanh(inputs @ a + b)
    off = hidden @ c - target
    back = (off @ c.T) * (1.0 - hidden**2)
    gradient = np.concatenate([(inputs.T @ back).ravel(), back.sum(axis=0), (hidden.T @ off).ravel()])
    value = 0.5 * np.sum(off**2) / len(target) + 0.5 * decay * theta @ theta
    return value, gradient / len(target) + decay * theta


def trained_network(inputs, target, seed):
    rng = np.random.default_rng(seed)
    start = np.concatenate([1.2 * rng.standard_normal(4 * UNITS), 0.1 * rng.standard_normal(2 * UNITS)])
    found = minimize(loss, start, (inputs, target), "L-BFGS-B", jac=True, options={"maxiter": 400, "maxcor": 20})
    a, b, c = layers(found.x)
    return lambda inputs: np.tanh(inputs @ a + b) @ c


def as_score(fitted):
    return lambda t, x: (fitted(seen(t, x)) - x) / spread(t)[1][..., None]


few, many = noised(1000), noised(30_000)
fitted = {
    "features, 30 000 points": (trained_features(*many), many),
    "network, 30 000 points": (trained_network(*many, seed=1), many),
    "the same, another start": (trained_network(*many, seed=2), many),
    "network, 1000 points": (trained_network(*few, seed=1), few),
}
scores = {name: as_score(of) for name, (of, _) in fitted.items()}
times = (0.0, 0.5, 0.8, 0.95)
fresh = noised(100_000)
print(f"{'':26s}E|S s + Z|^2: trained  on new points    relative error of the score at t = {times}")
for name, (of, (inputs, target)) in fitted.items():
    off, score = [], scores[name]
    for t in times:
        x = before.x[:, round(128 * t)]
        exact = process.score(t, x)
        off.append(np.sqrt(np.mean((score(t, x) - exact) ** 2) / np.mean(exact**2)))
    own, new = (np.mean(np.sum((of(at) - to) ** 2, axis=1)) for at, to in ((inputs, target), fresh))
    print(f"{name:24s} {own:23.4f} {new:14.4f}    " + ", ".join(f"{error:.2f}" for error in off))

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", sharey=True)
exact, likely = process.score(0.95, plane), np.exp(process.marginal(0.95).logpdf(plane)).T
for ax, (name, score) in zip(axes, [*list(scores.items())[:2], list(scores.items())[3]], strict=True):
    missed = np.linalg.norm(score(0.95, plane) - exact, axis=-1).T
    shown = ax.contourf(side, side, np.minimum(missed, 2.0), np.linspace(0.0, 2.0, 11), cmap="Oranges")
    ax.contour(side, side, likely, [0.01, 0.05], colors="0.3", linewidths=0.8)
    ax.set(aspect="equal", xlabel="$x_1$", title=name)
axes[0].set_ylabel("$x_2$")
figure.colorbar(shown, ax=axes, label="error of the score, 2 and more")
figure.suptitle("where the trained scores are wrong at $t = 0.95$, and levels 0.01 and 0.05 of the law")
plt.show()

# %% [markdown]
# From 30 000 points the network is the better of the two, above all near $T$, where the score is steepest. Its two
# starts end in two different minima, here equally good ones; of 1000 points it learns much by heart, which new points
# show.
#
# With the trained score in the drift this is another process, with another value. Everything works as before, and what
# is certified is certified *of that process*: fine-tuning can be exact for the model that one has, and the model wrong.
# What is learned on the model is followed on the model, and then on the true process; in the first row the model is
# the true process. (Rewards lie between $-1$ and 1, so that $f \ge e^{-2/\alpha}$ in the gauge; where a learned $f$
# falls below, that is put in its place.)

# %%
print(f"{'':45s}J of the policy                     v* of that process")
for name, score in {"exact score": process.score, **scores}.items():
    if name == "the same, another start":
        continue
    model = fh.ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=ALPHA,
        drift=lambda t, x, score=score: process.beta(t)[..., None] * (x / 2 + score(t, x)),
        diffusion=process.diffusion_matrix,
        terminal_reward=reward,
        initial_law=problem.initial_law,
        name="trained",
    )
    sampled, space = fh.sample_paths(model, n=300, steps=192, rng=1), fh.Space(model, cells=8, time_cells=4, box=box)
    trained = fh.fit(model, sampled, space, **how).with_floor(np.exp(-2 / ALPHA))
    for where, followed in (("on the model", model), ("on the true process", problem)):
        if where == "on the model" and name == "exact score":
            continue
        found = fh.certify(followed, trained, n=1024, steps=64, rng=3, starts=32)
        print(f"{name:23s} {where:20s} {found.diffusion.reward!s:35s} {found.diffusion.optimal}")

# %% [markdown]
# On its own process the policy of the last network promises more than it earns on the true one: the two intervals do
# not meet. Of 30 000 points either score is good enough: what is lost by it is less than the certificates tell apart.
#
# ## What to remember
#
# * Points and a bandwidth are a diffusion model whose score is exact: a test bed with a truth, for any reward.
# * `solve` has the truth, `fit` learns it from paths, `certify` judges either, without the other.
# * The equation beats regression on the same paths; a class that holds $f$ is what it needs.
# * A certificate is about the process it is given. What is wrong with the score it cannot see.
#
# ## Exercises
#
# 1. *On paper.* Show that the controlled process ends in $p^*_T(x) = p_T(x)\,e^{y(x)/\alpha}\,E[1/f_0(X_0) \mid X_T =
#    x]$, and that this is the tilted law if $X_0$ and $X_T$ are independent.
# 2. *Compute.* What does a mean reward cost? For temperatures from 2 to 0.1 print the mean reward of the tilted law and
#    its relative entropy to the data law, $\mathrm{KL} = E[y]/\alpha - \log Z$.
# 3. *Compute.* The rival without any training is *best of n*: draw $n$ samples and keep the one with the highest
#    reward. Its relative entropy is $\log n - (n-1)/n$ at most. Compare its mean reward for $n = 4$ with that of the
#    tilted law of the same relative entropy.
# 4. *Compute.* How much of the policy is needed? Certify $\theta\pi^*$ for $\theta = 0, 0.25, \dots, 1.25$ and compare
#    with the parabola $J(\pi^*) - c\,(1 - \theta)^2$.
#
# ### Solutions
#
# **1.** $dP^*/dP = e^{y(X_T)/\alpha}/f_0(X_0)$: it has the expectation 1 given $X_0$, so that the start keeps its law,
#  and
# by Girsanov's theorem its drift is $\Lambda\nabla\log f$. Integrate a function of $X_T$: $E^*[g(X_T)] = E\big[g(X_T)\,
# e^{y(X_T)/\alpha}\,E[1/f_0(X_0)\mid X_T]\big]$. If $X_0$ and $X_T$ are independent, $f_0 = Z$.
#
# **2.**


# %%
def spent(alpha):
    """Relative entropy and mean reward of the tilted law."""
    law = fh.problems.tilted_density(process.data, reward, temperature=alpha)
    mean = law.weights @ reward(law.points)
    return mean / alpha - law.log_normaliser, mean


print("alpha   mean reward   relative entropy")
for alpha in (2.0, 1.0, 0.5, 0.25, 0.1):
    print("{0:5g} {2:13.3f} {1:18.3f}".format(alpha, *spent(alpha)))

# %% [markdown]
# **3.** Nothing beats the tilted law at its relative entropy: it is what maximises $E[y] - \alpha\,\mathrm{KL}$.

# %%
drawn = reward(process.data.sample(40_000, np.random.default_rng(0))).reshape(-1, 4)
best, entropy = drawn.max(axis=1), np.log(4) - 3 / 4
alpha = brentq(lambda alpha: spent(alpha)[0] - entropy, 0.2, 2.0, xtol=1e-6)
print(f"best of 4: mean reward {best.mean():.3f} +- {1.96 * best.std() / np.sqrt(best.size):.3f}")
print(f"tilted law of the relative entropy {entropy:.3f} (alpha = {alpha:.3f}): {spent(alpha)[1]:.3f}")

# %% [markdown]
# **4.** Along a ray the cost is quadratic in $\theta$, the reward is not, so it is a parabola near the top only.

# %%
thetas = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.25])
earned = [
    fh.certify(
        problem, lambda t, x, theta=theta: theta * optimal(t, x), n=1024, steps=96, rng=5, starts=32
    ).gap.estimate
    for theta in thetas
]
c = (earned[3] + earned[5]) / 2 / 0.25**2
print("theta   lost   parabola")
for theta, lost in zip(thetas, earned, strict=True):
    print(f"{theta:5g} {lost:6.3f} {c * (1 - theta) ** 2:10.3f}")
