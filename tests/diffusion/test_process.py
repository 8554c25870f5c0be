"""The forward process against its formulas, its own inverses and itself step by step."""

import re
from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from scipy import stats
from torch import Tensor, nn

from ddpm_data import ForwardProcess, schedules
from tests.conftest import ROOT

BUFFERS = [
    "betas",
    "alphas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
]


@pytest.fixture
def process() -> ForwardProcess:
    return ForwardProcess(schedules.linear())


def batch(*shape: int, dtype: torch.dtype = torch.float64, steps: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x_0.to(dtype), torch.randint(0, steps, shape[:1], generator=generator), noise.to(dtype)


def test_buffers_are_float64_results_stored_in_float32(process: ForwardProcess) -> None:
    assert [name for name, _ in process.named_buffers()] == ["signal", "sigma", "condition", *BUFFERS]
    assert all(buffer.dtype == torch.float32 and buffer.shape == (1000,) for buffer in process.buffers())
    betas = schedules.linear()
    abar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    variance = betas * (1 - before) / (1 - abar)
    expected = {
        "betas": betas,
        "alphas": 1 - betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": abar**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - abar) ** 0.5,
        "sqrt_recip_alphas": (1 - betas) ** -0.5,
        "sqrt_recip_alphas_cumprod": abar**-0.5,
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1) ** 0.5,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": torch.cat([variance[1:2], variance[1:]]).log(),
        "posterior_mean_coef1": betas * before**0.5 / (1 - abar),
        "posterior_mean_coef2": (1 - before) * (1 - betas) ** 0.5 / (1 - abar),
    }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(process, name), values.float(), rtol=1.2e-7, atol=0, msg=name)


def test_the_posterior_of_a_step_without_noise_is_a_point() -> None:
    process = ForwardProcess(torch.tensor([0.0, 0.0, 0.5, 0.5], dtype=torch.float64))
    assert process.posterior_variance.tolist() == pytest.approx([0, 0, 0, 0.5 * 0.5 / 0.75])


def test_golden_posterior_variance(process: ForwardProcess) -> None:
    assert process.posterior_variance[487].item() == pytest.approx(0.009791572, rel=1e-6)
    assert process.posterior_variance[999].item() == pytest.approx(0.019999984, rel=1e-6)
    assert process.posterior_variance[0].item() == 0


@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 3, 8, 8), (5, 1, 2, 3, 4)])
def test_q_sample_is_equation_4(process: ForwardProcess, shape: tuple[int, ...]) -> None:
    x_0, t, noise = batch(*shape)
    x_t = process.q_sample(x_0, t, noise)
    abar = torch.cumprod(1 - schedules.linear(), 0)
    for i in range(5):
        expected = abar[t[i]] ** 0.5 * x_0[i] + (1 - abar[t[i]]) ** 0.5 * noise[i]
        torch.testing.assert_close(x_t[i], expected, rtol=1e-6, atol=1e-7)
    mean, variance = process.q_mean_variance(x_0, t)
    torch.testing.assert_close(mean + variance.sqrt() * noise, x_t, rtol=1e-6, atol=1e-6)


