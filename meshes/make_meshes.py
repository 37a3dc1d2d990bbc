"""Make the mesh files of this folder with gmsh: `pip install "fem_hjb[mesh]"`, then `python meshes/make_meshes.py`.

interval.msh     [-6, 6], 64 cells, graded: each 1.08 times as long as its neighbour nearer to 0
disc.msh         triangles, radius 4
disc_quads.msh   the same disc in quadrilaterals
annulus.msh      triangles, radii 1 and 4, finer at the hole
lshape.msh       triangles, [-4, 4]^2 without (1.5, 4] x [-4, -1.5), graded towards the re-entrant corner
ball.msh         tetrahedra, radius 4
plate.msh        triangles, radius 2, round two holes; groups "rim", "left" and "right" of the boundary, and "plate"

The boundary's cells are written too, and of the annulus a centre point that belongs to no cell of dimension 2.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import gmsh


def interval() -> int:
    geo = gmsh.model.geo
    left, middle, right = (geo.addPoint(x, 0, 0) for x in (-6.0, 0.0, 6.0))
    for end in (left, right):
        geo.mesh.setTransfiniteCurve(geo.addLine(middle, end), 33, "Progression", 1.08)
    return 1


def disc() -> int:
    gmsh.model.occ.addDisk(0, 0, 0, 4, 4)
    gmsh.option.setNumber("Mesh.MeshSizeMax", 0.35)
    return 2


def disc_quads() -> int:
    gmsh.option.setNumber("Mesh.RecombineAll", 1)
    gmsh.option.setNumber("Mesh.Algorithm", 8)
    return disc()


def annulus() -> int:
    geo = gmsh.model.geo
    centre = geo.addPoint(0, 0, 0)
    loops = []
    for radius, size in ((4.0, 0.5), (1.0, 0.15)):
        corners = [geo.addPoint(radius * c, radius * s, 0, size) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        arcs = [geo.addCircleArc(corners[i], centre, corners[(i + 1) % 4]) for i in range(4)]
        loops.append(geo.addCurveLoop(arcs))
    geo.addPlaneSurface(loops)
    return 2


def lshape() -> int:
    geo = gmsh.model.geo
    outline = [(-4, -4, 0.6), (1.5, -4, 0.6), (1.5, -1.5, 0.06), (4, -1.5, 0.6), (4, 4, 0.6), (-4, 4, 0.6)]
    corners = [geo.addPoint(x, y, 0, size) for x, y, size in outline]
    edges = [geo.addLine(corners[i], corners[(i + 1) % len(corners)]) for i in range(len(corners))]
    geo.addPlaneSurface([geo.addCurveLoop(edges)])
    return 2


def ball() -> int:
    gmsh.model.occ.addSphere(0, 0, 0, 4)
    gmsh.option.setNumber("Mesh.MeshSizeMax", 0.9)
    return 3


def plate() -> int:
    occ = gmsh.model.occ
    disc, left, right = (occ.addDisk(x, 0, 0, r, r) for x, r in ((0.0, 2.0), (-0.9, 0.4), (0.9, 0.6)))
    occ.cut([(2, disc)], [(2, left), (2, right)])
    occ.synchronize()
    for name, x in (("left", -0.9), ("right", 0.9), ("rim", 0.0)):
        reach = {"left": 0.5, "right": 0.7, "rim": 2.1}[name]
        curves = gmsh.model.getEntitiesInBoundingBox(x - reach, -reach, -1, x + reach, reach, 1, 1)
        held = [tag for _, tag in curves if name != "rim" or gmsh.model.getBoundingBox(1, tag)[3] > 1.9]
        gmsh.model.addPhysicalGroup(1, held, name=name)
    gmsh.model.addPhysicalGroup(2, [tag for _, tag in gmsh.model.getEntities(2)], name="plate")
    gmsh.option.setNumber("Mesh.MeshSizeMax", 0.2)
    return 2


def make(build: Callable[[], int], folder: Path) -> None:
    gmsh.initialize()
    gmsh.option.setNumber("General.Terminal", 0)
    gmsh.option.setNumber("General.NumThreads", 1)
    gmsh.model.add(build.__name__)
    dim = build()
    gmsh.model.geo.synchronize()
    gmsh.model.occ.synchronize()
    gmsh.model.mesh.generate(dim)
    gmsh.write(str(folder / f"{build.__name__}.msh"))
    gmsh.finalize()


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for build in (interval, disc, disc_quads, annulus, lshape, ball, plate):
        make(build, target)
