"""`compress --task embedding` on a tiny model: everything is real but the size."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lit_compress.cli import main
from lit_compress.data.guess import guess_task
from lit_compress.errors import UserError

TEXTS = ["good film", "great story", "lovely scene", "a funny actor", "bad film", "awful story", "dull scene"]


def pairs(repetitions: int) -> str:
    lines = ["sentence1\tsentence2\tscore"]
    for number in range(repetitions):
        for place, text in enumerate(TEXTS):
            other = TEXTS[(place + number) % len(TEXTS)]
            lines.append(f"{text}\t{other}\t{5 - min(number % len(TEXTS), 5)}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def model(deep_model, tmp_path_factory):
    """The deep model with the files of sentence-transformers."""
    folder = tmp_path_factory.mktemp("sentence-model")
    shutil.copytree(deep_model, folder, dirs_exist_ok=True)
    names = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_a_family_of_a_sentence_encoder(model, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_compress.auto.time_budget._LEAST", 6)
    monkeypatch.chdir(tmp_path)
    Path("train.tsv").write_text(pairs(12))
    Path("val.tsv").write_text(pairs(6))
    rows = [f"{text}\t{text} indeed" for text in TEXTS]
    Path("asked.tsv").write_text("\n".join(["query\tpassage", *rows]) + "\n")
    main(
        f"compress --model={model} --train=train.tsv --val=val.tsv --run=fast --task=embedding --retrieval=asked.tsv "
        "--speedup=1.3 --minutes=0.01 --threads=1 --shape=4x16".split()
    )
    results = json.loads(Path("fast/report.json").read_text())
    members = {each["name"]: each for each in results["members"]}
    assert list(members) == ["int8", "1_3x"]
    assert (results["task"], results["score"]) == ("embedding", "spearman")
    stages = yaml.safe_load(Path("fast/recipe.yaml").read_text())["stages"]
    terms = [stage["model"]["init_args"]["distillation"]["kd"]["class_path"] for stage in stages.values()]
    assert set(terms) == {"EmbeddingDistillation"}
    assert "teacher" not in stages  # the model is one already
    found = results["retrieval"]
    assert found["queries"] == len(TEXTS)
    # Where integers alone are fast enough, the other member is the same model.
    assert {*found["scores"]} == {"dense", *(each["same_as"] or name for name, each in members.items())}
    assert [*found["scores"]["dense"]] == ["ndcg_at_10", "mrr_at_10", "recall_at_10"]
    assert 0 < found["scores"]["dense"]["ndcg_at_10"] <= 1
    assert "What it finds" in Path("fast/report.md").read_text()
    for each in members.values():
        folder = Path(each["folder"])
        assert json.loads((folder / "modules.json").read_text())[1]["type"].endswith("Pooling")
        assert each["speedup"] > 0


def test_what_is_asked_is_looked_at_first(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pairs.tsv").write_text(pairs(6))
    given = f"compress --model={model} --train=pairs.tsv --val=pairs.tsv --run=fast"
    for options, said in (
        (["--task=embedding", "--retrieval=pairs.tsv"], "--retrieval: 'pairs.tsv' has scores of pairs in 'score'"),
        (["--task=embedding", "--retrieval=none.tsv"], "--retrieval: .*none.tsv"),
        (["--retrieval=pairs.tsv"], "--retrieval: ranks texts by their vectors; give --task embedding"),
    ):
        with pytest.raises(SystemExit, match=said):
            main([*given.split(), *options])
    assert not Path("fast").exists()


def test_pairs_and_their_scores_are_found_by_their_names():
    columns = {
        "sentence1": ["a b c"] * 4,
        "sentence2": ["d e f"] * 4,
        "score": ["0.2", "3.8", "5", "1"],
        "id": [*"1234"],
    }
    found = guess_task(columns, "embedding")
    assert found.options == {
        "text_columns": ["sentence1", "sentence2"], "label_column": "score", "score_range": [0, 5],
    }  # fmt: skip
    cosines = guess_task(columns | {"score": ["0.2", "-0.8", "1", "0"]}, "embedding")
    assert "score_range" not in cosines.options
    alone = guess_task({"query": ["what is it"] * 3, "passage": ["it is that one"] * 3}, "embedding")
    assert alone.options == {"text_columns": ["query", "passage"]}
    with pytest.raises(UserError, match="--label_column: 'id' holds no numbers that differ"):
        guess_task(columns | {"id": ["1"] * 4}, "embedding", label_column="id")
    with pytest.raises(UserError, match=r"--text_columns: .* is one column of texts"):
        guess_task({"text": ["what is it"] * 3}, "embedding")
