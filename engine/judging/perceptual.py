"""LPIPS over AlexNet (Zhang et al., CVPR 2018), and its shift-tolerant kind (Ghildyal & Liu, ECCV 2022), by weights.

Written from the papers and from what the weights' names and shapes say; `tests/engine/judging/test_perceptual.py` holds
it against the authors' own code.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHANNELS = (64, 192, 384, 256, 256)
_PLAIN = ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")
_TOLERANT = ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13")
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_AT_ONCE = 2**20
"""Pixels of pairs that are looked at together: the first layer keeps 64 values of each, at full size."""

LEAST = {False: 31, True: 21}
"""Shortest side of a picture that the network can look at, by whether it is the shift-tolerant one."""


class Lpips(nn.Module):
    """Distance of pictures as people see it: differences of an AlexNet's unit features, weighted by trained heads.

    tolerant: the network of the shift-tolerant kind, which thins its features out by blurring them and without striding
    in its first convolution. The names of its weights are those of the published files.
    """

    def __init__(self, tolerant: bool) -> None:
        super().__init__()
        self.tolerant = tolerant
        sizes = ((3, 11, 2), (64, 5, 2), (192, 3, 1), (384, 3, 1), (256, 3, 1))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(given, channels, size, stride=4 if depth == 0 and not tolerant else 1, padding=padding)
            for depth, ((given, size, padding), channels) in enumerate(zip(sizes, _CHANNELS, strict=True))
        )
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(1, channels, 1, 1)) for channels in _CHANNELS)

    @staticmethod
    def names(tolerant: bool) -> dict[str, str]:
        """Names of its tensors, and those that the published files have for them."""
        places = _TOLERANT if tolerant else _PLAIN
        found = {f"heads.{i}": f"lin{i}.model.1.weight" for i in range(len(places))}
        for kind in ("weight", "bias"):
            found |= {f"convolutions.{i}.{kind}": f"net.{place}.{kind}" for i, place in enumerate(places)}
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], tolerant: bool) -> "Lpips":
        """The network of a published file's tensors.

        Raises KeyError for one that is missing, RuntimeError for one of another shape.
        """
        made = cls(tolerant)
        made.load_state_dict({own: tensors[name].float() for own, name in cls.names(tolerant).items()})
        return made.eval().requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], twice -> distances (B,), 0 for the same.

        Raises ValueError for pictures smaller than `LEAST`.
        """
        height, width = first.shape[-2:]
        if min(height, width) < LEAST[self.tolerant]:
            raise ValueError(f"pictures must have {LEAST[self.tolerant]} pixels a side or more, got {height}x{width}")
        count = max(1, _AT_ONCE // (height * width))
        pairs = zip(first.float().split(count), second.float().split(count), strict=True)
        return torch.cat([self._distances(one, other) for one, other in pairs])

    def _distances(self, first: Tensor, second: Tensor) -> Tensor:
        shift, scale = (first.new_tensor(each)[:, None, None] for each in (_SHIFT, _SCALE))
        total = first.new_zeros(len(first))
        x = (torch.cat([first, second]) * 2 - 1 - shift) / scale
        for depth, head in enumerate(self.heads):
            x = self._layer(x, depth)
            one, other = (x / (x.norm(dim=1, keepdim=True) + 1e-10)).chunk(2)
            total = total + ((one - other).square() * head).sum(1).mean((1, 2))
        return total

    def _layer(self, x: Tensor, depth: int) -> Tensor:
        """Features of the next depth, after its rectifier; at depths 1 and 2 pooled first."""
        if depth in (1, 2):
            x = _blurred(F.max_pool2d(x, 3, 1)) if self.tolerant else F.max_pool2d(x, 3, 2)
        x = self.convolutions[depth](x)
        return F.relu(_blurred(x) if self.tolerant and depth == 0 else x)


def _blurred(x: Tensor) -> Tensor:
    """Every other value of x (B, C, H, W) after a binomial blur, two values of its mirror about each edge."""
    row = x.new_tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])
