"""A bank of shapes as a picture for people: a band for each class, each shape where it stood in its scene's frame."""

import numpy as np
from PIL import Image

from ..models.bank import Bank, Shape
from .drawing import FAINT, FONT, GAP, INK, LINE, canvas, fitted, stacked

_ACROSS, _TILE, _MOST = 12, 72, 36


def bank_sheet(bank: Bank) -> Image.Image:
    """What a bank holds, in words, and of each class as many shapes as `_MOST`, evenly out of all of them."""
    width = GAP + _ACROSS * (_TILE + GAP)
    picture, pen = canvas(LINE + GAP, width)
    text = f"{len(bank.shapes)} shapes from {bank.description}; version {bank.version}"
    pen.text((GAP, 0), text, FAINT, FONT)
    return stacked([picture, *(_band(name, shelf, width) for name, shelf in bank.by_label.items())])


def _band(name: str, shelf: tuple[Shape, ...], width: int) -> Image.Image:
    shown = [shelf[place] for place in np.linspace(0, len(shelf) - 1, min(_MOST, len(shelf))).round().astype(int)]
    rows = -(-len(shown) // _ACROSS)
    picture, pen = canvas(LINE + rows * (_TILE + GAP) + GAP, width)
    more = f", {len(shown)} of them here" if len(shown) < len(shelf) else ""
    pen.text((GAP, 0), f"{name}: {len(shelf)}{more}", INK, FONT)
    for number, shape in enumerate(shown):
        row, column = divmod(number, _ACROSS)
        picture.paste(_tile(shape), (GAP + column * (_TILE + GAP), LINE + row * (_TILE + GAP)))
    return picture


def _tile(shape: Shape) -> Image.Image:
    """The shape, dark, in its scene's frame, pale."""
    frame = np.full((shape.scene.rows, shape.scene.columns), 232, np.uint8)
    height, width = shape.mask.shape
    frame[shape.top : shape.top + height, shape.left : shape.left + width][shape.mask] = 40
    return fitted(Image.fromarray(frame), _TILE)
