"""What the package imports is what pyproject.toml declares, and reading a compressed folder needs the least of it."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, packages_distributions
from pathlib import Path

import pytest
from models.families import build
from transformers import AutoTokenizer

from lit_compress import __version__
from lit_compress.errors import UserError
from lit_compress.export import from_student, write
from lit_compress.extras import EXTRAS, named_extras, optional
from lit_compress.report.machine import machine

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = packages_distributions()
# What `import lit_compress` may import of the package.
CORE = (
    *(
        "__init__.py",
        "__main__.py",
        "choices.py",
        "errors.py",
        "extras.py",
        "files.py",
        "hub.py",
        "sentence_settings.py",
        "sources.py",
        "version.py",
    ),
    *("functional", "models", "nn", "ops", "storage"),
)


def name_of(distribution: str) -> str:
    return re.split(r"[\[><=!~; ]", distribution)[0].replace("_", "-").lower()


def declared(extra: str | None = None) -> set[str]:
    """Distributions of the bare package or of an extra, without those of other extras."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return {name_of(line) for line in lines} - {"lit-compress"}


def distribution(module: str) -> str:
    return name_of(DISTRIBUTIONS[module][0])


def trees() -> dict[Path, ast.Module]:
    package = ROOT / "lit_compress"
    return {path.relative_to(package): ast.parse(path.read_text()) for path in package.rglob("*.py")}


def imported(tree: ast.Module) -> set[str]:
    """First names of the absolute imports of a file, those of the standard library and of triton left out.

    Triton comes with the builds of torch that can use it; kernels are imported only where it is.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names - {"lit_compress", "triton"}


def test_every_import_is_declared_and_every_dependency_imported():
    core = {name for path, tree in trees().items() if path.parts[0] in CORE for name in imported(tree)}
    everything = {name for tree in trees().values() for name in imported(tree)}
    assert {distribution(name) for name in core} == declared()
    assert {distribution(name) for name in everything - core} == declared("train") | declared("report")
    for extra, modules in EXTRAS.items():
        assert {distribution(module) for module in modules} == declared(extra)


def test_every_optional_import_names_its_extra():
    calls = [
        [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "optional"
    ]
    assert len(calls) > 5
    for module, extra in calls:
        assert distribution(module.partition(".")[0]) in declared(extra), module


def test_a_missing_package_is_one_line_with_its_extra():
    with (
        pytest.raises(UserError, match=r"^this needs 'lightning', .*; pip install 'lit_compress\[train\]'$"),
        named_extras(),
    ):
        raise ModuleNotFoundError("No module named 'lightning.pytorch'", name="lightning.pytorch")
    with pytest.raises(ModuleNotFoundError, match="mine"), named_extras():
        raise ModuleNotFoundError("No module named 'mine'", name="mine")


def test_what_trains_says_what_it_lacks():
    names = ["data", "export", "modules", "strategies", "training", "LitStudent", "fit"]
    code = f"""
import sys
sys.modules["lightning"] = None
import lit_compress
for name in {names}:
    try:
        getattr(lit_compress, name)
    except lit_compress.UserError as error:
        print(name, error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = "this needs 'lightning', which is not installed; pip install 'lit_compress[train]'"
    assert result.stdout.splitlines() == [f"{name} {said}" for name in names]


def test_a_missing_package_is_said_to_whoever_exports_and_whoever_measures():
    with pytest.raises(UserError) as caught:
        optional("no_such_engine.inner", "openvino")
    assert str(caught.value) == (
        "this needs 'no_such_engine', which is not installed; pip install 'lit_compress[openvino]'"
    )


def test_a_folder_is_read_with_nothing_of_the_extras(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    folders = []
    for format in ("hf", "sparse", "packed"):
        model = build("bert", vocab_size=len(tokenizer), max_position_embeddings=64)
        folders.append(str(tmp_path / format))
        write(from_student(model, tokenizer), tmp_path / format, format)
    code = f"""
import sys, torch
from transformers import AutoTokenizer, BertForSequenceClassification
before = set(sys.modules)
import lit_compress
for folder in {folders}:
    model = BertForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model(**tokenizer(["a text"], return_tensors="pt"))
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lit_compress" in result.stdout.split()
    assert not set(result.stdout.split()) & {name for names in EXTRAS.values() for name in names}


def test_a_model_is_compressed_folded_and_packed_with_nothing_of_the_extras():
    code = """
import sys
for name in ("lightning", "datasets", "torchmetrics", "jsonargparse", "pandas", "pyarrow"):
    sys.modules[name] = None
import torch
from transformers import BertConfig, BertModel
from lit_compress import fold, pack, prune_, quantize_
sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
model = quantize_(prune_(BertModel(BertConfig(**sizes)).eval(), sparsity=0.7))
tokens = torch.tensor([[1, 2, 3]])
with torch.no_grad():
    model.train()(tokens)
    folded, packed = fold(model.eval())(tokens), pack(model)(tokens)
torch.testing.assert_close(packed.last_hidden_state, folded.last_hidden_state, rtol=0, atol=0.05)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_public_name_that_trains_is_there_when_asked_for():
    code = (
        "import sys, lit_compress; assert 'lightning' not in sys.modules; lit_compress.LitStudent\n"
        "from lit_compress import *; MagnitudePruning, QuestionAnswering, save_packed"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_the_source_on_the_path(tiny_model, tmp_path, monkeypatch):
    """Where nothing is installed under the name of the package, a model is saved and measured all the same."""
    find = Distribution.from_name

    def found(name):
        if name == "lit_compress":
            raise PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(Distribution, "from_name", found)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for format in ("hf", "packed"):
        model = build("bert", vocab_size=len(tokenizer), max_position_embeddings=64)
        write(from_student(model, tokenizer), tmp_path / format, format)
    assert machine()["lit_compress"] == __version__
