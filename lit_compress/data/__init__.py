"""LightningDataModules on Hugging Face `datasets`."""

from lit_compress.data.augmentation import MaskedWordReplacement
from lit_compress.data.batches import LengthGroupedBatches
from lit_compress.data.classification import TextClassification
from lit_compress.data.masked_lm import MaskedLanguageModeling
from lit_compress.data.multi_label import MultiLabelClassification
from lit_compress.data.question_answering import QuestionAnswering
from lit_compress.data.ranking import RankedPairs
from lit_compress.data.resumable_loader import ResumableDataLoader
from lit_compress.data.sentences import SentencePairs, SentenceTexts
from lit_compress.data.text_data import TextData
from lit_compress.data.token_classification import TokenClassification

__all__ = [
    "LengthGroupedBatches",
    "MaskedLanguageModeling",
    "MaskedWordReplacement",
    "MultiLabelClassification",
    "QuestionAnswering",
    "RankedPairs",
    "ResumableDataLoader",
    "SentencePairs",
    "SentenceTexts",
    "TextClassification",
    "TextData",
    "TokenClassification",
]
