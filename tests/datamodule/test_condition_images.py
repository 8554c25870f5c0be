"""Conditions that are images: resized, cropped and mirrored with their image, whichever way they are loaded."""

import tarfile
from collections.abc import Iterator
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, get_worker_info
from torchvision import tv_tensors

from ddpm_data import ConditionedTriple, DDPMDataModule, ForwardDiffusion, ForwardProcess, Triple, schedules, triples
from ddpm_data.sources import TarShards
from tests.conftest import Recorder, trainer, uint8_images

CLEAN = schedules.constant(2, 1e-9)  # x_t is x_0, to a hundredth of a level
COUNT = 24
BOTH = {"mask": "nearest", "edges": "bilinear"}
MOVED: dict[str, Any] = dict(image_size=16, crop="random", flip=0.5)


def photograph(number: int) -> np.ndarray[Any, Any]:
    """Broad stripes of noise, wider or higher than a square, so that every crop and flip shows."""
    height, width = (40, 24) if number % 2 else (24, 40)
    coarse = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))


class Masked(list[Any]):
    """Items with the image itself as a picture, and its bright pixels as a label map 3 on 1."""

    def __init__(self, kind: str = "pil", count: int = COUNT, square: bool = False) -> None:
        super().__init__(self.item(kind, number, square) for number in range(count))

    @staticmethod
    def item(kind: str, number: int, square: bool) -> dict[str, Any]:
        image = photograph(number)[:24, :24] if square else photograph(number)
        mask = np.where(image[..., 0] > 127, 3, 1).astype(np.uint8)
        convert: Any = {
            "pil": Image.fromarray,
            "array": lambda values: values,
            "tensor": lambda values: torch.from_numpy(values if values.ndim == 2 else values.transpose(2, 0, 1).copy()),
        }[kind]
        return {"image": convert(image), "mask": convert(mask), "edges": convert(image), "name": f"number {number}"}


