"""OpenVINO on the CPU: a network compiled once for each batch size and resolution, which it runs fastest at."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import openvino
import torch
from openvino.preprocess import PrePostProcessor
from torch import Tensor

from ..api.errors import BackendError
from ..models.tensors import NetworkSpec, Sizes, TensorSpec
from ..sampling.buckets import bucket_of
from .compile_cache import is_kept, keep
from .openvino_norms import keep_channels_last
from .openvino_program import Program
from .programs import Due, Programs
from .protocol import Artifact, Precision

_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16"}
_CHANNELS_LAST, _CHANNELS_FIRST = openvino.Layout("NHWC"), openvino.Layout("NCHW")
_HEAVY = 1 << 37
"""Bytes of weights times places of a row, from which on a row keeps the CPU busy by itself: some 0.15 s and more on one
thread. Further programs would hold the same weights again and save nothing."""
_FEW_PLACES = 1 << 10
"""What a row has at least when it is weighed: weights of 128 MiB are heavy whatever is computed with them."""


@functools.cache
def process_core() -> openvino.Core:
    """The one core of this process, which lives as long as the process.

    Each core's CPU plugin gives the calling thread a signal stack of its own, large enough for AMX, and when it goes
    puts back the stack it found. Of two cores that go in the order they came, the second puts back the stack that the
    first has unmapped, and the next signal, Ctrl-C say, kills the process or writes into memory that is something
    else by then (seen in OpenVINO 2026.4).
    """
    return openvino.Core()


def check_precision(precision: Precision) -> None:
    """Raise BackendError where this CPU does not compute in `precision`."""
    if precision not in _HINTS:
        raise BackendError(
            f"openvino computes {' and '.join(_HINTS)} on a CPU, not {precision.value}; choose one of them"
        )
    if precision is Precision.BF16:
        able = process_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in able:
            raise BackendError(f"this CPU has no bf16 instructions (it has {', '.join(able)}); choose fp32")


class OpenVinoNetwork:
    """A network with static shapes. Rows are padded up to one of `buckets`; beyond the largest each size is its own.
    Where a row is work enough by itself there is one program, for one row, and calls are run row by row.

    The graph is fp32, and `precision` is what the CPU computes in. Compiled programs are kept in the artifact's
    cache folder, with checksums; those that are loaded, in `programs`. Raises BackendError for a precision this CPU
    lacks.
    """

    def __init__(
        self,
        artifact: Artifact,
        spec: NetworkSpec,
        precision: Precision,
        buckets: Sequence[int],
        programs: Programs[Program] | None = None,
    ) -> None:
        self.spec = spec
        self.programs = Programs[Program]() if programs is None else programs
        self._buckets = tuple(buckets)
        self._core = process_core()
        check_precision(precision)
        self._precision = precision
        self._cache = artifact.cache / precision.value
        self._cache.mkdir(exist_ok=True)
        self._settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            # A pinned thread waits for its core when another process has it.
            "ENABLE_CPU_PINNING": False,
        }
        self._graph = artifact.path
        self._run_in: dict[Sizes, Due[Program]] = {}
        self._weight = sum(file.stat().st_size for file in artifact.path.parent.glob(f"{artifact.path.name}*"))

    def __call__(self, inputs: Sequence[Tensor], wanted: int | None = None) -> tuple[Tensor, ...]:
        """Run on `inputs`; outputs, the first `wanted` or all, are new tensors."""
        calls = self._calls(Sizes(len(inputs[0]), *(inputs[0].shape[2:] if inputs[0].ndim == 4 else (1, 1))))
        if len(calls) == 1:
            return calls[0][0](inputs, wanted)
        ends = list(accumulate(count for _, count in calls))
        parts = (
            program([each[end - count : end] for each in inputs], wanted)
            for (program, count), end in zip(calls, ends, strict=True)
        )
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))

    def row_counts(self, sizes: Sizes) -> tuple[int, ...]:
        """Row counts that calls for pictures of those sizes are run in."""
        heavy = self._weight * max(sizes.height * sizes.width, _FEW_PLACES) >= _HEAVY
        return (1,) if heavy else self._buckets

    def _calls(self, sizes: Sizes) -> list[tuple[Program, int]]:
        """Programs to run a call in, one after the other, each with its row count."""
        if sizes not in self._run_in:
            counts = self.row_counts(sizes)
            padded = bucket_of(sizes.rows, counts) if sizes.rows <= counts[-1] else sizes.rows
            self._run_in[sizes] = self.due(replace(sizes, rows=1 if counts == (1,) else padded))
        due = self._run_in[sizes]
        if sizes.rows > due.sizes.rows:
            return self.programs.running(due, 1) * sizes.rows
        return self.programs.running(due, sizes.rows)

    def _dtype(self, spec: TensorSpec) -> torch.dtype:
        """What the program reads an input in: keys and values in its own precision, which the plugin converts slowly.

        Pictures stay fp32: where they are added to others, the sum alone is rounded.
        """
        own = torch.bfloat16 if self._precision is Precision.BF16 and len(spec.shape) == 3 else torch.float32
        return spec.dtype or own

    def due(self, sizes: Sizes) -> Due[Program]:
        """The program for `sizes`, which is compiled, or read from the cache, when it is made."""
        return Due(self.spec.network.value, sizes, functools.partial(self._made, sizes))

    def _made(self, sizes: Sizes) -> tuple[Program, int]:
        key = (sizes.rows, sizes.height, sizes.width)
        program = self._cache / f"{self._identity}-{'x'.join(map(str, key))}.blob"
        dtypes = [self._dtype(spec) for spec in self.spec.inputs]
        found = is_kept(program)
        made = self._imported(program, dtypes) if found else Program(self._compiled(sizes, program), dtypes)
        return made, program.stat().st_size

    @functools.cached_property
    def _model(self) -> openvino.Model:
        """The graph, which a process that finds its programs never reads."""
        return self._core.read_model(str(self._graph))

    @functools.cached_property
    def _identity(self) -> str:
        """What a program depends on beside its sizes: the graph, the settings, OpenVINO, and what is done to graphs."""
        sources = [Path(__file__), Path(__file__).with_name("openvino_norms.py"), self._graph]
        said = [str(self._graph), openvino.get_version(), json.dumps(self._settings, sort_keys=True)]
        total = hashlib.sha256("\0".join(said).encode())
        for source in sources:
            total.update(source.read_bytes())
        return total.hexdigest()[:24]

    def _compiled(self, sizes: Sizes, program: Path) -> openvino.CompiledModel:
        model = self._model.clone()
        model.reshape({spec.name: list(sizes.of(spec, self.spec)) for spec in self.spec.inputs})
        keep_channels_last(model)
        compiled = self._core.compile_model(self._with_bindings(model), "CPU", self._settings)
        keep(program, compiled.export_model().getvalue())
        return compiled

    def _imported(self, program: Path, dtypes: Sequence[torch.dtype]) -> Program:
        """A program that is what was written."""
        mapped = np.memmap(program, np.uint8, "c")  # no copy: weights that are used as they lie stay the file's pages
        compiled = self._core.import_model(openvino.Tensor(mapped, shared_memory=True), "CPU", self._settings)
        return Program(compiled, dtypes, mapped)

    def _with_bindings(self, model: openvino.Model) -> openvino.Model:
        """`model` with inputs and outputs as `Program` gives and takes them: without a reorder."""
        steps = PrePostProcessor(model)
        for spec in self.spec.inputs:
            if len(spec.shape) == 4:
                steps.input(spec.name).tensor().set_layout(_CHANNELS_LAST)
                steps.input(spec.name).model().set_layout(_CHANNELS_FIRST)
            if self._dtype(spec) is torch.bfloat16:
                steps.input(spec.name).tensor().set_element_type(openvino.Type.bf16)
        for spec in self.spec.outputs:
            if len(spec.shape) == 4:
                steps.output(spec.name).model().set_layout(_CHANNELS_FIRST)
                steps.output(spec.name).tensor().set_layout(_CHANNELS_LAST)
        return steps.build()
