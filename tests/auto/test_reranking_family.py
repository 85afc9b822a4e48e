"""`compress --task reranking` on a tiny model: everything is real but the size."""

import json
from pathlib import Path

import pytest
import yaml
from sentence_transformers import CrossEncoder

from lit_compress.cli import main
from lit_compress.data.guess import guess_task
from lit_compress.errors import UserError

QUERIES = ["good film", "great story", "lovely scene", "a funny actor", "bad film"]
DOCUMENTS = ["good", "great", "lovely", "funny", "bad"]


def ranked(names: str, repetitions: int) -> str:
    """Each query with its own document, and with another."""
    lines = [names]
    for number in [*range(len(QUERIES))] * repetitions:
        for step in range(len(QUERIES)):
            place = (number + step) % len(QUERIES)
            lines.append(f"{QUERIES[number]}\t{DOCUMENTS[place]}\t{int(not step)}")
    return "\n".join(lines) + "\n"


def test_a_family_of_a_reranker(deep_model, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_compress.auto.time_budget._LEAST", 6)
    monkeypatch.chdir(tmp_path)
    for name in ("train", "val"):
        Path(f"{name}.tsv").write_text(ranked("question\tpassage\tlabel", 4))
    main(
        f"compress --model={deep_model} --train=train.tsv --val=val.tsv --run=fast --task=reranking "
        "--speedup=1.3 --minutes=0.01 --threads=1 --shape=4x16".split()
    )
    results = json.loads(Path("fast/report.json").read_text())
    assert (results["task"], results["score"]) == ("reranking", "ndcg_at_10")
    assert {"mrr_at_10", "recall_at_10"} < {*results["scores"]["dense"]}
    assert '["a query"], ["a document"]' in Path("fast/report.md").read_text()
    stages = yaml.safe_load(Path("fast/recipe.yaml").read_text())["stages"]
    assert stages["teacher"]["data"]["class_path"].endswith("RankedPairs")
    assert [each["name"] for each in results["members"]] == ["int8", "1_3x"]
    for each in results["members"]:
        assert Path(each["file"]).is_file()
        reranker = CrossEncoder(f"{each['run']}/model")
        scores = reranker.predict([(QUERIES[0], text) for text in DOCUMENTS])
        assert scores.shape == (5,)
        assert ((scores > 0) & (scores < 1)).all()  # the sigmoid is saved with the model


def test_what_is_read_of_a_file_for_a_reranker():
    texts = {"question": ["what is it now"] * 4, "passage": ["it is that one"] * 4}
    scored = guess_task(texts | {"label": [*"0110"]}, "reranking")
    assert scored.options == {"text_columns": ["question", "passage"], "label_column": "label"}
    graded = guess_task(texts | {"score": [*"0123"]}, "reranking")
    assert graded.options["score_range"] == [0, 3]
    names = ("query", "positive", "negative")
    alone = guess_task({name: ["a b c"] * 3 for name in names} | {"id": ["a", "b", "c"]}, "reranking")
    assert alone.options == {"text_columns": [*names], "label_column": None}
    with pytest.raises(UserError, match=r"--text_columns: \['question', 'passage'\] must be query, relevant document"):
        guess_task(texts, "reranking")
    with pytest.raises(UserError, match="--label_column: 'passage' holds no numbers that differ, and reranking needs"):
        guess_task(texts, "reranking", label_column="passage")
    with pytest.raises(UserError, match=r"\['question'\] is one column of texts, and a reranker reads two"):
        guess_task(texts | {"label": [*"0110"]}, "reranking", ["question"], "label")
