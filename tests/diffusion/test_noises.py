"""Variants of the noise: their moments, their targets, and that they belong to the example."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_data import ForwardDiffusion, ForwardProcess, GaussianProcess, UniformTimesteps, noises, processes, schedules
from ddpm_data.diffusion.noises import Noise, _Stretch
from ddpm_data.types import Stage
from tests.conftest import uint8_images

FLOW = processes.rectified_flow(1000)
CHAIN = ForwardProcess(schedules.linear())
ALL: dict[str, Noise] = {
    "offset": noises.offset(0.3),
    "generalised offset": noises.generalised_offset(30.0),
    "input perturbation": noises.input_perturbation(0.3),
    "pyramid": noises.pyramid(0.5),
    "nearest": noises.nearest(3),
}


def make(
    noise: Noise | None,
    images: Tensor,
    position: Tensor | None = None,
    process: GaussianProcess = FLOW,
    stage: Stage = "train",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``x_t``, ``t``, the noise of the target, and the noise inside ``x_t``."""
    position = torch.arange(len(images)) if position is None else position
    x_t, t, learned = ForwardDiffusion(process, seed=5, noise=noise, compile=False)(images, position, stage)
    a, b = (table[t].view(-1, 1, 1, 1) for table in (process.signal, process.sigma))
    x_0 = images.float() / 127.5 - 1
    return x_t, t, learned, (x_t - a * x_0) / b


