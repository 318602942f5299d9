"""Procedural captioned scenes with exact label maps: the data of the test bed.

A scene is a background and one or two objects. Its caption names classes, colours and background and never
a position, so position is what a model must invent, and what a reciting model takes from a source.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
"""Side of a scene, pixels."""

_SUPERSAMPLING = 4
_VISIBLE = 12  # of 255: what differs less from the bare background is the edge of a decoration
_CANVAS = SIZE * _SUPERSAMPLING

CLASSES = ("star", "house", "tree", "heart", "moon", "fish", "mushroom", "ball")
"""Label `i + 1` of a label map is `CLASSES[i]`; label 0 is background."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (50, 160, 70),
    "blue": (40, 90, 215),
    "purple": (140, 60, 180),
    "pink": (250, 150, 190),
    "brown": (125, 75, 40),
}

BACKGROUNDS = (
    "on a green field",
    "on a sandy beach",
    "in the night sky",
    "on white snow",
    "in a blue sea",
    "in a grey room",
)

Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class SceneObject:
    """One object: class, colour name, centre and radius in pixels of the finished scene, mirrored or not."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float
    flipped: bool

    @property
    def phrase(self) -> str:
        """How a caption names the object."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Everything that `render` draws. `details` seeds horizon, shades and decorations."""

    background: str
    objects: tuple[SceneObject, ...]
    details: int

    @property
    def caption(self) -> str:
        """The ordinary caption."""
        return " and ".join(item.phrase for item in self.objects) + " " + self.background

    def recoloured(self, colours: tuple[str, ...]) -> "Scene":
        """Return the same layout with other colours, one for each object."""
        items = tuple(replace(item, colour=c) for item, c in zip(self.objects, colours, strict=True))
        return replace(self, objects=items)


def random_scene(rng: np.random.Generator, num_objects: int | None = None) -> Scene:
    """Draw a scene; `num_objects` is 1 or 2, or None for either with equal chance."""
    count = num_objects or int(rng.integers(1, 3))
    radii = rng.uniform(14, 21, size=1) if count == 1 else rng.uniform(10.5, 14, size=2)
    kinds = rng.choice(len(CLASSES), size=count, replace=False)
    colours = rng.choice(len(COLOURS), size=count, replace=False)
    objects = tuple(
        SceneObject(CLASSES[k], list(COLOURS)[c], x, y, float(r), bool(rng.integers(2)))
        for k, c, r, (x, y) in zip(kinds, colours, radii, _places(rng, radii), strict=True)
    )
    return Scene(str(rng.choice(BACKGROUNDS)), objects, int(rng.integers(2**31)))


def _places(rng: np.random.Generator, radii: np.ndarray) -> list[Point]:
    """Centres that keep every object inside the frame and apart from the others."""
    while True:
        points = [tuple(rng.uniform(r + 1, SIZE - r - 1, size=2)) for r in radii]
        if len(points) == 1 or math.dist(*points) > radii.sum() + 2:
            return points


