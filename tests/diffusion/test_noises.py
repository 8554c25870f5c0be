"""Variants of the noise: their moments, their targets, and that they belong to the example."""

import itertools

import pytest
import torch
from torch import Tensor

from ddpm_data import ForwardDiffusion, noises, processes
from ddpm_data.diffusion.noises import Noise
from ddpm_data.types import Stage
from tests.conftest import uint8_images

FLOW = processes.rectified_flow(1000)
ALL: dict[str, Noise] = {
    "offset": noises.offset(0.3),
    "input perturbation": noises.input_perturbation(0.3),
    "pyramid": noises.pyramid(0.5),
    "nearest": noises.nearest(3),
}


def make(
    noise: Noise | None, images: Tensor, position: Tensor | None = None, stage: Stage = "train"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``x_t``, ``t``, the noise of the target, and the noise inside ``x_t``."""
    position = torch.arange(len(images)) if position is None else position
    x_t, t, learned = ForwardDiffusion(FLOW, seed=5, noise=noise, compile=False)(images, position, stage)
    s = FLOW.sigma[t].view(-1, 1, 1, 1)
    x_0 = images.float() / 127.5 - 1
    return x_t, t, learned, (x_t - (1 - s) * x_0) / s


@pytest.mark.parametrize("name", ALL)
def test_noise_belongs_to_the_example(name: str) -> None:
    images = uint8_images(9, 3, 7, 5)
    together = make(ALL[name], images)
    position = torch.arange(9)
    for row in range(9):
        alone = make(ALL[name], images[[row]], position[[row]])
        assert all(torch.equal(a, b[[row]]) for a, b in zip(alone[:3], together[:3], strict=True))
    _, t, plain, _ = make(None, images)
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
    assert noises.gaussian() is None


@pytest.mark.parametrize(
    ("make_noise", "message"),
    [
        (lambda: noises.offset(-0.1), "`strength`"),
        (lambda: noises.input_perturbation("much"), "`strength`"),  # type: ignore[arg-type]
        (lambda: noises.pyramid(discount=1.0), "`discount`"),
        (lambda: noises.pyramid(ratio=1.0), "`ratio`"),
        (lambda: noises.pyramid(levels=0), "`levels`"),
        (lambda: noises.nearest(0), "`candidates`"),
    ],
)
def test_wrong_input_is_refused(make_noise: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make_noise()  # type: ignore[operator]
