"""LightningDataModules on Hugging Face `datasets`."""

from lit_compress.data.augmentation import MaskedWordReplacement
from lit_compress.data.batches import LengthGroupedBatches, ResumableDataLoader
from lit_compress.data.classification import TextClassification

__all__ = ["LengthGroupedBatches", "MaskedWordReplacement", "ResumableDataLoader", "TextClassification"]
