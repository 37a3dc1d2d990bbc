# ruff: noqa: E402
r"""Train a network by adjoint matching, in ten dimensions, and judge it: exact error, certificate, picture.

    python examples/train_network.py [--seed 0] [--out results/network]     minutes on one core
    python examples/train_network.py --quick                                half a minute, hardly trained

The problem is `soc-double-well`: dX = (b + u) dt + dB from X_0 = 0, maximise E[ y(X_T) - int |u|^2/2 dt ]. PyTorch is
needed (pip install "fem_hjb[torch]").

**The method.** Along paths of the control that the network has at the moment, the lean adjoint

    -da = (grad b)' a dt,    a_T = grad y(X_T)

is followed back from T, and the network is fitted to it in mean square; the control that is its own fit is the optimal
one. This is adjoint matching (Domingo-Enrich, Drozdzal, Karrer and Chen, arXiv 2409.08861); the problem, and how errors
are measured, are those of SOC matching (Domingo-Enrich et al., arXiv 2312.02027). Three things are added.

- a is noisy here, as paths begin on top of a barrier, where grad b = 20. By the HJB equation and Ito's formula the
  optimal control satisfies -du = (grad b)' u dt - (grad u)' dB along its own paths. So the adjoint gets this last term,
  too, with the network in the place of u. Whatever the network is, that has the mean 0 given X_t: the fit is the same,
  and the noise goes as the network becomes better.
- Times count by the inverse of the noise in them, which does not move the minimum; the few targets that are beyond
  five times that noise are pulled in.
- The network is N(t, x) + G(t, x) grad y(x), entry by entry, with N and G from one body: at T the control is grad y.

There is no likelihood ratio in it, so that paths may take Heun's steps, of weak order 2, which get shorter towards T.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported: the same bits on machines of any size

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import fem_hjb as fh
from fem_hjb.interop.torch import as_field, as_reward
from fem_hjb.support.files import atomic_file

DIM, T = 10, 1.0
KAPPA = torch.tensor([5.0] * 3 + [1.0] * 7)
NU = torch.tensor([3.0] * 3 + [1.0] * 7)
OUTLIER = 5.0  # roots of the mean square of the noise at a time, beyond which targets are pulled in
LEAST = 0.1  # of the median of the squares of that: a smaller one, as that at T, counts as this
DEEP, SHALLOW = 0, DIM - 1  # the axes of the picture


@dataclass(frozen=True, kw_only=True)
class Plan:
    """rounds : of new paths, `paths` each in `steps` steps; those of the last `kept` rounds are learned from.

    updates : steps of Adam in a round, each with `points` of all their points.  rate : the largest, of learning.
    looks : how often the error is measured.  simulated : paths of the objectives.
    certified : paths and steps of the certificate.
    rtol, law_rtol : of the reference, and of the law under which the error is measured in the end.
    """

    rounds: int = 600
    paths: int = 256
    steps: int = 96
    kept: int = 60
    updates: int = 40
    points: int = 1024
    rate: float = 3e-3
    looks: int = 15
    simulated: int = 4096
    certified: tuple[int, int] = (4096, 4096)
    rtol: float = 1e-6
    law_rtol: float = 1e-4


QUICK = Plan(
    rounds=8, paths=64, steps=32, updates=10, looks=2, simulated=64, certified=(256, 256), rtol=1e-4, law_rtol=1e-2
)


# The problem, as functions of tensors


def drift(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return -4 * KAPPA * x * (x**2 - 1)


def reward(x: torch.Tensor) -> torch.Tensor:
    return -(NU * (x**2 - 1) ** 2).sum(1)


def slope(x: torch.Tensor) -> torch.Tensor:
    """grad y."""
    return -4 * NU * x * (x**2 - 1)


def checked_problem() -> fh.ControlProblem:
    """The problem of the zoo, whose truth is known, if it is the one that the functions above say."""
    problem = fh.zoo.get("soc-double-well", dim=DIM)
    x = np.random.default_rng(0).standard_normal((64, DIM))
    if not np.allclose(as_field(drift)(0.5, x), problem.b(0.5, x), rtol=1e-5):
        raise SystemExit("drift() is not that of soc-double-well")
    if not np.allclose(as_reward(reward)(x), problem.y(x), rtol=1e-5):
        raise SystemExit("reward() is not that of soc-double-well")
    return problem


# The network and its training


class Control(torch.nn.Module):
    """u = N + G grad y; the body sees x, and the time to go on scales from 1/64 of the horizon to all of it."""

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.register_buffer("rates", torch.tensor([1.0, 4.0, 16.0, 64.0]) / T)
        sizes = [DIM + 1 + len(self.rates)] + [width] * depth
        layers = [part for a, b in pairwise(sizes) for part in (torch.nn.Linear(a, b), torch.nn.SiLU())]
        self.body = torch.nn.Sequential(*layers, torch.nn.Linear(width, 2 * DIM))
        with torch.no_grad():  # begin with next to no control
            self.body[-1].weight.mul_(0.1)
            self.body[-1].bias.zero_()

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        to_go = (T - t)[:, None]
        own, along = self.body(torch.cat([to_go, torch.exp(-to_go * self.rates), x], dim=1)).chunk(2, dim=1)
        return own + along * slope(x)


def simulated(net: Control, times: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Paths x (K+1, n, d) of the network's control, and their noise (K, n, d), by Heun's scheme."""

    def pushed(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return drift(t, x) + net(t.expand(n), x)

    x = [torch.zeros(n, DIM)]
    steps = times.diff()
    noise = steps.sqrt()[:, None, None] * torch.randn(len(steps), n, DIM)
    with torch.no_grad():
        for t, h, kick in zip(times[:-1], steps, noise, strict=True):
            here = pushed(t, x[-1])
            there = pushed(t + h, x[-1] + h * here + kick)
            x.append(x[-1] + h / 2 * (here + there) + kick)
    return torch.stack(x), noise


def adjoints(net: Control, times: torch.Tensor, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the control is fitted to, (K+1, n, d): -da = (grad b)' a dt - (grad u)' dB, back from a_T = grad y."""
    K, n, d = noise.shape
    start = x[:-1].reshape(-1, d).requires_grad_()
    control = net(times[:-1].repeat_interleave(n), start)
    (turned,) = torch.autograd.grad(control, start, noise.reshape(-1, d))  # (grad u)' dB at the start of each step
    turned = turned.reshape(K, n, d)

    def pulled(t: torch.Tensor, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """(grad b)' a."""
        at = x.detach().requires_grad_()
        return torch.autograd.grad(drift(t, at), at, a)[0]

    a = [slope(x[-1])]
    for k in range(K - 1, -1, -1):
        h = times[k + 1] - times[k]
        last = pulled(times[k + 1], x[k + 1], a[-1])
        a.append(a[-1] + h / 2 * (last + pulled(times[k], x[k], a[-1] + h * last)) - turned[k])
    return torch.stack(a[::-1])


def graded_times(steps: int) -> torch.Tensor:
    """From 0 to T, steps shorter towards T, where the control has a layer; the first are 1.5 times the mean."""
    return torch.tensor(T * (1.0 - np.linspace(1.0, 0.0, steps + 1) ** 1.5), dtype=torch.float32)


def trained(net: Control, plan: Plan, look: Callable[[int, float], None]) -> None:
    """Fit the network to the adjoints along its own paths; look(round, loss) is called now and then."""
    times = graded_times(plan.steps)
    lengths = torch.zeros(len(times))
    lengths[:-1] += times.diff() / 2
    lengths[1:] += times.diff() / 2
    t = times.repeat_interleave(plan.paths)
    points, targets = torch.empty(2, plan.kept, len(t), DIM)
    noise_level = None
    optimiser = torch.optim.Adam(net.parameters(), lr=plan.rate)
    total = plan.rounds * plan.updates
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.rate, total_steps=total, pct_start=0.1)
    for k in range(plan.rounds):
        x, noise = simulated(net, times, plan.paths)
        a = adjoints(net, times, x, noise)
        with torch.no_grad():
            u = net(t, x.reshape(-1, DIM)).reshape(x.shape)
        apart = (a - u).norm(dim=2)
        most = apart.square().mean(1).sqrt() if noise_level is None else OUTLIER * noise_level
        a = u + (a - u) * (most[:, None] / apart).clamp(max=1.0)[..., None]
        squares = apart.minimum(most[:, None]).square().mean(1)
        noise_level = squares.sqrt() if noise_level is None else (0.8 * noise_level**2 + 0.2 * squares).sqrt()
        weights = lengths / (noise_level**2).clamp(min=LEAST * float(noise_level.median()) ** 2)
        weights = (weights / weights.mean()).repeat_interleave(plan.paths)
        points[k % plan.kept], targets[k % plan.kept] = x.reshape(-1, DIM), a.reshape(-1, DIM)
        for _ in range(plan.updates):
            row, column = torch.randint(min(k + 1, plan.kept), (plan.points,)), torch.randint(len(t), (plan.points,))
            missed = net(t[column], points[row, column]) - targets[row, column]
            loss = (weights[column] * (missed**2).sum(1)).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimiser.step()
            schedule.step()
        if k in np.linspace(0, plan.rounds - 1, plan.looks).astype(int):
            look(k + 1, float(lengths @ squares))


# What the package says of it


def described(error: Any, size: float) -> str:
    """An error of a control, and its root relative to that of the optimal control's own size."""
    return f"{error.value:.3g} ± {error.standard_error:.1g}, relative {np.sqrt(error.value / size):.2%}"


def judged(problem: fh.ControlProblem, policy: Any, reference: Any, size: float, plan: Plan) -> None:
    """Print error, objectives and certificates."""
    error = fh.control_error(problem, policy, reference, rtol=plan.law_rtol)
    print(f"(1/T) E* ∫|u - u*|² dt = {described(error, size)}; of u* itself {size:.4g}")
    rewards = fh.objectives(problem, policy, reference, steps=200, n=plan.simulated, rtol=plan.law_rtol)
    for name, found in (
        ("optimal, exact", rewards.optimal),
        ("network, continuous time", rewards.exact),
        (f"network, {rewards.steps} Euler steps", rewards.euler),
        ("no control", rewards.uncontrolled),
    ):
        print(f"reward, {name}: {found.value:.4f} ± {found.standard_error:.4f}")
    n, steps = plan.certified
    print("certificate by its own paths, without a reference:")
    print(fh.certify(problem, policy, n=n, steps=steps, rng=1))


def picture(net: Control, reference: Any, looks: list[tuple[int, float]]) -> Figure:
    """The control along a deep and a shallow axis, the others at the bottom of a well, and the error in training.

    Grey: where the network's own paths end, which is where it learns what to do late.
    """
    policy = as_field(net)
    ends = simulated(net, graded_times(Plan.steps), 4096)[0][-1].numpy()
    made = Figure(figsize=(9.5, 2.9), layout="constrained")
    panels = made.subplots(1, 3)
    for panel, axis, name in ((panels[0], DEEP, "deep"), (panels[1], SHALLOW, "shallow")):
        density = panel.twinx()
        density.hist(ends[:, axis], bins=np.linspace(-1.4, 1.4, 57), color="0.85")
        density.set_axis_off()
        panel.set(zorder=1, frame_on=False)
        x = np.ones((201, DIM))
        x[:, axis] = np.linspace(-1.4, 1.4, len(x))
        for t, color in ((0.6, "#009E73"), (0.9, "#0072B2"), (0.97, "#D55E00"), (1.0, "#000000")):
            panel.plot(x[:, axis], reference.policy(t * T, x)[:, axis], color=color, linewidth=1.0, label=f"t = {t:g}")
            dots = x[::8]
            panel.plot(dots[:, axis], policy(t * T, dots)[:, axis], "o", color=color, markersize=3.0)
        panel.set(xlabel=f"x along a {name} axis", ylabel="control (lines: exact, dots: network)")
    panels[0].legend(fontsize="small", loc="lower left")
    panels[2].semilogy(*np.transpose(looks), color="#000000", marker="o", markersize=3.0)
    panels[2].set(xlabel="rounds of training", ylabel="relative error under P*")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half a minute, for a network that is hardly trained")
    parser.add_argument("--seed", type=int, default=0, help="of weights and paths; the same one gives the same network")
    parser.add_argument(
        "--out", type=Path, default=Path("results/network"), help="folder for network.png and network.pt"
    )
    asked = parser.parse_args()
    plan = QUICK if asked.quick else Plan()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)

    problem = checked_problem()
    reference = fh.solve(problem, rtol=plan.rtol)
    size = fh.control_error(problem, lambda t, x: np.zeros_like(x), reference, rtol=plan.law_rtol).value
    net = Control()
    policy = as_field(net)
    looks: list[tuple[int, float]] = []
    started = time.process_time()

    def look(k: int, loss: float) -> None:
        error = fh.control_error(problem, policy, reference, times=16, n=512, rtol=1e-2)
        looks.append((k, float(np.sqrt(error.value / size))))
        seconds = time.process_time() - started
        print(f"round {k}: loss {loss:.3g}, error {described(error, size)}, {seconds:.0f} CPU seconds", flush=True)

    trained(net, plan, look)
    with atomic_file(asked.out / "network.pt") as part:
        torch.save(net.state_dict(), part)
    judged(problem, policy, reference, size, plan)
    with atomic_file(asked.out / "network.png") as part:
        picture(net, reference, looks).savefig(part, format="png", dpi=110)
    print(f"written: {asked.out / 'network.png'}, {asked.out / 'network.pt'}")


if __name__ == "__main__":
    main()
