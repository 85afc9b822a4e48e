"""The API reference: a page for every package, and on it every public name."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest
from docs.blocks import ROOT
from mkdocstrings import Inventory

import lit_compress

PACKAGES = [name for _, name, is_package in pkgutil.iter_modules(lit_compress.__path__) if is_package]


def public(package: ModuleType) -> list[str]:
    """Public names of a package, each by the module that defines it."""
    objects = {name: getattr(package, name) for name in getattr(package, "__all__", [])}
    return [f"{getattr(each, '__module__', package.__name__)}.{name}" for name, each in objects.items()]


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> set[str]:
    """All names of a strict build of the site; a reference that nothing answers fails it."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (site / "objects.inv").open("rb") as file:
        return set(Inventory.parse_sphinx(file))


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_has_a_page_in_the_navigation(name):
    page = (ROOT / f"docs/reference/{name}.md").read_text()
    assert f"::: lit_compress.{name}" in page
    assert f"reference/{name}.md" in (ROOT / "mkdocs.yml").read_text()
    assert f"({name}.md)" in (ROOT / "docs/reference/index.md").read_text()


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_on_it(name, shown):
    package = importlib.import_module(f"lit_compress.{name}")
    assert [path for path in public(package) if path not in shown] == []


def test_the_names_of_the_package_itself_are_linked():
    index = (ROOT / "docs/reference/index.md").read_text()
    assert [name for name in lit_compress.__all__ if f"[`{name}`][lit_compress." not in index] == []
