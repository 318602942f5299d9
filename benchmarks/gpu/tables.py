"""The rows as Markdown, as it goes into the README."""

from collections.abc import Iterable, Iterator, Sequence

from ..printing import Row
from .verdict import AIMS, chosen, number


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of every table whose rows are there, the verdict's first."""
    yield from machine(rows)
    yield from verdict(rows)
    for make in (checks, steps, classes, operators, attention, kernels, boundaries, jobs, options, runtimes):
        yield from make(rows)


def table(title: str, columns: Sequence[str], cells: Iterable[Sequence[object]]) -> Iterator[str]:
    """Lines of one table; nothing where it has no cells."""
    found = list(cells)
    if found:
        yield from ("", title, "", _line(columns), "|" + "---|" * len(columns), *map(_line, found))


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def machine(rows: Sequence[Row]) -> Iterator[str]:
    """One sentence of what everything was measured on."""
    for row in chosen(rows, "device"):
        environment = row["environment"]
        assert isinstance(environment, dict)
        versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
        copies = [f"copies {number(r, 'bytes_per_second') / 1e12:.2f} TB/s" for r in chosen(rows, "copy")]
        best: dict[str, float] = {}
        for product in chosen(rows, "matmul"):
            if "tflops" in product:
                name = str(product["precision"])
                best[name] = max(best.get(name, 0.0), number(product, "tflops"))
        ceilings = [f"multiplies {tflops:.0f} TFLOP/s in {name}" for name, tflops in best.items()]
        yield (
            f"{row['name']}, compute capability {row['capability']}, Python {environment['python']}, {versions}; "
            f"it {', '.join([*copies, *ceilings])}."
        )


def verdict(rows: Sequence[Row]) -> Iterator[str]:
    """Aims against what was measured."""
    cells = []
    for aim in AIMS:
        value = aim.found(rows)
        bound = f"{'at most' if aim.at_most else 'at least'} {aim.told(aim.bound)}"
        cells.append(
            (aim.what, bound, *(("not measured", "") if value is None else (aim.told(value), _met(aim.met(value)))))
        )
    yield from table("Aims, on an H100-class device:", ("aim", "bound", "measured", ""), cells)


def _met(met: bool) -> str:
    return "met" if met else "**missed**"


def checks(rows: Sequence[Row]) -> Iterator[str]:
    """How many checks of each part held."""
    parts = dict.fromkeys(str(row["part"]) for row in rows if "ok" in row)
    held = {part: [bool(row["ok"]) for row in rows if row["part"] == part and "ok" in row] for part in parts}
    cells = ((part, f"{sum(found)} of {len(found)}") for part, found in held.items())
    yield from table("Checks that held:", ("part", "held"), cells)


def steps(rows: Sequence[Row]) -> Iterator[str]:
    """Steps by stage and rows."""
    cells = (
        (row["stage"], row["rows"], *(number(row, name) for name in ("ms", "steps_per_second", "job_steps_per_second")),
         _percent(number(row, "mfu")), _percent(number(row, "idle")))
        for row in chosen(rows, "step")
    )  # fmt: skip
    columns = ("stage", "rows", "ms a step", "steps a second", "of jobs", "of the ceiling", "idle")
    yield from table("Denoising steps of Stable Diffusion 1.5 at 512 x 512:", columns, cells)


def classes(rows: Sequence[Row]) -> Iterator[str]:
    """Where a replayed step's time goes."""
    cells = (
        (row["rows"], row["name"], number(row, "ms"), _percent(number(row, "share")))
        for row in chosen(rows, "kernel-class")
    )
    yield from table(
        "A replayed step by class of kernel, all rows controlled:", ("rows", "class", "ms", "share"), cells
    )


def operators(rows: Sequence[Row]) -> Iterator[str]:
    """Where an eager step's time goes."""
    cells = (
        (f"`{row['operator']}`", f"{number(row, 'calls'):.0f}", number(row, "ms"), _percent(number(row, "share")))
        for row in chosen(rows, "operator")
    )
    yield from table("An eager step by operator:", ("operator", "calls", "ms", "share"), cells)


def attention(rows: Sequence[Row]) -> Iterator[str]:
    """The fastest backend of each level."""
    cells = (
        (row["pixels"], row["head_dim"], row["rows"], row["backend"], number(row, "ms"), number(row, "tflops"))
        for row in chosen(rows, "sdpa", fastest=True)
    )
    columns = ("pixels", "head", "rows", "fastest backend", "ms", "TFLOP/s")
    yield from table("Self-attention by level:", columns, cells)


