"""References: `solve` on boxes to a tolerance, on meshes, expectations, and the Fokker-Planck equation of the law."""

from fem_hjb.reference import fokker_planck
from fem_hjb.reference.bridge import schroedinger_bridge
from fem_hjb.reference.exit_box import solve_exit
from fem_hjb.reference.feynman_kac import FeynmanKacSolution, feynman_kac
from fem_hjb.reference.fokker_planck import DensitySolution
from fem_hjb.reference.ground_state import ground_state
from fem_hjb.reference.mesh_refine import refine_on_mesh
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.reference.solve import solve
from fem_hjb.reference.stages import solve_stages

__all__ = [
    "DensitySolution",
    "FeynmanKacSolution",
    "feynman_kac",
    "fokker_planck",
    "ground_state",
    "refine_on_mesh",
    "schroedinger_bridge",
    "solve",
    "solve_exit",
    "solve_on_mesh",
    "solve_stages",
]
