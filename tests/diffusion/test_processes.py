"""Processes besides DDPM's chain: FIELD's golden values, their identities, and diffusers' own tables."""

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ddpm_data import ForwardDiffusion, ForwardProcess, GaussianProcess, processes, schedules

MAKERS: dict[str, Callable[[], GaussianProcess]] = {
    "chain": lambda: ForwardProcess(schedules.cosine(200)),
    "rectified flow": lambda: processes.rectified_flow(200, shift=3.0),
    "edm": lambda: processes.edm(4096),
    "karras": lambda: processes.karras(200),
    "trig flow": lambda: processes.trig_flow(4096),
    "cosine": lambda: processes.continuous_cosine(4096, image_size=256, noise_size=32, noise_size_high=256),
    "vdm": lambda: processes.linear_log_snr(4096),
    "imagen": lambda: processes.continuous_linear(4096),
    "vp sde": lambda: processes.vp_sde(4096),
}


@pytest.fixture(params=MAKERS)
def process(request: pytest.FixtureRequest) -> GaussianProcess:
    return MAKERS[request.param]()


def every_step(process: GaussianProcess) -> Tensor:
    return torch.arange(process.num_timesteps)


def test_noise_rises_and_q_sample_is_its_table(process: GaussianProcess) -> None:
    assert bool((process.exact.log_snr[1:] <= process.exact.log_snr[:-1]).all())
    t = every_step(process)
    x_0, noise = torch.randn(2, len(t), 5, generator=torch.Generator().manual_seed(0))
    expected = process.exact.signal[:, None] * x_0.double() + process.exact.sigma[:, None] * noise.double()
    torch.testing.assert_close(process.q_sample(x_0, t, noise), expected.float(), rtol=1e-6, atol=1e-6)
    mean, variance = process.q_mean_variance(x_0, t)
    torch.testing.assert_close(mean, (process.exact.signal[:, None] * x_0).float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(variance[:, 0], process.exact.sigma.square().float(), rtol=1e-6, atol=0)


def test_what_is_predicted_comes_back(process: GaussianProcess) -> None:
    t = every_step(process)[process.signal > 0.01]
    x_0, noise = torch.randn(2, len(t), 5, generator=torch.Generator().manual_seed(0))
    x_t = process.q_sample(x_0, t, noise)
    torch.testing.assert_close(process.predict_x_0(x_t, t, noise), x_0, rtol=1e-4, atol=1e-4)
    has_noise = process.sigma[t] > 0.01
    found = process.predict_noise(x_t, t, x_0)[has_noise]
    torch.testing.assert_close(found, noise[has_noise], rtol=1e-4, atol=1e-4)


def test_variance_is_preserved_where_the_process_says_so(process: GaussianProcess) -> None:
    total = process.exact.signal.square() + process.exact.sigma.square()
    assert process.is_variance_preserving == bool(((total - 1).abs() < 1e-9).all())
    x_0 = torch.randn(2, 3)
    if not process.is_variance_preserving:
        with pytest.raises(ValueError, match="target: flow"):
            process.velocity(x_0, torch.zeros(2, dtype=torch.int64), x_0)


def test_rectified_flow_by_hand() -> None:
    process = processes.rectified_flow(1000)
    s = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(process.exact.sigma, s, rtol=0, atol=0)
    torch.testing.assert_close(process.exact.signal, 1 - s, rtol=0, atol=0)
    torch.testing.assert_close(process.condition, (1000 * s).float())
    shifted = processes.rectified_flow(1000, shift=3.0).exact.sigma
    assert shifted[-1] == 1
    torch.testing.assert_close(shifted[[249]], torch.tensor([0.5], dtype=torch.float64))  # 3/4 / (1 + 2/4)


def test_a_chain_is_ddpms_whatever_its_network_is_told() -> None:
    betas = schedules.cosine(8)
    process, plain = processes.chain(betas, "t + 1"), ForwardProcess(betas)
    assert process.condition.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert plain.condition.tolist() == processes.chain(betas).condition.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    for name, buffer in plain.named_buffers():
        assert torch.equal(process.get_buffer(name), buffer) == (name != "condition"), name


def test_edm_rows_are_quantiles_of_the_lognormal() -> None:
    sigma = processes.edm().exact.sigma
    middle = sigma[[32767, 32768]].log().mean()
    assert float(middle) == pytest.approx(-1.2, abs=1e-9)
    assert float(sigma[-1]) == pytest.approx(54.0, abs=0.1)  # FIELD's error of 2^16 rows: largest sigma,
    mean = math.exp(-1.2 + 1.2**2 / 2)
    assert float(sigma.mean()) / mean - 1 == pytest.approx(-1.7e-4, abs=1e-5)  # E sigma,
    square = math.exp(-2.4 + 2 * 1.2**2)
    assert float(sigma.square().mean()) / square - 1 == pytest.approx(-0.011, abs=5e-4)  # and E sigma^2
    torch.testing.assert_close(processes.edm(10).condition, (processes.edm(10).exact.sigma.log() / 4).float())


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("t", [0, 1, 2]),
        ("t + 1", [1, 2, 3]),
        ("1000 t / T", [0, 1000 / 3, 2000 / 3]),
        ("s", [0.25, 0.5, 0.75]),
        ("1 - s", [0.75, 0.5, 0.25]),
        ("1000 s", [250, 500, 750]),
        ("ln(sigma) / 4", [-math.log(3) / 4, 0, math.log(3) / 4]),
        ("ln(sigma / 2)", [-math.log(6), -math.log(2), math.log(1.5)]),
        ("log SNR", [2 * math.log(3), 0, -2 * math.log(3)]),
        ("-log SNR", [-2 * math.log(3), 0, 2 * math.log(3)]),
    ],
)
def test_the_network_is_told_what_the_condition_names(condition: str, told: list[float]) -> None:
    for scale in (1, 4):  # signal and sigma need not add up to 1
        sigma = scale * torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        assert processes.compute_condition("chain", condition, scale - sigma, sigma).tolist() == pytest.approx(told)