def render(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene: picture (64, 64, 3) uint8 RGB and label map (64, 64) uint8."""
    rng = np.random.default_rng(scene.details)
    picture = Image.fromarray(_background(scene.background, rng))
    labels = Image.new("L", (_CANVAS, _CANVAS), 0)
    _decorate(scene.background, ImageDraw.Draw(picture), rng)
    for item in scene.objects:
        colour = _jitter(COLOURS[item.colour], rng, 8)
        _draw_object(item, colour, ImageDraw.Draw(picture), ImageDraw.Draw(labels))
    small = np.asarray(picture.reduce(_SUPERSAMPLING))
    offset = _SUPERSAMPLING // 2
    return small, np.asarray(labels)[offset::_SUPERSAMPLING, offset::_SUPERSAMPLING].copy()


def decorated(scene: Scene) -> np.ndarray:
    """Where a scene's background is decorated, (64, 64) bool, whether objects hide it or not."""
    rng = np.random.default_rng(scene.details)
    bare = Image.fromarray(_background(scene.background, rng))
    full = bare.copy()
    _decorate(scene.background, ImageDraw.Draw(full), rng)
    first, second = (np.asarray(each.reduce(_SUPERSAMPLING)).astype(int) for each in (bare, full))
    return np.asarray(abs(first - second).max(-1) > _VISIBLE)


def _jitter(colour: Colour, rng: np.random.Generator, amount: int) -> Colour:
    moved = np.clip(np.add(colour, rng.integers(-amount, amount + 1, size=3)), 0, 255)
    return int(moved[0]), int(moved[1]), int(moved[2])


_SKIES: dict[str, tuple[Colour, Colour, Colour | None]] = {
    # top of the sky, bottom of the sky, ground (None: no horizon)
    "on a green field": ((110, 180, 240), (205, 232, 250), (95, 195, 95)),
    "on a sandy beach": ((90, 190, 225), (190, 235, 240), (236, 210, 150)),
    "in the night sky": ((12, 14, 48), (45, 40, 95), None),
    "on white snow": ((150, 170, 195), (205, 215, 228), (244, 247, 251)),
    "in a blue sea": ((120, 205, 235), (20, 75, 140), None),
    "in a grey room": ((185, 185, 188), (165, 165, 170), (110, 108, 106)),
}


def _background(name: str, rng: np.random.Generator) -> np.ndarray:
    """Vertical gradient with a ground below a random horizon, (256, 256, 3) uint8."""
    top, bottom, ground = _SKIES[name]
    shade = rng.integers(-8, 9)
    ramp = np.linspace(0, 1, _CANVAS)[:, None]
    rows = (1 - ramp) * np.array(top) + ramp * np.array(bottom)
    if ground is not None:
        horizon = int(rng.uniform(0.45, 0.75) * _CANVAS)
        rows[horizon:] = np.array(ground) - 18 * (ramp[horizon:] - ramp[horizon])
    rows = np.clip(rows + shade, 0, 255).astype(np.uint8)
    return np.broadcast_to(rows[:, None], (_CANVAS, _CANVAS, 3)).copy()


def _decorate(name: str, draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Small things that belong to a background: a cloud, stars, bubbles, a window."""
    if name == "in the night sky":
        for x, y in rng.uniform(0, _CANVAS, size=(12, 2)):
            draw.ellipse(_box(x, y, 4), fill=(235, 235, 200))
    elif name == "in a blue sea":
        for x, y in rng.uniform(0, _CANVAS, size=(6, 2)):
            draw.ellipse(_box(x, y, 8), outline=(205, 238, 250), width=3)
    elif name == "in a grey room":
        x, y = rng.uniform(0.1, 0.7) * _CANVAS, rng.uniform(0.06, 0.16) * _CANVAS
        draw.rectangle((x, y, x + 52, y + 44), fill=(205, 228, 240), outline=(90, 80, 70), width=5)
    else:
        x, y = rng.uniform(0.15, 0.85) * _CANVAS, rng.uniform(0.08, 0.2) * _CANVAS
        for dx, r in ((-26, 14), (0, 20), (26, 14)):
            draw.ellipse(_box(x + dx, y, r), fill=(252, 252, 253))


def _box(x: float, y: float, r: float) -> tuple[float, float, float, float]:
    return x - r, y - r, x + r, y + r


def _draw_object(item: SceneObject, colour: Colour, picture: ImageDraw.ImageDraw, labels: ImageDraw.ImageDraw) -> None:
    label = CLASSES.index(item.kind) + 1
    scale = item.radius * _SUPERSAMPLING
    sign = -1 if item.flipped else 1
    cx, cy = item.x * _SUPERSAMPLING, item.y * _SUPERSAMPLING
    outline = (colour[0] * 45 // 100, colour[1] * 45 // 100, colour[2] * 45 // 100)
    for part in _SHAPES[item.kind](colour):
        points = [(cx + sign * px * scale, cy + py * scale) for px, py in part.points]
        if part.counts:
            labels.polygon(points, fill=label)
            labels.line([*points, points[0]], fill=label, width=5, joint="curve")
        picture.polygon(points, fill=part.colour)
        if part.counts:
            picture.line([*points, points[0], points[1]], fill=outline, width=5, joint="curve")


@dataclass(frozen=True)
class _Part:
    """A polygon in a unit disc; `counts` is False for a detail drawn inside another part."""

    points: list[Point]
    colour: Colour
    counts: bool = True


def _arc(cx: float, cy: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> list[Point]:
    angles = np.radians(np.linspace(start, stop, 33))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def _star(colour: Colour) -> list[_Part]:
    radii = (1.0, 0.45) * 5
    angles = [math.radians(-90 + 36 * i) for i in range(10)]
    points = [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    return [_Part(points, colour)]


def _house(colour: Colour) -> list[_Part]:
    return [
        _Part([(-0.7, -0.15), (0.7, -0.15), (0.7, 0.9), (-0.7, 0.9)], colour),
        _Part([(-0.95, -0.15), (0, -0.95), (0.95, -0.15)], (100, 55, 50)),
        _Part([(-0.5, 0.3), (-0.08, 0.3), (-0.08, 0.9), (-0.5, 0.9)], (70, 45, 35), counts=False),
        _Part([(0.18, 0.1), (0.52, 0.1), (0.52, 0.45), (0.18, 0.45)], (225, 240, 250), counts=False),
    ]


def _tree(colour: Colour) -> list[_Part]:
    return [
        _Part([(-0.16, 0.3), (0.16, 0.3), (0.16, 0.98), (-0.16, 0.98)], (95, 60, 35)),
        _Part([(-0.75, 0.5), (0, -0.3), (0.75, 0.5)], colour),
        _Part([(-0.58, 0.0), (0, -0.98), (0.58, 0.0)], colour),
    ]


def _heart(colour: Colour) -> list[_Part]:
    t = np.linspace(0, 2 * math.pi, 49)
    xs = 16 * np.sin(t) ** 3 / 17
    ys = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 17 - 0.12
    return [_Part([(float(x), float(y)) for x, y in zip(xs, ys, strict=True)], colour)]


def _moon(colour: Colour) -> list[_Part]:
    inner = _arc(0.42, -0.1, 0.72, 0.78, 118, 262)
    outer = _arc(0.0, 0.0, 0.95, 0.95, 295, 60)
    return [_Part([*outer, *inner], colour)]


def _fish(colour: Colour) -> list[_Part]:
    return [
        _Part([(0.45, 0.0), (0.98, -0.5), (0.98, 0.5)], colour),
        _Part(_arc(-0.2, 0.0, 0.78, 0.52), colour),
        _Part(_arc(-0.62, -0.12, 0.13, 0.13), (250, 250, 250), counts=False),
        _Part(_arc(-0.64, -0.12, 0.065, 0.065), (20, 20, 20), counts=False),
    ]


def _mushroom(colour: Colour) -> list[_Part]:
    return [
        _Part([(-0.3, 0.0), (0.3, 0.0), (0.38, 0.92), (-0.38, 0.92)], (240, 228, 205)),
        _Part(_arc(0.0, 0.1, 0.95, 0.95, 180, 360), colour),
        _Part(_arc(-0.4, -0.28, 0.15, 0.15), (250, 245, 240), counts=False),
        _Part(_arc(0.3, -0.42, 0.17, 0.17), (250, 245, 240), counts=False),
    ]


def _ball(colour: Colour) -> list[_Part]:
    stripe = [*_arc(0.0, -0.2, 0.86, 0.3, 180, 0), *_arc(0.0, 0.15, 0.88, 0.3, 0, 180)]
    return [
        _Part(_arc(0.0, 0.0, 0.9, 0.9), colour),
        _Part(stripe, (250, 250, 250), counts=False),
    ]


_SHAPES: dict[str, Callable[[Colour], list[_Part]]] = {
    "star": _star,
    "house": _house,
    "tree": _tree,
    "heart": _heart,
    "moon": _moon,
    "fish": _fish,
    "mushroom": _mushroom,
    "ball": _ball,
}
