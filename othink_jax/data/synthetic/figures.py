"""Geometry problems: kinds of figure, their given angles, their answers, and their exact shape.

A kind is one theorem, applied. Its givens (whole degrees) fix the answer and the figure up to
motion and scale; figures are true to scale. All coordinates here are unit-free, with y upwards.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

Point = tuple[float, float]
Givens = tuple[int, ...]  # degrees
X = "x"  # label of an angle that is asked for but has no name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """An angle that carries a text: its measure, or `X`."""

    vertex: str
    arms: tuple[str, str]  # the points its two sides run through
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sketch:
    """A figure before it is placed on paper. Points whose names begin with `_` get no label."""

    points: Mapping[str, Point]
    segments: tuple[tuple[str, str], ...]
    marks: tuple[Mark, ...]
    radius: float | None = None  # of a circle around the point O


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of problem. The functions take its givens, in degrees."""

    name: str
    weight: int  # how often it is drawn, relative to the others
    arity: int  # how many angles are given
    fact: str  # statement in the question; it holds no number
    asked: str  # the angle asked for
    roomy: Callable[..., tuple[int, ...]]  # the angles that need room for a text
    answer: Callable[..., float]  # degrees; not always a whole number
    steps: Callable[..., str]  # the derivation; it ends in the answer
    sketch: Callable[..., Sketch]
    symmetric: bool = False  # the order of the givens does not change the problem


def _direction(degrees: float) -> Point:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _along(origin: Point, degrees: float, length: float) -> Point:
    x, y = _direction(degrees)
    return origin[0] + length * x, origin[1] + length * y


def _third_corner(at_b: float, at_c: float) -> Point:
    """Corner A of the triangle with B at the origin, C at (1, 0) and these angles."""
    length = math.sin(math.radians(at_c)) / math.sin(math.radians(at_b + at_c))
    return _along((0, 0), at_b, length)


def _triangle(at_a: float, at_b: float, marks: tuple[Mark, ...]) -> Sketch:
    return Sketch(
        points={"A": _third_corner(at_b, 180 - at_a - at_b), "B": (0, 0), "C": (1, 0)},
        segments=(("A", "B"), ("B", "C"), ("C", "A")),
        marks=marks,
    )


_AT_A = ("A", ("B", "C"))
_AT_B = ("B", ("A", "C"))


def _mark(place: tuple[str, tuple[str, str]], text: int | str) -> Mark:
    return Mark(vertex=place[0], arms=place[1], text=str(text))


def _plain_triangle(a: int, b: int) -> Sketch:
    return _triangle(a, b, (_mark(_AT_A, a), _mark(_AT_B, b)))


def _extended_triangle(a: int, b: int, marks: tuple[Mark, ...]) -> Sketch:
    triangle = _triangle(a, b, marks)
    return dataclasses.replace(
        triangle,
        points={**triangle.points, "D": (1.25, 0)},
        segments=(("A", "B"), ("B", "C"), ("C", "D"), ("C", "A")),
    )


def _exterior(a: int, b: int) -> Sketch:
    return _extended_triangle(a, b, (_mark(_AT_A, a), _mark(_AT_B, b)))


def _remote(outer: int, a: int) -> Sketch:
    marks = (_mark(("C", ("A", "D")), outer), _mark(_AT_A, a))
    return _extended_triangle(a, outer - a, marks)


def _isosceles_base(apex: int) -> Sketch:
    return _triangle(apex, (180 - apex) / 2, (_mark(_AT_A, apex),))


def _isosceles_apex(base: int) -> Sketch:
    return _triangle(180 - 2 * base, base, (_mark(_AT_B, base),))


def _parallels(given_at: tuple[str, str, str], asked_at: tuple[str, str, str], v: int) -> Sketch:
    """AB above CD, cut by a transversal that rises at `v` degrees; E is on AB, F on CD.

    `given_at` and `asked_at` are (vertex, arm, arm).
    """
    gap = 0.7
    f, e = (0.0, 0.0), _along((0, 0), v, gap / math.sin(math.radians(v)))
    top, bottom = _along(e, v, 0.28), _along(f, v, -0.28)
    middle = (e[0] + f[0]) / 2
    half = max(0.5, abs(e[0] - f[0]) / 2 + 0.3)  # the lines go on beyond the crossings
    points = {
        **{"A": (middle - half, gap), "B": (middle + half, gap)},
        **{"C": (middle - half, 0.0), "D": (middle + half, 0.0)},
        **{"_E": e, "_F": f, "_T": top, "_S": bottom},
    }
    marks = (_mark((given_at[0], given_at[1:]), v), _mark((asked_at[0], asked_at[1:]), X))
    return Sketch(points=points, segments=(("A", "B"), ("C", "D"), ("_T", "_S")), marks=marks)


def _corresponding(v: int) -> Sketch:
    return _parallels(("_E", "B", "_T"), ("_F", "D", "_E"), v)


def _alternate(v: int) -> Sketch:
    return _parallels(("_F", "D", "_E"), ("_E", "A", "_F"), v)


def _co_interior(v: int) -> Sketch:
    return _parallels(("_F", "D", "_E"), ("_E", "B", "_F"), v)


def _rays(degrees: Mapping[str, float], lines: tuple[str, ...], mark: Mark) -> Sketch:
    """Rays from O at these directions."""
    points = {name: _along((0, 0), angle, 1) for name, angle in degrees.items()}
    segments = tuple(("O", name) for name in lines)
    return Sketch(points={"O": (0.0, 0.0), **points}, segments=segments, marks=(mark,))


