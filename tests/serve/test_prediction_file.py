import csv
import json

import pyarrow
import pytest
from pyarrow import parquet

from lit_compress.errors import UserError
from lit_compress.serve.prediction_file import PredictionFile
from lit_compress.serve.records import schema_of
from lit_compress.tasks import ClassificationTask, QuestionAnsweringTask, TokenClassificationTask

SCHEMA = schema_of(ClassificationTask(['a "b", c', "ü\n"]))
RECORDS = [
    {"row": row, "label": "ü\n", 'probability_a "b", c': 0.1 * row, "probability_ü\n": 1 / 3} for row in range(7)
]


def read(path) -> list[dict]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(path, records=RECORDS, schema=SCHEMA, **options):
    file = PredictionFile(path, schema, {"model": "m"}, **options)
    file.add(records[file.done :])
    file.finish()
    return read(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("part_rows", [1, 3, 7, 100])
def test_rows_come_back_whatever_the_parts(tmp_path, suffix, part_rows):
    got = written(tmp_path / f"out{suffix}", part_rows=part_rows)
    assert [int(row["row"]) for row in got] == list(range(7))
    for row, record in zip(got, RECORDS, strict=True):
        assert list(row) == list(record)
        assert row["label"] == "ü\n"
        assert float(row['probability_a "b", c']) == pytest.approx(record['probability_a "b", c'], rel=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_no_rows_are_a_file_with_columns(tmp_path, suffix):
    assert written(tmp_path / f"out{suffix}", records=[]) == []
    if suffix == ".csv":
        assert (tmp_path / "out.csv").read_text().startswith("row,label,")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lists_and_missing_values(tmp_path, suffix):
    tags = [{"row": 0, "tags": ["O", "B-X"]}, {"row": 1, "tags": []}]
    got = written(tmp_path / f"tags{suffix}", tags, schema_of(TokenClassificationTask(["O"])))
    assert [json.loads(row["tags"]) if suffix == ".csv" else row["tags"] for row in got] == [["O", "B-X"], []]
    none = [{"row": 0, "id": "q", "answer": "", "start": None, "end": None, "score": None, "score_no_answer": 1.0}]
    (row,) = written(tmp_path / f"qa{suffix}", none, schema_of(QuestionAnsweringTask()))
    assert row["start"] == ("" if suffix == ".csv" else None)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_interrupted_file_goes_on_with_other_part_sizes(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    file = PredictionFile(path, SCHEMA, {"model": "m"}, part_rows=2)
    file.add(RECORDS[:5])  # two parts; the fifth record is lost
    assert not path.exists()
    again = PredictionFile(path, SCHEMA, {"model": "m"}, part_rows=3)
    assert again.done == 4
    again.add(RECORDS[4:])
    again.finish()
    assert [int(row["row"]) for row in read(path)] == list(range(7))
    assert written(tmp_path / f"whole{suffix}") == read(path)


def test_a_gap_ends_what_is_done(tmp_path):
    file = PredictionFile(tmp_path / "out.csv", SCHEMA, {}, part_rows=1)
    file.add(RECORDS[:4])
    next(file.parts.glob("part-*1-*1.csv")).unlink()
    assert PredictionFile(tmp_path / "out.csv", SCHEMA, {}).done == 1


def test_parts_of_something_else_are_not_gone_on_with(tmp_path):
    PredictionFile(tmp_path / "out.csv", SCHEMA, {"model": "a"})
    with pytest.raises(UserError, match="model") as caught:
        PredictionFile(tmp_path / "out.csv", SCHEMA, {"model": "b"})
    assert ".out.csv.parts" in str(caught.value)
    with pytest.raises(UserError, match="columns"):
        PredictionFile(
            tmp_path / "out.csv",
            pyarrow.schema([("row", pyarrow.int64()), ("value", pyarrow.float32())]),
            {"model": "a"},
        )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [("out.xlsx", {}, "must end in"), ("there.csv", {}, "--overwrite"), ("out.csv", {"part_rows": 0}, "part_rows")],
)
def test_wrong_targets(tmp_path, name, options, words):
    (tmp_path / "there.csv").write_text("row,label\n")
    with pytest.raises(UserError, match=words):
        PredictionFile(tmp_path / name, SCHEMA, {}, **options)
    assert (tmp_path / "there.csv").read_text() == "row,label\n"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_earlier_predictions_are_replaced_and_other_files_are_not(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    written(path)
    assert written(path, RECORDS[:3], overwrite=True) == read(path)
    assert len(read(path)) == 3
    for content in (b"years of work", b"PAR1", RECORDS[0]["label"].encode()):
        path.write_bytes(content)
        with pytest.raises(UserError, match="did not write"):
            PredictionFile(path, SCHEMA, {}, overwrite=True)
        assert path.read_bytes() == content
    parquet.write_table(pyarrow.table({"row": [1], "mine": [2]}), tmp_path / "mine.parquet")
    with pytest.raises(UserError, match="did not write"):
        PredictionFile(tmp_path / "mine.parquet", SCHEMA, {}, overwrite=True)


def test_a_file_of_somebody_else_in_the_place_of_the_parts_stays(tmp_path):
    parts = tmp_path / ".out.csv.parts"
    parts.mkdir()
    (parts / "mine.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"\.out\.csv\.parts.*mine\.txt"):
        PredictionFile(tmp_path / "out.csv", SCHEMA, {})
    (parts / "mine.txt").unlink()
    file = PredictionFile(tmp_path / "out.csv", SCHEMA, {})
    (parts / "mine.txt").write_text("years of work")
    file.add(RECORDS)
    file.finish()
    assert (parts / "mine.txt").read_text() == "years of work"


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("row,label\n")
    file = PredictionFile(path, SCHEMA, {}, part_rows=2, overwrite=True)
    file.add(RECORDS)
    assert path.read_text() == "row,label\n"
    file.finish()
    assert len(read(path)) == 7


def test_parts_that_another_process_has_joined_are_not_replaced_by_fewer(tmp_path):
    path = tmp_path / "out.csv"
    one, other = (PredictionFile(path, SCHEMA, {}, part_rows=2) for _ in range(2))
    one.add(RECORDS[:4])
    other.add(RECORDS[:3])
    one.add(RECORDS[4:])
    one.finish()
    whole = path.read_text()
    other.add(RECORDS[3:])
    with pytest.raises(UserError, match=r"the first 0 of 7 rows.*run this one again"):
        other.finish()
    assert path.read_text() == whole


@pytest.mark.parametrize("column", ["label", "score"])
def test_earlier_predictions_of_another_task_are_replaced(tmp_path, column):
    path = tmp_path / "out.csv"
    path.write_text(f"row,{column}\n0,0.5\n")
    assert len(written(path, overwrite=True)) == 7


def test_tags_are_no_vectors(tmp_path):
    with pytest.raises(UserError, match="holds vectors alone"):
        PredictionFile(tmp_path / "out.npy", schema_of(TokenClassificationTask(["O"])), {})
