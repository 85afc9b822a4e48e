import json
import sys
from pathlib import Path

import pytest

from lit_compress.errors import UserError
from lit_compress.sources import resolve_source


def one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["bert-base-uncased", "google/bert_uncased_L-2_H-128_A-2"])
def test_a_hub_name_stays_as_it_is(source):
    assert resolve_source(source, "model.teacher") == source


def test_a_path_that_exists_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert resolve_source(str(tmp_path), "key") == str(tmp_path)
    assert resolve_source("./a", "key") == "./a"


@pytest.mark.parametrize("source", ["/no/such/folder", "./missing", "../missing", "a/b/missing"])
def test_a_path_that_does_not_exist(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"model.teacher: '{source}' does not exist") as caught:
        resolve_source(source, "model.teacher")
    assert one_line(caught)


def test_a_path_in_a_package():
    assert resolve_source("package:json", "key") == str(Path(json.__file__).parent)
    assert resolve_source("package:json/decoder.py", "key") == str(Path(json.__file__).parent / "decoder.py")


def test_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "weights_in_a_wheel"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_source("package:weights_in_a_wheel/model", "key") == str(package / "model")
    assert "weights_in_a_wheel" not in sys.modules


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("package:no_such_package/model", "'no_such_package', which is not installed"),
        ("package:no-such-package/model", "'no-such-package', which is not installed"),
        ("package:json/no/such/file", "'json' has no 'no/such/file'"),
        ("package:", "is not installed"),
    ],
)
def test_a_package_or_path_that_is_missing(source, says):
    with pytest.raises(UserError, match=f"data.train_file: .*{says}") as caught:
        resolve_source(source, "data.train_file")
    assert repr(source) in str(caught.value)
    assert one_line(caught)


def test_a_model_that_a_fit_has_yet_to_leave(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="a fit with --run 'my runs/teacher' leaves it, so run that first; or"
    ) as caught:
        resolve_source("my runs/teacher/model", "model.teacher")
    assert one_line(caught)
    (tmp_path / "teacher.yaml").write_text("")
    with pytest.raises(UserError, match=r"so run that first: lit_compress fit --config teacher\.yaml; or give"):
        resolve_source("runs/teacher/model", "model.teacher")