class Stream(IterableDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        return iter(self.items[info.id :: info.num_workers] if info else self.items)


def batches(train: Any, epochs: int = 1, **options: Any) -> list[ConditionedTriple]:  # noqa: ANN401  # any dataset
    defaults: dict[str, Any] = dict(schedule=CLEAN, batch_size=8, seed=1, image_key="image", compile=False)
    defaults |= dict(condition=["mask", "edges"], condition_images=BOTH)
    module = DDPMDataModule(train, **(defaults | options))
    module.prepare_data()
    module.setup("fit")
    loader, collected = module.train_dataloader(), list[ConditionedTriple]()
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in triples(module, loader, "cpu"):
            assert isinstance(batch, ConditionedTriple)
            collected.append(batch)
    return collected


def levels(images: Tensor) -> Tensor:
    return ((images.float() + 1) * 127.5).round()


def assert_lies_on_its_image(batch: ConditionedTriple, slack: float = 0.0) -> None:
    """The picture is the image itself; the labels are those of its pixels, but for a share at the stripes' edges."""
    pixels, (mask, edges) = levels(batch.x_t), batch.condition.values()
    assert torch.equal(levels(edges), pixels)
    assert edges.dtype == batch.x_t.dtype
    assert mask.dtype == torch.int64
    assert mask.shape == (len(pixels), 1, *pixels.shape[2:])
    assert set(mask.unique().tolist()) == {1, 3}
    wrong = (mask[:, 0] == 3) != (pixels[:, 0] > 127)
    assert float(wrong.float().mean()) <= slack


@pytest.mark.parametrize("way", ["items", "workers", "replaced", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["pil", "array", "tensor"])
def test_resize_random_crop_and_flip_move_both(kind: str, way: str) -> None:
    options: dict[str, Any] = {
        "workers": dict(num_workers=2),
        "replaced": dict(on_bad_item="replace"),
        "compiled": dict(compile=True),
    }.get(way, {})
    seen = batches(Masked(kind), epochs=2, **MOVED, **options)
    assert len(seen) == 6
    for batch in seen:
        assert_lies_on_its_image(batch, slack=0.07)


@pytest.mark.parametrize("way", ["cached", "stream", "square", "stretch"])
def test_without_random_crops_too(way: str, tmp_path: Path) -> None:
    items: Any = Masked(square=way == "square")
    options: dict[str, Any] = {
        "cached": dict(cache_dir=tmp_path),
        "stream": dict(num_workers=2),
        "square": dict(image_size=None),
        "stretch": dict(resize="stretch"),
    }[way]
    train = Stream(items) if way == "stream" else items
    for _ in range(2 if way == "cached" else 1):  # made, then found
        for batch in batches(train, **(dict(image_size=16, flip=0.5) | options)):
            assert_lies_on_its_image(batch, slack=0.0 if way == "square" else 0.07)
    if way == "cached":
        stored = {np.load(path).dtype for path in tmp_path.glob("*.npy")}
        assert stored == {np.dtype("uint8")}


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("way", ["tensors", "subset", "loader", "tuple"])
def test_arrays_and_batches_move_their_masks(way: str, size: int | None) -> None:
    items = Masked("tensor", square=True)
    images = torch.stack([item["image"] for item in items])
    masks = torch.stack([item["mask"] for item in items])
    dataset: Any = TensorDataset(images, masks, images)
    if way == "subset":
        dataset = Subset(dataset, range(4, 12))
    if way == "loader":
        dataset = DataLoader(dataset, batch_size=8)
    if way == "tuple":
        dataset = [tuple(row) for row in zip(images.numpy(), masks.numpy(), images.numpy(), strict=True)]
    options = dict(image_key=0, condition=[1, 2], condition_images={1: "nearest", 2: "bilinear"}, image_size=size)
    for batch in batches(dataset, flip=0.5, **options):
        assert_lies_on_its_image(batch, slack=0.0 if size is None else 0.1)


def test_validation_crops_the_centre_and_mirrors_neither() -> None:
    module = DDPMDataModule(
        Masked(square=True),
        val=0.5,
        schedule=CLEAN,
        image_key="image",
        condition=["mask", "edges"],
        condition_images=BOTH,
        flip=1.0,
        compile=False,
    )
    module.setup("fit")
    originals = {photograph(number)[:24, :24].tobytes() for number in range(COUNT)}
    for loader, mirrored in ((module.train_dataloader(), True), (module.val_dataloader(), False)):
        for batch in triples(module, loader, "cpu"):
            assert isinstance(batch, ConditionedTriple)
            assert_lies_on_its_image(batch)
            for image in levels(batch.condition["edges"]).to(torch.uint8):
                upright = image.flip(-1) if mirrored else image
                assert upright.permute(1, 2, 0).contiguous().numpy().tobytes() in originals


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
def test_a_trainer_hands_them_to_the_model(precision: str, dtype: torch.dtype, tmp_path: Path) -> None:
    batches_seen: list[ConditionedTriple] = []

    class Model(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401  # whatever comes
            batches_seen.append(batch)
            return self.keep("train", Triple(*batch[:3]))

    options: dict[str, Any] = dict(condition=["mask", "edges"], condition_images=BOTH, image_key="image", num_workers=1)
    module = DDPMDataModule(Masked(), schedule=CLEAN, compile=False, **MOVED, **options)
    trainer(tmp_path, precision=precision).fit(Model(), datamodule=module)
    for batch in batches_seen:
        assert batch.condition["edges"].dtype == batch.x_t.dtype == dtype
        torch.testing.assert_close(batch.condition["edges"], batch.x_t, atol=0.01, rtol=0)
        assert batch.condition["mask"].dtype == torch.int64
    assert batches_seen


def test_what_crosses_to_the_device_is_bytes() -> None:
    module = DDPMDataModule(
        Masked(), schedule=CLEAN, image_key="image", condition=["mask", "edges"], condition_images=BOTH, **MOVED
    )
    module.setup("fit")
    condition = next(iter(module.train_dataloader())).meta.condition
    assert {key: (value.dtype, tuple(value.shape)) for key, value in condition.items()} == {
        "mask": (torch.uint8, (COUNT, 1, 16, 16)),
        "edges": (torch.uint8, (COUNT, 3, 16, 16)),
    }


@pytest.mark.slow
def test_about_half_are_mirrored_the_same_ones_in_every_mode() -> None:
    """Of 240 examples 120 are expected, 8 is the standard deviation; 5 of them fail once in a million seeds."""
    position = torch.arange(240)
    images = uint8_images(240, 1, 24, 24)
    masks = []
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for compiles, device in product((True, False), devices):
        transform = ForwardDiffusion(ForwardProcess(CLEAN), seed=4, flip=0.5, compile=compiles).to(device)
        drawn = transform.flip_mask(position.to(device))
        assert drawn is not None
        mask = drawn.cpu()
        masks.append(mask)
        x_t = transform(images.to(device), position.to(device)).x_t.cpu()
        assert torch.equal(levels(x_t), transform.mirror(images, mask).float())
        assert torch.equal(transform.mirror(images.long(), mask), transform.mirror(images, mask).long())
        assert transform.flip_mask(position, "val") is None
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert abs(int(masks[0].sum()) - 120) < 40


def test_a_palette_file_keeps_its_indices_and_a_turned_photograph_its_mask(tmp_path: Path) -> None:
    """Class 200 is green in the palette; the photograph is stored on its side, the mask is not."""
    upright = photograph(0)
    labels = np.where(upright[..., 0] > 127, 200, 7).astype(np.uint8)
    stored = Image.fromarray(np.rot90(upright).copy())  # EXIF 6: turn it clockwise to see it
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "photograph.png", exif=exif)
    mask = Image.fromarray(labels, "P")
    mask.putpalette([0, 255, 0] * 256)
    mask.save(tmp_path / "mask.png")
    item = {"image": Image.open(tmp_path / "photograph.png"), "mask": Image.open(tmp_path / "mask.png")}
    [batch] = batches([item], condition="mask", condition_images={"mask": "nearest"}, flip=1.0)
    assert torch.equal(levels(batch.x_t)[0], torch.from_numpy(upright).permute(2, 0, 1).flip(-1).float())
    assert torch.equal(batch.condition[0, 0], torch.from_numpy(labels).flip(-1).long())


@pytest.mark.parametrize("options", [{}, {"image_size": 8}, {"image_size": (4, 12), "resize": "stretch"}])
@pytest.mark.parametrize("kind", ["array", "tensor", "photograph"])
def test_a_mask_that_lies_on_its_side_is_refused(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """An EXIF tag of the photograph alone is the usual reason."""
    mask = np.tile(np.arange(24, dtype=np.uint8), (16, 1))
    if kind == "photograph":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(tmp_path / "a.png", exif=exif)
        items = [{"image": Image.open(tmp_path / "a.png"), "mask": Image.fromarray(mask)}]
    else:
        image = torch.zeros(3, 24, 16, dtype=torch.uint8)
        items = [{"image": image, "mask": torch.from_numpy(mask) if kind == "tensor" else mask}]
    says = "differ in proportions" if options == {"image_size": 8} else "one of the two lies on its side"
    with pytest.raises(ValueError, match=rf"'mask' is 16 x 24 and its image.*{says}"):
        batches(items, condition="mask", condition_images={"mask": "nearest"}, **options)


@pytest.mark.parametrize("side", [(400, 600), (300, 600)])
@pytest.mark.parametrize(("image", "other"), [("PNG", "JPEG"), ("JPEG", "PNG"), ("tensor", "JPEG"), ("PNG", "tensor")])
def test_stretched_pictures_lie_on_each_other_however_they_are_decoded(
    image: str, other: str, side: tuple[int, int]
) -> None:
    """Large files are decoded straight to a size, small ones and arrays are resized later."""
    slope = np.broadcast_to(np.linspace(0, 255, side[1]).astype(np.uint8)[None, :, None], (*side, 3)).copy()

    def make(kind: str) -> Any:  # noqa: ANN401  # a PIL image or a tensor
        if kind == "tensor":
            return torch.from_numpy(slope).permute(2, 0, 1)
        file = BytesIO()
        Image.fromarray(slope).save(file, kind)
        return Image.open(file)

    for size in (64, (64, 32), (32, 64)):
        item = [{"image": make(image), "edges": make(other)}]
        options: dict[str, Any] = dict(condition="edges", condition_images={"edges": "bilinear"})
        [batch] = batches(item, image_size=size, resize="stretch", **options)
        assert float((levels(batch.condition) - levels(batch.x_t)).abs().mean()) < 2


def test_a_reference_picture_of_other_proportions_may_stay(tmp_path: Path) -> None:
    items = [{"image": torch.zeros(3, 12, 20, dtype=torch.uint8), "edges": Image.new("RGB", (24, 24))}] * 2
    [batch] = batches(items, condition="edges", condition_images={"edges": "bilinear"})
    assert batch.condition.shape == (2, 3, 24, 24)


@pytest.mark.parametrize("way", ["items", "array", "batches", "square"])
def test_a_map_with_a_channel_for_each_of_many_classes_keeps_its_axes(way: str) -> None:
    """More classes than pixels a side: the shorter axis is no channel."""
    side = 12 if way == "square" else 16
    maps = torch.arange(20 * 12 * side, dtype=torch.int64).view(20, 12, side) % 251
    image = torch.zeros(3, 12, side, dtype=torch.uint8)
    items: Any = [{"image": image, "mask": maps.to(torch.uint8)}] * 8
    if way == "array":
        items = [item | {"mask": item["mask"].permute(1, 2, 0).numpy()} for item in items]
    if way == "batches":
        items = DataLoader(items, batch_size=8)
    [batch] = batches(items, condition="mask", condition_images={"mask": "nearest"}, flip=1.0)
    assert torch.equal(batch.condition[0], maps.flip(-1))


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32, np.int16])
def test_label_maps_of_any_dtype_keep_their_values(dtype: Any) -> None:  # noqa: ANN401  # NumPy's
    labels = np.eye(16, dtype=dtype)
    items = [{"image": uint8_images(1, 3, 16, 16)[0], "mask": labels}] * 3
    [batch] = batches(items, condition="mask", condition_images={"mask": "nearest"}, flip=1.0)
    assert torch.equal(batch.condition[0, 0], torch.eye(16).flip(-1).long())


@pytest.mark.parametrize("kind", ["Image", "tv_tensors"])
@pytest.mark.parametrize("size", [(300, 400), (60, 80)])
def test_the_map_lies_on_its_photograph_to_a_fraction_of_a_pixel(kind: str, size: tuple[int, int]) -> None:
    """Edges at 40 places: a map that is half a pixel aside, as plain nearest sampling has it, is off by 0.5 on average.

    The large photographs are JPEG files, which are decoded at a reduced size. The maps are not.
    """
    height, width = size
    items = []
    for edge in range(40):
        columns = np.arange(width) < width * (0.3 + edge / 100)
        photograph = np.broadcast_to(columns * np.uint8(255), (height, width)).copy()
        file = BytesIO()
        Image.fromarray(photograph).save(file, "JPEG", quality=100)
        mask: Any = tv_tensors.Mask(torch.from_numpy(photograph // 255))
        items.append({
            "image": Image.open(file),
            "mask": Image.fromarray(photograph // 255) if kind == "Image" else mask,
        })  # fmt: skip
    options: dict[str, Any] = dict(condition="mask", condition_images={"mask": "nearest"}, batch_size=40)
    [batch] = batches(items, image_size=24, crop="random", **options)
    width_of_image = (batch.x_t[:, 0] + 1).sum(-1) / 2  # white pixels in each row, with fractions
    width_of_map = batch.condition[:, 0].sum(-1)
    assert float((width_of_image - width_of_map).abs().max()) <= 0.6
    assert abs(float((width_of_image - width_of_map).mean())) < 0.1


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*tar:pytest.PytestUnraisableExceptionWarning")  # webdataset's
def test_masks_in_tar_shards(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for number, item in enumerate(Masked()):
            for name in ("image", "mask", "edges"):
                file = BytesIO()
                item[name].save(file, "PNG")
                info = tarfile.TarInfo(f"{number:02}.{name}.png")
                info.size = len(file.getvalue())
                shard.addfile(info, BytesIO(file.getvalue()))
    keys = ["mask.png", "edges.png"]
    images = dict(zip(keys, ["nearest", "bilinear"], strict=True))
    options: dict[str, Any] = dict(image_key="image.png", condition=keys, condition_images=images)
    for batch in batches(TarShards(str(tmp_path / "0.tar")), image_size=16, flip=0.5, **options):
        assert_lies_on_its_image(batch, slack=0.07)


def test_a_low_resolution_picture_is_enlarged_with_its_image_or_stays_small() -> None:
    large = uint8_images(4, 3, 32, 48)
    small = large[:, :, ::4, ::4].contiguous()
    items = [{"image": image, "small": low} for image, low in zip(large, small, strict=True)]
    options: dict[str, Any] = dict(condition="small", condition_images={"small": "bilinear"}, flip=1.0)
    [batch] = batches(items, image_size=32, **options)
    assert batch.condition.shape == batch.x_t.shape == (4, 3, 32, 32)
    [batch] = batches(items, **options)
    kept = levels(batch.condition)
    assert kept.shape == (4, 3, 8, 12)
    assert {bytes(row.to(torch.uint8).flatten().tolist()) for row in kept} == {
        bytes(row.flip(-1).flatten().tolist()) for row in small
    }


def test_a_picture_of_floats_has_a_range_of_its_own() -> None:
    depth = torch.linspace(0, 10, 256).view(1, 16, 16)
    items = [{"image": torch.rand(3, 16, 16) * 8 - 4, "depth": depth}] * 2
    how = {"depth": {"interpolation": "bilinear", "value_range": [0, 10]}}
    [batch] = batches(items, value_range=(-4, 4), condition="depth", condition_images=how)
    torch.testing.assert_close(batch.condition[0], depth / 5 - 1, atol=0.004, rtol=0)


def test_a_dict_of_conditions_and_a_null_for_each() -> None:
    items = [{"image": item["image"], "about": {k: item[k] for k in ("mask", "edges", "name")}} for item in Masked()]
    null = {"mask": 255, "edges": -1.0, "name": ""}
    options: dict[str, Any] = dict(condition="about", condition_images=BOTH, condition_dropout=0.5, null_condition=null)
    seen = batches(items, **options, **MOVED)
    dropped = torch.cat([(batch.condition["mask"] == 255).flatten(1).all(1) for batch in seen])
    assert torch.equal(dropped, torch.cat([(batch.condition["edges"] == -1).flatten(1).all(1) for batch in seen]))
    assert dropped.tolist() == [name == "" for batch in seen for name in batch.condition["name"]]
    assert 0 < int(dropped.sum()) < COUNT


def test_latents_and_their_control_image_are_mirrored_together() -> None:
    from ddpm_data import Latents

    latents, pictures = torch.randn(4, 4, 8, 8), uint8_images(4, 3, 64, 64)
    items = [{"image": latent, "control": picture} for latent, picture in zip(latents, pictures, strict=True)]
    options: dict[str, Any] = dict(latents=Latents(), condition="control", flip=0.5)
    for batch in batches(items, condition_images={"control": "bilinear"}, **options):
        for x_t, control in zip(batch.x_t, levels(batch.condition), strict=True):
            [(number, turned)] = [
                (n, mirrored)
                for n, latent in enumerate(latents)
                for mirrored in (False, True)
                if torch.allclose(latent.flip(-1) if mirrored else latent, x_t, atol=1e-3)
            ]
            assert torch.equal(control, (pictures[number].flip(-1) if turned else pictures[number]).float())
    with pytest.raises(ValueError, match=r"'control' is an image of 64 x 64 .* 8 x 8.*images=\{control: near"):
        batches(items, condition_images=None, **options)


MASK = torch.ones(16, 16, dtype=torch.uint8)
PIXELS = uint8_images(4, 3, 16, 16)


REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "flip": (MASK, dict(flip=0.5)),
    "resize": (MASK.numpy(), dict(image_size=8)),
    "channel": (MASK[None].float(), dict(flip=0.5)),
    "low resolution": (torch.ones(3, 8, 8), dict(flip=0.5)),
    "dict": ({"text": "a", "mask": MASK}, dict(flip=0.5)),
    "PIL": (Image.fromarray(MASK.numpy()), {}),  # which a DataLoader cannot batch
    "crop": (MASK.numpy(), dict(image_size=8, crop="random")),  # map-style datasets alone have it
}


@pytest.mark.parametrize(
    ("way", "case"),
    [("items", case) for case in REFUSED]
    + [("stream", case) for case in REFUSED if case != "crop"]
    + [("loader", case) for case in REFUSED if case not in ("crop", "PIL")],
)
def test_an_image_that_is_not_declared_is_refused(way: str, case: str) -> None:
    value, options = REFUSED[case]
    items: Any = [{"image": image, "mask": value} for image in PIXELS]
    train: Any = {"items": lambda: items, "stream": lambda: Stream(items), "loader": lambda: DataLoader(items, 2)}[way]
    with pytest.raises(ValueError, match=r"the condition 'mask' is an image of .*`condition_images=\{mask: "):
        batches(train, condition="mask", condition_images=None, **options)


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (MASK, {}),
        (MASK, dict(image_size=16)),
        (torch.ones(77, 32), dict(flip=0.5)),
        (torch.ones(4, 4), dict(flip=0.5, image_size=8)),
        (torch.ones(5), dict(flip=0.5)),
        (MASK, dict(flip=0.5, condition_images={"mask": None})),
    ],
    ids=["nothing moves", "size as it is", "tokens", "a matrix", "a vector", "declared as none"],
)
def test_what_is_no_image_or_stays_on_it_is_passed_on(value: Tensor, options: dict[str, Any]) -> None:
    items = [{"image": image, "mask": value} for image in PIXELS]
    [batch] = batches(items, **(dict(condition="mask", condition_images=None) | options))
    assert torch.equal(batch.condition, value.expand(4, *value.shape))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (dict(condition_images={"mask": "cubic"}), ValueError, r"'cubic'.*nearest or bilinear.*`condition_im"),
        (dict(condition_images=["mask"]), TypeError, r"a mapping from a condition's key"),
        (dict(condition_images={"mask": 3}), TypeError, r"nearest or bilinear"),
        (dict(condition_images={"mask": {"value_range": [0, 1]}}), ValueError, r"a mapping of interpolation"),
        (dict(condition_images={"masc": "nearest"}), ValueError, r"names 'masc', but the condition holds 'mask'"),
        (dict(condition=None, condition_images={"mask": "nearest"}), ValueError, r"Set `condition`"),
        (
            dict(condition="name", condition_images={"name": "nearest"}),
            TypeError,
            r"'name', but it is a str, not",
        ),
        (dict(condition="depth", condition_images={"depth": "nearest"}), ValueError, r"whole numbers.*spans 0 to 0\.5"),
        (
            dict(condition="depth", condition_images={"depth": "bilinear"}),
            ValueError,
            r"'depth'.*value_range.*\{depth:",
        ),
        (dict(condition="ids", condition_images={"ids": "nearest"}), ValueError, r"0 to 255.*spans -1 to -1"),
        (dict(condition="wide", condition_images={"wide": "nearest"}, image_size=8), ValueError, r"proportions"),
        (dict(condition=["mask", "mask"]), ValueError, r"each of them once"),
        (dict(condition=[]), ValueError, r"at least one key"),
        (dict(condition=["mask", None]), TypeError, r"null is no key"),
    ],
)
def test_wrong_declarations_are_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    item = {"image": PIXELS[0], "mask": MASK, "name": "x", "depth": MASK * 0.5 * torch.eye(16), "ids": -MASK.long()}
    item["wide"] = torch.ones(8, 16, dtype=torch.uint8)
    with pytest.raises(error, match=says):
        batches([item] * 4, **(dict(condition="mask", condition_images={"mask": "nearest"}) | options))
