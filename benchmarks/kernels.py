"""Kernels against what PyTorch offers: `python -m twig.benchmarks.kernels`, with `--aot` for the builds alone.

On a CUDA device every contender computes the same rule (a bias inside a soft mask, per sample) and is timed only
after its output agrees with the fp32 reference. Without a device the command says so, and gives the byte and
operation counts and what the binaries for each architecture cost; it never writes a time that it did not measure.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer

from ..kernels import StepColumns, TokenRow, aot, denoise_step, gather_rows, masked_attention, sample_mask
from ..kernels.denoise_step import denoise_step_reference
from ..kernels.masked_attention import masked_attention_reference, split_heads
from ..kernels.testing import ATTENTION_SHAPES, TOLERANCES, AttentionShape, assert_close, attention_inputs
from .device_timing import Call, copy_bandwidth, time_calls
from .layer_kernels import layer_model_rows, layer_rows
from .printing import Row, line
from .rows import write_rows

BATCHES = (2, 8, 16, 64)
RESULTS = Path(__file__).parent / "results"


def attention_cost(shape: AttentionShape, batch: int, element: int = 2) -> Row:
    """Least bytes to and from memory, and operations of the two products, of one call."""
    pixels, channels = shape.side**2, shape.heads * shape.head_dim
    moved = element * batch * channels * 2 * (pixels + shape.length)
    moved += 4 * batch * (pixels + 5 * shape.length + 3)
    return {"bytes": moved, "flops": 4 * batch * pixels * shape.length * channels}


def step_cost(jobs: int, size: int, rows: int, history: bool, element: int = 2) -> Row:
    """Bytes of one denoising step: latents read and written, history written and perhaps read, rows read."""
    return {"bytes": jobs * size * (4 * (3 + history) + element * rows)}


def attention_calls(inputs: dict[str, Any]) -> dict[str, Call]:
    """Contenders by name; all but the floor apply the same bias inside the mask."""
    q, k, v = (split_heads(inputs[name], inputs["heads"]) for name in "qkv")
    eta, bias = inputs["scalars"][:, 0], inputs["tokens"][:, TokenRow.B]
    scale = q.shape[-1] ** -0.5
    m = eta[:, None] * sample_mask(inputs["mask"], inputs["grid"])

    def plain() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def materialised() -> torch.Tensor:
        full = (m[:, None, :, None] * bias[:, None, None, :]).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=full.expand(-1, q.shape[1], -1, -1))

    def augmented() -> torch.Tensor:
        def widen(tensor: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
            extra = F.pad(column[:, None, :, None].to(tensor.dtype), (0, 7)).expand(-1, tensor.shape[1], -1, -1)
            return torch.cat((tensor, extra), -1)

        wide = F.scaled_dot_product_attention(widen(q, m / scale), widen(k, bias), F.pad(v, (0, 8)), scale=scale)
        return wide[..., : v.shape[-1]]

    def ours() -> torch.Tensor:
        return split_heads(masked_attention(**inputs), inputs["heads"])

    def ours_with_mass() -> torch.Tensor:
        arguments = [inputs[name] for name in ("q", "k", "v", "mask", "tokens", "scalars", "heads")]
        out = torch.ops.twig.masked_attention_mass(*arguments, list(inputs["grid"]))[0]
        return split_heads(out, inputs["heads"])

    return {
        "ours": ours, "ours with mass": ours_with_mass, "plain sdpa": plain, "materialised bias": materialised,
        "augmented sdpa": augmented, "flex attention": _flex(q, k, v, m, bias),
    }  # fmt: skip


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor, bias: torch.Tensor) -> Call:
    from torch.nn.attention.flex_attention import flex_attention

    def rule(score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return score + m[b, i] * bias[b, j]

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, score_mod=rule)


def attention_rows(bandwidth: float, dtype: torch.dtype) -> Iterator[Row]:
    """Time every shape and batch; a contender that disagrees with the reference is named and not timed."""
    for shape in ATTENTION_SHAPES:
        for batch in BATCHES:
            grid = (shape.side, shape.side)
            inputs = attention_inputs(
                batch, shape.heads, grid, shape.length, shape.head_dim, dtype, "cuda", active=False
            )
            inputs["scalars"][:, 0] = 1
            inputs["tokens"][:, TokenRow.B] = torch.randn(batch, shape.length, device="cuda")
            one: dict[str, Any] = {
                name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
            }
            expected = split_heads(masked_attention_reference(**one)[0], shape.heads)
            calls, wrong = {}, {}
            for name, call in attention_calls(inputs).items():
                try:
                    if name != "plain sdpa":
                        assert_close(call()[:1], expected, 2 * TOLERANCES[dtype], name)
                    calls[name] = call
                except Exception as error:
                    wrong[name] = str(error).splitlines()[0]
            timed = time_calls(calls)
            cost = attention_cost(shape, batch)
            common: Row = {"kernel": "masked_attention", **shape._asdict(), "batch": batch, **cost}
            for name, microseconds in timed.items():
                share = int(str(cost["bytes"])) / (microseconds["p50"] * 1e-6) / bandwidth
                ratio = microseconds["p50"] / timed["ours"]["p50"] if "ours" in timed else None
                yield common | {"contender": name, **microseconds, "of_copy_bandwidth": share, "over_ours": ratio}
            for name, reason in wrong.items():
                yield common | {"contender": name, "not_timed": reason}


def check_step(arguments: tuple[torch.Tensor, ...]) -> None:
    """Refuse to time a step that differs from the reference by a bit."""
    expected, actual = ([tensor.clone() for tensor in arguments] for _ in range(2))
    denoise_step_reference(*expected)
    denoise_step(*actual)
    for which, name in ((0, "latents"), (1, "history"), (10, "carried")):
        assert torch.equal(actual[which], expected[which]), f"denoise_step: {name} differ from the reference"


def step_rows(bandwidth: float) -> Iterator[Row]:
    """The step and the gather beside PyTorch operations of the same update (guidance, Euler ancestral)."""
    for side in (64, 96, 128):
        for jobs in BATCHES:
            shape = (4, side, side)
            coefficients = torch.zeros(jobs, 8, len(StepColumns), device="cuda")
            coefficients[..., [StepColumns.INPUT_SCALE, StepColumns.Q, StepColumns.A, StepColumns.U]] = 1
            coefficients[..., [StepColumns.B, StepColumns.W]] = -0.5
            coefficients[..., StepColumns.D] = 0.3
            latents, history, carried = (torch.randn(jobs, *shape, device="cuda") for _ in range(3))
            eps = torch.randn(2 * jobs, *shape, device="cuda", dtype=torch.float16)
            slots = torch.arange(jobs, device="cuda")
            rows = torch.stack((slots, slots + jobs, slots * 0, slots * 0), 1)
            weights = torch.tensor([7.5, -6.5, 0.0, 0.0], device="cuda").repeat(jobs, 1)
            pairs, rescales = rows[:, :2].contiguous(), torch.zeros(jobs, device="cuda")
            steps, twice = slots % 8, slots.repeat(2)
            masks = torch.zeros(jobs, side, side, device="cuda")
            buffer = torch.empty(2 * jobs, *shape, device="cuda", dtype=torch.float16)

            def ours(
                arguments: tuple[torch.Tensor, ...] = (
                    latents,
                    history,
                    eps,
                    slots,
                    rows,
                    weights,
                    steps,
                    coefficients,
                    masks,
                    slots,
                    carried,
                    pairs,
                    rescales,
                ),
            ) -> torch.Tensor:
                denoise_step(*arguments)
                return arguments[0]

            def eager(x: torch.Tensor = latents.clone(), e: torch.Tensor = eps) -> torch.Tensor:  # noqa: B008
                cond, uncond = e.chunk(2)
                noise_pred = (uncond + 7.5 * (cond - uncond)).float()
                x0 = x - 0.5 * noise_pred
                derivative = (x - x0) / 0.5
                return (x + derivative * -0.5) + torch.randn_like(x) * 0.3

            def gather(
                arguments: tuple[torch.Tensor, ...] = (latents, coefficients, twice, twice % 8, buffer),
            ) -> torch.Tensor:
                return gather_rows(*arguments)

            size = 4 * side * side
            step = step_cost(jobs, size, 2, False)
            gathered: Row = {"bytes": 2 * jobs * size * 6}
            costs = {"ours": step, "pytorch operations": step, "gather": gathered}
            state = (latents, history, eps, slots, rows, weights, steps, coefficients, masks, slots)
            check_step((*state, carried, pairs, rescales))
            timed = time_calls({"ours": ours, "pytorch operations": eager, "gather": gather})
            for name, microseconds in timed.items():
                share = int(str(costs[name]["bytes"])) / (microseconds["p50"] * 1e-6) / bandwidth
                kernel = "gather_rows" if name == "gather" else "denoise_step"
                yield {"kernel": kernel, "side": side, "jobs": jobs, **costs[name], "contender": name,
                       **microseconds, "of_copy_bandwidth": share}  # fmt: skip


def model_rows() -> Iterator[Row]:
    """Bytes and operations of each shape, from arithmetic alone."""
    for shape in ATTENTION_SHAPES:
        for batch in BATCHES:
            yield {"kernel": "masked_attention", **shape._asdict(), "batch": batch, **attention_cost(shape, batch)}
    for side in (64, 96, 128):
        yield {"kernel": "denoise_step", "side": side, "jobs": 64, **step_cost(64, 4 * side * side, 2, False)}


def footprint_rows(thorough: bool) -> Iterator[Row]:
    """Registers, spills, shared memory, size and tensor-core instructions of every kernel and architecture."""
    for architecture in aot.ARCHITECTURES:
        for case in aot.kernel_cases(thorough):
            if case.since <= architecture:
                yield dict(aot.compile_case(case, architecture)._asdict())


def main(
    builds: Annotated[bool, typer.Option("--aot", help="Only build for every architecture, and report.")] = False,
    quick: Annotated[bool, typer.Option(help="Build the hardest shapes only.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the rows.")] = RESULTS,
) -> None:
    """Compare the kernels on this machine's device, or report what can be known without one."""
    device = torch.cuda.is_available()
    parts: list[tuple[str, Iterator[Row]]] = []
    if builds or not device:
        if not device:
            typer.echo("No CUDA device: no times. Byte and operation counts, and builds, follow.")
            parts += [("", model_rows()), ("", layer_model_rows())]
        if aot.triton is None:
            typer.echo("Triton is not installed: no builds.")
        else:
            parts.append(("kernels_aot.jsonl", footprint_rows(not quick)))
    else:
        bandwidth = copy_bandwidth()
        typer.echo(f"Copy bandwidth {bandwidth / 1e12:.2f} TB/s")
        parts.append(("kernels.jsonl", attention_rows(bandwidth, torch.float16)))
        parts.append(("kernels.jsonl", step_rows(bandwidth)))
        parts.append(("kernels.jsonl", layer_rows(bandwidth, torch.float16)))
    for file, rows in parts:
        for row in rows:
            typer.echo(line(row))
            if file:
                write_rows(out / file, [row])


if __name__ == "__main__":
    typer.run(main)
