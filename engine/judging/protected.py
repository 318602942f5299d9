"""Finals against registered works: the closest of each measure over those whose descriptors are nearest."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..api.metrics import SHARE, Direction
from ..models.transfers import sent
from .extra import PREFIX, ExtraMetric, extra_scores
from .registry import Nearest, Registry
from .similarity import measure

_CANDIDATES = 3
_LEAST_OWN = 0.05  # a work that is less like itself than this is not told from others by what it scores
_DECODED = 64  # works whose pixels stay in memory


class Against(NamedTuple):
    """Which works are nearest to each of B finals, k of them, and measures (B * k,) against these, by name."""

    nearest: Nearest
    values: dict[str, Tensor]


class Protected:
    """Registered works, as the finals of one model are held against them.

    directions: of every measure, by its name of finals; `PREFIX` and it are that against works. decode: latents
    (B, C, h, w) -> pixels (B, 3, H, W) in [0, 1]. shapes: pixels -> shapes (B, H, W) bool that are seen in them.
    """

    def __init__(
        self,
        registry: Registry,
        extra_metrics: Mapping[str, ExtraMetric],
        directions: Mapping[str, Direction],
        decode: Callable[[Tensor], Tensor],
        shapes: Callable[[Tensor], Tensor],
    ) -> None:
        self.registry = registry
        self._extra_metrics, self._directions = extra_metrics, directions
        self._decode, self._shapes = decode, shapes
        self._works: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()

    def launch(self, finals: Tensor) -> Against:
        """Have finals (B, 3, H, W) measured against the works that are nearest to them."""
        nearest = self.registry.nearest(finals, _CANDIDATES)
        count = nearest.positions.shape[1]
        works = [self._work(int(position), finals.device) for position in nearest.positions.flatten()]
        references, masks = (torch.cat(parts) for parts in zip(*works, strict=True))
        pairs = F.interpolate(finals, references.shape[-2:], mode="area").repeat_interleave(count, 0)
        return Against(
            nearest, measure(pairs, references, masks) | extra_scores(self._extra_metrics, pairs, references)
        )

    def read(self, nearest: Nearest, values: Mapping[str, Tensor]) -> list[tuple[dict[str, float], str]]:
        """The closest of each measure, and the nearest work's id, of each final; values: what `launch` found, on the
        host.
        """
        table = {name: value.reshape(nearest.positions.shape) for name, value in values.items()}
        table["descriptor"] = torch.from_numpy(nearest.similarity).float()
        shares = {} if self.registry.unmeasured else self._shares(table, nearest.positions)
        return [
            (
                {PREFIX + name: self._closest(PREFIX + name, value[i]) for name, value in table.items()}
                | {name: float(value[i].max()) for name, value in shares.items()},
                self.registry.works[positions[0]].id,
            )
            for i, positions in enumerate(nearest.positions)
        ]

    def work(self, id: str, device: torch.device) -> Tensor:
        """Pixels (1, 3, H, W) of the work with `id`."""
        position = next(i for i, work in enumerate(self.registry.works) if work.id == id)
        return self._work(position, device)[0]

    def _shares(self, table: Mapping[str, Tensor], positions: np.ndarray) -> dict[str, Tensor]:
        """Measures (B, k) against the works at `positions` (B, k), over what an exact copy of each scores."""
        works = self.registry.works
        return {
            f"{PREFIX}{name}{SHARE}": table[name]
            / torch.tensor([[works[i].own[name] for i in row] for row in positions]).clamp_min(_LEAST_OWN)
            for name in works[0].own
        }

    def _closest(self, name: str, values: Tensor) -> float:
        return float(values.max() if self._directions[name] == "similarity" else values.min())

    def _work(self, position: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """A work's pixels (1, 3, H, W) and shape (1, H, W): as kept, else as decoded, which stays in memory."""
        if position not in self._works:
            kept = self.registry.pictures.get(self.registry.works[position].id)
            (found,) = sent([self.registry.latents[position] if kept is None else kept.float() / 255], device)
            pixels = self._decode(found[None]) if kept is None else found[None]
            self._works[position] = pixels, self._shapes(pixels)
            if len(self._works) > _DECODED:
                self._works.popitem(last=False)
        return self._works[position]
