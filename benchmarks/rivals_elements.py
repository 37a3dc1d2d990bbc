"""The finite-element rivals of `bench_nonquadratic`: scikit-fem + SciPy, NGSolve and FEniCSx, in the ordinary way.

f = exp((v - max y)/alpha) solves f_s = <b, grad f> + Tr(Lambda Hess f)/2 + (r/alpha) f, here in weak form on a
structured mesh of quadrilaterals or hexahedra with natural boundary; the policy is Lambda grad f / f, raw. In time
"cn", Crank-Nicolson with the matrix at mid-step, "cn+", the same extrapolated from N and 2 N steps, or "sdirk",
Alexander's L-stable method of order three. Steps grow away from T; matrices are assembled anew whenever the drift
depends on time, and factored anew whenever they or the step change. In three dimensions BiCGStab or GMRES instead.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from nonquadratic_problems import REMAINING, Array, Case

GAMMA = 0.4358665215084590
TABLEAU = (
    (GAMMA,),
    ((1 - GAMMA) / 2, GAMMA),
    (-(6 * GAMMA**2 - 16 * GAMMA + 1) / 4, (6 * GAMMA**2 - 20 * GAMMA + 5) / 4, GAMMA),
)


@dataclass(frozen=True)
class Setting:
    order: int = 2
    nodes: int = 8  # cells of the longest axis
    scheme: str = "cn"
    steps: int = 20
    margin: float = 0.3

    def __str__(self) -> str:
        return f"{self.nodes} cells, order {self.order}, {self.scheme} {self.steps}, margin {self.margin:g}"


class Elements(ABC):
    """March; a subclass has mass, stiffness(t), solve(matrix, rhs, guess) and combine(M, A, c): M - c A."""

    def __init__(self, case: Case, problem: Any, low: Array, high: Array, setting: Setting, cap: float) -> None:
        self.start, self.cap = time.process_time(), cap
        self.case, self.problem, self.setting, self.low, self.high = case, problem, setting, low, high
        self.cells = np.maximum(np.rint(setting.nodes * (high - low) / (high - low).max()), 1).astype(int).tolist()
        f = self.set_up()
        self.states = self.march(f, setting.steps)
        if setting.scheme == "cn+":
            finer = self.march(f, setting.steps, 2)
            self.states = [(4 * b - a) / 3 for a, b in zip(self.states, finer, strict=True)]
        self.seconds = time.process_time() - self.start

    def march(self, f: Array, steps: int, times: int = 1) -> list[Array]:
        T = self.problem.horizon
        ends = np.array(REMAINING) * T
        clock = np.log1p(np.concatenate([[0.0], ends]) / (0.05 * T)) / np.log(21.0)
        states, s0 = [], 0.0
        fixed = self.stiffness(0.0) if self.case.steady else None
        for k, s1 in enumerate(ends):
            n = times * max(1, int(np.ceil(steps * (clock[k + 1] - clock[k]) - 1e-9)))
            h, factors = (s1 - s0) / n, None
            for i in range(n):
                s = s0 + i * h
                if self.setting.scheme != "sdirk":
                    if fixed is None or factors is None:
                        A = self.stiffness(T - s - h / 2) if fixed is None else fixed
                        factors = self.factor(self.combine(A, h / 2))
                    f = self.solve(factors, self.multiply(2 * f), 2 * f) - f
                else:
                    slopes: list[Array] = []
                    for row in TABLEAU:
                        base = f + h * sum((a * g for a, g in zip(row[:-1], slopes, strict=True)), 0.0 * f)
                        if fixed is None or factors is None:
                            A = self.stiffness(T - s - h * sum(row)) if fixed is None else fixed
                            factors = self.factor(self.combine(A, h * GAMMA))
                        stage = self.solve(factors, self.multiply(base), base)
                        slopes.append((stage - base) / (h * GAMMA))
                    f = stage  # stiffly accurate
                if time.process_time() - self.start > self.cap:
                    raise TimeoutError
            states.append(f)
            s0 = float(s1)
        return states

    def fields(self, t: float, x: Array) -> tuple[Array, Array]:
        """b - div Lambda / 2 (..., d), and r / alpha."""
        b = np.asarray(self.problem.drift(t, x))
        if self.case.divergence is not None:
            b = b - 0.5 * self.case.divergence(x)
        r = self.problem.running_reward
        return b, np.zeros(b.shape[:-1]) if r is None else np.asarray(r(t, x)) / self.problem.temperature

    def terminal(self, x: Array) -> Array:
        """exp((y - c)/alpha), c the largest y seen first."""
        y = np.asarray(self.problem.terminal_reward(x), float)
        if not hasattr(self, "largest"):
            self.largest = y.max()
        return np.asarray(np.exp((y - self.largest) / self.problem.temperature))

    def policy(self, k: int, t: float, x: Array) -> Array:
        inside = self.low + 1e-9 * (self.high - self.low), self.high - 1e-9 * (self.high - self.low)
        f, slope = self.evaluate(self.states[k], np.clip(x, *inside))
        with np.errstate(all="ignore"):
            gradient = self.problem.temperature * slope / f[:, None]
        gradient[~(f > 0)] = 0.0
        return np.asarray(self.problem.policy_from_gradient(t, x, gradient))

    @abstractmethod
    def set_up(self) -> Array: ...

    @abstractmethod
    def stiffness(self, t: float) -> Any: ...

    @abstractmethod
    def combine(self, A: Any, c: float) -> Any: ...

    @abstractmethod
    def factor(self, S: Any) -> Any: ...

    @abstractmethod
    def multiply(self, f: Array) -> Array: ...

    @abstractmethod
    def solve(self, factors: Any, rhs: Array, guess: Array) -> Array: ...

    @abstractmethod
    def evaluate(self, f: Array, x: Array) -> tuple[Array, Array]: ...


class Skfem(Elements):
    def set_up(self) -> Array:
        import skfem
        from skfem.helpers import dot, grad, mul

        d, p = self.case.dim, self.setting.order
        lines = [np.linspace(a, b, n + 1) for a, b, n in zip(self.low, self.high, self.cells, strict=True)]
        mesh = (skfem.MeshQuad if d == 2 else skfem.MeshHex).init_tensor(*lines)
        if d == 3:
            element = skfem.ElementHex2() if p == 2 else skfem.ElementHex1()
        else:
            element = skfem.ElementQuad2() if p == 2 else skfem.ElementQuadP(p)
        self.basis = skfem.Basis(mesh, element, intorder=2 * p)
        x = self.basis.global_coordinates().value
        self.x = np.moveaxis(x, 0, -1)
        constant = self.problem.constant_diffusion
        noise = np.moveaxis(self.problem.Lambda(0.0, self.x), (-2, -1), (0, 1)) if constant is None else None
        self.mass = skfem.BilinearForm(lambda u, v, w: u * v).assemble(self.basis).tocsr()
        if noise is None and np.allclose(constant, constant[0, 0] * np.eye(d)):
            beta = constant[0, 0]
            still = skfem.BilinearForm(lambda u, v, w: -0.5 * beta * dot(grad(u), grad(v))).assemble(self.basis)
        else:
            rule = skfem.BilinearForm(lambda u, v, w: -0.5 * dot(mul(w.noise, grad(u)), grad(v)))
            still = rule.assemble(self.basis, noise=noise)
        self.still = still.tocsr()
        if self.problem.running_reward is None:
            self.moving = skfem.BilinearForm(lambda u, v, w: dot(w.b, grad(u)) * v)
        else:
            self.moving = skfem.BilinearForm(lambda u, v, w: (dot(w.b, grad(u)) + w.r * u) * v)
        self.iterative = d == 3
        return np.asarray(self.basis.project(lambda x: self.terminal(np.moveaxis(x, 0, -1))))

    def stiffness(self, t: float) -> Any:
        b, r = self.fields(t, self.x)
        b = np.moveaxis(b, -1, 0)
        given = {"b": b} if self.problem.running_reward is None else {"b": b, "r": r}
        return self.still + self.moving.assemble(self.basis, **given).tocsr()

    def combine(self, A: Any, c: float) -> Any:
        return self.mass - c * A

    def multiply(self, f: Array) -> Array:
        return np.asarray(self.mass @ f)

    def factor(self, S: Any) -> Any:
        from scipy.sparse.linalg import LinearOperator, splu

        if not self.iterative:
            order = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
            return splu(S.tocsc(), **order)
        diagonal = 1.0 / S.diagonal()
        return S, LinearOperator(S.shape, lambda v: diagonal * v)

    def solve(self, factors: Any, rhs: Array, guess: Array) -> Array:
        from scipy.sparse.linalg import bicgstab

        if not self.iterative:
            return np.asarray(factors.solve(rhs))
        f, failed = bicgstab(factors[0], rhs, x0=guess, rtol=1e-8, atol=0.0, M=factors[1])
        if failed:
            raise ArithmeticError("BiCGStab failed")
        return np.asarray(f)

    def evaluate(self, f: Array, x: Array) -> tuple[Array, Array]:
        mesh, mapping, d = self.basis.mesh, self.basis.mapping, self.case.dim
        size = (self.high - self.low) / np.array(self.cells)

        def number(points: Array) -> Array:
            at = np.minimum(((points - self.low) / size).astype(int), np.array(self.cells) - 1)
            return np.asarray(np.ravel_multi_index(tuple(at.T), tuple(self.cells)))

        order = np.argsort(number(mesh.p[:, mesh.t].mean(axis=1).T))
        cells = order[number(x)]
        local = mapping.invF(x.T[:, :, None], tind=cells)
        dofs, value, slope = self.basis.element_dofs[:, cells], np.zeros(len(x)), np.zeros((len(x), d))
        for i in range(len(dofs)):
            field = self.basis.elem.gbasis(mapping, local, i, tind=cells)[0]
            value += f[dofs[i]] * np.asarray(field.value)[..., 0]
            slope += (f[dofs[i]] * np.asarray(field.grad)[..., 0]).T
        return value, slope


class NGSolve(Elements):
    """Coefficients are NumPy's, at the quadrature points."""

    def set_up(self) -> Array:
        import ngsolve as ng
        from ngsolve.comp import IntegrationRuleSpace
        from ngsolve.meshes import MakeStructured2DMesh, MakeStructured3DMesh

        ng.ngsglobals.msg_level = 0
        ng.SetNumThreads(1)
        self.ng, d, p = ng, self.case.dim, self.setting.order

        def place(*unit: float) -> tuple[float, ...]:
            return tuple(a + (b - a) * s for a, b, s in zip(self.low, self.high, unit, strict=True))

        if d == 2:
            self.mesh = MakeStructured2DMesh(quads=True, nx=self.cells[0], ny=self.cells[1], mapping=place)
        else:
            n = dict(zip(("nx", "ny", "nz"), self.cells, strict=True))
            self.mesh = MakeStructured3DMesh(hexes=True, **n, mapping=place)
        self.space = ng.H1(self.mesh, order=p)
        at = IntegrationRuleSpace(self.mesh, order=2 * p)
        rule = ng.dx(intrules=at.GetIntegrationRules())
        x = []
        for coordinate in (ng.x, ng.y, ng.z)[:d]:
            g = ng.GridFunction(at)
            g.Interpolate(coordinate)
            x.append(g.vec.FV().NumPy().copy())
        self.x = np.stack(x, -1)
        self.b, self.r, y = [ng.GridFunction(at) for _ in range(d)], ng.GridFunction(at), ng.GridFunction(at)
        u, v = self.space.TnT()
        self.c = ng.Parameter(0.0)
        self.mass = ng.BilinearForm(self.space)
        self.mass += u * v * rule
        self.mass.Assemble()
        slope, constant = ng.grad(u), self.problem.constant_diffusion
        if constant is None:
            noise = self.problem.Lambda(0.0, self.x)
            L = [[ng.GridFunction(at) for _ in range(d)] for _ in range(d)]
            for i in range(d):
                for j in range(d):
                    L[i][j].vec.FV().NumPy()[:] = noise[:, i, j]
        else:
            L = constant.tolist()
        spread = sum(L[i][j] * slope[j] * ng.grad(v)[i] for i in range(d) for j in range(d))
        pushed = sum(self.b[i] * slope[i] for i in range(d))
        self.step = ng.BilinearForm(self.space)
        self.step += (u * v - self.c * ((pushed + self.r * u) * v - 0.5 * spread)) * rule
        y.vec.FV().NumPy()[:] = self.terminal(self.x)
        load = ng.LinearForm(self.space)
        load += y * v * rule
        load.Assemble()
        guess = np.zeros(self.space.ndof)
        return self.solve(self.factor(self.mass.mat), load.vec.FV().NumPy(), guess)

    def stiffness(self, t: float) -> Any:
        return t

    def combine(self, A: Any, c: float) -> Any:
        b, r = self.fields(A, self.x)
        for i, g in enumerate(self.b):
            g.vec.FV().NumPy()[:] = b[:, i]
        self.r.vec.FV().NumPy()[:] = r
        self.c.Set(c)
        self.step.Assemble()
        return self.step.mat

    def multiply(self, f: Array) -> Array:
        v, out = self.mass.mat.CreateColVector(), self.mass.mat.CreateColVector()
        v.FV().NumPy()[:] = f
        out.data = self.mass.mat * v
        return np.array(out.FV().NumPy())

    def factor(self, S: Any) -> Any:
        if self.case.dim == 2:
            return S, S.Inverse(self.space.FreeDofs(), inverse="umfpack")
        from ngsolve.krylovspace import GMResSolver

        jacobi = S.CreateSmoother(self.space.FreeDofs(), GS=False)
        return S, GMResSolver(mat=S, pre=jacobi, tol=1e-7, maxiter=400, printrates=False)

    def solve(self, factors: Any, rhs: Array, guess: Array) -> Array:
        S, inverse = factors
        g, r, out = (S.CreateColVector() for _ in range(3))
        r.FV().NumPy()[:] = rhs
        if self.case.dim == 2:
            out.data = inverse * r
            return np.array(out.FV().NumPy())
        g.FV().NumPy()[:] = guess
        r.data -= S * g
        out.data = inverse * r
        return guess + np.array(out.FV().NumPy())

    def evaluate(self, f: Array, x: Array) -> tuple[Array, Array]:
        g = self.ng.GridFunction(self.space)
        g.vec.FV().NumPy()[:] = f
        where = self.mesh(*[np.ascontiguousarray(x[:, k]) for k in range(x.shape[1])])
        return np.asarray(g(where)).ravel(), np.asarray(self.ng.grad(g)(where)).reshape(len(x), -1)


