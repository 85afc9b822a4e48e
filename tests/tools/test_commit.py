import subprocess

import pytest

from tools.commit import commit


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "tools").mkdir()
    for name in ("tools/code.py", "tools/results.csv", "notes.md"):
        (tmp_path / name).write_text("first\n")
    for command in (
        "init --quiet",
        "add --all",
        "-c user.name=A -c user.email=a@example.org commit --quiet --message=first",
    ):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    return tmp_path


def test_the_commit_of_unchanged_code(repository):
    first = commit(repository)
    assert len(first) >= 7
    assert not first.endswith("+dirty")


@pytest.mark.parametrize(
    ("name", "says"),
    [("tools/code.py", True), ("tools/new.py", True), ("tools/results.csv", False), ("notes.md", False)],
    ids=["changed", "new", "results", "no code"],
)
def test_changed_code_is_said(name, says, repository):
    first = commit(repository)
    (repository / name).write_text("second\n")
    assert commit(repository) == first + ("+dirty" if says else "")


def test_a_copy_without_a_history_says_what_it_is_of(tmp_path):
    (tmp_path / "COMMIT").write_text("1234567+dirty\n")
    assert commit(tmp_path) == "1234567+dirty"
    (tmp_path / "COMMIT").unlink()
    assert commit(tmp_path) == "unknown"
