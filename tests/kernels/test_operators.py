"""The operators as users call them, on a CPU."""

import pytest
import torch

from twig.kernels import (
    HIDDEN,
    NoiseStream,
    ScalarColumn,
    StepColumns,
    TokenRow,
    denoise_step,
    gather_rows,
    masked_attention,
    masked_attention_with_mass,
    neutral_scalars,
    neutral_tokens,
    philox_normal,
)
from twig.kernels.masked_attention import kernel_takes, launch_masked_attention, masked_attention_reference
from twig.kernels.ops import masked_attention_cuda
from twig.kernels.testing import TOLERANCES, assert_close, attention_inputs


def by_hand(q, k, v, mask, tokens, scalars, *, heads, grid):
    """The equations, one query pixel at a time, in fp64 and on purpose without any shared code."""
    B, N, C = q.shape
    d, T = C // heads, k.shape[1]
    out = torch.zeros(B, N, C, dtype=torch.float64)
    mass = torch.zeros(2, B, heads, T, dtype=torch.float64)
    weight = torch.zeros(2, B, dtype=torch.float64)
    for i in range(B):
        b, bbar, c, g, pad = tokens[i].double()
        eta, rho, gamma = scalars[i].double().tolist()
        for n in range(N):
            y, x = divmod(n, grid[1])
            raw = float(mask[i, y * mask.shape[1] // grid[0], x * mask.shape[2] // grid[1]])
            M = eta * raw
            weight[:, i] += torch.tensor([raw, 1 - raw])
            for h in range(heads):
                at = slice(h * d, (h + 1) * d)
                s = k[i, :, at].double() @ q[i, n, at].double() / d**0.5 + pad
                l = s if eta == 0 else s * (1 + M * (c - 1)) + M * b + (1 - M) * bbar
                p = torch.exp(l - l.max()) / torch.exp(l - l.max()).sum() * (1 + M * (g - 1))
                p = p * ((1 - rho) + rho / max(float(p.sum()), 1e-6))
                out[i, n, at] = (1 - gamma * M) * (p @ v[i, :, at].double())
                mass[0, i, h] += raw * p
                mass[1, i, h] += (1 - raw) * p
    return out, *(mass / weight.clamp_min(1e-6)[:, :, None, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("length", "mask_size"), [(77, (4, 6)), (9, (9, 5)), (300, (1, 1))])
def test_the_operator_is_the_equation(dtype, length, mask_size):
    inputs = attention_inputs(3, 2, (4, 6), length, 24, dtype)
    inputs["mask"] = torch.rand(3, *mask_size)
    inputs["scalars"][1, ScalarColumn.ETA] = 0
    expected = by_hand(**inputs)
    out, inside, outside = masked_attention_with_mass(**inputs)
    assert out.dtype == dtype
    assert_close(out, expected[0], TOLERANCES[dtype], "out")
    assert_close(inside, expected[1], 1e-5, "inside")
    assert_close(outside, expected[2], 1e-5, "outside")
    assert_close(masked_attention(**inputs), expected[0], TOLERANCES[dtype], "out without mass")
    assert_close(masked_attention_reference(**inputs)[0], expected[0], TOLERANCES[dtype], "reference")


def published(rule, inputs):
    """Settings of METHOD's table on plain inputs."""
    tokens, scalars = inputs["tokens"], inputs["scalars"]
    scalars[:, ScalarColumn.ETA] = 1
    match rule:
        case "prompt-to-prompt":
            tokens[:, TokenRow.G, 2:5] = 3.0
        case "renormalised":
            tokens[:, TokenRow.G, 2:5] = 0.2
            scalars[:, ScalarColumn.RHO] = 1
        case "memorisation":
            tokens[:, TokenRow.B, 10:] = -1e4
            tokens[:, TokenRow.C, 0] = 1.25
        case "spikes":
            tokens[:, TokenRow.C, 3] = 0.5
        case "paint-with-words":
            tokens[:, TokenRow.B, 4] = 0.4 * 2.7
        case "regional":
            tokens[:, TokenRow.B, 8:] = -1e4
            tokens[:, TokenRow.BBAR, 1:8] = -1e4
        case "ip-adapter":
            inputs["mask"] = 1 - inputs["mask"]
            scalars[:, ScalarColumn.GAMMA] = 1
    return inputs


@pytest.mark.parametrize(
    "rule",
    ["prompt-to-prompt", "renormalised", "memorisation", "spikes", "paint-with-words", "regional", "ip-adapter"],
)
@pytest.mark.parametrize("fill", [None, 0.0, 1.0])
def test_published_rules(rule, fill):
    inputs = attention_inputs(2, 2, (3, 5), 20, 16, active=False)
    if fill is not None:
        inputs["mask"].fill_(fill)
    inputs = published(rule, inputs)
    assert_close(masked_attention(**inputs), by_hand(**inputs)[0], 1e-5, rule)


def test_a_renormalised_factor_is_a_logarithmic_bias():
    inputs = attention_inputs(1, 2, (4, 4), 20, 16, active=False)
    inputs["mask"].fill_(0.3)
    inputs["scalars"][:] = torch.tensor([1.0, 1.0, 0.0])
    factor = torch.rand(20) * 3
    tokens = inputs["tokens"].clone()
    tokens[:, TokenRow.G] = factor
    biased = inputs["tokens"].clone()
    biased[:, TokenRow.B] = torch.log1p(0.3 * (factor - 1)) / 0.3
    one, other = (masked_attention(**(inputs | {"tokens": t})) for t in (tokens, biased))
    assert_close(one, other, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_switched_off_is_plain_attention(dtype):
    inputs = attention_inputs(2, 4, (6, 6), 77, 32, dtype)
    inputs["scalars"] = neutral_scalars(2)
    inputs["tokens"][:, TokenRow.PAD] = 0
    q, k, v = (inputs[n].unflatten(-1, (4, 32)).transpose(1, 2) for n in "qkv")
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert_close(masked_attention(**inputs), plain, TOLERANCES[dtype])


def test_switched_off_a_bias_of_tokens_still_counts():
    inputs = attention_inputs(2, 2, (4, 6), 30, 16)
    inputs["scalars"] = neutral_scalars(2)
    assert bool(inputs["tokens"][:, TokenRow.PAD].any())
    expected, *_ = masked_attention_reference(**inputs)
    assert_close(masked_attention(**inputs), expected, TOLERANCES[torch.float32])


def test_neutral_tokens_change_nothing_at_any_strength():
    inputs = attention_inputs(2, 2, (4, 4), 30, 16, active=False)
    plain = masked_attention(**inputs)
    inputs["scalars"] = torch.tensor([[1.0, 1.0, 0.0], [0.4, 0.5, 0.0]])
    assert_close(masked_attention(**inputs), plain, 1e-6)
    assert torch.equal(inputs["tokens"], neutral_tokens(2, 30))


def test_wrong_arguments_are_refused_on_a_cpu_too():
    inputs = attention_inputs(1, 2, (4, 4), 20, 16)
    with pytest.raises(ValueError, match=r"tokens must have shape \(1, 5, 20\), got \(1, 5, 19\)"):
        masked_attention(**(inputs | {"tokens": inputs["tokens"][..., 1:]}))


def test_the_launcher_refuses_cpu_tensors_in_ordinary_use():
    with pytest.raises((ValueError, RuntimeError), match=r"CUDA tensors|not installed"):
        launch_masked_attention(**attention_inputs(1, 2, (4, 4), 20, 16))


def step_arguments():
    torch.manual_seed(0)
    return (
        torch.randn(3, 4, 6, 5), torch.randn(3, 4, 6, 5), torch.randn(4, 4, 6, 5), torch.tensor([2, -1]),
        torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0]]), torch.tensor([[2.0, -1.0, 0, 0], [0, 0, 0, 0]]),
        torch.tensor([1, 0]), torch.randn(3, 2, len(StepColumns)), torch.rand(3, 6, 5), torch.arange(3),
        torch.randn(3, 4, 6, 5), torch.tensor([[0, 1], [0, 0]]), torch.tensor([0.7, 0.0]),
    )  # fmt: skip


def test_one_step_by_hand():
    arguments = step_arguments()
    x, old, carried = arguments[0][2].clone(), arguments[1][2].clone(), arguments[10][2].clone()
    untouched = arguments[0][:2].clone()
    _, p, q, a, b, c, d, u, w, m, r, n, g, kx, ke, kh, kl = arguments[7][2, 1].tolist()
    guided, text = 2 * arguments[2][0] - arguments[2][1], arguments[2][1]
    guided = 0.7 * guided * text.std() / guided.std() + 0.3 * guided
    eps = p * x + q * guided
    x0 = u * x + w * eps
    solver, fresh = (
        philox_normal(torch.tensor([2]), 1, stream, (4, 6, 5))[0] for stream in (NoiseStream.SOLVER, NoiseStream.MASK)
    )
    new = a * x + b * eps + c * old + g * carried + d * solver
    kept = kx * x + ke * eps + kh * old + kl * carried
    new = new + m * arguments[8][2] * (r * x0 + n * fresh - new)
    denoise_step(*arguments)
    assert_close(arguments[0][2], new, 1e-5)
    assert_close(arguments[1][2], x0, 1e-5)
    assert_close(arguments[10][2], kept, 1e-5)
    assert torch.equal(arguments[0][:2], untouched)


@pytest.mark.parametrize("with_mass", [False, True])
def test_attention_as_an_operator(with_mass):
    inputs = list(attention_inputs(2, 2, (3, 4), 20, 16).values())
    operator = torch.ops.twig.masked_attention_mass if with_mass else torch.ops.twig.masked_attention
    torch.library.opcheck(operator.default, (*inputs[:7], list(inputs[7])))


def test_step_and_gather_as_operators():
    arguments = step_arguments()
    torch.library.opcheck(torch.ops.twig.denoise_step.default, arguments)
    slots = torch.tensor([2, -1, 0])
    gather = (arguments[0], arguments[7], slots, slots.clamp_max(1), torch.zeros(3, 4, 6, 5))
    torch.library.opcheck(torch.ops.twig.gather_rows.default, gather)


class Layer(torch.nn.Module):
    def forward(self, q, k, v, mask, tokens, scalars):
        return masked_attention(q, k, v, mask, tokens, scalars, heads=2, grid=(3, 4)) * 2


def test_export_keeps_the_operator():
    inputs = tuple(attention_inputs(2, 2, (3, 4), 20, 16).values())[:6]
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Layer(), inputs, dynamic_shapes=[{0: batch}] * 6)
    assert "twig.masked_attention" in str(exported.graph)
    other = tuple(attention_inputs(5, 2, (3, 4), 20, 16).values())[:6]
    assert_close(exported.module()(*other), Layer()(*other), 1e-6)


