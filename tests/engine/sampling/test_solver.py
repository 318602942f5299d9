import inspect
import itertools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import AysSchedules

from twig.engine.api.choices import Sigmas, Solver, Spacing
from twig.engine.api.errors import CheckpointError, InvalidRequestError
from twig.engine.api.settings import Stage
from twig.engine.sampling.sampler import CONSISTENCY, TAKING, Sampler
from twig.engine.sampling.solver import SolverTable, solver_table
from twig.kernels import StepColumns

ORACLES = {
    Solver.DDIM: (DDIMScheduler, {}),
    Solver.EULER: (EulerDiscreteScheduler, {}),
    Solver.EULER_ANCESTRAL: (EulerAncestralDiscreteScheduler, {}),
    Solver.DPMPP_2M: (DPMSolverMultistepScheduler, {}),
    Solver.DPMPP_2M_SDE: (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    Solver.UNIPC: (UniPCMultistepScheduler, {}),
    Solver.HEUN: (HeunDiscreteScheduler, {}),
    Solver.LCM: (LCMScheduler, {}),
    Solver.TCD: (TCDScheduler, {}),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")
STEPS = (1, 2, 8, 20)
PAIRS = list(itertools.product(Solver, PREDICTIONS))
WITHOUT_ORACLE = [(Solver.EULER_ANCESTRAL, "sample")]
DRAWING = {Solver.EULER_ANCESTRAL, Solver.DPMPP_2M_SDE, Solver.LCM, Solver.TCD}
LEVELLED = [(solver, sigmas) for sigmas in Sigmas for solver in Solver if solver in TAKING[sigmas]]
UNLEVELLED = [(solver, sigmas) for sigmas in Sigmas for solver in Solver if solver not in TAKING[sigmas]]


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


def oracle(solver: Solver, scheduler: DDIMScheduler, num_steps: int, sigmas: Sigmas | None = None, **settings):
    kind, own = ORACLES[solver]
    if sigmas not in (None, Sigmas.AYS):
        settings[f"use_{sigmas}_sigmas"] = True
    made = kind.from_config(scheduler.config, **own, **settings)
    if sigmas is Sigmas.AYS:
        made.set_timesteps(timesteps=AysSchedules["StableDiffusionTimesteps"])
    else:
        made.set_timesteps(num_steps)
    if not isinstance(made, DDIMScheduler):
        made.set_begin_index(0)  # which it would mistake where two steps share a rounded timestep
    return made


def advance(table: SolverTable, step: int, x, out, history, noise, carried=None):
    """One step of the table in plain torch: the next latent, the new history, and what is carried over."""
    row = {column: table.columns[step, column] for column in StepColumns}
    carried = torch.zeros_like(x) if carried is None else carried
    slot = row[StepColumns.P] * x + row[StepColumns.Q] * out
    x0 = row[StepColumns.U] * x + row[StepColumns.W] * slot
    moved = row[StepColumns.A] * x + row[StepColumns.B] * slot
    moved = moved + row[StepColumns.C] * history + row[StepColumns.G] * carried + row[StepColumns.D] * noise
    kept = row[StepColumns.KX] * x + row[StepColumns.KE] * slot
    kept = kept + row[StepColumns.KH] * history + row[StepColumns.KL] * carried
    return moved, x0, kept if row[StepColumns.KX] else carried


def assert_steps_alike(
    solver: Solver, scheduler: DDIMScheduler, num_steps: int, tolerance: float = 1e-5, eta=None, **settings
) -> None:
    """From the same latent and random network output, each step agrees; the latent is handed on."""
    table = solver_table(
        solver,
        num_steps,
        scheduler,
        eta=eta,
        sigmas=settings.get("sigmas"),
        spacing=Spacing(settings["timestep_spacing"]) if "timestep_spacing" in settings else None,
    )
    expected = oracle(solver, scheduler, num_steps, **settings)
    assert torch.equal(table.timesteps, expected.timesteps.float())
    assert table.init_noise_sigma == pytest.approx(float(expected.init_noise_sigma), rel=1e-7)
    draw = torch.Generator().manual_seed(num_steps)
    shape = (2, 4, 8, 8)
    x, history, carried = torch.randn(shape, generator=draw) * table.init_noise_sigma, torch.zeros(shape), None
    for step, timestep in enumerate(expected.timesteps):
        network_input = expected.scale_model_input(x, timestep)
        torch.testing.assert_close(
            table.columns[step, StepColumns.INPUT_SCALE] * x, network_input, rtol=1e-6, atol=1e-6
        )
        out = torch.randn(shape, generator=draw)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(step + 1000))
        extra = drawn_by(expected, step + 1000, noise, eta)
        reference = expected.step(out, timestep, x, **extra).prev_sample
        stepped, history, carried = advance(table, step, x, out, history, noise, carried)
        error, size = (stepped - reference).abs().max(), torch.maximum(x.abs(), reference.abs()).max()
        assert float(error / size) <= tolerance
        x = reference


def drawn_by(scheduler, seed: int, noise, eta):
    """What makes a scheduler draw the noise of a seed."""
    if isinstance(scheduler, DDIMScheduler):
        return {"eta": eta, "variance_noise": noise} if eta else {}
    takes = "generator" in inspect.signature(scheduler.step).parameters
    drawn = {"generator": torch.Generator().manual_seed(seed)} if takes else {}
    return drawn | ({} if eta is None else {"eta": eta})


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("solver", "prediction"), [pair for pair in PAIRS if pair not in WITHOUT_ORACLE])
def test_steps_as_the_scheduler_of_its_name(solver, prediction, spacing, num_steps):
    for to_one, offset in ((False, 1), (True, 0)):
        scheduler = schedule(
            prediction_type=prediction, timestep_spacing=spacing, set_alpha_to_one=to_one, steps_offset=offset
        )
        assert_steps_alike(solver, scheduler, num_steps)