DEFAULTS: dict[Callable[..., GaussianProcess], dict[str, object]] = {  # FIELD, and the papers that each names
    processes.rectified_flow: {"num_timesteps": 1000, "shift": 1.0, "condition": "1000 s"},
    processes.edm: {"num_timesteps": 65536, "log_mean": -1.2, "log_std": 1.2},
    processes.karras: {"num_timesteps": 1000, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
    processes.log_uniform: {"num_timesteps": 65536, "sigma_min": 0.02, "sigma_max": 100.0},
    processes.trig_flow: {"num_timesteps": 65536, "log_mean": 0.2, "log_std": 1.6, "sigma_data": 0.5},
    processes.continuous_cosine: {
        "num_timesteps": 65536,
        "image_size": 64,
        "noise_size": 64,
        "noise_size_high": None,
        "limit": 15.0,
        "condition": "log SNR",
    },
    processes.continuous_linear: {"num_timesteps": 65536},
    processes.linear_log_snr: {"num_timesteps": 65536, "start": 13.3, "end": -5.0},
    processes.vp_sde: {"num_timesteps": 65536, "beta_min": 0.1, "beta_max": 20.0, "end": 1e-5},
}


@pytest.mark.parametrize("make", DEFAULTS)
def test_defaults_are_the_fields(make: Callable[..., GaussianProcess]) -> None:
    """A config that names no number means these."""
    parameters = inspect.signature(make).parameters.items()
    assert {name: parameter.default for name, parameter in parameters} == DEFAULTS[make]


def test_log_uniform_sigmas_are_even_in_their_logarithm() -> None:
    sigma = processes.log_uniform(4, sigma_min=0.01, sigma_max=100.0).exact.sigma
    assert sigma.log10().tolist() == pytest.approx([-1.5, -0.5, 0.5, 1.5])


def test_as_few_steps_as_there_may_be() -> None:
    assert processes.rectified_flow(1).exact.sigma.tolist() == [1.0]
    assert processes.karras(2).exact.sigma.tolist() == pytest.approx([0.002, 80.0])
    equal = processes.variance_exploding(torch.tensor([1.0, 1.0, 2.0]))  # steps may repeat
    assert equal.exact.sigma.tolist() == [1.0, 1.0, 2.0]
    told = processes.from_log_snr(torch.tensor([1.0, 0.0, -1.0, -2.0])).condition
    assert told.tolist() == [125.0, 375.0, 625.0, 875.0]


def test_vp_sde_leaves_out_the_first_times() -> None:
    process = processes.vp_sde(4, end=0.2)
    torch.testing.assert_close(process.condition, 999 * torch.tensor([0.3, 0.5, 0.7, 0.9]))


def test_karras_and_vp_sde_golden_values() -> None:
    sigma = processes.karras(1001).exact.sigma.flip(0)
    for index, value in {0: 80, 1: 79.564262, 500: 2.515219, 1000: 0.002}.items():
        assert float(sigma[index]) == pytest.approx(value, rel=1e-6)
    process = processes.vp_sde(100_000, beta_min=0.1, beta_max=20.0)
    ratio = process.exact.sigma / process.exact.signal
    assert float(ratio[-1]) == pytest.approx(152.167, rel=2e-4)  # at s = 1 - 1 / 200000
    assert float(ratio[49999]) == pytest.approx(3.41292, rel=2e-4)


@pytest.mark.parametrize(
    ("process", "golden"),
    [  # log SNR near s = 0.25, 0.5, 0.75
        (processes.continuous_cosine(100_000), [1.761183, 0, -1.761183]),
        (processes.continuous_cosine(100_000, image_size=256, noise_size=64), [-1.011405, -2.772589, -4.533772]),
        (
            processes.continuous_cosine(100_000, image_size=256, noise_size=32, noise_size_high=256),
            [0.721462, -2.079442, -4.880346],
        ),
        (processes.continuous_linear(100_000), [0.141065, -2.414458, -5.621487]),
        (processes.linear_log_snr(100_000), [math.log(6154.877), math.log(63.434), math.log(0.65377)]),
    ],
    ids=["cosine", "shifted", "interpolated", "imagen", "vdm"],
)
def test_continuous_golden_values(process: GaussianProcess, golden: list[float]) -> None:
    assert process.exact.log_snr[[25_000, 50_000, 75_000]].tolist() == pytest.approx(golden, abs=2e-4)


def test_the_circle_is_edm_seen_as_an_angle() -> None:
    angle = processes.trig_flow(1001, log_mean=math.log(0.5), log_std=1.0).condition
    assert float(angle[500]) == pytest.approx(math.pi / 4)  # FIELD: sigma = sigma_data is a quarter of the circle
    edm = processes.variance_exploding(torch.tensor([0.1, 0.5, 80.0], dtype=torch.float64)).exact.sigma
    assert torch.atan(edm / 0.5).tolist() == pytest.approx([0.197396, math.pi / 4, 1.564546], abs=1e-6)


def test_schedulers_of_diffusers_give_their_own_tables() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    process = processes.from_diffusers(scheduler)
    assert isinstance(process, ForwardProcess)
    torch.testing.assert_close(process.alphas_cumprod, scheduler.alphas_cumprod)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    process = processes.from_diffusers(flow)
    x_0, noise = torch.randn(2, 3, 4)
    t = torch.tensor([0, 500, 999])
    expected = flow.scale_noise(x_0, flow.timesteps.flip(0)[t], noise)
    torch.testing.assert_close(process.q_sample(x_0, t, noise), expected)
    torch.testing.assert_close(process.condition, flow.timesteps.flip(0))
    assert process.exact.sigma.flip(0)[[0, 1, 250, 999]].tolist() == pytest.approx(
        [1, 0.99966639, 0.9, 0.00299401], abs=1e-6
    )
    edm = diffusers.EDMEulerScheduler()
    process = processes.from_diffusers(edm)
    torch.testing.assert_close(process.exact.sigma.float(), edm.sigmas[:-1].flip(0))
    torch.testing.assert_close(process.condition, edm.timesteps.flip(0))
    flow.set_timesteps(10)
    with pytest.raises(ValueError, match="set_timesteps"):
        processes.from_diffusers(flow)
    with pytest.raises(TypeError, match="a VQDiffusionScheduler is of a kind"):
        processes.from_diffusers(diffusers.VQDiffusionScheduler(num_vec_classes=5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianProcess([1.0], torch.ones(1)), "signal must be a floating-point tensor"),
        (lambda: GaussianProcess(torch.ones(3), torch.ones(2)), r"sigma has shape \(2,\)"),
        (lambda: GaussianProcess(torch.tensor([1.0, 0.0]), torch.tensor([0.1, 0.0])), "both 0 at t=1"),
        (lambda: GaussianProcess(torch.tensor([1.0, -1.0]), torch.ones(2)), "signal is -1 at t=1"),
        (lambda: GaussianProcess(torch.ones(1), torch.tensor([math.nan])), "sigma is nan at t=0"),
        (lambda: GaussianProcess(torch.ones(1), torch.ones(1), torch.tensor([math.inf])), "condition is inf at t=0"),
        (lambda: processes.rectified_flow(0), "`num_timesteps`"),
        (lambda: processes.rectified_flow(10, shift=0), "`shift`"),
        (lambda: processes.variance_exploding(torch.tensor([2.0, 1.0])), "sigmas is wrong at t=1"),
        (lambda: processes.variance_exploding(torch.tensor([0.0, 1.0])), "above 0"),
        (lambda: processes.variance_exploding(torch.tensor([1.0, math.nan])), "sigmas is nan at t=1"),
        (lambda: processes.from_log_snr([1.0, 0.0]), "log_snr must be a floating-point tensor"),
        (lambda: GaussianProcess(torch.ones(1), torch.ones(1).double() * 1e300), r"1e\+300 at t=0, .* in float32"),
        (lambda: processes.from_log_snr(torch.tensor([-1.0, 1.0])), "log_snr is wrong at t=1"),
        (lambda: processes.linear_log_snr(start=-1, end=1), "`start`"),
        (lambda: processes.linear_log_snr(start=1.0, end=1.0), "`start`"),
        (lambda: processes.vp_sde(end=1.0), "`end`"),
        (lambda: processes.vp_sde(beta_min=2.0, beta_max=2.0), "`beta_min`"),
        (lambda: processes.karras(1), "`num_timesteps`"),
        (lambda: processes.edm(log_std=0.0), "`log_std`"),
        (lambda: processes.rectified_flow(10, condition="s + 1"), r"told t, t \+ 1, .*`condition`"),  # type: ignore[arg-type]
        (lambda: processes.rectified_flow(10, condition="ln(sigma) / 4"), "condition is inf at t=9"),
        (lambda: processes.chain(schedules.linear(10), 5), "`condition`"),  # type: ignore[arg-type]
        (lambda: ForwardProcess(schedules.linear(10), torch.zeros(9)), r"condition has shape \(9,\)"),
    ],
)
def test_wrong_input_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_the_stream_of_t_does_not_depend_on_the_process() -> None:
    """``t`` belongs to the seed and the position alone: two processes of as many steps are compared on the same t."""
    images, position = torch.zeros(64, 1, 4, 4, dtype=torch.uint8), torch.arange(64)
    chain, flow = ForwardProcess(schedules.linear(500)), processes.rectified_flow(500)
    first, second = (ForwardDiffusion(p, seed=7)(images, position) for p in (chain, flow))
    assert torch.equal(first.t, second.t)
    assert torch.equal(first.noise, second[2])


@pytest.mark.parametrize(
    "make",
    [
        processes.edm,
        processes.log_uniform,
        processes.continuous_cosine,
        processes.continuous_linear,
        processes.linear_log_snr,
        processes.vp_sde,
    ],
)
def test_one_step_is_a_process_of_its_middle(make: Callable[..., GaussianProcess]) -> None:
    one, three = make(num_timesteps=1), make(num_timesteps=3)
    torch.testing.assert_close(one.snr(torch.tensor([0])), three.snr(torch.tensor([1])))
