"""Densities of t: FIELD's golden thresholds, scipy's distributions, and what is drawn with them."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ddpm_data import (
    DensityTimesteps,
    ForwardDiffusion,
    ForwardProcess,
    UniformTimesteps,
    densities,
    processes,
    schedules,
)
from ddpm_data.diffusion.timesteps import find_steps
from ddpm_data.types import Stage

FLOW = processes.rectified_flow(1000)
CHAIN = ForwardProcess(schedules.linear(1000))
GOLDEN_STEPS = [0, 1, 9, 99, 249, 499, 749, 998]
EDGES = np.arange(1001) / 1000
ALL: dict[str, Callable[..., Tensor]] = {
    "uniform": densities.uniform,
    "shifted": partial(densities.uniform, shift=3.0),
    "logit-normal": partial(densities.logit_normal, mean=-0.5, std=0.7, shift=2.0),
    "mode": densities.mode,
    "cosmap": densities.cosmap,
    "beta": partial(densities.beta, a=1.5, b=1.0, start=0.001),
    "lognormal": partial(densities.log_normal_sigma, mean=-1.2, std=1.2),
    "laplace": densities.laplace,
    "table": partial(densities.table, weights=[1, 3, 1]),
}


@pytest.mark.parametrize(
    ("density", "golden"),
    [
        (
            densities.uniform,
            [4294967, 8589935, 42949673, 429496730, 1073741824, 2147483648, 3221225472, 4290672329],
        ),
        (densities.logit_normal, [0, 1, 9288, 60139015, 583980723, 2147483648, 3710986573, 4294967296]),
        (
            partial(densities.uniform, shift=3.0),
            [1432611, 2867134, 14412642, 153391689, 429496730, 1073741824, 2147483648, 4282108112],
        ),
    ],
)
def test_golden_thresholds(density: Callable[..., Tensor], golden: list[int]) -> None:
    assert DensityTimesteps(density).thresholds(FLOW)[GOLDEN_STEPS].tolist() == golden


def test_a_word_equal_to_a_threshold_is_beyond_it() -> None:
    thresholds, words = torch.tensor([4, 4, 8, 2**32]), torch.tensor([0, 3, 4, 7, 8, 2**32 - 1])
    assert find_steps(thresholds, words).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.29, 1.75])
def test_mode_draws_the_curve_of_its_paper(scale: float) -> None:
    """Esser et al. 2024, Eq. 20, of evenly spaced u."""
    u = (np.arange(10**6) + 0.5) / 10**6
    s = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    shares = np.histogram(s, np.linspace(0, 1, 21))[0] / 10**6
    found = densities.mode(processes.rectified_flow(20), scale)
    torch.testing.assert_close(found, torch.from_numpy(shares), rtol=0, atol=1e-5)


def test_golden_probabilities() -> None:
    logit_normal, cosmap = densities.logit_normal(FLOW), densities.cosmap(FLOW)
    assert logit_normal[[99, 249, 499]].tolist() == pytest.approx([3.93496e-4, 1.16179e-3, 1.59577e-3], rel=1e-5)
    assert float(logit_normal[:100].sum()) == pytest.approx(0.0140022, rel=1e-5)
    assert cosmap[[0, 499]].tolist() == pytest.approx([6.3726e-4, 1.27324e-3], rel=1e-5)
    mode = densities.mode(FLOW) * 1000
    assert mode[[0, 499, 999]].tolist() == pytest.approx([0.43668, 3.79258, 0.43668], rel=1e-3)
    assert [densities.sd3_shift(size) for size in (256, [256, 512], 512, (1024, 1024))] == [1, 2**0.5, 2, 4]
    assert densities.sd3_shift(768, reference=[256, 1024]) == 1.5
    assert [densities.count_patches(size) for size in (256, [512, 512], 1024, [1024, 2048])] == [256, 1024, 4096, 8192]
    assert [densities.flux_shift(n) for n in (256, 1024, 2304, 4096, 16384)] == pytest.approx(
        [1.64872, 1.87761, 2.33186, 3.15819, 25.28], rel=1e-4
    )


SHIFTED = densities.logit_normal


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize("stage", ["train", "val"])
def test_each_batch_has_the_shift_of_its_size(stage: Stage, compile: bool) -> None:
    transform = ForwardDiffusion(
        FLOW, 3, DensityTimesteps(SHIFTED, shift_by_size=densities.flux_shift_by_size), compile=compile
    )
    for height, width in [(64, 64), (16, 256), (512, 256), (64, 64)]:
        images, position = torch.zeros(200, 1, height, width, dtype=torch.uint8), torch.arange(200) + 7
        shift = densities.flux_shift(height * width / 256)
        fixed = ForwardDiffusion(FLOW, 3, DensityTimesteps(partial(SHIFTED, shift=shift)), compile=compile)
        assert torch.equal(transform(images, position, stage).t, fixed(images, position, stage).t)
    assert len(transform._thresholds_by_size) == 3
    assert transform.timesteps.probabilities(FLOW).equal(SHIFTED(FLOW))  # type: ignore[union-attr]


@pytest.mark.parametrize(("a", "b"), [(1.5, 1.0), (2.0, 2.0), (0.8, 1.0), (0.3, 0.2), (50.0, 3.0), (1.0, 7.0)])
def test_beta_is_scipys(a: float, b: float) -> None:
    expected = np.diff(stats.beta.cdf(EDGES, a, b))
    np.testing.assert_allclose(densities.beta(FLOW, a, b).numpy(), expected, rtol=1e-9, atol=1e-14)


def test_noise_levels_take_the_nearest_step() -> None:
    """By a draw of a million levels, each rounded to the step nearest on a logarithmic scale."""
    levels = -CHAIN.exact.log_snr.numpy() / 2
    draws = stats.norm(-1.2, 1.2).rvs(1_000_000, random_state=0)
    nearest = np.abs(levels[np.clip(np.searchsorted(levels, draws), 0, 999)] - draws)
    step = np.searchsorted((levels[1:] + levels[:-1]) / 2, draws)
    assert (np.abs(levels[step] - draws) <= nearest + 1e-12).all()  # so it is the nearest
    expected = np.bincount(step, minlength=1000) / len(draws)
    found = densities.log_normal_sigma(CHAIN, -1.2, 1.2).numpy()
    tolerance = 6 * np.sqrt(found / len(draws)) + 1e-6  # false alarm 2e-6
    assert (np.abs(found - expected) <= tolerance).all()
    z = -CHAIN.exact.log_snr.numpy()
    middles = np.concatenate([[-np.inf], (z[1:] + z[:-1]) / 2, [np.inf]])
    np.testing.assert_allclose(
        densities.laplace(CHAIN, 0.3, 0.5).numpy(), np.diff(stats.laplace(-0.3, 0.5).cdf(middles)), atol=1e-12
    )


def test_a_table_is_taken_as_it_is_or_stretched() -> None:
    process = processes.rectified_flow(4)
    assert densities.table(process, [1, 0, 2, 1]).tolist() == [0.25, 0, 0.5, 0.25]
    assert densities.table(process, [0, 3, 0]).tolist() == pytest.approx([1 / 8, 3 / 8, 3 / 8, 1 / 8])
    assert densities.table(process, [0, 8]).tolist() == pytest.approx([1 / 16, 3 / 16, 5 / 16, 7 / 16])
    assert densities.table(process, [0.001, 0, 0.002, 0.001]).tolist() == pytest.approx([0.25, 0, 0.5, 0.25])  # any sum


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("stage", ["train", "val"])
def test_draws_follow_the_density(name: str, stage: Stage) -> None:
    density = ALL[name]
    transform = ForwardDiffusion(CHAIN, seed=3, timesteps=DensityTimesteps(density), compile=False)
    count = 50_000
    images = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    t = transform(images, torch.arange(count) + 2**33, stage).t
    expected = density(CHAIN).view(50, 20).sum(1)
    found = torch.bincount(t // 20, minlength=50) / count
    tolerance = 6 * (expected * (1 - expected) / count).sqrt() + 2 / count  # false alarm 1e-7
    if stage == "val":
        tolerance = torch.full_like(tolerance, 12 / count)  # spread evenly
    assert bool(((found - expected).abs() <= tolerance).all())


def test_uniform_as_a_density_is_the_uniform_draw() -> None:
    images, position = torch.zeros(4096, 1, 1, 1, dtype=torch.uint8), torch.arange(4096)
    timesteps = [UniformTimesteps(), DensityTimesteps(densities.uniform)]
    first, second = (ForwardDiffusion(FLOW, timesteps=draw)(images, position).t for draw in timesteps)
    assert torch.equal(first, second)


def test_steps_of_no_probability_are_never_drawn() -> None:
    density = torch.zeros(1000, dtype=torch.float64)
    density[[3, 500]] = 0.5
    transform = ForwardDiffusion(CHAIN, timesteps=DensityTimesteps(density))
    t = transform(torch.zeros(4096, 1, 1, 1, dtype=torch.uint8), torch.arange(4096)).t
    assert t.unique().tolist() == [3, 500]
    thresholds = DensityTimesteps(density).thresholds(CHAIN)
    assert thresholds[500:].tolist() == [2**32] * 500
    assert thresholds[499] == 2**31


def test_importance_makes_up_for_the_density() -> None:
    """The expected weight of every step is then that of uniform t; steps that are never drawn have none."""
    draw = DensityTimesteps(densities.logit_normal, importance=True)
    weight = ForwardDiffusion(FLOW, timesteps=draw, target="flow").loss_weight(torch.arange(1000)).double()
    thresholds = draw.thresholds(FLOW)
    drawn = thresholds.diff(prepend=thresholds.new_zeros(1)).double() / 2**32
    torch.testing.assert_close(weight * drawn, torch.where(drawn > 0, 1e-3, 0.0).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(drawn, densities.logit_normal(FLOW), rtol=0, atol=2**-32)
    plain = ForwardDiffusion(FLOW, timesteps=DensityTimesteps(densities.logit_normal), target="flow")
    assert torch.equal(plain.loss_weight(torch.arange(1000)), torch.ones(1000))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DensityTimesteps(densities.uniform(CHAIN).tolist()), "expected a function of the process"),  # type: ignore[arg-type]
        (
            lambda: DensityTimesteps(densities.uniform, low_discrepancy=1),
            "`low_discrepancy`",
        ),  # type: ignore[arg-type]
        (
            lambda: DensityTimesteps(densities.uniform, importance="no"),
            "`importance`",
        ),  # type: ignore[arg-type]
        (lambda: DensityTimesteps(torch.ones(3) / 3).thresholds(CHAIN), r"shape \(3,\)"),
        (lambda: DensityTimesteps(torch.ones(1000)).thresholds(CHAIN), "sum is 1000"),
        (lambda: DensityTimesteps(torch.linspace(-1, 1, 1000)).thresholds(CHAIN), "the density is -1 at t=0"),
        (lambda: DensityTimesteps(lambda process: 1.0).thresholds(CHAIN), "the density must be .* not a float"),  # type: ignore[arg-type,return-value]
        (lambda: densities.logit_normal(FLOW, std=0), "`std`"),
        (lambda: densities.logit_normal(FLOW, shift=[1.0, 3.0]), "expected a number, got list.*`shift`"),  # type: ignore[arg-type]
        (lambda: densities.mode(FLOW, 2.0), r"\[-1, 1.75194\]"),
        (lambda: densities.beta(FLOW, -1, 1), "`a`"),
        (lambda: densities.sd3_shift(0), "`size`"),
        (lambda: densities.sd3_shift(None), "`size`"),  # type: ignore[arg-type]
        (lambda: densities.sd3_shift(256, [1, 2, 3]), r"\[1, 2, 3\] is no height and width. Change `reference`"),
        (lambda: densities.flux_shift(0), "`sequence`"),
        (lambda: densities.count_patches(512, patch=0), "`patch`"),
        (lambda: densities.flux_shift_by_size(512, patch=0), "`patch`"),
        (lambda: DensityTimesteps(SHIFTED, shift_by_size=3.0), "expected a function of .height, width."),  # type: ignore[arg-type]
        (lambda: DensityTimesteps(SHIFTED(FLOW), shift_by_size=densities.sd3_shift), "beside a density that takes"),
        (lambda: DensityTimesteps(SHIFTED, importance=True, shift_by_size=densities.sd3_shift), "one for each size"),
        (lambda: DensityTimesteps(partial(SHIFTED, shift=3.0), shift_by_size=densities.sd3_shift), "has shift=3.0"),
        (
            lambda: ForwardDiffusion(
                FLOW, timesteps=DensityTimesteps(densities.mode, shift_by_size=densities.sd3_shift)
            ),
            "unexpected keyword argument 'shift'",
        ),
        (
            lambda: DensityTimesteps(SHIFTED, shift_by_size=lambda size: 0.0).thresholds(FLOW, (8, 8)),
            "must lie above 0. Change `timesteps.shift_by_size`",
        ),
        (lambda: densities.table(FLOW, [1, -1, 1]), "none is negative"),
        (lambda: densities.table(FLOW, "even"), "list of at least two numbers"),
        (
            lambda: densities.laplace(processes.GaussianProcess(torch.ones(2), torch.tensor([2.0, 1.0]))),
            "less noise at t=1",
        ),
    ],
)
def test_wrong_input_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()
