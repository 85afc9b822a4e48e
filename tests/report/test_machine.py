import platform
import sys

import lightning
import pytest
import torch
import transformers

import lit_compress
from lit_compress.report.machine import command_line, instruction_sets, machine


def test_what_a_figure_was_measured_on():
    facts = machine()
    assert facts["device"]
    assert facts["threads"].startswith(f"{torch.get_num_threads()} of ")
    assert facts["python"] == platform.python_version()
    expected = {package.__name__: package.__version__ for package in (lit_compress, torch, transformers, lightning)}
    # The installed wheel leaves out which build of torch it is.
    assert {name: version.partition("+")[0] for name, version in facts.items() if name in expected} == {
        name: version.partition("+")[0] for name, version in expected.items()
    }
    assert facts.get("processor", "") == instruction_sets()  # speeds of integers depend on them


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["/env/bin/lit_compress", "report", "--run", "my run"], "lit_compress report --run 'my run'"),
        (["/src/lit_compress/__main__.py", "report"], "lit_compress report"),
        (["/src/tools/reproduce.py", "--only", "[rosita]"], "python reproduce.py --only '[rosita]'"),
    ],
)
def test_the_command_is_the_one_that_ran(arguments, typed, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments)
    assert command_line() == typed