class Dolfinx(Elements):
    """FEniCSx; b, r, Lambda interpolated in Lagrange elements of the same order. PETSc's LU, in 3-D GMRES and ILU."""

    def set_up(self) -> Array:
        import ufl
        from dolfinx import fem, mesh
        from dolfinx.fem import petsc
        from mpi4py import MPI
        from petsc4py import PETSc

        self.fem, self.petsc, self.PETSc, d, p = fem, petsc, PETSc, self.case.dim, self.setting.order
        self.alive: list[Any] = []
        corners = [np.array(self.low), np.array(self.high)]
        if d == 2:
            self.mesh = mesh.create_rectangle(MPI.COMM_SELF, corners, self.cells, mesh.CellType.quadrilateral)
        else:
            self.mesh = mesh.create_box(MPI.COMM_SELF, corners, self.cells, mesh.CellType.hexahedron)
        make = getattr(fem, "functionspace", fem.FunctionSpace)
        self.space = make(self.mesh, ("Lagrange", p))
        u, v = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        self.b, self.r = [fem.Function(self.space) for _ in range(d)], fem.Function(self.space)
        self.c = fem.Constant(self.mesh, PETSc.ScalarType(0.0))
        rule = ufl.dx(metadata={"quadrature_degree": 2 * p})
        self.x = self.space.tabulate_dof_coordinates()[:, :d]
        noise = self.problem.Lambda(0.0, self.x)
        spread = 0.0
        for i in range(d):
            for j in range(d):
                entry = fem.Function(self.space)
                entry.x.array[:] = noise[:, i, j]
                spread += entry * ufl.grad(u)[j] * ufl.grad(v)[i]
        pushed = sum(self.b[i] * ufl.grad(u)[i] for i in range(d))
        self.mass_form = fem.form(u * v * rule)
        self.step_form = fem.form((u * v - self.c * ((pushed + self.r * u) * v - 0.5 * spread)) * rule)
        self.mass = petsc.assemble_matrix(self.mass_form)
        self.mass.assemble()
        return self.terminal(self.x)

    def stiffness(self, t: float) -> Any:
        return t

    def combine(self, A: Any, c: float) -> Any:
        b, r = self.fields(A, self.x)
        for i, g in enumerate(self.b):
            g.x.array[:] = b[:, i]
        self.r.x.array[:] = r
        self.c.value = c
        S = self.petsc.assemble_matrix(self.step_form)
        S.assemble()
        return S

    def multiply(self, f: Array) -> Array:
        v, out = self.mass.createVecRight(), self.mass.createVecLeft()
        v.array[:] = f
        self.mass.mult(v, out)
        return self.taken(v, out)

    def factor(self, S: Any) -> Any:
        for old in self.alive:  # petsc4py would keep them
            old.destroy()
        solver = self.PETSc.KSP().create(S.comm)
        self.alive = [solver, S]
        solver.setOperators(S)
        if self.case.dim == 2:
            solver.setType("preonly")
            solver.getPC().setType("lu")
        else:
            solver.setType("gmres")
            solver.getPC().setType("ilu")
            solver.setTolerances(rtol=1e-9)
            solver.setInitialGuessNonzero(True)
        return solver, S

    def solve(self, factors: Any, rhs: Array, guess: Array) -> Array:
        solver, S = factors
        r, out = S.createVecLeft(), S.createVecRight()
        r.array[:], out.array[:] = rhs, guess
        solver.solve(r, out)
        return self.taken(r, out)

    @staticmethod
    def taken(given: Any, out: Any) -> Array:
        """The values of a vector, which with the other one is not needed any more."""
        values = np.array(out.array)
        given.destroy()
        out.destroy()
        return values

    def evaluate(self, f: Array, x: Array) -> tuple[Array, Array]:
        import ufl
        from dolfinx import geometry

        g = self.fem.Function(self.space)
        g.x.array[:] = f
        three = np.zeros((len(x), 3))
        three[:, : x.shape[1]] = x
        new = hasattr(geometry, "bb_tree")
        tree = geometry.bb_tree(self.mesh, self.case.dim) if new else geometry.BoundingBoxTree(self.mesh, self.case.dim)
        near = getattr(geometry, "compute_collisions_points", None) or geometry.compute_collisions
        hits = geometry.compute_colliding_cells(self.mesh, near(tree, three), three)
        cells = np.array([hits.links(i)[0] for i in range(len(x))], dtype=np.int32)
        make = getattr(self.fem, "functionspace", self.fem.FunctionSpace)
        shape = (self.case.dim,)
        kind = ("DG", self.setting.order, shape) if new else ("DG", self.setting.order)
        space = make(self.mesh, kind) if new else self.fem.VectorFunctionSpace(self.mesh, kind)
        points = space.element.interpolation_points
        slope = self.fem.Function(space)
        slope.interpolate(self.fem.Expression(ufl.grad(g), points() if callable(points) else points))
        return g.eval(three, cells).ravel(), slope.eval(three, cells).reshape(len(x), -1)
