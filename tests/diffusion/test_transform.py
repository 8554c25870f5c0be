"""The batch transform: a pure function of seed, position, stage and pixels."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ddpm_data import ForwardDiffusion, ForwardProcess, LossAwareTimesteps, Triple, UniformTimesteps, schedules
from ddpm_data.rng.philox import Purpose, key_from, words
from ddpm_data.types import Stage


def make(
    seed: int = 0, flip: float = 0.0, timesteps: UniformTimesteps | None = None, compile: bool = True
) -> ForwardDiffusion:
    return ForwardDiffusion(ForwardProcess(schedules.linear()), seed, timesteps, flip, compile=compile)


def some(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10**12, shape[:1], generator=generator)


def equal(a: Triple, b: Triple) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_triple_is_the_forward_process_of_the_scaled_image() -> None:
    transform = make()
    images, position = some(32, 3, 8, 8)
    x_t, t, noise = transform(images, position)
    assert x_t.dtype == noise.dtype == torch.float32
    assert t.dtype == torch.int64
    assert x_t.shape == noise.shape == images.shape
    assert torch.equal(x_t, transform.process.q_sample(images.float() / 127.5 - 1, t, noise))
    recovered = transform.process.predict_x_0(x_t.double(), t, noise.double())
    torch.testing.assert_close((recovered + 1) * 127.5, images.double(), rtol=0, atol=0.05)


def test_black_and_white_are_exactly_minus_one_and_one() -> None:
    transform = ForwardDiffusion(ForwardProcess(torch.zeros(1)))  # no noise: x_t is x_0
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert transform(images, torch.arange(2)).x_t.flatten().tolist() == [-1, 1]


SHAPES = [(37, 1, 8, 8), (64, 3, 32, 32), (9, 3, 17, 19), (5, 1, 1, 1), (12, 5, 3, 7)]
COMPILE = [("train", 1), ("val", 1), ("val", 2)]  # all but one of those that are large enough to compile


@pytest.mark.parametrize(
    ("stage", "shape"),
    [
        pytest.param(stage, shape, id=f"{stage}-shape{n}", marks=[pytest.mark.slow] * ((stage, n) in COMPILE))
        for stage in ("train", "val")
        for n, shape in enumerate(SHAPES)
    ],
)
def test_bit_for_bit_the_same_in_any_batch_and_any_order(shape: tuple[int, ...], stage: Stage) -> None:
    transform = make(seed=7, flip=0.5, timesteps=UniformTimesteps(low_discrepancy=True))
    images, position = some(*shape)
    whole = transform(images, position, stage)
    for size in (1, 2, 3, 7):
        parts = [transform(images[i : i + size], position[i : i + size], stage) for i in range(0, len(images), size)]
        assert equal(Triple(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))), whole)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    assert equal(transform(images[order], position[order], stage), Triple(*(tensor[order] for tensor in whole)))
    assert equal(make(seed=7, flip=0.5, timesteps=UniformTimesteps(True))(images, position, stage), whole)


@pytest.mark.slow
def test_bit_for_bit_the_same_on_any_number_of_threads() -> None:
    images, position = some(64, 3, 32, 32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(make()(images, position))
    finally:
        torch.set_num_threads(threads)
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


@pytest.mark.parametrize(
    "lay_out",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        lambda x: x.repeat_interleave(2, -1)[..., ::2],
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    ],
    ids=["channels_last", "HWC view", "strided", "transposed"],
)
@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_bit_for_bit_the_same_in_any_memory_format(lay_out: Callable[[Tensor], Tensor], flip: float) -> None:
    images, position = some(16, 3, 8, 8)
    odd = lay_out(images)
    assert torch.equal(odd, images)
    result = make(flip=flip)(odd, position)
    assert equal(result, make(flip=flip)(images, position))
    layout = torch.channels_last if odd.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    assert result.x_t.is_contiguous(memory_format=layout)
    assert result.noise.is_contiguous(memory_format=layout)


@pytest.mark.slow
def test_other_positions_seeds_and_stages_give_independent_noise_and_t() -> None:
    """Correlations of 2 x 49,152 numbers at 5 sigma and two-sample KS at 1e-5, 21 pairs: 2e-4 false alarms in all."""
    images, _ = some(16, 3, 32, 32)
    position = torch.arange(16)
    others = [
        make()(images, position),
        make()(images, position + 16),
        make()(images, position + 2**32),
        make(seed=1)(images, position),
        make(seed=2**32)(images, position),
        make()(images, position, "val"),
        make()(images, position, "test"),
    ]
    for i, a in enumerate(others):
        for b in others[:i]:
            assert not torch.equal(a.t, b.t)
            x, y = a.noise.flatten().double().numpy(), b.noise.flatten().double().numpy()
            assert abs(np.corrcoef(x, y)[0, 1]) < 5 / x.size**0.5
            assert stats.ks_2samp(x, y).pvalue > 1e-5


def test_neighbouring_examples_are_independent() -> None:
    images = torch.zeros(20_000, 1, 2, 2, dtype=torch.uint8)
    _, t, noise = make()(images, torch.arange(20_000))
    columns = torch.cat([t[:, None].double(), noise.flatten(1).double()], 1)
    pairs = torch.cat([columns[:-1], columns[1:]], 1).numpy()
    correlation = np.corrcoef(pairs.T) - np.eye(10)
    assert np.abs(correlation).max() < 5 / 20_000**0.5  # 45 pairs at 5 sigma: 3e-5 false alarms


def test_flips_are_keyed_have_their_probability_and_happen_in_training_only() -> None:
    images, _ = some(1, 1, 2, 4)
    images, position = images.expand(20_000, -1, -1, -1), torch.arange(20_000)
    plain, flipped = make()(images, position), make(flip=0.3)(images, position)
    assert torch.equal(plain.t, flipped.t)
    assert torch.equal(plain.noise, flipped.noise)
    changed = (plain.x_t != flipped.x_t).flatten(1).any(1)
    assert stats.binomtest(int(changed.sum()), 20_000, 0.3).pvalue > 1e-4
    mirrored = make()(images.flip(-1), position)
    assert torch.equal(flipped.x_t, torch.where(changed[:, None, None, None], mirrored.x_t, plain.x_t))
    assert equal(make(flip=1.0)(images, position), mirrored)
    for stage in ("val", "test", "predict"):
        assert equal(make(flip=1.0)(images, position, stage), make()(images, position, stage))


@pytest.mark.parametrize("compile", [False, True])
def test_a_word_equal_to_the_probability_mirrors_nothing(compile: bool) -> None:
    """So that 0 mirrors none, and k / 2^32 mirrors k words of 2^32."""
    images, position = some(1, 3, 16, 16)
    word = int(words(key_from(0), Purpose.FLIP, "train", position)[0])
    plain, mirrored = make(compile=compile)(images, position), make(compile=compile)(images.flip(-1), position)
    for more, expected in ((0, plain), (1, mirrored)):
        assert equal(make(flip=(word + more) / 2**32, compile=compile)(images, position), expected)


def test_the_mask_of_flips_says_what_the_transform_mirrors() -> None:
    images, position = some(40, 1, 4, 4)
    transform = make(flip=0.5)
    mask = transform.flip_mask(position)
    assert mask is not None
    assert equal(make()(transform.mirror(images, mask), position), transform(images, position))
    assert transform.flip_mask(position, "val") is None
    assert make().flip_mask(position) is None


@pytest.mark.parametrize("stage", ["val", "test"])
def test_evaluation_is_of_low_discrepancy_however_training_draws(stage: Stage) -> None:
    images, position = some(64, 1, 4, 4)[0], torch.arange(64) * 8 + 3  # every eighth, as of an iterable source
    draws = [UniformTimesteps(), UniformTimesteps(low_discrepancy=True), LossAwareTimesteps()]
    for strided in (False, True):
        first, *others = (
            ForwardDiffusion(ForwardProcess(schedules.linear()), timesteps=draw)(images, position, stage, None, strided)
            for draw in draws
        )
        assert all(equal(first, other) for other in others)
    assert len(torch.unique(first.t // 125)) == 8  # even
    plain = make()(images, position, stage)
    assert not torch.equal(plain.t, first.t)


def test_floats_and_latents_pass_unscaled() -> None:
    transform = make()
    latents = torch.randn(4, 16, 5, 5, generator=torch.Generator().manual_seed(0)) * 3
    x_t, t, noise = transform(latents, torch.arange(4))
    assert torch.equal(x_t, transform.process.q_sample(latents, t, noise))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_cast_last(dtype: torch.dtype) -> None:
    images, position = some(8, 3, 8, 8)
    exact, half = make()(images, position), make()(images, position, dtype=dtype)
    assert equal(half, Triple(exact.x_t.to(dtype), exact.t, exact.noise.to(dtype)))
    own = make()((images.float() / 127.5 - 1).to(dtype), position)
    assert own.x_t.dtype == own.noise.dtype == dtype
    assert torch.equal(own.noise, half.noise)


def test_float64_images_give_float32_triples() -> None:
    assert make()(torch.zeros(2, 1, 2, 2, dtype=torch.float64), torch.arange(2)).x_t.dtype == torch.float32


def test_neither_the_global_generator_nor_the_arguments_are_touched() -> None:
    images, position = some(8, 3, 8, 8)
    floats = images.float() / 127.5 - 1
    copies = images.clone(), position.clone(), floats.clone()
    state = torch.get_rng_state()
    make(flip=0.5)(images, position)
    make(flip=0.5)(floats, position)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip((images, position, floats), copies, strict=True))
    torch.manual_seed(1)
    first = make()(images, position)
    torch.manual_seed(2)
    assert equal(make()(images, position), first)


def test_an_empty_batch_is_an_empty_triple() -> None:
    x_t, t, noise = make(flip=0.5)(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    assert x_t.shape == noise.shape == (0, 3, 4, 4)
    assert t.shape == (0,)


IMAGES, POSITION = some(2, 3, 4, 4)
REFUSED = [
    (IMAGES.int(), POSITION, "train", TypeError, "uint8"),
    (IMAGES, POSITION.int(), "train", TypeError, "int64"),
    (IMAGES, POSITION[:1], "train", ValueError, "shape"),
    (IMAGES[0], POSITION, "train", ValueError, "shape"),
    (IMAGES, POSITION, "validate", ValueError, "train, val, test, predict"),
]


@pytest.mark.parametrize(("images", "position", "stage", "error", "says"), REFUSED)
def test_wrong_batches_are_refused(
    images: Tensor, position: Tensor, stage: Stage, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make()(images, position, stage)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (dict(flip=1.5), ValueError, "`flip`"),
        (dict(flip=float("nan")), ValueError, "`flip`"),
        (dict(flip="half"), TypeError, "`flip`"),
        (dict(seed=-1), ValueError, "seed"),
        (dict(seed=0.5), TypeError, "seed"),
        (dict(timesteps=UniformTimesteps), TypeError, r"timesteps is a type.*`timesteps`"),
        (dict(timesteps="uniform"), TypeError, r"timesteps is a str.*`timesteps`"),
        (dict(timesteps=lambda p: p), TypeError, r"\(position, num_timesteps, key, stage\): too many.*`timesteps`"),
        (dict(compile="yes"), TypeError, r"compile='yes'.*`compile`"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda position, steps, key, stage: position[:1] % steps, r"shape \(1,\) for 2 examples"),
        (lambda position, steps, key, stage: [0, 1], "a list for 2 examples"),
        (lambda position, steps, key, stage: position % steps + steps, "t"),
    ],
    ids=["too few", "no tensor", "no such step"],
)
def test_a_draw_of_your_own_gives_a_step_for_each_example(draw: Any, says: str) -> None:  # noqa: ANN401  # a function
    with pytest.raises((TypeError, ValueError, IndexError), match=says):
        make(timesteps=draw)(IMAGES, POSITION)


def test_defaults_are_an_ordinary_transform() -> None:
    parameters = inspect.signature(ForwardDiffusion).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "process"}
    assert defaults == {
        "seed": 0,
        "timesteps": None,
        "flip": 0.0,
        "augment": None,
        "compile": True,
        "latents": None,
        "target": "noise",
        "weight": None,
        "noise": None,
    }


def test_betas_instead_of_a_process_are_refused() -> None:
    with pytest.raises(TypeError, match="ForwardProcess"):
        ForwardDiffusion(schedules.linear())  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    images, position = some(16, 3, 32, 32)
    expected = make(flip=0.5, compile=False)(images, position)
    x_t, t, noise = make(flip=0.5).cuda()(images.cuda(), position.cuda())
    assert torch.equal(t.cpu(), expected.t)
    torch.testing.assert_close(noise.cpu(), expected.noise, rtol=0, atol=1e-5)
    torch.testing.assert_close(x_t.cpu(), expected.x_t, rtol=1e-5, atol=1e-5)
