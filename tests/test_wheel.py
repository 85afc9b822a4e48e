"""The package as it is installed: a wheel, in environments that have only what it declares."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import pytest
from docs.blocks import ROOT, blocks
from models.families import build
from packaging.requirements import Requirement
from transformers import AutoTokenizer

from lit_compress.export import from_student, write

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("lit_compress", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", output, source], check=True)
    return next(output.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Callable[..., Run]:
    """Makes an environment with the wheel, what it and the named extras declare, and nothing else."""

    def make(*extras: str) -> Run:
        root = tmp_path_factory.mktemp("-".join(["environment", *extras]))
        python = root / "bin/python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
        subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", wheel], check=True)
        packages = next(root.glob("lib/python*/site-packages"))
        ours = PathDistribution(next(packages.glob("lit_compress-*.dist-info")))
        for name in needed(ours.requires or [], extras):
            link(name, packages)

        def run(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
            program, *rest = arguments
            clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            return subprocess.run(
                [root / "bin" / program, *rest], env=clean, capture_output=True, text=True, check=False, **options
            )

        return run

    return make


def needed(requirements: list[str], extras: tuple[str, ...]) -> set[str]:
    """The distributions that an installation brings, from what is installed here."""
    found: dict[tuple[str, str], None] = {}
    todo = [(requirement, extra) for requirement in requirements for extra in ("", *extras)]
    while todo:
        line, extra = todo.pop()
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            if (requirement.name, wanted) in found:
                continue
            found[requirement.name, wanted] = None
            inner = requirements if requirement.name == "lit_compress" else distribution(requirement.name).requires
            todo += [(line, wanted) for line in inner or []]
    return {name for name, _ in found if name != "lit_compress"}


def link(name: str, packages: Path) -> None:
    installed = distribution(name)
    for top in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
        if not (packages / top).exists():
            (packages / top).symlink_to(Path(str(installed.locate_file(top))))


def test_the_wheel_alone_reads_every_folder_for_pytorch_compresses_models_and_says_what_the_rest_needs(
    environment, tiny_model, tmp_path
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for format in ("hf", "sparse", "packed"):
        model = build("bert", vocab_size=len(tokenizer), max_position_embeddings=64)
        write(from_student(model, tokenizer), tmp_path / format, format)
    run = environment()
    code = """
import sys, lit_compress, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("hf")
answers = [
    AutoModelForSequenceClassification.from_pretrained(each)(**tokenizer(["a text"], return_tensors="pt")).logits
    for each in ("hf", "sparse", "packed")
]
assert torch.equal(answers[0], answers[1])
torch.testing.assert_close(answers[0], answers[2], rtol=0, atol=0.05)
model = lit_compress.quantize_(lit_compress.prune_(AutoModelForSequenceClassification.from_pretrained("hf")))
lit_compress.fold(model), lit_compress.pack(model)
try:
    lit_compress.LitStudent
except ImportError as error:
    print(error)
"""
    done = run("python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("pip install 'lit_compress[train]'\n")
    for command in ("lit_compress", "fit"), ("lit_compress", "configs"), ("python", "-m", "lit_compress", "report"):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert done.stderr.endswith("pip install 'lit_compress[train]'\n")
    for options in ["--help"], ["fit", "--help"], ["--version"]:
        done = run("lit_compress", *options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")


def own_data(folder: Path, tiny_data: Path, tiny_model: Path) -> None:
    """The files that the quickstart's commands name, and a small model in the place of the hub's."""
    shutil.copytree(tiny_model, folder / "google-bert/bert-base-uncased")
    for name in ("train", "val"):
        lines = (tiny_data / f"{name}.tsv").read_text().splitlines()
        rows = (line.rpartition("\t") for line in lines[1:])
        text = "\n".join(f'"{text.replace(chr(34), "")}",{label}' for text, _, label in rows)
        (folder / f"{name}.csv").write_text(f"text,label\n{text}\n")


@pytest.mark.slow
def test_the_extra_for_training_fits_and_exports_and_names_the_other(environment, tiny_data, tiny_model, tmp_path):
    own_data(tmp_path, tiny_data, tiny_model)
    run = environment("train")
    fit = [*("fit", "--config", "@sst2/teacher", "--run", "run", "--model.pretrained", "google-bert/bert-base-uncased")]
    fit += ["--data.train_file=train.csv", "--data.val_file=val.csv", "--data.text_columns=[text]"]
    fit += ["--data.max_length=32", "--trainer.max_epochs=1"]
    for command in (fit, ["export", "--run", "run", "--to", "packed", "--output", "packed"], ["configs"]):
        done = run("lit_compress", *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = run("lit_compress", "report", "--run", "run", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install 'lit_compress[report]'" in done.stderr


@pytest.mark.slow
def test_the_quickstart_is_followed_in_an_empty_environment(environment, tiny_data, tiny_model, tmp_path):
    own_data(tmp_path, tiny_data, tiny_model)
    run = environment("train", "report", "onnx")
    page = ROOT / "docs/quickstart.md"
    section = page.read_text().partition("## Your own data")[2].partition("\n## ")[0]
    told = [block.text for block in blocks(page, "bash") if block.text in section]
    lines = [line for block in told for line in block.replace("\\\n", " ").splitlines() if "tensorboard" not in line]
    assert len(lines) > 6
    for line in lines:
        done = run(*shlex.split(line), cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert {path.name for path in (tmp_path / "compressed").iterdir()} == {"mine", "mine-onnx", "mine-formats"}
