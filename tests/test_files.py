import os
import shutil
import stat
from pathlib import Path

import pytest

import lit_compress.files
from lit_compress.errors import UserError
from lit_compress.files import atomic_file, atomic_folder


def contents(folder):
    """Of all files, without the lists that say what was written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lit_compress.json"]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def old_folder(tmp_path):
    old = tmp_path / "out"
    with atomic_folder(old) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a.txt").write_text("old")
    return old


def one_line(error):
    return "\n" not in str(error.value)


class Interrupted(BaseException):
    """What a KeyboardInterrupt is: no Exception."""


def fail_half_way(output, failure):
    with output as staging:
        (staging / "a.txt" if staging.is_dir() else staging).write_text("half")
        raise failure


@pytest.mark.parametrize("target", ["out", "new/parents/out"])
def test_folder_appears_when_the_block_ends(tmp_path, target):
    target = tmp_path / target
    with atomic_folder(target) as staging:
        (staging / "a.txt").write_text("new")
        assert staging.parent == target.parent  # the same file system: the rename is atomic
        assert not target.exists()
    assert contents(target) == {"a.txt": "new"}
    assert os.listdir(target.parent) == ["out"]


@pytest.mark.parametrize("failure", [ValueError, Interrupted])
def test_folder_leaves_nothing_behind_after_a_failure(tmp_path, failure):
    with pytest.raises(failure):
        fail_half_way(atomic_folder(tmp_path / "out"), failure)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failure", [ValueError, Interrupted])
def test_folder_keeps_the_old_one_after_a_failure(tmp_path, failure):
    old = old_folder(tmp_path)
    with pytest.raises(failure):
        fail_half_way(atomic_folder(old, overwrite=True), failure)
    assert contents(tmp_path) == {"out/sub/a.txt": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_folder_keeps_the_old_one_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    old, rename = old_folder(tmp_path), Path.rename

    def rename_but_not_onto_the_target(self, target):
        if Path(target) == old and ".new-" in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(lit_compress.files, "_exchange", lambda *_: False)  # as where folders cannot be swapped
    monkeypatch.setattr(Path, "rename", rename_but_not_onto_the_target)
    with pytest.raises(OSError, match="no"), atomic_folder(old, overwrite=True) as staging:
        (staging / "a.txt").write_text("new")
    assert contents(tmp_path) == {"out/sub/a.txt": "old"}


def test_folder_keeps_the_old_one_in_sight_when_it_cannot_be_put_back_either(tmp_path, monkeypatch):
    old, rename = old_folder(tmp_path), Path.rename

    def rename_away_only(self, target):
        if Path(target) == old:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(lit_compress.files, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", rename_away_only)
    with pytest.raises(OSError, match="no"), atomic_folder(old, overwrite=True) as staging:
        (staging / "a.txt").write_text("new")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("out.old-")
    assert contents(left) == {"sub/a.txt": "old"}


def test_an_old_folder_that_cannot_be_removed_is_said(tmp_path, monkeypatch):
    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(1, "Operation not permitted")

    old = old_folder(tmp_path)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    said = "is written, and what it replaces is left in"
    with pytest.raises(UserError, match=said) as caught, atomic_folder(old, overwrite=True) as staging:
        (staging / "a.txt").write_text("new")
    assert contents(old) == {"a.txt": "new"}
    assert contents(Path(str(caught.value).split("'")[3])) == {"sub/a.txt": "old"}


@pytest.mark.parametrize("swaps", [True, False])
def test_what_is_put_into_the_old_folder_meanwhile_stays(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr(lit_compress.files, "_exchange", lambda *_: False)
    old = old_folder(tmp_path)
    with pytest.raises(UserError, match=r"'mine\.txt'"), atomic_folder(old, overwrite=True):
        (old / "mine.txt").write_text("mine")
    assert contents(tmp_path) == {"out/sub/a.txt": "old", "out/mine.txt": "mine"}


@pytest.mark.parametrize("make", [atomic_folder, atomic_file])
@pytest.mark.parametrize("there", ["link", "pipe", "other"])
def test_nothing_but_a_plain_folder_or_file_is_replaced(tmp_path, make, there):
    target = tmp_path / "out"
    if there == "link":
        (tmp_path / "precious").write_text("mine") if make is atomic_file else (tmp_path / "precious").mkdir()
        target.symlink_to("precious")
    elif there == "pipe":
        os.mkfifo(target)
    else:
        target.mkdir() if make is atomic_file else target.write_text("mine")
    before = {path: path.lstat().st_mode for path in tmp_path.iterdir()}
    options = {"overwrite": True} if make is atomic_folder else {}
    said = r"out' is a (symbolic link|device, pipe or socket|folder|file)"
    with pytest.raises(UserError, match=said) as caught, make(target, **options):
        pytest.fail("the block must not run")
    assert one_line(caught)
    assert {path: path.lstat().st_mode for path in tmp_path.iterdir()} == before


def test_an_empty_folder_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "a.txt").write_text("new")
    assert contents(tmp_path) == {"out/a.txt": "new"}


def test_folder_that_exists_is_refused_before_any_work(tmp_path):
    old = old_folder(tmp_path)
    with pytest.raises(UserError, match=r"out' exists; .*--overwrite") as caught, atomic_folder(old):
        pytest.fail("the block must not run")
    assert one_line(caught)
    assert contents(tmp_path) == {"out/sub/a.txt": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_folder_replaces_the_whole_old_one(tmp_path):
    old = old_folder(tmp_path)
    with atomic_folder(old, overwrite=True) as staging:
        (staging / "b.txt").write_text("new")
        assert contents(old) == {"sub/a.txt": "old"}
    assert contents(old) == {"b.txt": "new"}
    assert os.listdir(tmp_path) == ["out"]


def test_overwrite_does_not_need_something_to_overwrite(tmp_path):
    with atomic_folder(str(tmp_path / "out"), overwrite=True) as staging:
        (staging / "a.txt").write_text("new")
    assert contents(tmp_path) == {"out/a.txt": "new"}


@pytest.mark.parametrize("make", [atomic_folder, atomic_file])
def test_a_parent_that_is_a_file_is_a_users_error(tmp_path, make):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out' cannot be written") as caught, make(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")
    assert one_line(caught)


@pytest.mark.parametrize(("make", "mode"), [(atomic_folder, 0o755), (atomic_file, 0o644)])
def test_others_may_read_what_the_umask_allows(tmp_path, make, mode):
    before = os.umask(0o022)
    try:
        with make(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == mode


@pytest.mark.parametrize("old", [None, "old"])
def test_file_appears_or_is_replaced_when_the_block_ends(tmp_path, old):
    target = tmp_path / "card.json"
    if old:
        target.write_text(old)
    with atomic_file(target) as staging:
        staging.write_text("new")
        assert (target.read_text() if old else target.exists()) == (old or False)
    assert contents(tmp_path) == {"card.json": "new"}


@pytest.mark.parametrize("failure", [ValueError, Interrupted])
@pytest.mark.parametrize("old", [None, "old"])
def test_file_is_as_before_after_a_failure(tmp_path, old, failure):
    target = tmp_path / "card.json"
    if old:
        target.write_text(old)
    with pytest.raises(failure):
        fail_half_way(atomic_file(target), failure)
    assert contents(tmp_path) == ({"card.json": "old"} if old else {})
