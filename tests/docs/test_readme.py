"""What the documentation says can be done: commands parse, links and files exist, YAML is accepted."""

import functools
import inspect
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from docs.blocks import PAGES, ROOT, blocks, commands

import lit_compress.cli
import lit_compress.strategies
from lit_compress.data import TextClassification
from lit_compress.data.options import TextOptions
from lit_compress.migrate import sparseml
from lit_compress.recipe import load_recipe

COMMANDS = commands("lit_compress")
EVERY_YAML = [block for page in PAGES for block in blocks(page, "yaml")]
YAML = [block for block in EVERY_YAML if "stages:" not in block.text]
RECIPES = [block for block in EVERY_YAML if "stages:" in block.text]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
BASE = "configs/sst2/student.yaml"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the shipped configs and the files that docs/extending.md makes, as the current one."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for block in blocks(ROOT / "docs/extending.md"):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "argv", ["lit_compress"])
    return tmp_path


@pytest.fixture
def called(monkeypatch):
    """Commands without a trainer that do nothing but say that their options were understood."""
    names = []
    find = lit_compress.cli._function

    def found(name):
        def nothing(*args, **kwargs):
            names.append(name)

        function = find(name)
        return function if name == "recipe" else functools.wraps(function)(nothing)

    monkeypatch.setattr(lit_compress.cli, "_function", found)
    return names


def explain(arguments: list[str], capsys) -> str:
    """What `--print_config` or `--help` prints; the error of the command line when there is one."""
    with pytest.raises(SystemExit) as exit_:
        lit_compress.cli.main(arguments)
    printed = capsys.readouterr()
    assert not exit_.value.code, f"{arguments}: {exit_.value.code} {printed.err}"
    return printed.out


@pytest.mark.parametrize(
    ("place", "arguments"), COMMANDS, ids=[f"{place} {' '.join(words[:1])}" for place, words in COMMANDS]
)
def test_commands_parse(place, arguments, folder, called, capsys):
    if arguments[0] == "recipe":
        lit_compress.cli.main([*arguments, "--dry-run"])
        assert "lit_compress fit" in capsys.readouterr().out
        return
    if arguments[0] in lit_compress.cli._functions(arguments):
        lit_compress.cli.main(arguments)
        assert called == [arguments[0]]
        return
    for given in (Path(arguments[i + 1]) for i, word in enumerate(arguments) if word == "--config"):
        if given.parts[0] in ("runs", "mine"):
            # The configuration that a run will have saved, or that `init` will have written.
            given.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(BASE, given)
    helping = any(word == "--help" or word.endswith(".help") for word in arguments)
    assert explain(arguments if helping else [*arguments, "--print_config"], capsys)


@pytest.mark.parametrize("block", YAML, ids=[block.place for block in YAML])
def test_yaml_is_accepted(block, folder, capsys):
    # A fragment comes after a complete configuration, as in the commands.
    (folder / "block.yaml").write_text(block.text)
    result = yaml.safe_load(explain(["fit", "--config", BASE, "--config", "block.yaml", "--print_config"], capsys))
    given = yaml.safe_load(block.text)
    names = [entry["class_path"].rpartition(".")[2] for entry in given.get("compression", [])]
    assert [entry["class_path"].rpartition(".")[2] for entry in result["compression"]] == names


@pytest.mark.parametrize("block", RECIPES, ids=[block.place for block in RECIPES])
def test_yaml_is_a_recipe(block, folder):
    # Where the shipped ones are: its files are relative to it.
    path = folder / "configs/recipes/mine/recipe.yaml"
    path.parent.mkdir()
    path.write_text(block.text)
    assert list(load_recipe(path)) == list(yaml.safe_load(block.text)["stages"])


def test_there_is_something_to_check():
    assert RECIPES
    assert len(COMMANDS) > 20
    assert len(YAML) > 20


