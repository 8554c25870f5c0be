"""Targets and weights: their definitions by hand, the way back, FIELD's golden values, and the identity of weights."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from ddpm_data import (
    ForwardDiffusion,
    ForwardProcess,
    GaussianProcess,
    TargetTriple,
    Triple,
    processes,
    schedules,
    weights,
)
from ddpm_data.diffusion.objective import Objective, view_on_log_snr
from ddpm_data.diffusion.targets import TARGETS, Target, error_ratio, solve
from tests.conftest import uint8_images

SD = ForwardProcess(schedules.scaled_linear())
ZERO_TERMINAL = ForwardProcess(schedules.zero_terminal_snr(schedules.scaled_linear()))
PROCESSES: dict[str, GaussianProcess] = {
    "chain": SD,
    "zero terminal SNR": ZERO_TERMINAL,
    "rectified flow": processes.rectified_flow(100),
    "edm": processes.edm(100),
}
WEIGHTS: dict[str, Callable[[GaussianProcess, Target], Tensor]] = {
    "uniform": weights.uniform,
    "uniform velocity": partial(weights.uniform, of="velocity"),
    "min_snr": weights.min_snr,
    "soft_min_snr": weights.soft_min_snr,
    "truncated_snr": weights.truncated_snr,
    "debiased": weights.debiased,
    "p2": partial(weights.p2, k=2.0, gamma=0.5),
    "edm": weights.edm,
    "vlb": weights.vlb,
    "sigmoid": weights.sigmoid,
}


def has(process: GaussianProcess, target: str) -> bool:
    try:
        Objective(process, target)  # type: ignore[arg-type]
    except ValueError:
        return False
    return True


PAIRS = [(name, target) for name, process in PROCESSES.items() for target in TARGETS if has(process, target)]


def by_hand(process: GaussianProcess, target: str, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The target in float64, from its definition."""
    a, b = process.exact.signal[t][:, None], process.exact.sigma[t][:, None]
    if target == "edm":
        sigma = b / a
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        return (x_0 - skip * (x_0 + sigma * noise)) / out
    return {
        "noise": noise,
        "x_0": x_0,
        "velocity": a * noise - b * x_0,
        "flow": noise - x_0,
        "flow_to_data": x_0 - noise,
        "score": -noise / b,
    }[target]


