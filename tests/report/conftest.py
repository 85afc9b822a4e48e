"""A finished run, shared by the tests of reports."""

import pytest
import yaml

from lit_compress.cli import main


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_teacher, tiny_data):
    """A finished run with pruning and quantization."""
    root = tmp_path_factory.mktemp("finished")
    config = {
        "model": {
            "class_path": "LitStudent",
            "init_args": {"pretrained": str(tiny_teacher), "teacher": str(tiny_teacher)},
        },
        "data": {
            "class_path": "TextClassification",
            "init_args": {
                "train_file": str(tiny_data / "train.tsv"),
                "val_file": str(tiny_data / "val.tsv"),
                "text_columns": ["sentence"],
                "batch_size": 16,
                "max_length": 16,
            },
        },
        "compression": [
            {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75, "end": "50%"}},
            {"class_path": "QuantAwareTraining", "init_args": {"start": "50%"}},
        ],
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    (root / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={root / 'task.yaml'}", f"--run={root / 'run'}"])
    return root / "run"
