"""The DataModule: datasets in, training triples out, in every stage."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning as L
import torch
from torch import Tensor

from ddpm_data._distributed import get_world, is_rank_zero
from ddpm_data._keys import list_arguments, naming_keys
from ddpm_data.datamodule._trainer import (
    AbsentLoader,
    get_batch_dtype,
    get_trainer_world,
    refuse_clashes,
    refuse_other_lightning,
)
from ddpm_data.datamodule.agreement import ProcessComparison, compare_processes, describe
from ddpm_data.datamodule.loss_aware import LossAwareTables
from ddpm_data.datamodule.resume import StreamCheckpoint
from ddpm_data.datamodule.same_objective import summarise
from ddpm_data.datamodule.splits import Source, SourceOrFraction, Splits
from ddpm_data.diffusion._kernels import scale_images
from ddpm_data.diffusion.augment import Augment
from ddpm_data.diffusion.guidance import ConditionDropout
from ddpm_data.diffusion.loss_aware import LossAwareTimesteps
from ddpm_data.diffusion.noises import Noise
from ddpm_data.diffusion.process import GaussianProcess, gather, make_process
from ddpm_data.diffusion.targets import Target
from ddpm_data.diffusion.timesteps import Timesteps
from ddpm_data.diffusion.transform import ForwardDiffusion
from ddpm_data.diffusion.weights import Weight
from ddpm_data.images.conditions import Conditions, Keys
from ddpm_data.images.latent_processor import LatentProcessor
from ddpm_data.images.processor import ImageProcessor, ItemProcessor
from ddpm_data.latents import Latents
from ddpm_data.loading.bad_items import BadItemCounter, length_changed_message
from ddpm_data.loading.loader import StreamLoader, make_loader
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.samplers import Order
from ddpm_data.loading.stage_images import StageImages
from ddpm_data.rng.philox import STAGES, key_from
from ddpm_data.sources._classes import class_names
from ddpm_data.types import (
    Batch,
    ConditionedTargetTriple,
    ConditionedTriple,
    ImageBatch,
    ItemKey,
    Stage,
    TargetTriple,
    Triple,
)

Method = TypeVar("Method", bound=Callable[..., Any])
_STAGES_OF: dict[str, tuple[Stage, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


def _names_keys(method: Method) -> Method:
    """Have a method's errors name config keys as the user knows them."""

    @wraps(method)
    def call(self: "DDPMDataModule", *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # those of the method
        with self.naming_keys():
            return method(self, *args, **kwargs)

    return cast(Method, call)


class DDPMDataModule(L.LightningDataModule):
    """A DataModule that turns any image dataset into training triples: ``x_t, t, noise = batch`` in the model's step.

    Workers deliver uint8 images. After the transfer to the device, ``on_after_batch_transfer`` makes the triple there
    (:class:`~ddpm_data.diffusion.transform.ForwardDiffusion`). Training triples depend only on the seed and on each
    example's position in the stream. Validation, test and prediction triples are the same every time.

    A dataset has ``__getitem__`` and ``__len__``, or at least ``__iter__``. Its items are PIL images, tensors or arrays
    (CHW or HWC), or tuples or dicts that hold one. Instead of a dataset you can give a factory: a function without
    arguments that returns one. It is called in ``prepare_data``, first on one process per node, so that a download
    happens once. If it calls a collective of ``torch.distributed`` there, that attempt is given up, and ``setup``
    calls it on all processes together.

    Args:
        train: Training dataset or factory.
        val: Validation dataset or factory, or the fraction of ``train`` to hold out, in ``(0, 1)``, picked by the seed.
        test: Test dataset or factory, or the fraction of ``train`` to hold out; it shares no item with ``val``.
        predict: Prediction dataset or factory.
        schedule: Betas, see :mod:`ddpm_data.schedules`, or a process, see :mod:`ddpm_data.processes`; or a function
            without arguments that returns one of them.
        batch_size: Images per process and step.
        num_workers: Worker processes that load images; 0 loads in the main process.
        seed: In ``[0, 2**64)``; decides shuffling, flips, ``t`` and noise.
        timesteps: How ``t`` is drawn, see :class:`~ddpm_data.diffusion.transform.ForwardDiffusion`.
        flip: Probability of mirroring a training image left to right, in ``[0, 1]``.
        augment: How training batches are changed on the device before they are noised, see
            :class:`~ddpm_data.diffusion.transform.ForwardDiffusion`.
        image_key, image_size, value_range, channels, resize, crop, background: How items become images, see
            :class:`~ddpm_data.images.processor.ImageProcessor`.
        latents: The settings of latents, see :class:`~ddpm_data.latents.Latents`; ``None`` for images.
        condition: Place in a tuple, or key in a dict, where an item holds its label, caption, embedding or a dict of
            these; batches are then :class:`~ddpm_data.types.ConditionedTriple`. A list of several gives a dict of them.
        condition_images: The conditions that are images and move with their image (resize, crop, flip), by key:
            ``{"mask": "nearest", "edges": "bilinear"}``, see :class:`~ddpm_data.images.conditions.Conditions`. Label
            maps (nearest) arrive as int64, pictures (bilinear) in ``[-1, 1]`` like ``x_0``; both of shape ``(batch,
            channels, height, width)``.
        condition_dropout: How often training drops a condition, see
            :class:`~ddpm_data.diffusion.guidance.ConditionDropout`.
        null_condition: What takes the place of a dropped condition, of the same form.
        drop_last, prefetch_factor, persistent_workers, multiprocessing_context, pin_memory, timeout: See
            :class:`~ddpm_data.loading.options.LoaderOptions`.
        on_bad_item: ``"raise"`` ends the run at an item that cannot be used, ``"replace"`` takes a neighbouring item.
        max_bad_fraction: The share of an epoch that may be replaced, see
            :class:`~ddpm_data.loading.options.LoaderOptions`.
        cache_dir: Folder for decoded images (:mod:`ddpm_data.cache`). Map-style datasets are decoded and resized once
            per node, in ``prepare_data``, and then read from this folder. A dataset in one array needs no cache.
        compile: Compile the batch transform, see :class:`~ddpm_data.diffusion.transform.ForwardDiffusion`.
        target: What the network predicts, see :mod:`ddpm_data.diffusion.targets`. Batches are
            :class:`~ddpm_data.types.TargetTriple` if it is not the noise.
        weight: How :meth:`loss_weight` weighs the error by step, see :mod:`ddpm_data.weights`; ``None`` weighs the
            target's squared error the same at every step.
        noise: A variant of the noise, see :mod:`ddpm_data.noises`; ``None`` is standard normal noise.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.
    """

    key_names: Mapping[str, str] | None = None  # where our keys stand in the app's config; None: made in Python

    @_names_keys
    def __init__(
        self,
        train: Source | None,
        val: SourceOrFraction | None = None,
        test: SourceOrFraction | None = None,
        predict: Source | None = None,
        *,
        schedule: Tensor | GaussianProcess | Callable[[], Any],
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
        condition: Keys = None,
        condition_images: Mapping[ItemKey, Any] | None = None,
        condition_dropout: float = 0.0,
        null_condition: object = None,
        drop_last: bool = False,
        prefetch_factor: int | None = None,
        persistent_workers: bool = True,
        multiprocessing_context: str | None = None,
        pin_memory: bool | None = None,
        timeout: float = 300,
        on_bad_item: str = "raise",
        max_bad_fraction: float = 0.01,
        cache_dir: str | Path | None = None,
        compile: bool = True,
        target: Target = "noise",
        weight: Weight | None = None,
        noise: Noise | None = None,
    ) -> None:
        super().__init__()
        self.loader_options = LoaderOptions(
            batch_size=batch_size,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            multiprocessing_context=multiprocessing_context,
            pin_memory=pin_memory,
            drop_last=drop_last,
            timeout=timeout,
            on_bad_item=on_bad_item,
            max_bad_fraction=max_bad_fraction,
        )
        self.transform = ForwardDiffusion(
            make_process(schedule),
            seed=seed,
            timesteps=timesteps,
            flip=flip,
            augment=augment,
            compile=compile,
            latents=latents,
            target=target,
            weight=weight,
            noise=noise,
        )
        self.dropout = ConditionDropout(condition_dropout, null_condition, seed)
        images = ImageProcessor(
            image_key=image_key,
            image_size=image_size,
            value_range=value_range,
            channels=channels,
            resize=resize,
            crop=crop,
            background=background,
        )
        processor: ItemProcessor = images if latents is None else LatentProcessor.replacing(images, latents)
        self.conditions = Conditions(condition, condition_images, processor, flips=self.transform.flip > 0)
        self.splits = Splits(
            {"train": train, "val": val, "test": test, "predict": predict},
            processor,
            self.conditions,
            key_from(seed),
            cache_dir,
            self.loader_options,
        )
        self._order: Order | None = None
        self._checkpoint: StreamCheckpoint | None = None
        self._device = torch.device("cpu")
        if val is None and type(self).val_dataloader is DDPMDataModule.val_dataloader:
            # Otherwise Lightning assumes a validation split, and warns if the model has no validation_step.
            self.val_dataloader = AbsentLoader(L.LightningDataModule.val_dataloader, self)  # type: ignore[assignment]  # Lightning asks the instance what it overrides

    @property
    def trainer(self) -> L.Trainer | None:
        """The Trainer that this DataModule was passed to.

        Raises:
            TypeError: It is set to a Trainer of the package pytorch_lightning.
        """
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: L.Trainer | None) -> None:
        refuse_other_lightning(trainer)
        self._trainer = trainer

    @property
    def batch_size(self) -> int:
        """Images per process and step. Loaders that are made after a change have the new size.

        So Lightning's ``Tuner(trainer).scale_batch_size`` and ``BatchSizeFinder`` can change it.
        """
        return self.loader_options.batch_size

    @batch_size.setter
    @_names_keys
    def batch_size(self, batch_size: int) -> None:
        self.loader_options = self.splits.options = replace(self.loader_options, batch_size=batch_size)

    @property
    @_names_keys
    def class_names(self) -> list[str]:
        """The names of the labels 0, 1, 2, ... at ``condition``, if the training set knows them; else an empty list.

        :class:`~ddpm_data.sources.ImageFiles` with ``labels=True``, torchvision's datasets and Hugging Face's
        ``ClassLabel`` know them.
        """
        if not self.conditions or not self.conditions.is_single or not self.splits.has("train"):
            return []
        return list(class_names(self.splits.dataset("train"), self.conditions.keys[0]))

    @_names_keys
    def prepare_data(self) -> None:
        """Call the factories and build the cache, on one process per node, so that each downloads and decodes once."""
        fn = self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else None
        self.splits.prepare(_STAGES_OF[fn] if fn else STAGES)

    @_names_keys
    def setup(self, stage: str | None = None) -> None:
        """Build the stage's datasets, and raise errors now instead of in the middle of an epoch.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``; ``None`` sets up all of them.

        Raises:
            TypeError: An item holds no image.
            ValueError: There is no such stage; a set is missing, empty or too small; images cannot be converted or
                differ in shape; the model overrides ``on_after_batch_transfer``; the target would be infinite in the
                Trainer's precision.
        """
        if stage not in (None, *_STAGES_OF):
            raise ValueError(f"setup({stage!r}): the stages are {', '.join(_STAGES_OF)}.")
        refuse_clashes(self.trainer)
        dtype = get_batch_dtype(self.trainer)
        if dtype is not None:
            self.transform.objective.check_range(self.transform.process, dtype)
        world = get_trainer_world(self.trainer)
        for name in _STAGES_OF[stage] if stage else STAGES:
            if self.splits.has(name):
                images = self.splits.open(name)
                if images.length is not None:
                    self.loader_options.check_length(name, images.length, world.size)
                if name == "train":
                    self._try_on_first_items(images)
                    self._begin_stream(images)
            elif stage and name == _STAGES_OF[stage][0]:
                raise ValueError(f"no {name} set was given. Set `dataset.{name}`.")
        if self.trainer:
            ProcessComparison(self._compare_processes).attach(self.trainer)

    @_names_keys
    def _compare_processes(self, trainer: L.Trainer) -> None:
        """Refuse processes that train together and were not given the same."""
        world = get_world()
        if trainer.state.fn and 1 < world.size == trainer.world_size:  # else each may have a Trainer of its own
            begin = self._checkpoint.begin if self._checkpoint and self._is_fitting() else None
            stages = _STAGES_OF[trainer.state.fn.value]
            compare_processes(describe(trainer, stages, self.splits, self.transform, self.dropout, begin), world)

    def _try_on_first_items(self, images: StageImages) -> None:
        """Try on a training image what is done to images and conditions on the device, where it can be read."""
        augment, drops = self.transform.find_augment(), self.dropout.probability > 0
        if augment is None and not drops:
            return
        items = images.first_items(1, self.loader_options)
        if items is None:
            return
        if drops:
            self.dropout.check(self._finish_condition(items.condition, None, torch.float32), self.class_names)
        if augment is not None and is_rank_zero():
            augment.warn_of_shared_randomness(items.images)

    def train_dataloader(self) -> StreamLoader:
        """Return batches of this rank's part of the training stream, uint8."""
        return self._make_loader("train")

    def val_dataloader(self) -> StreamLoader:
        """Return batches of this rank's part of the validation set, uint8."""
        return self._make_loader("val")

    def test_dataloader(self) -> StreamLoader:
        """Return batches of this rank's part of the test set, uint8."""
        return self._make_loader("test")

    def predict_dataloader(self) -> StreamLoader:
        """Return batches of this rank's part of the prediction set, uint8."""
        return self._make_loader("predict")

    @_names_keys
    def on_before_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        """Drop conditions that are strings, since strings stay on the host. Other batches pass unchanged."""
        if not isinstance(batch, ImageBatch) or batch.meta.stage != "train":
            return batch
        condition = self.dropout.drop_strings(batch.meta.condition, batch.position)
        return batch._replace(meta=batch.meta._replace(condition=condition))

    @_names_keys
    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> Batch:
        """Make the triple, on the device that the batch was moved to.

        Raises:
            TypeError: The batch does not come from this module's loaders, ``augment`` returned images of another dtype,
                or ``null_condition`` does not match the conditions.
            ValueError: ``augment`` changed the number of images.
        """
        if not isinstance(batch, ImageBatch):
            raise TypeError(
                f"DDPMDataModule got a batch of {type(batch).__name__}, but it can make triples only from its own "
                "loaders' ImageBatch. Pass datasets to DDPMDataModule(train=..., val=...), not loaders to the Trainer."
            )
        images, (position, stage, condition) = batch
        self._move_tables(images.device)
        dtype, strided = get_batch_dtype(self.trainer), self.splits.is_strided(stage)
        triple: Triple | TargetTriple = self.transform(images, position, stage, dtype, strided)
        if not self.conditions:
            return triple
        if self.conditions.images:
            condition = self._finish_condition(condition, self.transform.flip_mask(position, stage), triple.x_t.dtype)
        if stage == "train":
            condition = self.dropout(condition, position)
        x_t, t, target = triple
        if isinstance(triple, Triple):
            return ConditionedTriple(x_t, t, target, condition)
        return ConditionedTargetTriple(x_t, t, target, condition)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Look up the weight of the squared error at each step, for your ``training_step``.

        Args:
            t: Steps, int64, any shape; in a step of training on the batch's device.

        Returns:
            float32, shape of ``t``: that of ``weight``, times ``1 / (T p_t)`` if the density's ``importance`` is set.
            Under :class:`~ddpm_data.diffusion.loss_aware.LossAwareTimesteps` validation gets that of ``weight``.
        """
        if isinstance(self.transform.timesteps, LossAwareTimesteps) and self.trainer and not self.trainer.training:
            return gather(self.transform.objective.base_weight, t)  # there t is uniform
        return self.transform.loss_weight(t)

    def _finish_condition(self, condition: Any, mirrored: Tensor | None, dtype: torch.dtype) -> Any:  # noqa: ANN401  # any
        """Mirror a condition's images with their images; labels become int64, pictures are scaled as images are."""

        def finish(image: Tensor, key: ItemKey) -> Tensor:
            image = self.transform.mirror(image, mirrored)
            is_label_map = self.conditions.images[key].interpolation == "nearest"
            return image.long() if is_label_map else scale_images(image).to(dtype)

        return self.conditions.map_images(finish, condition)

    def state_dict(self) -> dict[str, int]:
        """Return the offset in the training stream as a few integers, which Lightning saves to checkpoints."""
        return self._checkpoint.save(self.trainer) if self._checkpoint and self.trainer and self._is_fitting() else {}

    @_names_keys
    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume the training stream where a checkpoint left it.

        Raises:
            ValueError: The checkpoint belongs to another stream: its seed, training set or number of steps differs.
        """
        if self._checkpoint and self._is_fitting():
            self._checkpoint.load(state_dict)

    def _is_fitting(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == "fit"

    def _begin_stream(self, images: StageImages) -> None:
        """Create the training order, and the callback that saves its offset to checkpoints."""
        world, seed = get_trainer_world(self.trainer), self.transform.seed
        order = images.train_order(self.loader_options, world, key_from(seed), self._current_epoch)
        order.repeats = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]  # set by Lightning's setup
        identity = {"seed": seed, "num_timesteps": self.transform.process.num_timesteps}
        assert order.plans is not None
        self._order = order
        identity |= images.stream_identity(self.loader_options, world)
        objective = summarise(self.transform)
        self._checkpoint = StreamCheckpoint(order.plans, identity, objective, type(self).__qualname__)
        if self.trainer:
            self._checkpoint.attach(self.trainer)
            if isinstance(self.transform.timesteps, LossAwareTimesteps):
                LossAwareTables(self.transform).attach(self.trainer)

    def _current_epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer else 0

    def naming_keys(self) -> AbstractContextManager[None]:
        """Return a context whose errors name config keys as the user knows them."""
        return naming_keys(self.key_names, list_arguments(DDPMDataModule.__init__))

    @_names_keys
    def _make_loader(self, stage: Stage) -> StreamLoader:
        images, world = self.splits.images(stage), get_trainer_world(self.trainer)
        if images.length is not None:
            self.loader_options.check_length(stage, images.length, world.size)  # the batch size may have changed
        if stage == "train":
            assert self._order is not None
            assert self._checkpoint is not None
            order = self._order
            if images.length not in (None, self._checkpoint.plans.full.length):
                raise ValueError(length_changed_message(stage, images.length, self._checkpoint.plans.full.length))
            order.set_batch_size(self.batch_size)
            self._checkpoint.identity |= images.stream_identity(self.loader_options, world)
        else:
            order = images.eval_order(self.loader_options, world)
        length = None if images.length is None else -(-images.length // world.size)
        trains_on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        pin_memory = self.loader_options.pin_memory
        loader = make_loader(
            images,
            stage,
            order,
            self.loader_options,
            world,
            self.transform.seed,
            pin_memory=trains_on_cuda if pin_memory is None else pin_memory,
            counter=BadItemCounter(stage, self.loader_options.max_bad_fraction, length, self._log_bad_items),
        )
        loader.naming_keys = self.naming_keys
        return loader

    def _log_bad_items(self, stage: str, count: int) -> None:
        """Log the number of items that were replaced in an epoch."""
        for logger in self.trainer.loggers if self.trainer else ():
            step = self.trainer.global_step  # type: ignore[union-attr]  # it has loggers, so it is there
            logger.log_metrics({f"{stage}_bad_items": count}, step)

    def _move_tables(self, device: torch.device) -> None:
        """Move the transform's tables, which Lightning does not do: a DataModule is no nn.Module."""
        if device == self._device:
            return
        with torch.inference_mode(False):  # fit() cannot use inference tensors, which validate() would leave
            self.transform.to(device)
        self._device = device
