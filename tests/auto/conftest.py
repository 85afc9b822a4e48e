import shutil

import pytest
from transformers import BertConfig, BertModel


@pytest.fixture(scope="session")
def deep_model(tiny_model, tmp_path_factory):
    """Four layers without a head, so that one of them is faster than all on any machine."""
    folder = tmp_path_factory.mktemp("deep-model")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    config = BertConfig.from_pretrained(tiny_model, num_hidden_layers=4, hidden_size=64, intermediate_size=256)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _few_processes(_timed_here, _stages_forked):
    pass
