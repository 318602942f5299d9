import itertools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)

from twig.engine.api.errors import CheckpointError, InvalidRequestError
from twig.engine.api.settings import Solver
from twig.engine.sampling.solver import SolverTable, solver_table
from twig.kernels import StepColumns

ORACLES = {
    Solver.DDIM: DDIMScheduler,
    Solver.EULER: EulerDiscreteScheduler,
    Solver.EULER_ANCESTRAL: EulerAncestralDiscreteScheduler,
    Solver.DPMPP_2M: DPMSolverMultistepScheduler,
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")
STEPS = (1, 2, 4, 8, 20, 50)
PAIRS = list(itertools.product(Solver, PREDICTIONS))
WITHOUT_ORACLE = [(Solver.EULER_ANCESTRAL, "sample")]


def schedule(**changes) -> DDIMScheduler:
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**(settings | changes))


def oracle(solver: Solver, scheduler: DDIMScheduler, num_steps: int):
    made = ORACLES[solver].from_config(scheduler.config)
    made.set_timesteps(num_steps)
    return made


def advance(table: SolverTable, step: int, x, out, history, noise):
    """One step of the table in plain torch: the next latent and the new history."""
    row = {column: table.columns[step, column] for column in StepColumns}
    slot = row[StepColumns.P] * x + row[StepColumns.Q] * out
    x0 = row[StepColumns.U] * x + row[StepColumns.W] * slot
    moved = row[StepColumns.A] * x + row[StepColumns.B] * slot
    return moved + row[StepColumns.C] * history + row[StepColumns.D] * noise, x0


def assert_steps_alike(solver: Solver, scheduler: DDIMScheduler, num_steps: int, tolerance: float = 1e-5) -> None:
    """From the same latent and random network output, each step agrees; the latent is handed on."""
    table, expected = solver_table(solver, num_steps, scheduler), oracle(solver, scheduler, num_steps)
    assert torch.equal(table.timesteps, expected.timesteps.float())
    assert table.init_noise_sigma == pytest.approx(float(expected.init_noise_sigma), rel=1e-7)
    draw = torch.Generator().manual_seed(num_steps)
    shape = (2, 4, 8, 8)
    x, history = torch.randn(shape, generator=draw) * table.init_noise_sigma, torch.zeros(shape)
    for step, timestep in enumerate(expected.timesteps):
        network_input = expected.scale_model_input(x, timestep)
        torch.testing.assert_close(
            table.columns[step, StepColumns.INPUT_SCALE] * x, network_input, rtol=1e-6, atol=1e-6
        )
        out, seed = torch.randn(shape, generator=draw), step + 1000
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        extra = {"generator": torch.Generator().manual_seed(seed)} if solver is Solver.EULER_ANCESTRAL else {}
        reference = expected.step(out, timestep, x, **extra).prev_sample
        stepped, history = advance(table, step, x, out, history, noise)
        error, size = (stepped - reference).abs().max(), torch.maximum(x.abs(), reference.abs()).max()
        assert float(error / size) <= tolerance
        x = reference


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("solver", "prediction"), [pair for pair in PAIRS if pair not in WITHOUT_ORACLE])
def test_steps_as_the_scheduler_of_its_name(solver, prediction, spacing, num_steps):
    for to_one, offset in itertools.product((False, True), (0, 1)):
        scheduler = schedule(
            prediction_type=prediction, timestep_spacing=spacing, set_alpha_to_one=to_one, steps_offset=offset
        )
        assert_steps_alike(solver, scheduler, num_steps)


