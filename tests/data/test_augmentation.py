import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from lit_compress.data import MaskedWordReplacement, TextClassification
from lit_compress.errors import UserError

ROWS = {
    "text": ["The film was very good, and warm!", "a dull story", "42 ..."],
    "label": ["1", "0", "0"],
}


@pytest.fixture(scope="session")
def language_model(tmp_path_factory, tiny_model):
    """A masked language model that wants "lovely" everywhere, then "clever", "bright" and a piece of a word."""
    folder = tmp_path_factory.mktemp("language-model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = BertConfig.from_pretrained(tiny_model)
    torch.manual_seed(0)
    model = BertForMaskedLM(config)
    bias = torch.zeros(config.vocab_size)
    for points, word in zip((400, 300, 200, 100), ("lovely", "##ly", "clever", "bright"), strict=True):
        bias[tokenizer.convert_tokens_to_ids(word)] = points
    with torch.no_grad():
        model.cls.predictions.bias.copy_(bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def augment(folder, rows=ROWS, **options):
    settings = {"copies": 8, "probability": 0.5, "candidates": 3} | options
    return MaskedWordReplacement(str(folder), **settings)(Dataset.from_dict(rows), ["text"])


def test_originals_stay_and_copies_have_their_label(language_model):
    table = augment(language_model)
    texts = table["text"]
    assert [text for text in ROWS["text"] if text in texts] == ROWS["text"]
    assert len(table) > 3
    for text, label in zip(table["text"], table["label"], strict=True):
        assert (label == "1") == ("very" in text)


def test_only_whole_content_words_are_replaced_by_whole_words(language_model):
    texts = augment(language_model, copies=40)["text"]
    first = [text for text in texts if "very" in text]
    for text in first:
        the, film, was, very, good, conjunction, warm = text.rstrip("!").replace(",", "").split()
        assert (the, was, very, conjunction) == ("The", "was", "very", "and")
        for word, original in ((film, "film"), (good, "good"), (warm, "warm")):
            assert word in {original, "lovely", "clever", "bright"}
    # Spaces and signs are where they were.
    assert all(text.endswith("!") and "," in text for text in first)
    assert {text.split()[1] for text in first} == {"film", "lovely", "clever", "bright"}
    assert [text for text in texts if text.startswith("42")] == ["42 ..."]


def test_copies_are_distinct_and_no_more_than_asked_for(language_model):
    table = augment(language_model, copies=4)
    texts = table["text"]
    assert len(set(texts)) == len(texts)
    assert sum("very" in text for text in texts) <= 5


def test_the_same_seed_gives_the_same_copies(language_model):
    assert augment(language_model)["text"] == augment(language_model)["text"]
    assert augment(language_model)["text"] != augment(language_model, seed=1)["text"]


def test_a_rows_copies_do_not_depend_on_its_neighbors(language_model):
    alone = augment(language_model, rows={name: values[:1] for name, values in ROWS.items()})["text"]
    assert [text for text in augment(language_model)["text"] if "very" in text] == alone


def test_probability_one_replaces_every_word(language_model):
    for text in augment(language_model, probability=1.0)["text"]:
        assert text in ROWS["text"] or not {"film", "good", "warm", "dull", "story"} & set(text.strip("!").split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copies": 0}, r"data\.augmentation\.copies: 0 must be at least 1"),
        ({"candidates": 0}, r"data\.augmentation\.candidates: 0"),
        ({"probability": 0.0}, r"data\.augmentation\.probability: 0\.0 must be in \(0, 1\]"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        MaskedWordReplacement("model", **options)


def test_a_model_without_the_head(tiny_model):
    with pytest.raises(UserError, match=r"data\.augmentation\.model: .*no masked-language-model head"):
        augment(tiny_model)


def test_no_such_model(tmp_path):
    with pytest.raises(UserError, match=r"data\.augmentation\.model"):
        augment(tmp_path / "nowhere")


def test_the_training_split_of_a_data_module_alone_is_augmented(language_model, tiny_data, tiny_model):
    data = TextClassification(
        train_file=str(tiny_data / "train.tsv"),
        val_file=str(tiny_data / "val.tsv"),
        tokenizer=str(tiny_model),
        text_columns=["sentence"],
        max_length=32,
        limit=8,
        augmentation=MaskedWordReplacement(str(language_model), copies=2),
    )
    data.setup("fit")
    rows = len(data.train_dataloader().dataset)
    assert 8 < rows <= 24
    assert len(data.val_dataloader().dataset) == 16
