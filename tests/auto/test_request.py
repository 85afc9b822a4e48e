import json

import pytest

from lit_compress.auto.request import PLAN, Request, keep_request
from lit_compress.errors import UserError

GIVEN = {"model": "m", "train": "rows.csv", "data": {}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": ""}, "--model: is missing"),
        ({"train": ""}, "--train: is missing"),
        ({"speedups": (0.5,)}, "--speedup: 0.5 must be one or more numbers from 1 on"),
        ({"speedups": ()}, "--speedup: nothing must be one or more numbers from 1 on"),
        ({"speedups": (float("nan"),)}, "--speedup: nan must be"),
        ({"target": "tensorrt"}, "--target: 'tensorrt' must be one of onnx-int8, onnx"),
        ({"precision": "bf16"}, "--precision: 'bf16' must be one of 32-true, bf16-mixed"),
        ({"minutes": 0}, "--minutes: 0 must be above 0"),
        ({"threads": -1}, "--threads: -1 must be above 0"),
        ({"max_loss": -1}, "--max_loss: -1 must be 0 or more points"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(options, said):
    with pytest.raises(UserError, match=r"^--") as caught:
        Request(**GIVEN | options).check()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_request_goes_on_and_another_does_not(tmp_path):
    folder = tmp_path / "family"
    request = Request(**GIVEN, speedups=(2.0,))
    assert keep_request(folder, request) is None
    keep_request(folder, request, {"rows": 3})
    assert keep_request(folder, request) == {"rows": 3}
    assert keep_request(folder, Request(**GIVEN, speedups=(2.0,), max_loss=5.0)) == {"rows": 3}
    (folder / PLAN).write_text("{}")
    with pytest.raises(UserError, match="begun with another --speedup and --seed"):
        keep_request(folder, Request(**GIVEN, speedups=(4.0,), seed=1))


def test_another_speedup_is_taken_until_there_is_a_plan(tmp_path):
    """As after one that is out of reach."""
    keep_request(tmp_path / "family", Request(**GIVEN, speedups=(500.0,)), {"rows": 3})
    assert keep_request(tmp_path / "family", Request(**GIVEN, speedups=(8.0,))) == {"rows": 3}


def test_what_a_kill_left_half_written_is_no_obstacle(tmp_path):
    (tmp_path / ".compress.json.new-k1ll3d").write_text("{")
    assert keep_request(tmp_path, Request(**GIVEN)) is None


@pytest.mark.parametrize("content", ['{"asked": [1], "found": {}}', '{"asked": {}, "found": null}', "[]"])
def test_a_damaged_request_is_one_line(content, tmp_path):
    (tmp_path / "compress.json").write_text(content)
    with pytest.raises(UserError, match=r"--run: .*compress.json' is damaged; choose another --run"):
        keep_request(tmp_path, Request(**GIVEN))


def test_a_folder_that_is_a_file_is_named_by_its_option(tmp_path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(UserError, match="--run"):
        keep_request(tmp_path / "run", Request(**GIVEN))


def test_a_folder_of_something_else_stays(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"--run: .* holds something else"):
        keep_request(tmp_path, Request(**GIVEN))
    (tmp_path / "compress.json").write_text("{")
    with pytest.raises(UserError, match=r"--run: .*compress.json' is damaged"):
        keep_request(tmp_path, Request(**GIVEN))
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["compress.json", "thesis.tex"]'