def test_the_tour_of_the_demo_is_the_demo():
    page = ROOT / "docs/quickstart.md"
    tour = page.read_text().partition("## One YAML, part by part")[2].partition("\n## ")[0]
    said = [block.text for block in blocks(page, "yaml") if block.text in tour]
    assert yaml.safe_load("".join(said)) == yaml.safe_load((ROOT / "configs/demo/student.yaml").read_text())


@pytest.mark.parametrize("name", TEXTS)
def test_relative_links_exist(name):
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        path, _, _ = target.partition("#")
        if path and "://" not in path and not ((ROOT / name).parent / path).exists():
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("name", TEXTS)
def test_named_files_exist(name):
    shipped = re.findall(r"\b(?:configs|lit_compress|tests)/[\w/.-]*\w/?", TEXTS[name])
    # In file trees and instructions `<name>` stands for what the reader will write.
    wanted = [path for path in shipped if f"{path}<" not in TEXTS[name]]
    assert [path for path in wanted if not (ROOT / path).exists()] == []


def test_files_that_the_architecture_names_exist():
    named = re.findall(r"`[\w./]+/(?=`)|\b[\w/]+\.(?:py|toml)\b", TEXTS["docs/architecture.md"])
    assert len(named) > 20
    # `scheduled.py` stands beside the file named before it.
    places = [ROOT, ROOT / "lit_compress", ROOT / "lit_compress/strategies"]
    assert [path for path in named if not any((place / path.lstrip("`")).exists() for place in places)] == []


def test_the_file_tree_is_true():
    named = blocks(ROOT / "docs/architecture.md", "text")
    tree = next(block.text for block in named if block.text.startswith("lit_compress/"))
    folders: list[str] = []
    for line in tree.splitlines():
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], entry]
        assert (ROOT / "".join(folders)).exists(), line
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    there = {path.name for path in (ROOT / "lit_compress").iterdir() if not path.name.startswith("__pycache__")}
    assert listed == there


def test_the_readme_is_read_at_once():
    assert len(TEXTS["README.md"].splitlines()) <= 120


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = {name for text in TEXTS.values() for name in re.findall(r"^make ([\w-]+)$|`make ([\w-]+)`", text, re.M)}
    for name in {first or second for first, second in named}:
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


@pytest.mark.parametrize("page", sorted((ROOT / "docs/strategies").glob("*.md")), ids=lambda page: page.stem)
def test_options_are_those_of_the_class(page):
    """Every constructor argument of a strategy has a row with its name in the options table of its page."""
    title = "".join(part.capitalize() for part in page.stem.split("-"))
    names = {"QuantizationAwareTraining": "QuantAwareTraining"}
    kind = getattr(lit_compress.strategies, names.get(title, title), None)
    if kind is None:
        assert page.stem == "index"
        return
    rows = "\n".join(line.split("|")[1] for line in page.read_text().splitlines() if line.startswith("| `"))
    for option in inspect.signature(kind).parameters:
        assert f"`{option}`" in rows, option


def test_every_strategy_has_a_page():
    index = (ROOT / "docs/strategies/index.md").read_text()
    missing = [n for n in lit_compress.strategies.__all__ if n != "Strategy" and f"`{n}`" not in index]
    assert not missing


def test_data_options_are_documented():
    text = (ROOT / "docs/configuration.md").read_text()
    names = {name for kind in (TextClassification, TextOptions) for name in inspect.signature(kind).parameters}
    assert [name for name in sorted(names - {"options"}) if f"`{name}`" not in text] == []


def test_pre_commit_bans_hold():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "lit_compress").rglob("*.py")}
    for hook in (hook for hook in hooks if hook["language"] == "pygrep"):
        watched = [n for n in sources if re.search(hook["files"], n) and not re.search(hook.get("exclude", "^$"), n)]
        assert watched, hook["id"]
        assert [name for name in watched if re.search(hook["entry"], sources[name])] == [], hook["id"]


def test_the_table_of_modifiers_is_true():
    text = (ROOT / "docs/migrating.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `") and "Modifier`" in line]
    listed = {name for row in rows for name in re.findall(r"`(\w+Modifier)`", row.split("|")[1])}
    assert listed == set(sparseml.MODIFIERS)