@pytest.mark.parametrize(
    ("noise", "learned", "noised"),
    [
        (noises.offset(0.5), [0.645363, 0.654260], [0.333373, -0.275840]),
        (noises.generalised_offset(0.5), [0.507208, 0.278405], [0.364989, -0.287340]),
        (noises.pyramid(), [-0.205497, 0.080291], [0.543925, -0.219876]),
        (noises.nearest(5), [0.720631, 0.108559], [-0.891982, -0.792343]),
        (noises.input_perturbation(0.5), [0.187333, 0.037289], [1.104635, -0.194611]),
    ],
    ids=["offset", "generalised offset", "pyramid", "nearest", "input perturbation"],
)
def test_the_stream_stays_as_it_is(noise: Noise, learned: list[float], noised: list[float]) -> None:
    images, position = uint8_images(2, 2, 5, 7), torch.tensor([3, 2**33])
    process = ForwardProcess(schedules.linear(100))
    x_t, _, found = ForwardDiffusion(process, seed=9, noise=noise, compile=False)(images, position)
    assert found[:, -1, -1, -1].tolist() == pytest.approx(learned, abs=1e-5)
    assert x_t[:, 0, 2, 3].tolist() == pytest.approx(noised, abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_noise_belongs_to_the_example(name: str) -> None:
    images = uint8_images(9, 3, 7, 5)
    process = CHAIN if name == "generalised offset" else FLOW
    position = torch.arange(9)
    together = make(ALL[name], images, position, process)
    for row in range(9):
        alone = make(ALL[name], images[[row]], position[[row]], process)
        assert all(torch.equal(a, b[[row]]) for a, b in zip(alone[:3], together[:3], strict=True))
    _, t, plain, _ = make(None, images, position, process)
    assert torch.equal(t, together[1])
    assert not torch.equal(plain, together[2]) or name == "input perturbation"


@pytest.mark.parametrize("shape", [(200, 3, 16, 16), (100, 1, 9, 7), (60, 5, 6, 6), (30, 24, 4, 4)], ids=str)
def test_offset_adds_one_number_to_a_channel(shape: tuple[int, ...]) -> None:
    images = uint8_images(*shape)
    learned, plain = make(noises.offset(0.5), images)[2], make(None, images)[2]
    added = (learned - plain).flatten(2)
    torch.testing.assert_close(added, added[:, :, :1].expand_as(added), rtol=0, atol=1e-5)
    numbers = added[:, :, 0] / 0.5
    count = numbers.numel()
    assert abs(float(numbers.mean())) < 5.5 / count**0.5  # false alarm 4e-8
    assert abs(float(numbers.var()) - 1) < 5.5 * (2 / count) ** 0.5
    assert len(numbers.unique()) == count


def test_offsets_variance_is_fields() -> None:
    images = uint8_images(2000, 1, 8, 8)
    learned = make(noises.offset(0.5), images)[2]
    assert float(learned.var()) == pytest.approx(1.25, rel=0.05)
    assert float(learned.mean((1, 2, 3)).var()) == pytest.approx(1 / 64 + 0.25, rel=0.15)


def test_generalised_offsets_factor_is_that_of_the_algorithm() -> None:
    """psi at three steps of Stable Diffusion's schedule; and Kutsuna 2024, Alg. 1, step by step."""
    betas = schedules.scaled_linear(1000, 0.00085, 0.012)
    bars = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    total, totals = torch.ones((), dtype=torch.float64), [torch.ones((), dtype=torch.float64)]
    for t in range(1, 1000):
        c = betas[t] * before[t].sqrt() / ((1 - betas[t]) * (1 - before[t]))
        total = total + c * total / before[t].sqrt()
        totals.append(total)
    psi = torch.stack(totals) / (1 - bars).sqrt()
    psi = psi / psi[-1]
    images, position = uint8_images(500, 2, 6, 6), torch.arange(500)

    def learn(noise: Noise | None) -> tuple[Tensor, Tensor]:
        timesteps = UniformTimesteps(low_discrepancy=True)
        transform = ForwardDiffusion(ForwardProcess(betas), 5, timesteps, compile=False, noise=noise)
        _, t, learned = transform(images, position)
        return t, learned

    t, plain = learn(None)
    whole, part = (learn(noise)[1] - plain for noise in (noises.offset(1e4), noises.generalised_offset(1e4)))
    torch.testing.assert_close(part / whole, psi[t].float().view(-1, 1, 1, 1).expand_as(part), rtol=1e-3, atol=1e-7)
    assert psi[[0, 250, 999]].tolist() == pytest.approx([1.363e-4, 3.959e-3, 1], rel=3e-4)


@pytest.mark.parametrize(
    "process",
    [
        FLOW,
        processes.edm(100),
        ForwardProcess(schedules.zero_terminal_snr(schedules.linear(100))),
        processes.from_log_snr(torch.tensor([5.0, -3.0, -200.0], dtype=torch.float64)),
    ],
    ids=["flow", "variance exploding", "no signal", "signal of 0 in float32"],
)
def test_generalised_offset_is_refused_where_it_is_not_defined(process: GaussianProcess) -> None:
    with pytest.raises(ValueError, match=r"generalised_offset: .* Change `noise`, or `schedule`"):
        ForwardDiffusion(process, noise=noises.generalised_offset())


def test_input_perturbation_leaves_the_target_alone() -> None:
    images = uint8_images(100, 3, 16, 16)
    plain = make(None, images)
    _, t, learned, inside = make(noises.input_perturbation(0.3), images)
    assert torch.equal(learned, plain[2])
    has_noise = t > 100
    xi = ((inside - learned) / 0.3)[has_noise]
    assert abs(float(xi.mean())) < 5.5 / xi.numel() ** 0.5
    assert float(xi.var()) == pytest.approx(1, rel=0.02)
    assert abs(float((xi * learned[has_noise]).mean())) < 5.5 / xi.numel() ** 0.5  # independent of the target


def test_input_perturbation_leaves_evaluation_alone() -> None:
    images = uint8_images(5, 1, 6, 6)
    for stage in ("val", "test", "predict"):
        perturbed, plain = make(noises.input_perturbation(0.3), images, stage=stage), make(None, images, stage=stage)
        assert all(torch.equal(a, b) for a, b in zip(perturbed, plain, strict=True))


def test_pyramid_enlarges_a_level_as_torch_does() -> None:
    coarse = torch.rand(2, 3, 3, 5)
    expected = F.interpolate(coarse, size=(7, 20), mode="bilinear", align_corners=False)
    down, across = (_Stretch.make(*sides, coarse.device) for sides in ((3, 7), (5, 20)))
    torch.testing.assert_close(down(across(coarse, -1), -2), expected)
    of_each = down(torch.eye(3), -2)  # what each of the three adds to a place
    torch.testing.assert_close(down.squares(), of_each.square().sum(1))


@pytest.mark.parametrize("name", ALL)
def test_compiled_or_not_it_is_the_same_noise(name: str) -> None:
    """Of images large enough to be compiled; what is not compiled is no ordinary noise instead."""
    process, images = CHAIN if name == "generalised offset" else FLOW, uint8_images(4, 3, 16, 16)
    found = [
        ForwardDiffusion(process, noise=ALL[name], compile=compile)(images, torch.arange(4))
        for compile in (True, False)
    ]
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)


