"""Kernels for hosts other than Triton's launcher: the PTX takes what was declared, and costs what Triton's own does."""

import re
import subprocess

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.nvidia.compiler import get_ptxas

from architectures import built_for
from twig.kernels import aot
from twig.kernels.ptx import parameters, with_declared_parameters

DECLARED = ["u64"] * 6 + ["u32"] * 2 + ["u64"]
"""q, k, v, mask, tokens, scalars; height, width; out."""

PTX = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u32 kernel_param_1,
	.param .u64 .ptr .global .align 1 kernel_param_2
)
.reqntid 128
{
	ld.param.b64 %rd1, [kernel_param_0];
	ld.param.b32 %r1, [kernel_param_1];
}
"""


def assemble(ptx, architecture, folder):
    """Registers and spilled bytes, by the ptxas that Triton brings."""
    tool = get_ptxas(architecture).path  # which of its two Triton takes from where on is a matter of its version
    source, cubin = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(ptx)
    target = re.search(r"^\.target (\w+)", ptx, flags=re.MULTILINE).group(1)
    run = subprocess.run(
        [tool, "--regAllocOptLevel=2", f"--gpu-name={target}", source, "-o", cubin], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    usage, *_ = aot.inspect_cubin(cubin.read_bytes())
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


@pytest.mark.parametrize(
    ("architecture", "head_dim", "dtype"),
    [*(built_for(architecture, 40, torch.float16) for architecture in aot.ARCHITECTURES), (86, 160, torch.float32)],
)
def test_attention_is_launched_with_what_was_declared(architecture, head_dim, dtype, tmp_path):
    case = aot.contiguous_attention_case(8, head_dim, 77, dtype)
    kernel = aot.launchable(case, architecture)
    assert [kind for kind, _ in parameters(kernel.ptx, kernel.name)] == DECLARED
    assert f".reqntid {kernel.threads}\n" in kernel.ptx
    assert kernel.shared_bytes <= 48 * 1024, "more must be asked of the driver, which a host may not do"
    triton_own = aot.compile_case(case, architecture)
    assert assemble(kernel.ptx, architecture, tmp_path) == (triton_own.registers, 0)


def test_shapes_have_names_of_their_own_and_no_path_of_this_machine():
    cases = (
        aot.contiguous_attention_case(8, 40, 77, torch.float16),
        aot.contiguous_attention_case(8, 64, 154, torch.bfloat16),
    )
    kernels = [aot.launchable(case, 80) for case in cases]
    assert len({kernel.name for kernel in kernels}) == 2
    for kernel in kernels:
        assert f".entry {kernel.name}(" in kernel.ptx
        assert ".file" not in kernel.ptx
        assert not re.search(r"masked_attention_\w+\.py", kernel.ptx)


def test_a_parameter_that_the_kernel_reads_is_not_dropped():
    assert [name for _, name in parameters(with_declared_parameters(PTX, "kernel", 2), "kernel")] == [
        "kernel_param_0",
        "kernel_param_1",
    ]
    with pytest.raises(ValueError, match="kernel reads kernel_param_1, which no host"):
        with_declared_parameters(PTX, "kernel", 1)
    with pytest.raises(ValueError, match="kernel has 3 parameters, 4 were declared"):
        with_declared_parameters(PTX, "kernel", 4)
    with pytest.raises(ValueError, match="no entry other"):
        with_declared_parameters(PTX, "other", 1)