@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("schedule_name", ["linear", "squaredcos_cap_v2"])
def test_other_noise_schedules(solver, schedule_name):
    scheduler = schedule(beta_schedule=schedule_name, beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
    assert_steps_alike(solver, scheduler, 10, tolerance=5e-5)


@pytest.mark.parametrize("solver", Solver)
def test_zero_terminal_signal_with_v_prediction(solver):
    scheduler = schedule(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert_steps_alike(solver, scheduler, 12)


@pytest.mark.parametrize("solver", [Solver.EULER, Solver.DPMPP_2M])
def test_karras_levels_of_a_checkpoint_are_kept(solver):
    euler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, use_karras_sigmas=True)
    scheduler = DDIMScheduler.from_config(euler.config)
    assert_steps_alike(solver, scheduler, 10)


def test_ancestral_sample_prediction_agrees_with_epsilon():
    scheduler = schedule(timestep_spacing="trailing")
    by_sample = schedule(timestep_spacing="trailing", prediction_type="sample")
    epsilon, sample = (solver_table(Solver.EULER_ANCESTRAL, 8, each) for each in (scheduler, by_sample))
    x, out, noise = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    for step in range(8):
        x0 = x * 1.0 - epsilon.sigmas[step].float() * out
        expected, _ = advance(epsilon, step, x, out, torch.zeros_like(x), noise)
        found, history = advance(sample, step, x, x0, torch.zeros_like(x), noise)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(history, x0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", Solver)
def test_history_is_the_predicted_clean_latent(solver, prediction):
    """A network that is right about every latent recovers it at each step, whatever it predicts."""
    table = solver_table(solver, 8, schedule(prediction_type=prediction, timestep_spacing="trailing"))
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    for step in range(8):
        alpha, sigma = table.alphas[step].float(), table.sigmas[step].float()
        norm = torch.hypot(alpha, sigma)
        truth = {"epsilon": noise, "v_prediction": (alpha * noise - sigma * clean) / norm, "sample": clean}[prediction]
        _, x0 = advance(table, step, alpha * clean + sigma * noise, truth, clean, noise)
        torch.testing.assert_close(x0, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", Solver)
def test_network_sees_unit_variance_at_every_level(solver):
    table = solver_table(solver, 20, schedule())
    scale = table.columns[:, StepColumns.INPUT_SCALE].double()
    power = scale**2 * (table.alphas[:-1] ** 2 + table.sigmas[:-1] ** 2)
    torch.testing.assert_close(power, torch.ones_like(power), rtol=1e-6, atol=0)


def test_masked_noise_is_off_and_only_the_ancestral_solver_draws():
    for solver in Solver:
        columns = solver_table(solver, 6, schedule()).columns
        assert columns.dtype == torch.float32
        assert not columns[:, [StepColumns.M, StepColumns.R, StepColumns.N]].any()
        assert bool(columns[:, StepColumns.D].any()) == (solver is Solver.EULER_ANCESTRAL)


def test_tables_are_built_once():
    scheduler = schedule()
    assert solver_table(Solver.DDIM, 20, scheduler) is solver_table(Solver.DDIM, 20, scheduler)


def test_clipping_is_off_as_in_stable_diffusion_pipelines():
    clipped, plain = schedule(clip_sample=True), schedule()
    assert torch.equal(solver_table(Solver.DDIM, 9, clipped).columns, solver_table(Solver.DDIM, 9, plain).columns)


@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_impossible_step_counts_are_refused(num_steps):
    with pytest.raises(InvalidRequestError, match=f"{num_steps} steps.*1 to 1000"):
        solver_table(Solver.DDIM, num_steps, schedule())


@pytest.mark.parametrize(("solver", "spacing"), [(Solver.DPMPP_2M, "leading"), (Solver.DDIM, "leading")])
def test_steps_that_share_or_leave_the_timesteps_are_refused(solver, spacing):
    with pytest.raises(InvalidRequestError, match=r"1000 steps .*fewer steps"):
        solver_table(solver, 1000, schedule(timestep_spacing=spacing))


@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_table_is_finite_or_refused(solver, spacing):
    scheduler = schedule(timestep_spacing=spacing)
    for num_steps in (1, 3, 7, 13, 15, 30, 333, 500, 999):
        try:
            table = solver_table(solver, num_steps, scheduler)
        except InvalidRequestError:
            assert num_steps > 300
        else:
            assert table.num_steps == num_steps
            assert table.columns.isfinite().all()


def test_zero_terminal_signal_with_epsilon_is_refused():
    scheduler = schedule(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(CheckpointError, match="zero signal"):
        solver_table(Solver.DDIM, 10, scheduler)


@pytest.mark.parametrize(("changes", "message"), [({"thresholding": True}, "thresholding")])
def test_schedules_without_a_linear_step_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        solver_table(Solver.DDIM, 10, schedule(**changes))


def test_unknown_prediction_type_is_refused():
    with pytest.raises(CheckpointError, match=r"flow_prediction.*epsilon, v_prediction, sample"):
        solver_table(Solver.EULER, 10, schedule(prediction_type="flow_prediction"))


@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_outputs_of_every_kind_are_measured_as_noise(tiny_checkpoint, solver, kind):
    """The change of output that a change of the noise implies, from x = alpha x0 + sigma eps at a fixed x."""
    scheduler = DDIMScheduler.from_pretrained(tiny_checkpoint, subfolder="scheduler")
    scheduler.register_to_config(prediction_type=kind)
    table = solver_table(solver, 6, scheduler)
    alpha, sigma = table.alphas[:-1], table.sigmas[:-1]
    scale = torch.hypot(alpha, sigma)
    output = {"epsilon": 1, "v_prediction": (alpha + sigma**2 / alpha) / scale, "sample": sigma / alpha}[kind]
    torch.testing.assert_close(table.noise_scale * output, torch.ones(6, dtype=torch.float64), rtol=1e-5, atol=0)
