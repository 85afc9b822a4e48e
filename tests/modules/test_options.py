"""The command line shows what each argument of a module is for."""

import inspect

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule

import lit_compress.modules
from lit_compress.modules import LitPrunedStudent, LitStudent


@pytest.mark.parametrize("kind", ["LitTeacher", "LitStudent", "LitPrunedStudent"])
def test_every_argument_has_a_help(kind, capsys):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    with pytest.raises(SystemExit):
        parser.parse_args([f"--model.help={kind}"])
    shown = capsys.readouterr().out
    parts = shown.split("\n  --model.")[1:]
    own = inspect.signature(getattr(lit_compress.modules, kind)).parameters.values()
    names = {part.split()[0].partition(".")[0] for part in parts}
    assert {parameter.name for parameter in own if parameter.kind is not parameter.VAR_KEYWORD} <= names
    for part in parts:
        name, *said = " ".join(part.split()).partition("(type:")[0].split()
        assert len(said) > 3, name
        assert not any("likewise" in word for word in said), name


def test_a_pruned_student_has_the_arguments_of_a_student(capsys):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LitPrunedStudent, "model")
    known = {name.partition(".")[2].partition(".")[0] for name in parser.get_defaults().keys(branches=True)}
    assert {*inspect.signature(LitStudent).parameters, "penalties"} <= known
