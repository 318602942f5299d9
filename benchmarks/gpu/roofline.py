"""What a denoising step would cost by arithmetic: operations and bytes of each operator, counted without a device.

The networks are run on the meta device, where tensors have shapes alone, and every operator is noted. Of attention the
least traffic is counted (no scores are written), of every other operator what an eager call reads and writes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ...engine.models.networks import Denoiser
from ...engine.models.tensors import Sizes
from ..printing import Row
from .calls import made_inputs
from .models import Architecture, networks


class Operation(NamedTuple):
    """One call of an operator: its name, its class, floating-point operations, bytes read and written."""

    name: str
    kind: str
    flops: int
    bytes: int


class Notes(TorchDispatchMode):
    """Notes every operator that runs while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._attention = _Attention(self.operations)

    def __enter__(self) -> "Notes":
        """Note also calls of attention, before they are taken apart."""
        self._attention.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Stop."""
        super().__exit__(*raised)
        self._attention.__exit__(*raised)

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and note it, unless it only looks at memory in another way."""
        result = call(*args, **(kwargs or {}))
        name = str(call._overloadpacket).replace(".", "::", 1)
        if not _is_view(call) and name not in _FREE:
            read, written = _bytes((args, kwargs)), _bytes(result)
            self.operations.append(Operation(name, kind_of(name), _flops(call, args, kwargs, result), read + written))
        return result


class _Attention(TorchFunctionMode):
    """Takes scaled_dot_product_attention as one operator."""

    def __init__(self, operations: list[Operation]) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        q, k, v = given["query"], given["key"], given["value"]
        flops = 4 * q.numel() * k.shape[-2]
        self.operations.append(Operation("attention", "self-attention", flops, _bytes((q, k, v, q))))
        return torch.empty_like(q)


_FREE = frozenset({"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::_unsafe_view", "aten::detach"})
_KINDS = {
    "aten::convolution": "convolution", "aten::addmm": "matrix product", "aten::mm": "matrix product",
    "aten::bmm": "matrix product", "twig::masked_attention": "masked attention",
    "aten::native_group_norm": "group norm", "aten::native_layer_norm": "layer norm",
}  # fmt: skip


def kind_of(name: str) -> str:
    """Class of an operator; those that a table knows nothing of are called by their own name."""
    return _KINDS.get(name, name.split("::")[-1])


def _is_view(call: Any) -> bool:
    aliases = [a.alias_info for a in call._schema.arguments if a.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


def _bytes(tree: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _flops(call: Any, args: Any, kwargs: Any, result: Any) -> int:
    if call._overloadpacket is torch.ops.twig.masked_attention:
        query, key = args[0], args[1]
        return 4 * query.numel() * key.shape[1]
    formula = flop_registry.get(call._overloadpacket)
    return 0 if formula is None else int(formula(*args, **(kwargs or {}), out_val=result))


def noted(call: Callable[[], object]) -> tuple[Operation, ...]:
    """Operators of a call."""
    with Notes() as notes:
        call()
    return tuple(notes.operations)


@dataclass(frozen=True)
class Traced:
    """Operators of one UNet call and of one ControlNet call, each of `rows` rows."""

    rows: int
    unet: tuple[Operation, ...]
    controlnet: tuple[Operation, ...]

    def flops(self, controlled: bool) -> int:
        """Floating-point operations of a step, with the ControlNet on all its rows or on none."""
        return sum(operation.flops for operation in (*self.unet, *(self.controlnet if controlled else ())))


class Tracer:
    """Networks of an architecture as shapes, whose steps at the model's own size are traced."""

    def __init__(self, sizes: Architecture, dtype: torch.dtype = torch.float16) -> None:
        self.device, self.dtype = torch.device("meta"), dtype
        self.denoiser = Denoiser(*networks(sizes, self.device, dtype))
        self.side: int = sizes.unet["sample_size"]

    @torch.no_grad()
    def __call__(self, rows: int) -> Traced:
        """Trace a step of `rows` rows. Not in inference mode, in which operators are not taken apart."""
        control, unet = made_inputs(self.denoiser, Sizes(rows, self.side, self.side), self.dtype, self.device)
        return Traced(rows, noted(lambda: self.denoiser.predict(unet)), noted(lambda: self.denoiser.control(control)))


@dataclass(frozen=True)
class Machine:
    """What a roofline assumes of a device: operations and bytes a second, and the share of each that is reached.

    launch: seconds that a kernel takes at least. attention: share of the operations that attention reaches.
    """

    name: str = "H100 SXM, as its maker describes it in fp16"
    flops: float = 989e12
    bandwidth: float = 3.35e12
    reached: float = 0.6
    moved: float = 0.85
    attention: float = 0.35
    launch: float = 2e-6

    def seconds(self, operation: Operation) -> float:
        """The longer of computing and moving, and never less than a launch."""
        share = self.attention if operation.kind == "self-attention" else self.reached
        computing = operation.flops / (self.flops * share)
        return max(computing, operation.bytes / (self.bandwidth * self.moved), self.launch)


def model_rows(sizes: Architecture, machine: Machine, row_counts: Iterable[int]) -> Iterator[Row]:
    """What the model says of steps with all rows controlled: milliseconds, utilisation, and by class of operator."""
    trace_of = Tracer(sizes)
    for rows in row_counts:
        trace = trace_of(rows)
        by_kind: dict[str, list[Operation]] = defaultdict(list)
        for operation in (*trace.unet, *trace.controlnet):
            by_kind[operation.kind].append(operation)
        seconds = {kind: sum(map(machine.seconds, found)) for kind, found in by_kind.items()}
        total, flops = sum(seconds.values()), trace.flops(True)
        yield {
            "measure": "roofline", "rows": rows, "tflop": flops / 1e12, "ms": 1e3 * total,
            "mfu": flops / total / machine.flops, "operators": sum(map(len, by_kind.values())),
            "assumed": vars(machine),
        }  # fmt: skip
        for kind, found in sorted(by_kind.items(), key=lambda pair: -seconds[pair[0]]):
            yield {
                "measure": "roofline-class", "rows": rows, "class": kind, "calls": len(found),
                "tflop": sum(o.flops for o in found) / 1e12, "gb": sum(o.bytes for o in found) / 1e9,
                "ms": 1e3 * seconds[kind],
            }  # fmt: skip