def kernels(rows: Sequence[Row]) -> Iterator[str]:
    """Kernels against what PyTorch offers, the largest batch of each shape."""
    timed = chosen(rows, "timed")
    cells: list[tuple[object, ...]] = [
        (f"attention {row['side']}x{row['side']}, head {row['head_dim']}", row["batch"], row["contender"],
         number(row, "p50"), number(row, "over_plain"))
        for row in timed
        if row["kernel"] == "masked_attention" and row["batch"] == 32
    ]  # fmt: skip
    cells += [
        (f"{row['kernel']} {row['side']}x{row['side']}", row["jobs"], row["contender"], number(row, "p50"),
         _percent(number(row, "of_copy_bandwidth")))
        for row in timed
        if row["kernel"] != "masked_attention" and row["jobs"] == 64
    ]  # fmt: skip
    cells += [
        (f"{row['kernel']} {row['side']}x{row['side']}x{row.get('channels') or row.get('width')}", row["batch"],
         row["contender"], number(row, "p50"), _percent(number(row, "of_copy_bandwidth")))
        for row in chosen(rows, "layer")
        if "p50" in row
    ]  # fmt: skip
    columns = ("kernel", "rows", "contender", "microseconds", "over plain SDPA, or of the bandwidth")
    yield from table("Kernels:", columns, cells)


def boundaries(rows: Sequence[Row]) -> Iterator[str]:
    """Batches between steps, placing and cancelling."""
    cells: list[tuple[object, ...]] = [
        (row["batch"], row["jobs"], number(row, "ms")) for row in chosen(rows, "boundary")
    ]
    cells += [("search of a moved map, CPU time", 1, number(row, "cpu_ms")) for row in chosen(rows, "placing")]
    cells += [("from a cancel to its end", 1, number(row, "ms")) for row in chosen(rows, "cancel")]
    yield from table("Between steps:", ("batch", "jobs", "ms"), cells)


def jobs(rows: Sequence[Row]) -> Iterator[str]:
    """Two-step jobs, everybody's; and traffic."""
    cells: list[tuple[object, ...]] = []
    for row in chosen(rows, "job"):
        seconds = row["seconds"]
        assert isinstance(seconds, dict)
        cells += [(name, row["requests"], spent) for name, spent in seconds.items()]
    for row in chosen(rows, "compiled"):
        told = number(row, "seconds") if "seconds" in row else f"not run: {row['skipped']}"
        cells.append((f"diffusers, `torch.compile`, {row['way']}", row["requests"], told))
    yield from table("Two-step jobs of 20 and 20 steps:", ("contender", "requests", "seconds"), cells)
    held = (
        (f"{number(row, 'p95'):.2f} s", number(row, "engine-continuous"), number(row, "engine-static"),
         f"{number(row, 'ratio'):.2f}" + ("" if row["exact"] else ", beyond what was measured"))
        for row in chosen(rows, "equal-p95")
    )  # fmt: skip
    columns = ("95th percentile", "continuous", "static", "ratio")
    yield from table("Requests a second at equal 95th percentiles, mixed steps:", columns, held)


def options(rows: Sequence[Row]) -> Iterator[str]:
    """Options of the torch backend."""
    cells = (
        (f"`{row['option']}`", row["precision"], *_outcome(row, "speedup"), row.get("error"))
        for row in chosen(rows, "option")
    )
    columns = ("option", "precision", "ms", "speed-up", "relative error")
    yield from table("Options of the torch backend, UNet and ControlNet at 32 rows:", columns, cells)


def _outcome(row: Row, ratio: str) -> tuple[object, object]:
    if "ms" in row:
        return number(row, "ms"), f"{number(row, ratio):.2f}x"
    return row.get("why") or row.get("skipped"), None


def runtimes(rows: Sequence[Row]) -> Iterator[str]:
    """Other runtimes."""
    cells = ((row["backend"], *_outcome(row, "over_graph")) for row in chosen(rows, "runtime"))
    columns = ("runtime", "ms", "over PyTorch's graph")
    yield from table("Other runtimes, the embedded model in fp32 at 16 rows:", columns, cells)