@pytest.mark.parametrize(("solver", "sigmas"), LEVELLED)
def test_steps_at_levels_of_their_own(solver, sigmas):
    """Every kind of levels with every prediction, at the spacing of the model and at one that a request names."""
    spacings = [{}] if sigmas is Sigmas.AYS else [{}, {"timestep_spacing": "trailing"}]
    for prediction, spacing, num_steps in itertools.product(PREDICTIONS, spacings, (2, 10)):
        if sigmas is Sigmas.AYS and num_steps != 10:
            continue
        assert_steps_alike(solver, schedule(prediction_type=prediction), num_steps, sigmas=sigmas, **spacing)


@pytest.mark.parametrize("solver", sorted(set(Solver) - CONSISTENCY))
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_request_may_name_another_spacing(solver, spacing):
    scheduler = schedule(timestep_spacing="linspace" if spacing == "trailing" else "trailing")
    assert_steps_alike(solver, scheduler, 9, timestep_spacing=spacing)


@pytest.mark.parametrize(("solver", "sigmas"), UNLEVELLED)
def test_levels_that_a_solver_does_not_take_are_refused(solver, sigmas):
    with pytest.raises(InvalidRequestError, match=f"sigmas {sigmas} are not defined for {solver}.*dpmpp_2m"):
        solver_table(solver, 10, schedule(), sigmas=sigmas)


@pytest.mark.parametrize(
    ("solver", "mix", "message"),
    [
        (Solver.LCM, {"spacing": Spacing.TRAILING}, "spacing trailing: lcm has the timesteps"),
        (Solver.EULER, {"spacing": Spacing.TRAILING, "sigmas": Sigmas.AYS}, "ays name their own timesteps"),
        (Solver.EULER, {"eta": 0.5}, "eta 0.5: euler leaves no choice of it; it is for ddim, tcd"),
    ],
)
def test_mixes_that_mean_nothing_are_refused(solver, mix, message):
    with pytest.raises(InvalidRequestError, match=message):
        solver_table(solver, 4, schedule(), **mix)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("solver", [Solver.DDIM, Solver.TCD])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_share_of_the_noise_may_be_drawn_anew(solver, prediction, eta):
    assert_steps_alike(solver, schedule(prediction_type=prediction), 6, eta=eta)


def test_aligned_steps_of_other_counts_lie_between_the_published_ones():
    published = AysSchedules["StableDiffusionXLTimesteps"]
    finer = solver_table(Solver.EULER, 19, schedule(), Sampler(xl=True), sigmas=Sigmas.AYS).timesteps.tolist()
    assert finer[::2] == published
    coarser = solver_table(Solver.EULER, 4, schedule(), Sampler(xl=True), sigmas=Sigmas.AYS).timesteps.tolist()
    assert coarser == published[::3]


def test_consistency_models_keep_the_timesteps_of_their_distillation():
    sampler = Sampler(original_steps=20, timestep_scaling=4.0)
    found = solver_table(Solver.LCM, 4, schedule(), sampler)
    made = LCMScheduler.from_config(schedule().config, original_inference_steps=20, timestep_scaling=4.0)
    made.set_timesteps(4)
    assert found.timesteps.tolist() == made.timesteps.tolist()
    with pytest.raises(InvalidRequestError, match="21 steps of lcm: the model was distilled at 20 timesteps"):
        solver_table(Solver.LCM, 21, schedule(), sampler)


def test_heun_asks_twice_a_step_but_the_last():
    assert solver_table(Solver.HEUN, 7, schedule()).num_steps == Stage(steps=7, solver="heun").evaluations == 13


@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("schedule_name", ["linear", "squaredcos_cap_v2"])
def test_other_noise_schedules(solver, schedule_name):
    scheduler = schedule(beta_schedule=schedule_name, beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
    assert_steps_alike(solver, scheduler, 10, tolerance=1e-4)


@pytest.mark.parametrize("solver", sorted(set(Solver) - {Solver.HEUN}))
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
        expected, _, _ = advance(epsilon, step, x, out, torch.zeros_like(x), noise)
        found, history, _ = advance(sample, step, x, x0, torch.zeros_like(x), noise)
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
        _, x0, _ = advance(table, step, alpha * clean + sigma * noise, truth, clean, noise)
        torch.testing.assert_close(x0, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", Solver)
def test_network_sees_unit_variance_at_every_level(solver):
    table = solver_table(solver, 20, schedule())
    scale = table.columns[:, StepColumns.INPUT_SCALE].double()
    power = scale**2 * (table.alphas[:-1] ** 2 + table.sigmas[:-1] ** 2)
    torch.testing.assert_close(power, torch.ones_like(power), rtol=1e-6, atol=0)


def test_masked_noise_is_off_and_only_the_stochastic_solvers_draw():
    for solver in Solver:
        columns = solver_table(solver, 6, schedule()).columns
        assert columns.dtype == torch.float32
        assert not columns[:, [StepColumns.M, StepColumns.R, StepColumns.N]].any()
        assert bool(columns[:, StepColumns.D].any()) == (solver in DRAWING)


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
            assert table.num_steps == Stage(steps=num_steps, solver=solver).evaluations
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
    torch.testing.assert_close(table.noise_scale * output, torch.ones_like(table.noise_scale), rtol=1e-5, atol=0)
