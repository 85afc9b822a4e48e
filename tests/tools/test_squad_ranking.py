"""Rows for rerankers and embeddings from a small file in the form of SQuAD."""

import gzip
import json
import sys

import pytest

from tools.squad_ranking import main


@pytest.fixture
def squad(tmp_path):
    def article(name: str) -> dict:
        paragraphs = [
            {"context": f"{name} passage {place}", "qas": [{"question": f" {name} question {place}?"}]}
            for place in range(4)
        ]
        return {"title": name, "paragraphs": paragraphs}

    for part, names in (("train", ("a", "b")), ("eval", ("c",))):
        with gzip.open(tmp_path / f"{part}_part.json.gz", "wt") as file:
            json.dump({"data": [article(name) for name in names]}, file)
    return tmp_path


def test_each_question_has_its_passage_and_others_of_its_article(squad, monkeypatch):
    words = f"squad_ranking --squad {squad} --output {squad / 'made'} --train 5 --dev 9 --negatives 2 --candidates 9"
    monkeypatch.setattr(sys, "argv", words.split())
    main()

    def rows(name: str) -> list[dict]:
        return [json.loads(line) for line in (squad / "made" / f"{name}.jsonl").read_text().splitlines()]

    train, dev = rows("rerank-train"), rows("rerank-dev")
    assert len(train) == 5 * 3
    assert len(dev) == 4 * 4  # all that there are
    assert len(rows("retrieve-train")) == 5
    for row in (*train, *dev):
        article, _, place = row["question"].rstrip("?").split()
        right = row["passage"] == f"{article} passage {place}"
        assert row["label"] == int(right)
        assert row["passage"].split()[0] == article
    assert rows("retrieve-dev") == [{k: row[k] for k in ("question", "passage")} for row in dev if row["label"]]
