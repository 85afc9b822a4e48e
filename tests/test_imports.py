"""What is imported when: a command that needs no model answers at once, and `import lit_compress` stays what it is."""

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

import lit_compress
from lit_compress import cli, commands
from lit_compress.cli import main

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "lightning", "transformers", "datasets", "torchmetrics", "sklearn", "scipy", "pandas", "matplotlib"}
RECIPE = "@recipes/rosita/small"


def imported(*arguments: str | Path, cwd: Path | None = None) -> tuple[int, set[str]]:
    """Exit status of a Python, and the first names of all that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )
    found = re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)
    return done.returncode, {name.partition(".")[0] for name in found}


# Words of the command line, exit status, and what else is not imported.
QUICK = {
    "help": (["--help"], 0, {"jsonargparse", "rich", "yaml"}),
    "version": (["--version"], 0, {"jsonargparse", "rich", "yaml"}),
    "no command": ([], 2, {"jsonargparse", "rich", "yaml"}),
    "mistyped": (["reprot"], 2, {"jsonargparse", "rich", "yaml"}),
    "help of fit": (["fit", "--help"], 0, {"jsonargparse", "rich", "yaml"}),
    "help of validate": (["validate", "--config", "x.yaml", "-h"], 0, {"jsonargparse", "rich", "yaml"}),
    "configurations": (["configs"], 0, set()),
    "a configuration": (["configs", "@sst2/teacher"], 0, set()),
    "plan of a recipe": (["recipe", RECIPE, "--dry-run"], 0, set()),
    "migrate": (["migrate", str(ROOT / "pyproject.toml"), "--output=x.yaml"], 1, set()),
    "wrong option": (["export", "--rn=x"], 2, set()),
} | {f"help of {name}": ([name, "--help"], 0, set()) for name in cli._COMMANDS | cli._PREDICT}


@pytest.mark.parametrize(("words", "status", "nor"), QUICK.values(), ids=QUICK)
def test_what_needs_no_model_imports_none(words, status, nor, tmp_path):
    code, names = imported("-m", "lit_compress", *words, cwd=tmp_path)
    assert code == status
    assert "lit_compress" in names
    assert names & (HEAVY | nor) == set()


@pytest.mark.parametrize("name", commands.__all__)
def test_a_command_explains_every_option_and_has_those_of_what_it_calls(name):
    function = getattr(commands, name)
    text = inspect.getdoc(function) or ""
    assert [option for option in inspect.signature(function).parameters if f"\n    {option}: " not in text] == []
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    called = getattr(import_module(str(call.module)), call.names[0].name)
    if name == "compress_family":  # a public function, which takes more than words of a command line
        assert [*inspect.signature(function).parameters] == [*inspect.signature(called).parameters]
        return
    assert inspect.signature(function) == inspect.signature(called)


def test_help_lists_every_command_on_one_screen(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    text = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["no-such-command"])
    commands = capsys.readouterr().err.partition("choose one of ")[2].split(", ")
    assert not caught.value.code
    assert len(commands) > 10
    for command in commands:
        assert re.search(rf"^  .*\b{command.strip()}\b", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("\n") <= 40


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_short_help_names_options_that_there_are(command, capsys):
    def shown(*words: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main([command, *words])
        assert not caught.value.code
        return capsys.readouterr().out

    short = shown("--help")
    assert max(map(len, short.splitlines())) <= 80
    assert short.count("\n") <= 40
    full = shown("--help-all") + shown("--model.help=LitStudent") + shown("--data.help=TextClassification")
    assert len(full) > 3 * len(short)
    options = set(re.findall(r"--[a-z_.-]+[a-z]", short)) - {"--help-all"}
    assert len(options) > 12
    assert [option for option in options if option not in full] == []


def test_a_mistyped_command_says_what_was_meant(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["reprot"])
    assert caught.value.code == 2
    assert "unknown command 'reprot'; did you mean 'report'?" in capsys.readouterr().err


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert not caught.value.code
    assert capsys.readouterr().out == f"lit_compress {lit_compress.__version__}\n"


def test_every_public_name_is_where_the_table_and_the_type_checker_say():
    table = {name: f"lit_compress.{package}" for package, names in lit_compress._PACKAGES.items() for name in names}
    tree = ast.parse((ROOT / "lit_compress" / "__init__.py").read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert table == seen
    assert {*table, "UserError"} == set(lit_compress.__all__)
    for name, package in table.items():
        assert getattr(lit_compress, name) is getattr(sys.modules[package], name)
    assert set(lit_compress.__all__) <= set(dir(lit_compress))
    with pytest.raises(AttributeError, match="no attribute 'LitStudnt'"):
        _ = lit_compress.LitStudnt


def test_a_program_that_imports_the_package_reads_compressed_folders(tmp_path):
    """Also one that is run as a module, or that has the command's first letters."""
    code = (
        "import lit_compress\n"
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING\n"
        'assert "lit_compress" in AUTO_QUANTIZER_MAPPING\n'
        "import sys\n"
        'assert "lightning" not in sys.modules\n'
    )
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "__init__.py").write_text(code)
    (tmp_path / "program" / "__main__.py").write_text("")
    (tmp_path / "lit_compress_mine.py").write_text(code)
    for arguments in (["-c", code], ["-m", "program", "lit_compress"], ["lit_compress_mine.py"]):
        subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)