def test_agrees_with_diffusers_add_noise_and_velocity(process: ForwardProcess) -> None:
    oracle = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02)
    x_0, t, noise = batch(64, 3, 8, 8, dtype=torch.float32)
    torch.testing.assert_close(process.q_sample(x_0, t, noise), oracle.add_noise(x_0, noise, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        process.velocity(x_0, t, noise), oracle.get_velocity(x_0, noise, t), rtol=1e-4, atol=1e-5
    )


def test_predictions_are_inverses_of_q_sample(process: ForwardProcess) -> None:
    x_0, t, noise = batch(200, 3, 4, 4)
    x_t, velocity = process.q_sample(x_0, t, noise), process.velocity(x_0, t, noise)
    # At the last steps abar is 4e-5: float32 tables leave 2e-8 / sqrt(abar) of x_0.
    torch.testing.assert_close(process.predict_x_0(x_t, t, noise), x_0, rtol=0, atol=1e-4)
    torch.testing.assert_close(process.predict_noise(x_t, t, x_0), noise, rtol=0, atol=1e-4)
    torch.testing.assert_close(process.predict_x_0_from_velocity(x_t, t, velocity), x_0, rtol=0, atol=1e-6)
    root = process.sqrt_alphas_cumprod[t].view(-1, 1, 1, 1)
    sigma = process.sqrt_one_minus_alphas_cumprod[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(sigma * x_t + root * velocity, noise, rtol=0, atol=1e-6)


def test_snr_is_the_ratio_of_the_variances(process: ForwardProcess) -> None:
    abar = torch.cumprod(1 - schedules.linear(), 0)
    snr = process.snr(torch.arange(1000))
    torch.testing.assert_close(snr, (abar / (1 - abar)).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine, schedules.jsd])
def test_the_chain_of_steps_has_the_distribution_of_the_jump(schedule: Callable[..., Tensor]) -> None:
    process, count = ForwardProcess(schedule(num_timesteps=50)), 20_000
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.full((count, 1), 0.7)
    x = x_0
    for step in range(50):
        t = torch.full((count,), step)
        x = process.q_step(x, t, torch.randn(x.shape, generator=generator))
        if step in (0, 9, 24, 49):
            jump = process.q_sample(x_0, t, torch.randn(x.shape, generator=generator))
            assert stats.ks_2samp(x.flatten().numpy(), jump.flatten().numpy()).pvalue > 1e-4  # 12 tests: 0.12% false
            mean, variance = process.q_mean_variance(x_0[:1], t[:1])
            root_n = variance.sqrt().item() / count**0.5
            assert abs(x.mean().item() - mean.item()) < 4 * root_n
            assert x.var().item() == pytest.approx(variance.item(), rel=4 * (2 / count) ** 0.5)


def test_the_posterior_is_bayes_rule_for_a_step_and_a_jump() -> None:
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0): precisions and means add."""
    betas = schedules.linear(20, start=0.01, end=0.3)
    process, abar = ForwardProcess(betas), torch.cumprod(1 - betas, 0)
    x_0, t, noise = batch(64, 5, steps=19)
    t = t + 1
    x_t = process.q_sample(x_0, t, noise)
    beta, before = betas[t][:, None], abar[t - 1][:, None]
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = ((1 - beta).sqrt() / beta * x_t + before.sqrt() / (1 - before) * x_0) / precision
    posterior = process.q_posterior(x_0, x_t, t)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(posterior.variance, (1 / precision).expand(64, 5), rtol=1e-5, atol=1e-7)


def test_the_first_posterior_is_x_0_itself(process: ForwardProcess) -> None:
    x_0, _, x_t = batch(4, 2)
    posterior = process.q_posterior(x_0, x_t, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(posterior.mean, x_0)
    assert (posterior.variance == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_cast_last(process: ForwardProcess, dtype: torch.dtype) -> None:
    x_0, t, noise = batch(64, 3, 4, 4, dtype=dtype)
    for method in (process.q_sample, process.q_step, process.velocity):
        exact = method(x_0.float(), t, noise.float())
        result = method(x_0, t, noise)
        assert result.dtype == dtype
        assert torch.equal(result, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_rounded_x_t_no_longer_holds_is_not_computed_from_it(
    process: ForwardProcess, dtype: torch.dtype
) -> None:
    """The refused results would be off by 0.1 and more."""
    x_0, _, noise = batch(64, 3, 4, 4, dtype=torch.float32)
    t = torch.arange(936, 1000)
    x_t = process.q_sample(x_0, t, noise)
    rounded = process.predict_x_0(x_t.to(dtype).float(), t, noise.to(dtype).float())
    assert (rounded - x_0).abs().max() > 0.1
    with pytest.raises(TypeError, match=r"predict_x_0: x_t is .*bf16-mixed.*keep x_t in float32"):
        process.predict_x_0(x_t.to(dtype), t, noise.to(dtype))
    with pytest.raises(TypeError, match=r"predict_noise: x_t is "):
        process.predict_noise(x_t.to(dtype), t, x_0.to(dtype))
    # A model's output may be: it was not rounded on the way.
    assert process.predict_x_0(x_t, t, noise.to(dtype)).dtype == torch.float32
    # Nothing is divided here.
    assert process.predict_x_0_from_velocity(x_t.to(dtype), t, noise.to(dtype)).dtype == dtype


@pytest.mark.parametrize("betas", [schedules.linear(), schedules.zero_terminal_snr(schedules.linear()), torch.zeros(9)])
def test_the_documented_min_snr_weight_is_finite_at_every_step(betas: Tensor) -> None:
    """docs/index.md: min(snr, 5) / snr, whose limit at zero SNR is 1 and without noise 0."""
    (line,) = re.findall(r"^weight = (.+)$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    process = ForwardProcess(betas)
    t = torch.arange(len(betas))
    weight, snr = eval(line, {"process": process, "t": t}), process.snr(t).double()
    expected = torch.where(snr == 0, 1, torch.where(snr.isinf(), 0, snr.clamp(max=5) / snr))
    torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=0)


def test_the_first_step_still_noises_in_bfloat16(process: ForwardProcess) -> None:
    zeros, t = torch.zeros(4, 100, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int64)
    x_t = process.q_sample(zeros, t, torch.ones_like(zeros))
    torch.testing.assert_close(x_t.float(), torch.full((4, 100), 0.01), rtol=0.004, atol=0)


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double], ids=lambda f: f.__name__)
def test_buffers_keep_their_precision_when_a_parent_is_cast(cast: Callable[[nn.Module], nn.Module]) -> None:
    process = ForwardProcess(schedules.cosine())
    expected = {name: buffer.clone() for name, buffer in process.named_buffers()}
    parent = cast(nn.Sequential(nn.Linear(2, 2), process))
    assert next(parent.parameters()).dtype != torch.float32
    for name, buffer in process.named_buffers():
        assert torch.equal(buffer, expected[name])
    process.to(dtype=torch.float16)
    assert torch.equal(process.sqrt_alphas_cumprod, expected["sqrt_alphas_cumprod"])


def test_buffers_follow_a_device() -> None:
    process = ForwardProcess(schedules.linear(10)).to("meta")
    assert {buffer.device.type for buffer in process.buffers()} == {"meta"}


def test_a_checkpoint_cannot_change_the_schedule(process: ForwardProcess) -> None:
    assert not process.state_dict()


@pytest.mark.parametrize(
    "betas",
    [schedules.jsd(10), schedules.zero_terminal_snr(schedules.linear(10)), torch.tensor([0.0, 0.0, 0.5, 1.0])],
    ids=["jsd", "zero_terminal_snr", "zero betas"],
)
def test_zero_snr_is_finite_where_it_can_be_and_refused_where_not(betas: Tensor) -> None:
    process = ForwardProcess(betas)
    last = len(betas) - 1
    assert all(buffer.isfinite().all() for buffer in process.buffers())
    x_0, _, noise = batch(3, 2)
    t = torch.tensor([1, last - 1, last])
    x_t = process.q_sample(x_0, t, noise)
    torch.testing.assert_close(x_t[2], noise[2])
    torch.testing.assert_close(process.predict_x_0_from_velocity(x_t, t, process.velocity(x_0, t, noise)), x_0)
    torch.testing.assert_close(process.predict_x_0(x_t[:2], t[:2], noise[:2]), x_0[:2], rtol=0, atol=1e-5)
    assert process.q_posterior(x_0, x_t, t).mean.isfinite().all()
    assert process.snr(t)[2] == 0
    assert process.sqrt_recip_alphas_cumprod[last] == process.sqrt_recipm1_alphas_cumprod[last] == 0  # x_0 is unknown
    with pytest.raises(ValueError, match=f"t={last}.*pure noise"):
        process.predict_x_0(x_t, t, noise)


def test_noise_of_an_unnoised_image_is_refused() -> None:
    process = ForwardProcess(torch.tensor([0.0, 0.1]))
    x_0, _, noise = batch(2, 2)
    x_t = process.q_sample(x_0, torch.tensor([0, 1]), noise)
    torch.testing.assert_close(x_t[0], x_0[0])
    with pytest.raises(ValueError, match=r"t=0.*equals x_0"):
        process.predict_noise(x_t, torch.tensor([0, 1]), x_0)
    torch.testing.assert_close(process.predict_noise(x_t[1:], torch.tensor([1]), x_0[1:]), noise[1:])


def test_one_step_is_a_chain_too() -> None:
    process = ForwardProcess(schedules.linear(1))
    assert all(buffer.isfinite().all() and buffer.shape == (1,) for buffer in process.buffers())


def test_arguments_are_not_written_to(process: ForwardProcess) -> None:
    x_0, t, noise = batch(4, 3)
    copies = x_0.clone(), t.clone(), noise.clone()
    process.q_sample(x_0, t, noise)
    process.q_posterior(x_0, noise, t)
    assert all(torch.equal(a, b) for a, b in zip((x_0, t, noise), copies, strict=True))


REFUSED = [
    (dict(t=torch.tensor([0, 1000])), ValueError, "zero-based"),
    (dict(t=torch.tensor([0, -1])), ValueError, "zero-based"),
    (dict(t=torch.tensor([0, 1], dtype=torch.int32)), TypeError, "int64"),
    (dict(t=torch.tensor([0.0, 1.0])), TypeError, "int64"),
    (dict(t=torch.tensor([0])), ValueError, "one step per image"),
    (dict(t=torch.tensor(0)), ValueError, "one step per image"),
    (dict(noise=torch.zeros(2, 1, 4)), ValueError, "one shape are needed"),
    (dict(x_0=torch.zeros(2, 3, 4, dtype=torch.uint8)), TypeError, "ForwardDiffusion scales"),
]


@pytest.mark.parametrize(("change", "error", "says"), REFUSED)
def test_wrong_batches_are_refused(
    process: ForwardProcess, change: dict[str, Tensor], error: type[Exception], says: str
) -> None:
    arguments = dict(x_0=torch.zeros(2, 3, 4), t=torch.tensor([0, 1]), noise=torch.zeros(2, 3, 4)) | change
    with pytest.raises(error, match=says):
        process.q_sample(**arguments)


@pytest.mark.parametrize(
    ("betas", "error"),
    [
        (torch.tensor([0.1, 1.1]), ValueError),
        (torch.tensor([0.1, -0.1]), ValueError),
        (torch.tensor([0.1, torch.nan]), ValueError),
        (torch.tensor([]), ValueError),
        (torch.rand(2, 2), ValueError),
        (torch.tensor([0, 1]), TypeError),
        ([0.1, 0.2], TypeError),
        (None, TypeError),
    ],
)
def test_betas_that_are_no_variances_are_refused(betas: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="schedule"):
        ForwardProcess(betas)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(process: ForwardProcess) -> None:
    x_0, t, noise = batch(16, 3, 8, 8, dtype=torch.float32)
    expected = process.q_sample(x_0, t, noise)
    result = process.cuda().q_sample(x_0.cuda(), t.cuda(), noise.cuda())
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-6, atol=1e-6)


def test_an_ordinary_process_never_looks_at_its_steps() -> None:
    """On a CUDA device the host would wait for them. Tensors without data, as here, cannot be looked at."""
    process, x, t = (
        ForwardProcess(schedules.linear()).to("meta"),
        torch.empty(2, 1, 4, 4, device="meta"),
        torch.empty(2, device="meta", dtype=torch.int64),
    )
    for found in (process.q_sample(x, t, x), process.predict_x_0(x, t, x), process.predict_noise(x, t, x)):
        assert found.shape == x.shape
