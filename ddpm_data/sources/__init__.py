"""Datasets that we ship, and helpers that read other libraries' datasets faster or split them over processes."""

from ddpm_data.sources.array_files import ArrayFile, TensorFile
from ddpm_data.sources.digits import digits
from ddpm_data.sources.image_files import ImageFiles
from ddpm_data.sources.tar_shards import TarShards

__all__ = ["ArrayFile", "ImageFiles", "TarShards", "TensorFile", "digits"]

# A cache's fingerprint contains the dataset's module. If this changed, every cache would be built again.
for _dataset_class in (ArrayFile, ImageFiles, TarShards, TensorFile):
    _dataset_class.__module__ = __name__
