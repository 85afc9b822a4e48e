"""Folders that version 0.1 wrote, as it wrote them: whatever becomes of the code, they load and answer the same."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_compress.models.folder import load_whole_model

ROOT = Path(__file__).parent / "version_0_1"
LOGITS = json.loads((ROOT / "logits.json").read_text())


@pytest.mark.parametrize("load", [AutoModelForSequenceClassification.from_pretrained, load_whole_model])
@pytest.mark.parametrize("folder", LOGITS)
def test_a_folder_of_0_1_answers_as_it_did(folder, load):
    model = load(str(ROOT / folder), **({"key": "--model"} if load is load_whole_model else {}))
    with torch.no_grad():
        logits = model(input_ids=torch.arange(6).reshape(2, 3)).logits
    torch.testing.assert_close(logits, torch.tensor(LOGITS[folder]), rtol=0, atol=1e-5)