def _bisected(half: int) -> Sketch:
    mark = _mark(("O", ("A", "C")), half)
    return _rays({"A": 0, "C": half, "B": 2 * half}, ("A", "C", "B"), mark)


def _bisected_supplement(v: int) -> Sketch:
    mark = _mark(("O", ("A", "C")), v)
    degrees = {"A": 0, "C": v, "D": v + (180 - v) / 2, "B": 180}
    return _rays(degrees, ("A", "C", "D", "B"), mark)


def _circle(
    degrees: Mapping[str, float], segments: tuple[tuple[str, str], ...], mark: Mark
) -> Sketch:
    """Points on the unit circle around O, at these directions."""
    points = {name: _direction(angle) for name, angle in degrees.items()}
    return Sketch(points={"O": (0.0, 0.0), **points}, segments=segments, marks=(mark,), radius=1)


_INSCRIBED = (("O", "A"), ("O", "B"), ("C", "A"), ("C", "B"))


def _inscribed(central: int) -> Sketch:
    degrees = {"A": -90 - central / 2, "B": -90 + central / 2, "C": 90}
    return _circle(degrees, _INSCRIBED, _mark(("O", ("A", "B")), central))


def _diameter(a: int) -> Sketch:
    degrees = {"A": 180, "B": 0, "C": 2 * a}
    return _circle(degrees, (("A", "B"), ("B", "C"), ("C", "A")), _mark(_AT_A, a))


_PARALLEL = "AB is parallel to CD."

KINDS = (
    Kind(
        name="triangle",
        weight=4,
        arity=2,
        fact="ABC is a triangle.",
        asked="C",
        roomy=lambda a, b: (a, b, 180 - a - b),
        answer=lambda a, b: 180 - a - b,
        steps=lambda a, b: f"180-{a}={180 - a},{180 - a}-{b}={180 - a - b}",
        sketch=_plain_triangle,
        symmetric=True,
    ),
    Kind(
        name="exterior",
        weight=2,
        arity=2,
        fact="BC is extended to D.",
        asked="ACD",
        roomy=lambda a, b: (a, b, 180 - a - b),
        answer=lambda a, b: a + b,
        steps=lambda a, b: f"{a}+{b}={a + b}",
        sketch=_exterior,
        symmetric=True,
    ),
    Kind(
        name="remote",
        weight=2,
        arity=2,
        fact="BC is extended to D.",
        asked="B",
        roomy=lambda outer, a: (a, 180 - outer, outer - a),
        answer=lambda outer, a: outer - a,
        steps=lambda outer, a: f"{outer}-{a}={outer - a}",
        sketch=_remote,
    ),
    Kind(
        name="isosceles base",
        weight=2,
        arity=1,
        fact="AB is equal to AC.",
        asked="B",
        roomy=lambda apex: (apex,),
        answer=lambda apex: (180 - apex) / 2,
        steps=lambda apex: f"180-{apex}={180 - apex},{180 - apex}/2={(180 - apex) // 2}",
        sketch=_isosceles_base,
    ),
    Kind(
        name="isosceles apex",
        weight=2,
        arity=1,
        fact="AB is equal to AC.",
        asked="A",
        roomy=lambda base: (base,),
        answer=lambda base: 180 - 2 * base,
        steps=lambda base: f"{base}+{base}={2 * base},180-{2 * base}={180 - 2 * base}",
        sketch=_isosceles_apex,
    ),
    Kind(
        name="corresponding",
        weight=1,
        arity=1,
        fact=_PARALLEL,
        asked=X,
        roomy=lambda v: (v, 180 - v),
        answer=lambda v: v,
        steps=lambda v: f"{X}={v}",
        sketch=_corresponding,
    ),
    Kind(
        name="alternate",
        weight=1,
        arity=1,
        fact=_PARALLEL,
        asked=X,
        roomy=lambda v: (v, 180 - v),
        answer=lambda v: v,
        steps=lambda v: f"{X}={v}",
        sketch=_alternate,
    ),
    Kind(
        name="co-interior",
        weight=2,
        arity=1,
        fact=_PARALLEL,
        asked=X,
        roomy=lambda v: (v, 180 - v),
        answer=lambda v: 180 - v,
        steps=lambda v: f"180-{v}={180 - v}",
        sketch=_co_interior,
    ),
    Kind(
        name="bisected",
        weight=1,
        arity=1,
        fact="OC bisects angle AOB.",
        asked="AOB",
        roomy=lambda half: (half,),
        answer=lambda half: 2 * half,
        steps=lambda half: f"{half}+{half}={2 * half}",
        sketch=_bisected,
    ),
    Kind(
        name="bisected supplement",
        weight=1,
        arity=1,
        fact="AOB is a line, OD bisects angle BOC.",
        asked="COD",
        roomy=lambda v: (v,),
        answer=lambda v: (180 - v) / 2,
        steps=lambda v: f"180-{v}={180 - v},{180 - v}/2={(180 - v) // 2}",
        sketch=_bisected_supplement,
    ),
    Kind(
        name="inscribed",
        weight=2,
        arity=1,
        fact="O is the centre.",
        asked="ACB",
        roomy=lambda central: (central,),
        answer=lambda central: central / 2,
        steps=lambda central: f"{central}/2={central // 2}",
        sketch=_inscribed,
    ),
    Kind(
        name="diameter",
        weight=1,
        arity=1,
        fact="AB is a diameter.",
        asked="B",
        roomy=lambda a: (a,),
        answer=lambda a: 90 - a,
        steps=lambda a: f"90-{a}={90 - a}",
        sketch=_diameter,
    ),
)
