"""What every distillation term promises beside a strategy that prunes and one that quantizes."""

import inspect
import json

import pytest
import torch
from contracts.table import TERMS, build
from contracts.tasks import sentence_texts
from contracts.training import STEPS, StopAt, data, differences, fit
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import lit_compress.modules
from lit_compress.export import load_checkpoint, save_folder, student_from_checkpoint
from lit_compress.modules import Distillation, LitStudent, Optimization

CASES = list(TERMS)
# What is learned from, and the class that loads what is exported: the vectors of texts have a task of their own.
EMBEDS = {"embeddings"}


@pytest.fixture(scope="session")
def train(tiny_teacher, wide_teacher, tiny_data, tmp_path_factory):
    files, encoder = tmp_path_factory.mktemp("texts"), tmp_path_factory.mktemp("wide-encoder")
    AutoModel.from_pretrained(wide_teacher).save_pretrained(encoder)
    AutoTokenizer.from_pretrained(wide_teacher).save_pretrained(encoder)

    def run(case, root, stop=None, ckpt_path=None):
        torch.manual_seed(0)
        embeds = case in EMBEDS
        texts = sentence_texts(files, tiny_teacher) if embeds else data(tiny_data, tiny_teacher)
        module = LitStudent(
            str(tiny_teacher),
            str(encoder if embeds else wide_teacher),
            distillation=TERMS[case](),
            labels=texts.labels,
            task=texts.task,
            optimization=Optimization(learning_rate=1e-2, weight_decay=0.1, warmup="0%"),
        )
        callbacks = [build("magnitude"), build("qat-everything"), *([StopAt(stop)] if stop else [])]
        fit(module, texts, callbacks, root, ckpt_path=ckpt_path)
        return module

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, train):
    """Each case trained once, with a checkpoint per step."""
    done = {}

    def once(case):
        if case not in done:
            root = tmp_path_factory.mktemp(case)
            done[case] = train(case, root), root
        return done[case]

    return once


def test_every_term_has_a_row():
    exported = [getattr(lit_compress.modules, name) for name in lit_compress.modules.__all__]
    terms = {kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Distillation)} - {Distillation}
    rows = {type(term) for make in TERMS.values() for term in make().values()}
    # Margins are between the documents of a list: tests/tasks/test_reranking.py.
    assert terms == rows | {lit_compress.modules.MarginDistillation}


@pytest.mark.parametrize("case", CASES)
def test_resume_is_exact(case, train, trained, tmp_path):
    _, whole = trained(case)
    with pytest.raises(StopAt.Killed):
        train(case, tmp_path / "killed", stop=3)
    torch.rand(17)
    train(case, tmp_path / "resumed", ckpt_path=tmp_path / "killed/step=3.ckpt")
    expected, got = (load_checkpoint(root / f"step={STEPS}.ckpt") for root in (whole, tmp_path / "resumed"))
    for part in (
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "lit_compress",
        "SentenceTexts" if case in EMBEDS else "TextClassification",
    ):
        assert differences(expected[part], got[part]) == []


@pytest.mark.parametrize("case", CASES)
def test_checkpoint_has_what_is_learned_and_no_teacher(case, trained):
    _, root = trained(case)
    checkpoint = load_checkpoint(root / f"step={STEPS}.ckpt")
    beside = {name for name in checkpoint["state_dict"] if not name.startswith("student.")}
    learned = {"projection": "hidden", "embeddings": "kd"}
    assert beside == ({f"distillation.{learned[case]}.projection.weight"} if case in learned else set())
    json.dumps(checkpoint["lit_compress"])


@pytest.mark.parametrize("case", CASES)
def test_export_has_the_student_alone(case, trained, tiny_teacher, tiny_data, tmp_path):
    _, root = trained(case)
    student = student_from_checkpoint(load_checkpoint(root / f"step={STEPS}.ckpt"))
    save_folder(student, data(tiny_data, tiny_teacher).tokenizer, tmp_path / "model")
    kind = AutoModel if case in EMBEDS else AutoModelForSequenceClassification
    loaded, info = kind.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    plain = kind.from_pretrained(tiny_teacher)
    assert loaded.state_dict().keys() == plain.state_dict().keys()
    assert loaded.config._attn_implementation == plain.config._attn_implementation
