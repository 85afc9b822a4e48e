"""A finished run, shared by the tests of reports."""

import pytest
import yaml
from contracts.training import student_config

from lit_compress.cli import main


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_teacher, tiny_data):
    """A finished run with pruning and quantization."""
    root = tmp_path_factory.mktemp("finished")
    config = student_config(
        tiny_teacher,
        tiny_data,
        compression=[
            {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75, "end": "50%"}},
            {"class_path": "QuantAwareTraining", "init_args": {"start": "50%"}},
        ],
        trainer={"max_epochs": 1, "accelerator": "cpu"},
    )
    (root / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={root / 'task.yaml'}", f"--run={root / 'run'}"])
    return root / "run"
