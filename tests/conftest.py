"""What every test shares: no network, caches that vanish, a tiny model and a tiny dataset."""

import atexit
import os
import random
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

# Transformers and datasets read these when they are imported, so they come before every other import.
_CACHE = tempfile.mkdtemp(prefix="lit_compress-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HOME": _CACHE,
    "HF_DATASETS_CACHE": f"{_CACHE}/datasets",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from contracts.training import student_config  # noqa: E402
from hypothesis import settings  # noqa: E402
from processes import Python  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    RobertaConfig,
)

from lit_compress.cli import main  # noqa: E402
from lit_compress.report import timing  # noqa: E402

# The same examples in every run, and no folder of them in the repository.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("repeatable")

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_GOOD = ["good", "great", "fine", "lovely", "bright", "warm", "funny", "clever"]
_BAD = ["bad", "awful", "poor", "dull", "dark", "cold", "boring", "stupid"]
_OTHER = ["the", "a", "is", "was", "film", "story", "plot", "actor", "scene", "very", "and", "but", "not", "it", "in"]
_LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "##s", "##ly", "na", "null", "nan", '"', ",", ".", "!"]
_VOCABULARY = list(dict.fromkeys([*_SPECIAL, *_GOOD, *_BAD, *_OTHER, *_LETTERS]))


class _Doctests:
    # Registered as a plugin because a fixture of this file alone would not reach the doctests in lit_compress/.
    @pytest.fixture(autouse=True)
    def _torch_in_doctests(self, doctest_namespace):
        doctest_namespace["torch"] = torch


def pytest_configure(config):
    config.pluginmanager.register(_Doctests())


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_disks():
    """Checkpoints are written as ever, and are not waited for until they are on a disk: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def pause_of_users():
    """Few timed calls without the pause that users have between two, which is given to those tests that look at it.

    No test looks at the figures of tiny models, whose calls vary by more than what counts as disturbed.
    """
    pause = timing._QUIET
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_QUIET", 0.0)
        patch.setattr("lit_compress.report.timing_rounds._MOST", 1)
        patch.setattr("lit_compress.planning.measure_latency._ROUNDS", 5)
        patch.setattr("lit_compress.auto.measure._REPETITIONS", 5)
        yield pause


@pytest.fixture(scope="module")
def _timed_here():
    """Structures are timed in this process: to start one for each takes longer than all the rest of `compress`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "lit_compress.planning.measure_latency.opened",
            lambda cases, threads, device: timing.opened_here(cases, threads),
        )
        yield


@pytest.fixture(scope="module")
def _stages_forked():
    """Stages of recipes are processes of their own, as ever, and have nothing to import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_compress.recipe.subprocess", SimpleNamespace(Popen=lambda command: Python(command[1:])))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a random two-layer BERT without a head, and its WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-model")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(_VOCABULARY) + "\n")
    BertTokenizerFast(vocab=str(vocabulary), model_max_length=128).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A folder with train.tsv (64 rows) and val.tsv (16): sentences with a good (1) or a bad (0) word."""
    folder = tmp_path_factory.mktemp("tiny-data")
    draw = random.Random(0)
    for name, rows in (("train", 64), ("val", 16)):
        lines = ["sentence\tlabel"]
        for row in range(rows):
            words = [draw.choice(_OTHER) for _ in range(draw.randrange(2, 12))]
            words.insert(draw.randrange(len(words) + 1), draw.choice(_GOOD if row % 2 else _BAD))
            lines.append(f"{' '.join(words)}\t{row % 2}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory, tiny_model) -> Path:
    """The tiny model with a two-class head, as a fine-tuned teacher would be saved."""
    folder = tmp_path_factory.mktemp("tiny-teacher")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, id2label={0: "0", 1: "1"})
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sparse_model(tmp_path_factory, tiny_teacher):
    """A model that arrives with zeros, for PatternLock and everybody else."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".layer." in name and parameter.ndim == 2:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) > 0.4)
    folder = tmp_path_factory.mktemp("sparse-model")
    model.save_pretrained(folder)
    for file in tiny_teacher.iterdir():
        if "token" in file.name or file.name == "vocab.txt":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="session")
def short_teacher(tmp_path_factory, tiny_teacher) -> Path:
    """A two-class RoBERTa with positions for 12 tokens, of which its tokenizer says nothing."""
    folder = tmp_path_factory.mktemp("short-teacher")
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=len(_VOCABULARY), pad_token_id=0, max_position_embeddings=13, **sizes)
    config.id2label = {0: "0", 1: "1"}
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide_teacher(tmp_path_factory, tiny_teacher) -> Path:
    """A teacher of another shape for the same task: three layers of 48 dimensions with three heads."""
    folder = tmp_path_factory.mktemp("wide-teacher")
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=64,
        max_position_embeddings=128,
        id2label={0: "0", 1: "1"},
        initializer_range=0.5,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_teacher, tiny_data):
    """A finished run with pruning and quantization."""
    root = tmp_path_factory.mktemp("finished")
    config = student_config(
        tiny_teacher,
        tiny_data,
        compression=[
            {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75, "end": "50%"}},
            {"class_path": "QuantAwareTraining", "init_args": {"start": "50%"}},
        ],
        trainer={"max_epochs": 1, "accelerator": "cpu"},
    )
    (root / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={root / 'task.yaml'}", f"--run={root / 'run'}"])
    return root / "run"
