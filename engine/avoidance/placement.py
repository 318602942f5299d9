"""Where a scene's objects go so that its shape is avoided: mirrored, shifted and, where need be, smaller.

A dilated or inverted mask keeps its contour, and ControlNet follows contours; so the objects move instead, whole and
inside the frame. The search runs on cells of a few pixels; a placement is drawn at random, the likelier the less it
changes the scene, so that every seed gives another one.

It is drawn by the Gumbel-max trick (Maddison et al., "A* Sampling", NeurIPS 2014): every way to move has a random lot
that depends on the seed alone, and the best sum of lot and log-probability wins. Log-probabilities hardly change with a
pixel of the mask, so labels that differ by rounding errors are moved alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..api.choices import Warp
from ..api.mechanisms import MovedControl
from .pieces import Field, Piece, Pieces, background_of, shape_overlap, take_apart
from .warping import warped_labels

_SCALES = (1.0, 0.875, 0.75)

# What a change costs the scene's meaning, in widths of the frame.
_VERTICAL = 2.0  # things stand on grounds and hang in skies: up and down matters more than left and right
_MIRROR = 0.2
_SEPARATE = 0.2
_UNCUT = 0.7  # an object cut off by the frame shows its cut when it leaves that edge
_TRESPASS = 4.0  # of all of an object inside what a user wants avoided
_ROUNDING = 1e-9  # of the Fourier transform
_TEMPERATURE = 0.115  # a placement that costs this much more is drawn e times more rarely
_MARGIN = 0.06  # of an object's areas: overlaps nearer to the limit than this are drawn more rarely, at the limit never


def avoidance_mask(labels: np.ndarray, background: Iterable[int]) -> np.ndarray:
    """Labels (H, W) -> bool (H, W): everything that is not background."""
    return ~np.isin(labels, list(background))


def moved_labels(
    labels: np.ndarray,
    background: Iterable[int],
    policy: MovedControl,
    seed: int,
    avoided: np.ndarray | None = None,
) -> np.ndarray:
    """Move the objects of a label map away from where they are.

    labels (H, W) integers; background: labels that stay. Returns (H, W) of the same dtype, in which the objects
    together, and each of them, overlap the former shape by an IoU of at most `policy.max_iou`; where that is
    impossible, by the smallest found. Objects stay whole and in the frame, cover no other, and keep their size unless
    only a smaller one (down to 3/4) fits; all move as one where that is enough. The gaps they leave take the nearest
    background. The placement depends on `seed` alone. avoided (H, W) bool: what to keep away from instead of the former
    shape; then at most `policy.max_iou` of the objects together, and of each of them, lies inside it, and the less the
    likelier, so that what lies outside may stay where it is. With `policy.warp` "none" nothing moves, and with "scale"
    and "elastic" objects change where they stand, `warped_labels`; "bank" is "auto" for what no bank can compose.
    """
    foreground = avoidance_mask(labels, background)
    if policy.warp == Warp.NONE or not foreground.any() or foreground.all():
        return labels.copy()
    if policy.warp in (Warp.SCALE, Warp.ELASTIC):
        return warped_labels(labels, foreground, policy.warp, policy.max_iou, seed, avoided)
    mirrors = {Warp.FLIP: (True,), Warp.SHIFT: (False,)}.get(policy.warp, (False, True))
    search = _Search(take_apart(labels, foreground), policy.max_iou, np.random.default_rng(seed), avoided)
    found: list[_Arrangement] = []
    for scale in _SCALES:
        options = search.arrangements(mirrors, scale)
        admissible = [option for option in options if option.overlap <= policy.max_iou and option.keeps_limit]
        if admissible:
            return _painted(labels, foreground, max(admissible, key=lambda option: option.score))
        found += options
    return _painted(labels, foreground, min(found, key=lambda option: option.overlap)) if found else labels.copy()


@dataclass(frozen=True)
class _Option:
    """A piece as it may be placed. excess: how far each place (cells down, cells right) is over the limit, relative to
    it; at most 0 keeps it. inside: share of the object that lies furthest in the shape to avoid, if that is another.
    """

    variant: Piece
    excess: np.ndarray
    inside: np.ndarray | float


@dataclass(frozen=True)
class _Placement:
    """A piece at a new place: `top` and `left` in cells; whether the old shape is overlapped little enough.

    score: lot and log-probability of the place, or, where it overlaps too much, how little it does so.
    """

    piece: Piece
    top: int
    left: int
    score: float
    keeps_limit: bool

    @property
    def box(self) -> tuple[slice, slice]:
        """Cells that its crop lies on."""
        height, width = self.piece.cells.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@dataclass(frozen=True)
class _Arrangement:
    """Placements of all pieces; overlap: of the new shape, `shape_overlap`; score: its pieces', weighted by area."""

    placements: tuple[_Placement, ...]
    mirrored: bool
    overlap: float
    score: float

    @property
    def keeps_limit(self) -> bool:
        return all(placement.keeps_limit for placement in self.placements)


