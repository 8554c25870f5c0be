"""Datasets that we ship, and what we know of other people's datasets."""

from ddpm_data.sources.array_files import ArrayFile, TensorFile
from ddpm_data.sources.digits import digits
from ddpm_data.sources.image_files import ImageFiles
from ddpm_data.sources.tar_shards import TarShards

__all__ = ["ArrayFile", "ImageFiles", "TarShards", "TensorFile", "digits"]

# The cache's fingerprint holds a dataset's module: with another one here, every cache would be decoded again.
for _public in (ArrayFile, ImageFiles, TarShards, TensorFile):
    _public.__module__ = __name__