def test_compile_sees_one_graph():
    inputs = tuple(attention_inputs(2, 2, (3, 4), 20, 16).values())[:6]
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    assert_close(compiled(*inputs), Layer()(*inputs), 1e-6)

    def in_place(latents, coefficients, slots, out):
        return gather_rows(latents, coefficients, slots, slots, out) + 1

    arguments = step_arguments()
    slots = torch.tensor([0, 1])
    compiled = torch.compile(in_place, fullgraph=True, backend="aot_eager")
    out = torch.zeros(2, 4, 6, 5)
    result = compiled(arguments[0], arguments[7], slots, out)
    assert_close(result, out + 1, 1e-6)
    assert out.any()


@pytest.mark.parametrize(("head_dim", "taken"), [(8, True), (40, True), (256, True), (28, False), (264, False)])
def test_head_dimensions_the_kernel_is_not_built_for_take_the_reference(head_dim, taken):
    assert kernel_takes(head_dim) is taken
    inputs = attention_inputs(2, 3, (4, 4), 77, head_dim)
    if taken:
        with pytest.raises((ValueError, RuntimeError), match=r"CUDA tensors|not installed"):
            masked_attention_cuda(**inputs)
    else:
        expected = masked_attention_reference(**inputs)
        found = masked_attention_cuda(**inputs, with_mass=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("with_mass", [False, True])
@pytest.mark.parametrize("factored", [False, True])
def test_rows_of_different_lengths_are_each_what_they_are_alone(with_mass, factored):
    """Bit for bit, whatever lies under the hidden tokens; and the reference agrees that these have no part."""
    operator = masked_attention_with_mass if with_mass else masked_attention
    lengths = 77, 231, 154
    inputs = attention_inputs(3, 2, (4, 6), 231, 16)
    tokens = inputs["tokens"]
    if not factored:
        tokens[:, [TokenRow.C, TokenRow.G]] = 1
    for row, length in enumerate(lengths):
        tokens[row, :, length:] = neutral_tokens(1, 231 - length)[0]
        tokens[row, TokenRow.PAD, length:] = HIDDEN
    found = operator(**inputs)
    found = found if with_mass else (found,)
    for one, other in zip(found, masked_attention_reference(**inputs), strict=False):
        assert torch.allclose(one, other, atol=1e-5)
    for row, length in enumerate(lengths):
        own = {name: value[row : row + 1] if torch.is_tensor(value) else value for name, value in inputs.items()}
        own |= {"k": own["k"][:, :length], "v": own["v"][:, :length], "tokens": own["tokens"][..., :length]}
        alone = operator(**own)
        alone = alone if with_mass else (alone,)
        assert torch.equal(found[0][row], alone[0][0])
        for mass, single in zip(found[1:], alone[1:], strict=True):
            assert torch.equal(mass[row, :, :length], single[0])
            assert (mass[row, :, length:] == 0).all()