class _Search:
    """Draws arrangements of one scene's pieces.

    lots (2, 2 R, 2 C): of a move by so many cells down and right, counted modulo their range; [1] with a mirroring.
    """

    def __init__(
        self, pieces: Pieces, max_iou: float, rng: np.random.Generator, avoided: np.ndarray | None = None
    ) -> None:
        self.pieces = pieces
        self.avoided = avoided
        self.max_iou = max_iou
        self.old = Field(pieces.cells(pieces.shape if avoided is None else avoided))
        rows, columns = pieces.grid
        self.lots = rng.gumbel(size=(2, 2 * rows, 2 * columns))

    def arrangements(self, mirrors: Sequence[bool], scale: float) -> list[_Arrangement]:
        """One arrangement of each kind: the scene as one, then its groups and its objects each on their own."""
        options = [self._arranged(pieces, mirrors, scale) for pieces in ((self.pieces.scene,), self.pieces.groups)]
        if not any(option is not None and option.keeps_limit for option in options):
            options.append(self._arranged(self.pieces.objects, mirrors, scale))
        return [option for option in options if option is not None]

    def _arranged(self, pieces: Sequence[Piece], mirrors: Sequence[bool], scale: float) -> _Arrangement | None:
        """Place pieces one after another, largest first; None where one finds no room."""
        if not pieces:
            return None
        taken, placements = np.zeros(self.pieces.grid, bool), []
        for piece in pieces:
            placement = self._placed(piece, mirrors, scale, taken)
            if placement is None:
                return None
            placements.append(placement)
            taken[placement.box] |= placement.piece.cells
        area = sum(placement.piece.area for placement in placements)
        score = sum(placement.score * placement.piece.area for placement in placements) / area
        mirrored = len(pieces) == 1 and placements[0].piece.mirrored
        overlap = self._overlap(placements)
        return _Arrangement(tuple(placements), mirrored, overlap, score - _SEPARATE / _TEMPERATURE * (len(pieces) > 1))

    def _overlap(self, placements: Sequence[_Placement]) -> float:
        """How much the pixels of all pieces overlap what they are to keep away from."""
        shape = np.zeros_like(self.pieces.shape)
        for placement in placements:
            placement.piece.stamp(shape, placement.top, placement.left)
        return shape_overlap(shape, self.pieces.shape, self.avoided)

    def _placed(self, piece: Piece, mirrors: Sequence[bool], scale: float, taken: np.ndarray) -> _Placement | None:
        """Draw a place among those that keep the limit, else take the one that overlaps the old shape least."""
        around = Field.around(taken) if taken.any() else None
        variants = (piece.varied(mirrored, scale, self.pieces) for mirrored in mirrors)
        options = [self._option(piece, variant, around) for variant in variants if variant.fits(self.pieces)]
        if not options or not np.isfinite(min(option.excess.min() for option in options)):
            return None
        return self._drawn(options)

    def _option(self, piece: Piece, variant: Piece, around: Field | None) -> _Option:
        """A variant at every place. What meets `around`, what is taken with a cell to spare, is over every limit."""
        shared = self.old.overlaps(variant.covered)
        own = variant.covered.sum((1, 2))
        inside = None if self.avoided is None else shared / own[:, None, None]
        excess = self._excess(shared, piece.covered.sum((1, 2)) + own) if inside is None else inside - self.max_iou
        excess = excess.max(0) - _ROUNDING
        if around is not None:
            excess[around.overlaps(variant.cells[None].astype(np.float64))[0] > 0.5] = np.inf
        return _Option(variant, excess, 0.0 if inside is None else inside.max(0))

    def _excess(self, shared: np.ndarray, areas: np.ndarray) -> np.ndarray:
        """How far each object is over the limit at each place (K, cells down, cells right), relative to it.

        Shapes of areas a and a' have an IoU of at most t where they share t (a + a') / (1 + t). Counting what an
        object shares with all of the old shape, and keeping this for each, keeps it for their union. Of a shape to
        avoid that is another, no object may have more than t of its area inside.
        """
        limits = self.max_iou * areas / (1 + self.max_iou)
        return (shared - limits[:, None, None]) / areas[:, None, None]

    def _costs(self, option: _Option) -> np.ndarray:
        """What each place costs the scene's meaning."""
        variant = option.variant
        rows, columns = self.pieces.grid
        height, width = variant.cells.shape
        tops, lefts = np.arange(rows - height + 1)[:, None], np.arange(columns - width + 1)[None]
        moved = _VERTICAL * abs(tops - variant.top) / rows + abs(lefts - variant.left) / columns
        at_edge = (tops == 0, tops == rows - height, lefts == 0, lefts == columns - width)
        uncut = sum(cut * ~edge for cut, edge in zip(variant.cuts, at_edge, strict=True))
        return moved + _MIRROR * variant.mirrored + _UNCUT * uncut + _TRESPASS * option.inside

    def _drawn(self, options: Sequence[_Option]) -> _Placement:
        keeps = any((option.excess <= 0).any() for option in options)
        best = None
        for option in options:
            scores = self._scores(option) if keeps else -option.excess
            top, left = (int(place) for place in np.unravel_index(scores.argmax(), scores.shape))
            if best is None or scores[top, left] > best.score:
                best = _Placement(option.variant, top, left, float(scores[top, left]), keeps)
        assert best is not None
        return best

    def _scores(self, option: _Option) -> np.ndarray:
        """Lot and log-probability of each place; -inf over the limit."""
        variant, excess = option.variant, option.excess
        rows, columns = excess.shape
        down, right = np.arange(rows)[:, None] - variant.top, np.arange(columns) - variant.left
        with np.errstate(divide="ignore"):
            room = np.log(np.clip(-excess / _MARGIN, 0, 1))
        return room - self._costs(option) / _TEMPERATURE + self.lots[int(variant.mirrored), down, right]


def _painted(labels: np.ndarray, foreground: np.ndarray, arrangement: _Arrangement) -> np.ndarray:
    """The background, without gaps and mirrored with the scene, with the pieces over it."""
    canvas = background_of(labels, foreground)
    canvas = canvas[:, ::-1].copy() if arrangement.mirrored else canvas
    for placement in arrangement.placements:
        placement.piece.paint(canvas, placement.top, placement.left)
    return canvas