def test_a_pyramid_may_have_one_level() -> None:
    images = uint8_images(2, 1, 4, 6)
    coarse = noises.pyramid(0.9, levels=1)
    assert not torch.equal(make(coarse, images)[2], make(noises.pyramid(0.9, levels=2), images)[2])


@pytest.mark.parametrize("name", ALL)
def test_an_autocast_around_it_changes_no_bit(name: str) -> None:
    process, images = CHAIN if name == "generalised offset" else FLOW, uint8_images(4, 3, 16, 12)
    plain = make(ALL[name], images, process=process)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(make(ALL[name], images, process=process), plain, strict=True))


def test_each_level_of_a_pyramid_is_smaller_by_the_ratio() -> None:
    """From 16 pixels a side to one in four levels, so there is no fifth."""
    images = uint8_images(3, 1, 16, 16)
    four, ten, three = (make(noises.pyramid(0.9, levels=levels), images)[2] for levels in (4, 10, 3))
    assert torch.equal(four, ten)
    assert not torch.equal(four, three)


def test_pyramid_has_variance_1_and_correlated_neighbours() -> None:
    learned = make(noises.pyramid(0.6), uint8_images(2000, 1, 12, 20))[2]
    torch.testing.assert_close(learned.var(0), torch.ones(1, 12, 20), rtol=0, atol=0.2)
    plain = make(None, uint8_images(2000, 1, 12, 20))[2]
    neighbours = [float((n[..., 1:] * n[..., :-1]).mean()) for n in (learned, plain)]
    assert neighbours[0] > 0.15 > 0.02 > abs(neighbours[1])
    assert torch.equal(make(noises.pyramid(0.0), uint8_images(4, 3, 8, 8))[2], make(None, uint8_images(4, 3, 8, 8))[2])


def test_nearest_is_the_nearest_of_its_draws() -> None:
    images = uint8_images(50, 3, 5, 5)  # 75 numbers, no multiple of 4
    x_0 = images.double() / 127.5 - 1
    distances = []
    for candidates in (1, 2, 4, 8):
        learned = make(noises.nearest(candidates), images)[2]
        distances.append((learned.double() - x_0).square().sum((1, 2, 3)))
        if candidates == 1:
            assert torch.equal(learned, make(None, images)[2])
    for less, more in itertools.pairwise(distances):
        assert bool((more <= less).all())  # more draws hold the fewer
        assert float((more < less).double().mean()) > 0.25
    assert torch.equal(make(noises.nearest(8), images[:1])[2], make(noises.nearest(8), images)[2][:1])


def test_settings_of_different_kinds_are_never_equal() -> None:
    """They are keys of what was compiled."""
    assert noises.offset(0.1) == noises.offset(0.1) != noises.offset(0.2)
    assert noises.offset(0.1) != noises.input_perturbation(0.1)
    assert noises.offset(0.1) != noises.generalised_offset(0.1)
    assert noises.gaussian() is None
    assert noises.nearest(128) != noises.nearest(127)
    assert len({hash(noise) for noise in (*ALL.values(), *ALL.values())}) == len(ALL)


@pytest.mark.parametrize(
    ("make_noise", "message"),
    [
        (lambda: noises.offset(-0.1), "`strength`"),
        (lambda: noises.generalised_offset(-0.1), "`strength`"),
        (lambda: noises.input_perturbation("much"), "`strength`"),  # type: ignore[arg-type]
        (lambda: noises.pyramid(discount=1.0), "`discount`"),
        (lambda: noises.pyramid(ratio=1.0), "`ratio`"),
        (lambda: noises.pyramid(levels=0), "`levels`"),
        (lambda: noises.nearest(129), "`candidates`"),
        (lambda: noises.nearest(0), "`candidates`"),
    ],
)
def test_wrong_input_is_refused(make_noise: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make_noise()  # type: ignore[operator]
