"""Every schedule against golden values, an independent oracle, and the requests that have no answer."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from torch import Tensor

from ddpm_data import schedules

ALL: list[Callable[..., Tensor]] = [
    schedules.linear,
    schedules.quadratic,
    schedules.scaled_linear,
    schedules.constant,
    schedules.jsd,
    schedules.cosine,
    schedules.sigmoid,
]


def alphas_cumprod(betas: Tensor) -> Tensor:
    return torch.cumprod(1 - betas, 0)


@pytest.mark.parametrize("schedule", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("steps", [1, 2, 7, 300, 1000, 4000])
def test_betas_are_variances_and_the_signal_falls(schedule: Callable[..., Tensor], steps: int) -> None:
    betas = schedule(num_timesteps=steps)
    assert betas.dtype == torch.float64
    assert betas.shape == (steps,)
    assert ((betas >= 0) & (betas <= 1)).all()
    assert (alphas_cumprod(betas).diff() < 0).all()


@pytest.mark.parametrize(
    ("betas", "golden"),
    [
        (schedules.linear(), {0: 0.9999, 500: 0.077796658365, 999: 4.035829765e-5}),
        (schedules.scaled_linear(), {0: 0.99915, 500: 0.276332683823, 999: 0.004660098513}),
        (schedules.cosine(), {500: 0.492285172449, 998: 2.4287669e-6, 999: 2.428766907e-9}),
    ],
    ids=["linear", "scaled_linear", "cosine"],
)
def test_golden_alphas_cumprod(betas: Tensor, golden: dict[int, float]) -> None:
    values = alphas_cumprod(betas)
    for t, value in golden.items():
        assert values[t].item() == pytest.approx(value, rel=1e-8)


def test_cosine_begins_as_published_and_clips_one_beta() -> None:
    betas = schedules.cosine()
    assert betas[0].item() == pytest.approx(4.128422482e-5, rel=1e-9)
    assert int((betas == 0.999).sum()) == 1


@pytest.mark.parametrize("steps", [10, 300, 1000])
@pytest.mark.parametrize(
    ("schedule", "name", "ends"),
    [
        (schedules.linear, "linear", (1e-4, 0.02)),
        (schedules.scaled_linear, "scaled_linear", (0.00085, 0.012)),
        (schedules.cosine, "squaredcos_cap_v2", (1e-4, 0.02)),
    ],
)
def test_agrees_with_diffusers(
    schedule: Callable[..., Tensor], name: str, ends: tuple[float, float], steps: int
) -> None:
    oracle = DDPMScheduler(steps, beta_start=ends[0], beta_end=ends[1], beta_schedule=name)
    # diffusers computes in float32, so this is as close as it can be.
    torch.testing.assert_close(schedule(steps).float(), oracle.betas, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(alphas_cumprod(schedule(steps)).float(), oracle.alphas_cumprod, rtol=2e-4, atol=1e-9)


def test_zero_terminal_snr_agrees_with_diffusers_in_float64() -> None:
    betas = schedules.scaled_linear()
    torch.testing.assert_close(
        schedules.zero_terminal_snr(betas), rescale_zero_terminal_snr(betas), rtol=1e-9, atol=1e-12
    )


def test_linear_rescaled_keeps_the_ends_of_guided_diffusion() -> None:
    betas = schedules.linear(num_timesteps=250, rescale=True)
    torch.testing.assert_close(betas, torch.linspace(4e-4, 0.08, 250, dtype=torch.float64))


def test_constant_and_jsd_by_their_formulas() -> None:
    assert schedules.constant(5, beta=0.3).tolist() == [0.3] * 5
    np.testing.assert_allclose(schedules.jsd(4).numpy(), [1 / 4, 1 / 3, 1 / 2, 1])
    # jsd takes an equal share of the signal's variance away at every step.
    torch.testing.assert_close(alphas_cumprod(schedules.jsd(50)), torch.arange(49, -1, -1, dtype=torch.float64) / 50)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3, 3, 1), (0, 3, 0.9), (-3, 3, 0.3), (0, 3, 30)])
def test_sigmoid_by_its_formula(start: float, end: float, tau: float) -> None:
    def published(time: float) -> float:
        def sigmoid(x: float) -> float:
            return 1 / (1 + math.exp(-x))

        first, last = sigmoid(start / tau), sigmoid(end / tau)
        return (last - sigmoid((time * (end - start) + start) / tau)) / (last - first)

    steps = 100
    betas = schedules.sigmoid(steps, start, end, tau, max_beta=1.0)
    expected = torch.tensor([published((t + 1) / steps) for t in range(steps)], dtype=torch.float64)
    torch.testing.assert_close(alphas_cumprod(betas), expected, rtol=1e-9, atol=1e-12)
    assert schedules.sigmoid(steps, start, end, tau)[-1] == 0.999


@pytest.mark.parametrize("schedule", ALL, ids=lambda f: f.__name__)
def test_from_alphas_cumprod_inverts_the_running_product(schedule: Callable[..., Tensor]) -> None:
    betas = schedule(num_timesteps=200)
    torch.testing.assert_close(schedules.from_alphas_cumprod(alphas_cumprod(betas)), betas, rtol=1e-7, atol=1e-13)


def test_from_alphas_cumprod_takes_a_list_and_clips_on_request() -> None:
    assert schedules.from_alphas_cumprod([0.5, 0.25]).tolist() == [0.5, 0.5]
    assert schedules.from_alphas_cumprod([0.5, 0.0], max_beta=0.9).tolist() == [0.5, 0.9]


@pytest.mark.parametrize("schedule", ALL, ids=lambda f: f.__name__)
def test_zero_terminal_snr_ends_in_nothing_and_keeps_the_first_value(schedule: Callable[..., Tensor]) -> None:
    betas = schedule(num_timesteps=100)
    rescaled = schedules.zero_terminal_snr(betas)
    assert alphas_cumprod(rescaled)[-1].item() == 0
    assert rescaled[0].item() == betas[0].item()
    assert (alphas_cumprod(rescaled)[:-1] > 0).all()
    torch.testing.assert_close(schedules.zero_terminal_snr(rescaled), rescaled, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("shift", [0.25, 1, 3.0])
def test_shift_snr_multiplies_the_ratio_by_its_square(shift: float) -> None:
    betas = schedules.cosine(500)
    before, after = alphas_cumprod(betas), alphas_cumprod(schedules.shift_snr(betas, shift))
    torch.testing.assert_close(after / (1 - after), shift**2 * before / (1 - before), rtol=1e-6, atol=0)


def test_shift_snr_is_undone_by_its_reciprocal() -> None:
    betas = schedules.linear()
    back = schedules.shift_snr(schedules.shift_snr(betas, 0.25), 4)
    torch.testing.assert_close(back, betas, rtol=1e-7, atol=0)


NAN = math.nan
REFUSED = [
    (lambda: schedules.linear(0), ValueError, "`num_timesteps`"),
    (lambda: schedules.cosine(-5), ValueError, "`num_timesteps`"),
    (lambda: schedules.jsd(10.0), TypeError, "`num_timesteps`"),
    (lambda: schedules.sigmoid("10"), TypeError, "`num_timesteps`"),
    (lambda: schedules.constant(True), TypeError, "`num_timesteps`"),
    (lambda: schedules.linear(10, rescale=True), ValueError, "`end`"),  # 0.02 * 1000 / 10 = 2
    (lambda: schedules.linear(end=1.5), ValueError, "`end`"),
    (lambda: schedules.linear(start=-0.1), ValueError, "`start`"),
    (lambda: schedules.linear(start=NAN), ValueError, "`start`"),
    (lambda: schedules.linear(start="a"), TypeError, "`start`"),
    (lambda: schedules.linear(start=0.02, end=1e-4), ValueError, "`start`"),
    (lambda: schedules.quadratic(end=4), ValueError, "schedule"),
    (lambda: schedules.scaled_linear(end=math.inf), ValueError, "`end`"),
    (lambda: schedules.scaled_linear(start=0.5), ValueError, "Swap"),
    (lambda: schedules.constant(beta=1.01), ValueError, "schedule"),
    (lambda: schedules.constant(beta=NAN), ValueError, "`beta`"),
    (lambda: schedules.cosine(offset=-0.1), ValueError, "`offset`"),
    (lambda: schedules.cosine(max_beta=0), ValueError, "`max_beta`"),
    (lambda: schedules.cosine(max_beta=1.1), ValueError, "`max_beta`"),
    (lambda: schedules.sigmoid(start=3, end=-3), ValueError, "`start`"),
    (lambda: schedules.sigmoid(tau=0), ValueError, "`tau`"),
    (lambda: schedules.sigmoid(tau=NAN), ValueError, "`tau`"),
    (lambda: schedules.from_alphas_cumprod([0.5, 0.6]), ValueError, "rises"),
    (lambda: schedules.from_alphas_cumprod([1.2, 0.6]), ValueError, "1.2 at t=0"),
    (lambda: schedules.from_alphas_cumprod("abc"), TypeError, "`alphas_cumprod`"),
    (lambda: schedules.from_alphas_cumprod(None), TypeError, "`alphas_cumprod`"),
    (lambda: schedules.from_alphas_cumprod([0.5, 0.0, 0.0]), ValueError, "t=1"),
    (lambda: schedules.from_alphas_cumprod([0.5, -0.1]), ValueError, "-0.1"),
    (lambda: schedules.from_alphas_cumprod([0.5, NAN]), ValueError, "nan"),
    (lambda: schedules.from_alphas_cumprod([]), ValueError, "shape"),
    (lambda: schedules.zero_terminal_snr(schedules.linear(1)), ValueError, "two steps"),
    (lambda: schedules.zero_terminal_snr(torch.tensor([0.1, NAN])), ValueError, "t=1"),
    (lambda: schedules.zero_terminal_snr([0.1, 0.2]), TypeError, "list"),
    (lambda: schedules.shift_snr(schedules.linear(), 0), ValueError, "`shift`"),
    (lambda: schedules.shift_snr(schedules.linear(), 1e200), ValueError, "`shift`"),
    (lambda: schedules.linear(rescale="no"), TypeError, "`rescale`"),
    (lambda: schedules.shift_snr(torch.tensor([0, 1]), 2), TypeError, "int64"),
    (lambda: schedules.shift_snr(torch.tensor([[0.1]]), 2), ValueError, "shape"),
]


@pytest.mark.parametrize(("request_", "error", "says"), REFUSED)
def test_impossible_requests_name_the_argument(
    request_: Callable[[], Tensor], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says.replace(".", r"\.")):
        request_()
