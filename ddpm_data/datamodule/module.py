"""The Lightning side: datasets in, training triples out, in every stage."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from ddpm_data.datamodule._trainer import Order, batch_dtype, eval_sampler, refuse_clashes, train_sampler, world_of
from ddpm_data.datamodule.resume import StreamCheckpoint
from ddpm_data.datamodule.splits import Source, Splits
from ddpm_data.diffusion.guidance import ConditionDropout
from ddpm_data.diffusion.process import ForwardProcess
from ddpm_data.diffusion.timesteps import Timesteps
from ddpm_data.diffusion.transform import Augment, ForwardDiffusion
from ddpm_data.images.latent_processor import LatentProcessor
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.latents import Latents
from ddpm_data.loading.loader import StreamLoader
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.rng.philox import STAGES, key_from
from ddpm_data.types import ConditionedTriple, ImageBatch, ItemKey, Stage, Triple

_STAGES_OF: dict[str, tuple[Stage, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class DDPMDataModule(L.LightningDataModule):
    """Any image dataset as a stream of training triples: ``x_t, t, noise = batch`` in every step of the model.

    Workers deliver uint8 images, which is what crosses to the device; there, in ``on_after_batch_transfer``,
    :class:`~ddpm_data.diffusion.transform.ForwardDiffusion` makes the triple. Training triples depend only on the seed
    and on each example's position in the stream; validation, test and prediction triples are the same every time.

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
        timesteps: How ``t`` is drawn, see :class:`~ddpm_data.diffusion.transform.ForwardDiffusion`.
        flip, augment: Of training batches, on the device and before noising, see there.
        image_key, image_size, value_range, channels, resize, crop, background: How items become images, see
            :class:`~ddpm_data.images.processor.ImageProcessor`.
        latents: That items are latents instead, and what to make of them: :class:`~ddpm_data.latents.Latents`.
        condition: Place in a tuple, or key in a dict, where an item holds its label, caption, embedding or a dict of
            these; batches are then :class:`~ddpm_data.types.ConditionedTriple`.
        condition_dropout, null_condition: How often training forgets a condition, and for what, see
            :class:`~ddpm_data.diffusion.guidance.ConditionDropout`.
        drop_last, prefetch_factor, persistent_workers, multiprocessing_context, timeout: See
            :class:`~ddpm_data.loading.options.LoaderOptions`.
        on_bad_item, max_bad_fraction: What becomes of items that cannot be used, see there.
        cache_dir: Folder for decoded images (:mod:`ddpm_data.cache`): map-style sets whose images are not in an array
            already are decoded and resized once a node, in ``prepare_data``, and read from there ever after.
        compile: Compile the batch transform, see :class:`~ddpm_data.diffusion.transform.ForwardDiffusion`.

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
        image_key: ItemKey | None = None,
        image_size: int | Sequence[int] | None = None,
        value_range: Sequence[float] | None = None,
        channels: int | None = None,
        resize: str = "cover",
        crop: str = "center",
        background: str | Sequence[int] = "white",
        latents: Latents | None = None,
        condition: ItemKey | None = None,
        condition_dropout: float = 0.0,
        null_condition: object = None,
        drop_last: bool = False,
        prefetch_factor: int | None = None,
        persistent_workers: bool = True,
        multiprocessing_context: str | None = None,
        timeout: float = 300,
        on_bad_item: str = "raise",
        max_bad_fraction: float = 0.01,
        cache_dir: str | Path | None = None,
        compile: bool = True,
    ) -> None:
        super().__init__()
        workers = (num_workers, prefetch_factor, persistent_workers, multiprocessing_context)
        self.loading = LoaderOptions(batch_size, *workers, drop_last, timeout, on_bad_item, max_bad_fraction)
        self.transform = ForwardDiffusion(ForwardProcess(schedule), seed, timesteps, flip, augment, compile, latents)
        self.dropout = ConditionDropout(condition_dropout, null_condition, seed)
        processor = ImageProcessor(image_key, image_size, value_range, channels, resize, crop, background)
        self.splits = Splits(
            {"train": train, "val": val, "test": test, "predict": predict},
            processor if latents is None else LatentProcessor.replacing(processor, latents),
            condition,
            key_from(seed),
            cache_dir,
            self.loading,
        )
        self._order: Order | None = None
        self._resume: StreamCheckpoint | None = None
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
                if isinstance(images, MapStyleImages):
                    self.loading.check_length(name, len(images), world_of(self.trainer)[0])
                    if name == "train" and self.dropout.probability:
                        self.dropout.check(images.batch(images.first()).condition)
                if name == "train":
                    about = {"seed": self.transform.seed, "num_timesteps": self.transform.process.num_timesteps}
                    self._order, self._resume = train_sampler(images, self.loading, about, self.trainer)
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

    def on_before_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        """Drop conditions that are strings, which stay on the host; a batch that is not ours is left alone."""
        if not isinstance(batch, ImageBatch) or batch.meta.stage != "train":
            return batch
        condition = self.dropout.drop_strings(batch.meta.condition, batch.position)
        return batch._replace(meta=batch.meta._replace(condition=condition))

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> Triple | ConditionedTriple:
        """Make the triple, on the device the batch was moved to.

        Raises:
            TypeError: The batch does not come from this module's loaders, ``augment`` returned images of another dtype,
                or ``null_condition`` is not like the conditions.
            ValueError: ``augment`` changed the number of images.
        """
        if not isinstance(batch, ImageBatch):
            raise TypeError(
                f"DDPMDataModule was handed a batch of {type(batch).__name__}, but makes triples of its own "
                "loaders' ImageBatch. Pass datasets to DDPMDataModule(train=..., val=...), not loaders to the Trainer."
            )
        images, (position, stage, condition) = batch
        self._follow(images.device)
        triple: Triple = self.transform(images, position, stage, batch_dtype(self.trainer))
        if self.splits.condition is None:
            return triple
        return ConditionedTriple(*triple, self.dropout(condition, position) if stage == "train" else condition)

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

    def _loader(self, stage: Stage) -> StreamLoader:
        images = self.splits.images(stage)
        order = self._order if stage == "train" else eval_sampler(images, self.loading, self.trainer)
        assert order is not None
        pin_memory = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        world, seed = world_of(self.trainer), self.transform.seed
        return self.loading.loader(images, stage, order, world, seed, pin_memory, self._log_bad)

    def _log_bad(self, stage: str, count: int) -> None:
        """At an epoch's end, where there were any."""
        for logger in self.trainer.loggers if self.trainer else ():
            step = self.trainer.global_step  # type: ignore[union-attr]  # it has loggers, so it is there
            logger.log_metrics({f"{stage}_bad_items": count}, step)

    def _follow(self, device: torch.device) -> None:
        """Move the tables, once a device: a DataModule is no nn.Module, so Lightning does not."""
        if device == self._device:
            return
        with torch.inference_mode(False):  # tables made in validate() would be inference tensors, of no use to fit()
            self.transform.to(device)
        self._device = device
