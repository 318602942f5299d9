"""One stage for each kind of batch, on one model."""

from dataclasses import dataclass

from ..batching.arenas import Arenas
from ..judging.judge import Judge
from ..models.components import Components
from .decoding import Decoder
from .denoising import Denoising
from .encoding import Encoding
from .judging import Judging
from .placing import Placing
from .segmenting import Segmenting
from .starting import Starting


@dataclass
class Stages:
    """What the loop runs batches with."""

    encoding: Encoding
    starting: Starting
    placing: Placing
    denoising: Denoising
    segmenting: Segmenting
    judging: Judging


def assembled(components: Components, arenas: Arenas, decoder: Decoder, judge: Judge, placers: int | None) -> Stages:
    """Return the stages of a model, over the same arenas, networks and judge."""
    return Stages(
        Encoding(components, arenas.networks),
        Starting(components, arenas),
        Placing(components, arenas.networks.device, placers),
        Denoising(arenas, decoder),
        Segmenting(components, arenas, decoder, judge),
        Judging(components, arenas, decoder, judge),
    )
