"""What batches of the engine would cost on a device by a roofline: no measurement, and only as good as its assumptions.

Only networks count: UNet and ControlNet by the operators of a step, and beside them the autoencoder's decoder, which
outweighs text encoder and segmenter by far. Host work is not in it.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from diffusers import AutoencoderKL

from ..costs import Costs, Line, Point
from .models import SD15, Architecture
from .roofline import Machine, Operation, Tracer, noted

_ENCODING = 1e-3  # seconds of a text encoder, whatever its batch: launches


def predicted_costs(machine: Machine, most_rows: int, sizes: Architecture = SD15) -> Costs:
    """Costs of batches up to `most_rows` rows; lines through what the roofline expects at powers of two."""
    trace_of = Tracer(sizes)
    buckets = tuple(1 << n for n in range(most_rows.bit_length()) if 1 << n <= most_rows)
    traced = [trace_of(rows) for rows in buckets]
    decoding = {count: _total(machine, _decoding(sizes, trace_of.side, count)) for count in (1, 2, 4)}
    decode = Line.fit(decoding)
    return Costs(
        denoise=Line.fit({trace.rows: _total(machine, trace.unet) for trace in traced}),
        control=Line.fit({trace.rows: _total(machine, trace.controlnet) for trace in traced}),
        encode=Line(_ENCODING, 0.0),
        segment=decode,
        judge=decode,
        buckets=buckets,
    )


def with_measured_steps(costs: Costs, rows: Iterable[Point]) -> Costs:
    """`costs`, steps as `twig.benchmarks.gpu` measured them: lines through its rows of drafts and controlled finals.

    Raises ValueError where there are none of a kind.
    """
    seconds = {
        (int(str(row["rows"])), int(str(row["control_rows"]))): float(str(row["ms"])) / 1000
        for row in rows
        if row.get("measure") == "step"
    }
    drafts = {count: took for (count, control), took in seconds.items() if not control}
    added = {control: took - drafts[n] for (n, control), took in seconds.items() if control == n and n in drafts}
    if len(drafts) < 2 or len(added) < 2:
        raise ValueError("no steps of drafts and of controlled finals in two sizes: rows must be twig.benchmarks.gpu's")
    return replace(costs, denoise=Line.fit(drafts), control=Line.fit(added))


def _total(machine: Machine, operations: tuple[Operation, ...]) -> float:
    return sum(map(machine.seconds, operations))


@torch.no_grad()
def _decoding(sizes: Architecture, side: int, count: int) -> tuple[Operation, ...]:
    """Operators of decoding `count` pictures in fp16."""
    with torch.device("meta"):
        vae = AutoencoderKL(**sizes.vae).half()
        latents = torch.empty(count, vae.config.latent_channels, side, side, dtype=torch.float16)
    return noted(lambda: vae.decode(latents))
