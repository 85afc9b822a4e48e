"""Configurations by their name: those of configs/, wherever the package is."""

import os
from pathlib import Path

import pytest
import yaml

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.recipe import load_recipe
from lit_compress.shipped_configs import config_path

ROOT = Path(__file__).parents[1]
RECIPES = [
    path.relative_to(ROOT / "configs").with_suffix("").as_posix()
    for path in sorted((ROOT / "configs/recipes").rglob("*.yaml"))
]


def printed(arguments: list[str], capsys) -> dict:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--print_config"])
    assert not ended.value.code
    return yaml.safe_load(capsys.readouterr().out)


def test_every_file_of_configs_is_listed_with_a_sentence(capsys):
    main(["configs"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    files = {f"@{path.relative_to(ROOT / 'configs').with_suffix('')}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert set(lines) == files
    assert all(text.endswith(".") for text in lines.values())


def test_one_is_printed_to_be_copied(capsys):
    main(["configs", "@sst2/teacher"])
    assert capsys.readouterr().out == (ROOT / "configs/sst2/teacher.yaml").read_text()


@pytest.mark.parametrize("name", RECIPES)
def test_a_printed_recipe_is_the_same_elsewhere(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["configs", f"@{name}"])
    Path("mine.yaml").write_text(capsys.readouterr().out)
    printed, shipped = load_recipe("mine.yaml", run="run"), load_recipe(f"@{name}", run="run")
    assert printed == shipped


def test_what_looks_like_the_code_of_a_picture_is_printed_as_it_is(tmp_path, monkeypatch, capsys):
    text = "# One :smile: to copy.\nrun: runs/:100:\n\n"
    (tmp_path / "one.yaml").write_text(text)
    monkeypatch.setattr("lit_compress.shipped_configs._FOLDER", tmp_path)
    main(["configs", "@one"])
    assert capsys.readouterr().out == text
    main(["configs"])
    assert capsys.readouterr().out == "@one  One :smile: to copy.\n"


def test_a_name_composes_with_files_and_options_as_a_file_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "own.yaml").write_text("compression: [{class_path: FreezeEmbeddings}]\nrun: runs/own\n")
    names = ["@sst2/student", "@compression/magnitude_80", f"{tmp_path / 'own.yaml'}", "@compression/qat_int8"]
    files = [f"configs/{name[1:]}.yaml" if name.startswith("@") else name for name in names]
    as_names, as_files = (
        printed(["fit", *(word for file in given for word in ("--config", file)), "--data.max_length=32"], capsys)
        for given in (names, files)
    )
    assert as_names == as_files
    assert len(as_names["compression"]) == 3
    assert as_names["run"] == "runs/own"


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_compress_reads_a_name_as_the_file(form, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    name, file = (
        printed(["compress", *(word.format(given) for word in form), "--seed=7"], capsys)
        for given in ("@compress/8x", "configs/compress/8x.yaml")
    )
    assert name == file
    assert (name["speedup"], name["seed"]) == ([8], 7)


@pytest.mark.parametrize(
    ("command", "given", "meant"),
    [
        ("fit", "@sst2/techer", "@sst2/teacher"),
        ("fit", "@magnitude_80", "@compression/magnitude_80"),
        ("compress", "@demo/comprss", "@demo/compress"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(command, given, meant, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--config", given])
    line = str(ended.value.code)
    assert "\n" not in line
    assert f"--config: no configuration is called {given!r}; did you mean {meant}" in line


def test_a_name_leads_nowhere_else():
    for given in ("@../pyproject", "@/etc/hostname", "@", "@sst2"):
        with pytest.raises(UserError, match="no configuration is called"):
            config_path(given, "--config")


def test_a_recipe_by_its_name_and_one_that_uses_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["recipe", "@recipes/magnitude/small", "--dry-run"])
    assert "--config @compression/magnitude_80 " in capsys.readouterr().out
    Path("mine.yaml").write_text("stages: {one: {config: ['@sst2/teacher'], data: {init_args: {train_file: a.tsv}}}}")
    assert "--config @sst2/teacher" in " ".join(load_recipe("mine.yaml")["one"].command())
    assert os.listdir() == ["mine.yaml"]