def draw(process: GaussianProcess) -> tuple[Tensor, Tensor, Tensor]:
    x_0, noise = torch.randn(
        2, process.num_timesteps, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    return x_0, noise, torch.arange(process.num_timesteps)


def test_which_process_has_which_target() -> None:
    assert {name: {t for n, t in PAIRS if n == name} for name in PROCESSES} == {
        "chain": set(TARGETS),
        "zero terminal SNR": set(TARGETS) - {"edm"},
        "rectified flow": set(TARGETS) - {"velocity", "edm"},
        "edm": set(TARGETS) - {"velocity"},
    }


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_targets_are_their_definitions_and_come_back(name: str, target: Target) -> None:
    process = PROCESSES[name]
    x_0, noise, t = draw(process)
    expected = by_hand(process, target, x_0, noise, t)
    objective = Objective(process, target)
    torch.testing.assert_close(objective.make_target(x_0, t, noise), expected, rtol=1e-5, atol=1e-5)
    x_t = process.exact.signal[:, None] * x_0 + process.exact.sigma[:, None] * noise
    solution, _ = solve(process, target)
    is_defined = solution.x_t.isfinite() & solution.target.isfinite()
    found = solution.x_t[:, None] * x_t + solution.target[:, None] * expected
    torch.testing.assert_close(found[is_defined], x_0[is_defined], rtol=1e-8, atol=1e-6)
    back = objective.to_x_0(x_t[is_defined], t[is_defined], expected[is_defined])
    torch.testing.assert_close(back, x_0[is_defined], rtol=0, atol=0.3 if target in ("noise", "score") else 1e-4)
    if not is_defined.all():
        with pytest.raises(ValueError, match=rf"at t={int(t[~is_defined][0])} x_0 does not follow"):
            objective.to_x_0(x_t, t, expected)
    has_noise = objective.noise_from_x_t.isfinite() & objective.noise_from_target.isfinite()
    assert bool(has_noise.all()) or target == "x_0"
    found = objective.to_noise(x_t[has_noise], t[has_noise], expected[has_noise])
    torch.testing.assert_close(found, noise[has_noise], rtol=0, atol=1e-3 if process.sigma.min() > 0.005 else 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_the_batch_holds_the_target_of_the_noise_inside_it(name: str, target: Target) -> None:
    """What the fused pass writes is made from x_0 and the noise of the same example, for every process."""
    process = PROCESSES[name]
    images, position = uint8_images(32, 3, 8, 8), torch.arange(32)
    x_t, t, noise = ForwardDiffusion(process, seed=1, flip=0.5)(images, position)
    batch = ForwardDiffusion(process, seed=1, flip=0.5, target=target)(images, position)
    assert type(batch) is (Triple if target == "noise" else TargetTriple)
    assert torch.equal(batch.x_t, x_t)
    assert torch.equal(batch.t, t)
    mirrored = ForwardDiffusion(process, seed=1, flip=0.5).flip_mask(position)
    assert mirrored is not None
    x_0 = torch.where(mirrored[:, None, None, None], images.flip(-1), images).double() / 127.5 - 1
    expected = by_hand(process, target, x_0.flatten(1), noise.double().flatten(1), t)
    torch.testing.assert_close(batch[2].double().flatten(1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["velocity", "flow", "edm"])
def test_half_precision_targets_are_cast_last(target: Target) -> None:
    images, position = uint8_images(64, 3, 8, 8), torch.arange(64)
    transform = ForwardDiffusion(SD, target=target)
    exact, half = transform(images, position), transform(images, position, dtype=torch.bfloat16)
    assert torch.equal(half[2], exact[2].to(torch.bfloat16))


@pytest.mark.parametrize(
    ("name", "on_noise", "on_velocity"),
    [
        ("uniform", 1.0, 0.89422),
        ("min_snr", 0.591443, 0.528883),
        ("soft_min_snr", 0.37164, 0.332329),
        ("truncated_snr", 1.0, 0.89422),
        ("debiased", 0.343931, 0.307551),
        ("sigmoid", 0.00614254, None),
    ],
)
def test_golden_weights(name: str, on_noise: float, on_velocity: float | None) -> None:
    assert float(WEIGHTS[name](SD, "noise")[100]) == pytest.approx(on_noise, rel=1e-5)
    if on_velocity is not None:
        assert float(WEIGHTS[name](SD, "velocity")[100]) == pytest.approx(on_velocity, rel=1e-5)


def test_further_golden_weights() -> None:
    assert weights.p2(SD, "noise")[100].item() == pytest.approx(0.105777, rel=1e-5)
    assert weights.p2(SD, "velocity")[100].item() == pytest.approx(0.0945878, rel=1e-5)
    assert weights.vlb(SD, "noise")[1:3].tolist() == pytest.approx([0.503194, 0.252395], rel=1e-5)
    edm = processes.variance_exploding(torch.tensor([0.1, 0.5, 1.0, 80.0], dtype=torch.float64))
    assert weights.edm(edm, "x_0").tolist() == pytest.approx([104, 8, 5, 4.000156], rel=1e-6)
    assert weights.edm(edm, "edm").tolist() == pytest.approx([1, 1, 1, 1], rel=1e-12)
    flow = processes.rectified_flow(1000)
    s = flow.exact.sigma
    torch.testing.assert_close(weights.min_snr(flow, "flow"), torch.minimum((1 - s) ** 2, 5 * s**2))
    torch.testing.assert_close(weights.uniform(flow, "flow", of="x_0"), s**2)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("process", [SD, ZERO_TERMINAL], ids=["chain", "zero terminal SNR"])
def test_a_weight_means_the_same_for_every_target(name: str, process: GaussianProcess) -> None:
    """The same error of x_0, turned into an error of each target, costs the same."""
    expected = WEIGHTS[name](process, "x_0")
    _, error, t = draw(process)
    for target in TARGETS:
        try:
            weight = WEIGHTS[name](process, target)  # type: ignore[arg-type]
        except ValueError as refusal:
            assert "infinite at t=999" in str(refusal) or "divides" in str(refusal)  # noqa: PT017
            assert process is ZERO_TERMINAL
            continue
        zeros = torch.zeros_like(error)
        factors = by_hand(process, target, torch.ones_like(error), zeros, t)[:, 0]  # of x_0, and of
        of_noise = by_hand(process, target, zeros, torch.ones_like(error), t)[:, 0]  # the noise, in the target
        a, b = process.exact
        wrong = factors[:, None] * error - (of_noise * a / b)[:, None] * error  # x_t stays: a dx + b dn = 0
        cost = weight * wrong.square().mean(1)
        torch.testing.assert_close(cost, expected * error.square().mean(1), rtol=1e-9, atol=1e-12)


def test_limits_without_signal() -> None:
    last = {
        (name, target): float(WEIGHTS[name](ZERO_TERMINAL, target)[-1])  # type: ignore[arg-type]
        for name, target in [
            ("min_snr", "noise"),
            ("soft_min_snr", "noise"),
            ("uniform", "noise"),
            ("min_snr", "velocity"),
            ("debiased", "velocity"),
            ("truncated_snr", "velocity"),
            ("edm", "velocity"),
            ("uniform velocity", "velocity"),
        ]
    }
    assert list(last.values()) == pytest.approx([1, 1, 1, 0, 0, 1, 4, 1], rel=1e-12, abs=0)
    for name in ("debiased", "truncated_snr", "edm", "vlb", "sigmoid", "uniform velocity"):
        with pytest.raises(ValueError, match=r"infinite at t=999.*without signal"):
            WEIGHTS[name](ZERO_TERMINAL, "noise")


def test_limits_without_noise() -> None:
    process = ForwardProcess(torch.cat([torch.zeros(1), schedules.linear(9)]).double())
    assert weights.uniform(process, "noise").tolist() == [1.0] * 10
    assert weights.min_snr(process, "x_0")[0] == 5
    with pytest.raises(ValueError, match=r"infinite at t=0.*without noise"):
        weights.uniform(process, "x_0")
    with pytest.raises(ValueError, match="no noise at t=0"):
        ForwardDiffusion(process, target="score")
    for gamma in (1e-9, 0.3, 0.999, 1.0, 1.001, 5.0):  # of (k + SNR)**-gamma, however near 0
        on_noise = weights.p2(process, "noise", gamma=gamma)
        assert on_noise[0] == 0
        torch.testing.assert_close(on_noise[1:], (1 + process.exact.log_snr[1:].exp()) ** -gamma, rtol=1e-12, atol=0)
        if gamma < 1:
            with pytest.raises(ValueError, match=r"infinite at t=0.*without noise"):
                weights.p2(process, "x_0", gamma=gamma)
        else:
            assert weights.p2(process, "x_0", gamma=gamma)[0] == (1 if gamma == 1 else 0)
    assert weights.p2(process, "noise", gamma=0.0).tolist() == pytest.approx([1.0] * 10, rel=1e-12)
    with pytest.raises(ValueError, match=r"infinite at t=0.*without noise"):
        weights.p2(process, "noise", gamma=-1e-9)
    for weight in (weights.sigmoid, weights.vlb):  # they look at the step before, whose SNR is infinite
        with pytest.raises(ValueError, match=r"infinite at t=1.*without noise"):
            weight(process, "noise")


def test_extreme_weights_of_steps_with_signal_and_noise_are_kept() -> None:
    process = processes.from_log_snr(torch.linspace(70, -70, 101, dtype=torch.float64))
    snr = torch.linspace(70, -70, 101, dtype=torch.float64).exp()
    torch.testing.assert_close(weights.uniform(process, "x_0"), snr, rtol=1e-6, atol=0)
    torch.testing.assert_close(weights.min_snr(process, "x_0"), snr.clamp(max=5), rtol=1e-6, atol=0)


def test_error_ratios_by_their_formulas() -> None:
    snr = SD.exact.log_snr.exp()
    torch.testing.assert_close(error_ratio(SD, "noise"), snr)
    torch.testing.assert_close(error_ratio(SD, "velocity"), snr + 1)
    flow = processes.rectified_flow(10)
    torch.testing.assert_close(error_ratio(flow, "flow"), flow.exact.sigma**-2)


def test_the_view_on_log_snr_by_hand() -> None:
    """Between steps at 1 and -2, the weight at 0 lies a third of the way, on a logarithmic scale."""
    process = processes.from_log_snr(torch.tensor([5.0, 3.0, 1.0, -2.0, -3.0, -7.0], dtype=torch.float64))
    shares = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.1], dtype=torch.float64)
    view = view_on_log_snr(process, Objective(process, "noise"), shares)
    density = torch.tensor([0.2 / 2, 0.3 / 2.5, 0.1 / 2, 0.2 / 2.5], dtype=torch.float64)
    weight = density * torch.tensor([3.0, 1.0, -2.0, -3.0], dtype=torch.float64).exp()
    at_0 = (weight[1].log() * 2 / 3 + weight[2].log() / 3).exp()
    torch.testing.assert_close(view.density, density)
    torch.testing.assert_close(view.weight, weight / at_0, rtol=1e-6, atol=0)


def test_tables_are_made_of_the_settings_and_not_saved() -> None:
    transform = ForwardDiffusion(ForwardProcess(schedules.linear(10)), target="velocity", weight=weights.min_snr)
    assert not transform.state_dict()


def test_tables_move_with_the_transform_and_keep_their_precision() -> None:
    transform = ForwardDiffusion(ForwardProcess(schedules.linear(10)), target="velocity").to(torch.bfloat16).to("meta")
    for name, table in transform.objective.named_buffers():
        assert table.is_meta, name
        assert table.dtype == torch.float32, name


def test_weights_are_looked_up() -> None:
    transform = ForwardDiffusion(SD, target="velocity", weight=weights.min_snr)
    t = torch.tensor([[0, 100], [500, 999]])
    assert torch.equal(transform.loss_weight(t), weights.min_snr(SD, "velocity").float()[t])
    assert torch.equal(ForwardDiffusion(SD).loss_weight(t), torch.ones(2, 2))
    assert transform.half().loss_weight(t).dtype == torch.float32


STILL = ForwardProcess(torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64))  # its first steps add nothing


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ForwardDiffusion(SD, target="epsilon"), "the targets are noise, x_0"),  # type: ignore[arg-type]
        (lambda: ForwardDiffusion(processes.edm(10), target="velocity"), r"signal\^2 \+ sigma\^2 = 1"),
        (lambda: ForwardDiffusion(STILL, target="edm"), "no noise at t=0, and its output scale is 0"),
        (lambda: ForwardDiffusion(STILL, target="score"), "no noise at t=0, and it divides by sigma"),
        (
            lambda: ForwardDiffusion(GaussianProcess(torch.tensor([1.0, 0.0]), torch.ones(2)), target="edm"),
            "no signal at t=1, and it divides by the signal",
        ),
        (lambda: ForwardDiffusion(SD, weight="min_snr"), "weight is a str"),  # type: ignore[arg-type]
        (lambda: ForwardDiffusion(SD, weight=lambda p, t: torch.ones(3)), r"weight has shape \(3,\).*\(1000,\)"),
        (lambda: ForwardDiffusion(SD, weight=lambda p, t: torch.ones(1000).double() * 1e39), r"1e\+39 at t=0"),
        (lambda: ForwardDiffusion(SD, weight=lambda p, t: [1.0] * 1000), "tensor with one value per step, not a list"),  # type: ignore[arg-type,return-value]
        (lambda: ForwardDiffusion(SD, weight=lambda p, t: -torch.ones(1000)), "the weight is -1 at t=0"),
        (lambda: ForwardDiffusion(SD, weight=lambda p, t: torch.full((1000,), math.nan)), "the weight is nan at t=0"),
        (lambda: ForwardDiffusion(SD, noise="offset"), "one of ddpm_data.noises"),  # type: ignore[arg-type]
        (lambda: weights.min_snr(SD, "noise", gamma=0), "`gamma`"),
        (lambda: weights.p2(SD, "noise", k=-1), "`k`"),
        (lambda: weights.uniform(SD, "noise", of="eps"), "the targets are"),  # type: ignore[arg-type]
        (lambda: Objective(SD).to_x_0(torch.ones(1, 1).half(), torch.zeros(1).long(), torch.ones(1, 1)), "float16"),
    ],
)
def test_wrong_input_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()
