"""The same model with its classes in another order."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def swapped(source: Path, folder: Path, names: tuple[str, str] = ("1", "0")) -> Path:
    """A copy of a two-class classifier that gives its answers in the other order, under these names."""
    model = AutoModelForSequenceClassification.from_pretrained(source)
    with torch.no_grad():
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.copy_(parameter.flip(0))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder
