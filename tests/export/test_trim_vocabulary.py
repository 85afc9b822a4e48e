import copy
import json
import sys

import pytest
import torch
from contracts.errors import error_of
from data.test_vocabulary import KINDS, texts
from export.quantized import quantized
from models.families import build
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
    XLMRobertaTokenizerFast,
)

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.export import from_source, from_student, trim_vocabulary, write
from lit_compress.models.folded import Folded
from lit_compress.models.folder import load_whole_model
from lit_compress.models.hf_folder import write_hf
from lit_compress.models.sentence_embedding import add_dense
from lit_compress.nn.factorized import FactorizedEmbedding

NAMES = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
FAMILIES = {
    "wordpiece": ("bert", BertTokenizerFast),
    "bytes": ("roberta", RobertaTokenizerFast),
    "unigram": ("xlm-roberta", XLMRobertaTokenizerFast),
}


def tokenizer_of(kind):
    """The class of the family around a trained tokenizer."""
    model = json.loads(KINDS[kind]().to_str())["model"]
    if kind == "wordpiece":
        return BertTokenizerFast(vocab=model["vocab"], **NAMES)
    if kind == "bytes":
        return RobertaTokenizerFast(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    return XLMRobertaTokenizerFast(vocab=[tuple(entry) for entry in model["vocab"]])


def folder_of(kind, model, path):
    tokenizer_of(kind).save_pretrained(path)
    model.save_pretrained(path)
    return path


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join([*texts()[:5], "héllo zzq ✓", "ab  c"]) + "\n")
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModelForMaskedLM], ids=["classes", "words"])
def test_predictions_on_the_corpus_are_the_same(kind, head, corpus, tmp_path):
    before = tokenizer_of(kind)
    settings = {"vocab_size": len(before) + 5, "max_position_embeddings": 80, "pad_token_id": before.pad_token_id}
    model = build(FAMILIES[kind][0], head, **settings)
    folder_of(kind, model, tmp_path / "model")
    trim_vocabulary(str(tmp_path / "model"), str(corpus), str(tmp_path / "out"))
    smaller, after = head.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    before = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(after) == smaller.config.vocab_size < len(before)
    keep = before.convert_tokens_to_ids(after.convert_ids_to_tokens(range(len(after))))
    assert after.pad_token_id == smaller.config.pad_token_id
    assert keep[after.pad_token_id] == before.pad_token_id
    # Equal addresses within a cache line, so that a processor adds in the same order.
    smaller = copy.deepcopy(smaller)
    for line in corpus.read_text().splitlines():
        with torch.no_grad():
            expected = model(**before(line, return_tensors="pt")).logits
            found = smaller(**after(line, return_tensors="pt")).logits
        if head is AutoModelForMaskedLM:
            torch.testing.assert_close(found, expected[..., keep], atol=1e-6, rtol=0)
        else:
            assert torch.equal(found, expected)
    if head is AutoModelForMaskedLM:
        assert smaller.get_output_embeddings().weight is smaller.get_input_embeddings().weight


def test_rows_with_scales_and_low_rank_tables(corpus, tmp_path):
    before = tokenizer_of("wordpiece")
    model = quantized("bert", tables="row", vocab_size=len(before), max_position_embeddings=80)
    write(from_student(model, before), tmp_path / "int8", "hf")
    trim_vocabulary(str(tmp_path / "int8"), [str(corpus)], str(tmp_path / "out"))
    write(from_source(model=str(tmp_path / "out")), tmp_path / "sparse", "sparse")  # weights still lie on their grids
    model = build("bert", vocab_size=len(before), max_position_embeddings=80)
    model.bert.embeddings.word_embeddings = FactorizedEmbedding.from_embedding(model.bert.embeddings.word_embeddings, 5)
    write(from_student(model, before), tmp_path / "rank", "hf")
    trim_vocabulary(str(tmp_path / "rank"), str(corpus), str(tmp_path / "out2"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out2")
    assert loaded.bert.embeddings.word_embeddings.weight.shape == (loaded.config.vocab_size, 5)


def test_the_command_and_an_old_tokenizer_description(corpus, tmp_path, capsys):
    made = KINDS["unigram"]()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **NAMES)
    tokenizer.save_pretrained(tmp_path / "model")
    path = tmp_path / "model/tokenizer_config.json"
    entry = {"content": "<unk>", "special": True}
    old = json.loads(path.read_text()) | {"added_tokens_decoder": {str(made.token_to_id("<unk>")): entry}}
    path.write_text(json.dumps(old))
    build("bert", vocab_size=len(tokenizer), max_position_embeddings=80).save_pretrained(tmp_path / "model")
    main(["trim-vocabulary", f"--model={tmp_path / 'model'}", f"--corpus={corpus}", f"--output={tmp_path / 'out'}"])
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert after.convert_tokens_to_ids("<unk>") == after.unk_token_id
    assert capsys.readouterr().out.rstrip().endswith(f"saved as {tmp_path / 'out'}")


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("width", [None, 12])
def test_a_sentence_encoder_gives_the_same_vectors(width, pooler, corpus, tmp_path):
    before = tokenizer_of("wordpiece")
    model = build("bert", AutoModel, vocab_size=len(before), max_position_embeddings=80)
    if not pooler:
        model.pooler = None
    dense = None if width is None else {"out_features": width, "bias": True, "activation": "Tanh"}
    model.config.sentence_embedding = {"pooling": "mean", "normalize": False, "max_length": 80, "dense": dense}
    if (projection := add_dense(model)) is not None:
        torch.nn.init.normal_(projection.weight)
    write(Folded(model=model, manifest={}, tokenizer=before), tmp_path / "model", "hf")
    trim_vocabulary(str(tmp_path / "model"), str(corpus), str(tmp_path / "out"))
    whole, smaller = (load_whole_model(str(tmp_path / name), "model") for name in ("model", "out"))
    assert (smaller.pooler is None) is not pooler
    assert smaller.config.vocab_size < len(before)
    for line in corpus.read_text().splitlines():
        with torch.no_grad():
            expected, found = (
                each(**AutoTokenizer.from_pretrained(tmp_path / name)(line, return_tensors="pt")).sentence_embedding
                for each, name in ((whole, "model"), (smaller, "out"))
            )
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert found.shape == (1, width or model.config.hidden_size)


def test_a_folder_that_cannot_be_loaded_never_appears(corpus, tmp_path, monkeypatch):
    folder_of("wordpiece", build("bert", vocab_size=len(tokenizer_of("wordpiece"))), tmp_path / "model")

    def without_weights(folded, folder):
        write_hf(folded, folder)
        (folder / "model.safetensors").unlink()

    monkeypatch.setattr(sys.modules["lit_compress.export.trim_vocabulary"], "write_hf", without_weights)
    assert "--output" in error_of(trim_vocabulary, str(tmp_path / "model"), str(corpus), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({}, "--model"),
        ({"model": "{model}"}, "--corpus"),
        ({"model": "{model}", "corpus": "x"}, "--output"),
        ({"model": "{model}", "corpus": "nowhere.txt", "output": "out"}, "nowhere.txt"),
        ({"model": "{model}", "corpus": "{binary}", "output": "out"}, "UTF-8"),
        ({"model": "nowhere", "corpus": "{binary}", "output": "out"}, "nowhere"),
        ({"model": "{short}", "corpus": "{corpus}", "output": "out"}, "rows"),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(arguments, word, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    size = len(tokenizer_of("wordpiece"))
    folder_of("wordpiece", build("bert", vocab_size=size), tmp_path / "model")
    folder_of("wordpiece", build("bert", vocab_size=30), tmp_path / "short")
    places = {name: str(tmp_path / name) for name in ("model", "binary", "short")} | {"corpus": str(corpus)}
    with pytest.raises(UserError, match=word) as caught:
        trim_vocabulary(**{name: value.format(**places) for name, value in arguments.items()})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
