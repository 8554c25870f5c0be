"""The Lightning side: datasets in, training triples out, in every stage."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import lightning as L
import torch
from torch import Tensor

from ddpm_data.fused import Timesteps
from ddpm_data.images import Images
from ddpm_data.items import ImageKey
from ddpm_data.iterables import Arrivals, IterableImages
from ddpm_data.loading import Loading, StreamLoader
from ddpm_data.philox import STAGES, key_from
from ddpm_data.policy import ImagePolicy
from ddpm_data.process import ForwardProcess
from ddpm_data.resume import Resume
from ddpm_data.splits import Source, Splits
from ddpm_data.stream import EvalSampler, StreamSampler
from ddpm_data.trainers import dtype_of, refuse_clashes, world_of
from ddpm_data.transform import Augment, ForwardDiffusion
from ddpm_data.types import Examples, Stage, Triple

_STAGES_OF: dict[str, tuple[Stage, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class DDPMDataModule(L.LightningDataModule):
    """Any image dataset as a stream of training triples: ``x_t, t, noise = batch`` in every step of the model.

    Workers deliver uint8 images, which is what crosses to the device; there, in ``on_after_batch_transfer``,
    :class:`~ddpm_data.transform.ForwardDiffusion` makes the triple. Training triples depend on the seed and on each
    example's position in the stream alone; validation, test and prediction triples are the same every time.

    A dataset has ``__getitem__`` and ``__len__``, or at least ``__iter__`` (docs/stream.md has the difference); its
    items are PIL images, tensors or arrays (CHW or HWC), or tuples or dicts that hold one. Wherever a dataset is asked
    for, a function without arguments that returns one will do: it is called in ``prepare_data``, on one process a node
    first, so that a download happens once.

    Args:
        train: Training dataset or factory.
        val: Validation dataset or factory, or the fraction of ``train`` to hold out, in ``(0, 1)``, picked by the seed.
        test: Test dataset or factory.
        predict: Prediction dataset or factory.
        schedule: Betas, see :mod:`ddpm_data.schedules`.
        batch_size: Images a process and batch.
        num_workers: Worker processes that load images; 0 loads in the main process.
        seed: In ``[0, 2**64)``; decides shuffling, flips, ``t`` and noise.
        timesteps: How ``t`` is drawn, see :class:`~ddpm_data.transform.ForwardDiffusion`.
        flip: Probability of mirroring a training image left to right, in ``[0, 1]``.
        augment: Your own augmentation of training batches, on the device and before noising, as there.
        image_key: See :class:`~ddpm_data.policy.ImagePolicy`, as for the next three.
        image_size: Pixels, one number or ``(height, width)``.
        value_range: ``(lowest, highest)`` value of float images.
        channels: 1, 3 or ``None``.
        drop_last: See :class:`~ddpm_data.loading.Loading`, as for the next three.
        prefetch_factor: Batches each worker has ready.
        persistent_workers: Keep workers from one epoch to the next.
        multiprocessing_context: How workers start.
        cache_dir: Folder for decoded images (:mod:`ddpm_data.cache`): map-style sets whose images are not in an array
            already are decoded and resized once a node, in ``prepare_data``, and read from there ever after.
        compile: Compile the batch transform, see :class:`~ddpm_data.transform.ForwardDiffusion`.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        train: Source | None,
        val: Source | float | None = None,
        test: Source | None = None,
        predict: Source | None = None,
        *,
        schedule: Tensor,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        timesteps: Timesteps | None = None,
        flip: float = 0.0,
        augment: Augment | None = None,
        image_key: ImageKey | None = None,
        image_size: int | Sequence[int] | None = None,
        value_range: Sequence[float] | None = None,
        channels: int | None = None,
        drop_last: bool = False,
        prefetch_factor: int | None = None,
        persistent_workers: bool = True,
        multiprocessing_context: str | None = None,
        cache_dir: str | Path | None = None,
        compile: bool = True,
    ) -> None:
        super().__init__()
        self.loading = Loading(
            batch_size, num_workers, prefetch_factor, persistent_workers, multiprocessing_context, drop_last
        )
        self.transform = ForwardDiffusion(ForwardProcess(schedule), seed, timesteps, flip, augment, compile)
        self._key = key_from(seed)
        self.splits = Splits(
            {"train": train, "val": val, "test": test, "predict": predict},
            ImagePolicy(image_key, image_size, value_range, channels),
            self._key,
            cache_dir,
            self.loading,
        )
        self._order: StreamSampler | Arrivals | None = None
        self._resume: Resume | None = None
        self._device = torch.device("cpu")
        if val is None and type(self).val_dataloader is DDPMDataModule.val_dataloader:
            # Else Lightning takes our method for a validation set, and warns of every model without validation_step.
            absent = partial(L.LightningDataModule.val_dataloader, self)
            self.val_dataloader = absent  # type: ignore[method-assign]  # Lightning asks the instance what it overrides

    @property
    def batch_size(self) -> int:
        """Images a process and batch."""
        return self.loading.batch_size

    def prepare_data(self) -> None:
        """Build what factories build, and the cache, on one process a node: what is downloaded or decoded is, once."""
        fn = self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else None
        self.splits.prepare(_STAGES_OF[fn] if fn else STAGES)

    def setup(self, stage: str | None = None) -> None:
        """Build the stage's datasets and refuse, now, what would fail in the middle of an epoch.

        Raises:
            TypeError: An item holds no image.
            ValueError: There is no such stage; a set is missing, empty or too small; images cannot be converted or
                share no shape; the model has an ``on_after_batch_transfer`` of its own.
        """
        if stage not in (None, *_STAGES_OF):
            raise ValueError(f"setup({stage!r}): the stages are {', '.join(_STAGES_OF)}.")
        refuse_clashes(self.trainer)
        for name in _STAGES_OF[stage] if stage else STAGES:
            if self.splits.has(name):
                images = self.splits.open(name)
                if isinstance(images, Images):
                    self.loading.check_length(name, len(images), world_of(self.trainer)[0])
                if name == "train":
                    self._begin_stream(images)
            elif stage and name == _STAGES_OF[stage][0]:
                raise ValueError(
                    f"no {name} set was given. Give DDPMDataModule({name}=...), in the configs `dataset.{name}`."
                )

    def train_dataloader(self) -> StreamLoader:
        """Batches of this rank's part of the training stream, uint8."""
        return self._loader("train")

    def val_dataloader(self) -> StreamLoader:
        """Batches of this rank's part of the validation set, uint8."""
        return self._loader("val")

    def test_dataloader(self) -> StreamLoader:
        """Batches of this rank's part of the test set, uint8."""
        return self._loader("test")

    def predict_dataloader(self) -> StreamLoader:
        """Batches of this rank's part of the prediction set, uint8."""
        return self._loader("predict")

    def on_after_batch_transfer(self, batch: Examples, dataloader_idx: int) -> Triple:
        """Make the triple, on the device the batch was moved to.

        Raises:
            TypeError: The batch does not come from this module's loaders, or ``augment`` returned no uint8 images.
            ValueError: ``augment`` changed the number of images.
        """
        if not isinstance(batch, Examples):
            raise TypeError(
                f"DDPMDataModule was handed a batch of {type(batch).__name__}, but makes triples of its own "
                "loaders' Examples. Pass datasets to DDPMDataModule(train=..., val=...), not loaders to the Trainer."
            )
        images, (position, stage) = batch
        self._follow(images.device)
        return cast(Triple, self.transform(images, position, stage, dtype_of(self.trainer)))

    def state_dict(self) -> dict[str, int]:
        """The place in the training stream, for Lightning to put into a checkpoint: six whole numbers."""
        return self._resume.save(self.trainer) if self._resume and self.trainer and self._is_fitting() else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take the training stream up where a checkpoint left it.

        Raises:
            ValueError: The checkpoint is of another stream: its seed, training set or number of steps differs.
        """
        if self._resume and self._is_fitting():
            self._resume.load(state_dict)

    def _is_fitting(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == "fit"

    def _begin_stream(self, images: Images | IterableImages) -> None:
        (world_size, rank), size, drop_last = world_of(self.trainer), self.batch_size, self.loading.drop_last
        stream = {"seed": self.transform.seed, "num_timesteps": self.transform.process.num_timesteps}
        if isinstance(images, Images):
            self._order = StreamSampler(len(images), size, world_size, rank, self._key, drop_last, images.part)
            stream |= {"length": len(images)}
        else:
            self._order = Arrivals(lambda: self.trainer.current_epoch if self.trainer else 0)
            stream |= {"world_size": world_size, "batch_size": size, "num_workers": self.loading.num_workers}
        self._resume = Resume(self._order.epochs, stream)
        if self.trainer:
            self._resume.join(self.trainer)

    def _loader(self, stage: Stage) -> StreamLoader:
        images, (world_size, rank) = self.splits.images(stage), world_of(self.trainer)
        order: StreamSampler | EvalSampler | Arrivals | None = self._order
        if stage != "train" and isinstance(images, Images):
            order = EvalSampler(len(images), self.batch_size, world_size, rank, images.part)
        elif stage != "train":
            order = Arrivals(lambda: 0)
        assert order is not None
        pin_memory = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return self.loading.loader(images, stage, order, (world_size, rank), self.transform.seed, pin_memory)

    def _follow(self, device: torch.device) -> None:
        """Move the tables, once a device: a DataModule is no nn.Module, so Lightning does not."""
        if device == self._device:
            return
        with torch.inference_mode(False):  # tables made in validate() would be inference tensors, of no use to fit()
            self.transform.to(device)
        self._device = device
