"""How long a command takes to answer, or to begin with its work, beside the imports that it cannot do without.

Measured: processor seconds (user and system) of fresh interpreters, in turns. `fit` is stopped before its first batch;
it trains MiniLM on four texts, and is divided by the imports and the loading of the same model by Transformers alone.
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jsonargparse import auto_cli

from lit_compress.sources import resolve_source
from tools.bench.measure import MINILM, RESULTS, ROOT, Row, interleave, milliseconds, publish

OURS, THEIRS = "import lit_compress", "import lightning, transformers"
PARSING, TORCH = "import jsonargparse, rich", "import torch"
COMMANDS = (
    *("export", "pack", "trim-vocabulary", "explain", "report", "compare", "benchmark", "formats", "recipe"),
    *("check", "compress", "configs", "init", "latency", "migrate", "predict", "fit", "validate", "test"),
)
FIT = "fit up to its first batch"
LOAD = "import lightning, transformers, and load the model"
_LOADING = """
import lightning, transformers
transformers.AutoTokenizer.from_pretrained({0!r})
transformers.AutoModelForSequenceClassification.from_pretrained({0!r})
"""
_STOP = """
import os
from lightning.pytorch import Callback


class Stop(Callback):
    def on_train_start(self, trainer, pl_module):
        os._exit(0)
"""


def main(repetitions: int = 7, output: Path = RESULTS) -> list[Row]:
    """Measure what starting costs.

    Args:
        repetitions: fresh interpreters for each case.
        output: CSV that the rows are added to.

    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stop.py").write_text(_STOP)
        (Path(folder) / "texts.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\nfine\t1\npoor\t0\n")
        python = {code: ["-c", code] for code in (OURS, THEIRS, PARSING, TORCH)}
        python[LOAD] = ["-c", _LOADING.format(str(resolve_source(MINILM, "model")))]
        helps = {name: ["-m", "lit_compress", name, "--help"] for name in COMMANDS}
        words = {**python, **helps, "--help": ["-m", "lit_compress", "--help"], FIT: ["-m", "lit_compress", *_fit()]}
        cases: dict[str, Callable[[], float]] = {
            name: partial(processor_seconds, arguments, folder) for name, arguments in words.items()
        }
        interleave(cases, 1)  # fills the file cache
        seconds = interleave(cases, repetitions)
    seconds["COMMAND --help"] = [max(times) for times in zip(*(seconds[name] for name in COMMANDS), strict=True)]
    rows = [
        Row(
            benchmark="import_time",
            case=case if case == OURS else f"lit_compress {case}",
            baseline=baseline,
            ratios=[ours / theirs for ours, theirs in zip(seconds[case], seconds[baseline], strict=True)],
            target=target,
            settings={"milliseconds": milliseconds({name: seconds[name] for name in (case, baseline)})},
        )
        for case, baseline, target in (
            ("--help", PARSING, 1.5),
            ("COMMAND --help", TORCH, 1.3),
            (FIT, LOAD, 1.3),
            (OURS, THEIRS, 1.2),
        )
    ]
    publish(rows, output)
    return rows


def processor_seconds(arguments: Sequence[str], folder: str) -> float:
    """User and system seconds of a fresh interpreter with these arguments, in a folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=folder, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _fit() -> list[str]:
    data = ["--data=TextClassification", "--data.train_file=texts.tsv", "--data.val_file=texts.tsv"]
    data += ["--data.text_columns=[sentence]", "--data.max_length=16"]
    model = ["--model=LitTeacher", f"--model.pretrained={MINILM}"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.callbacks+=stop.Stop"]
    return ["fit", *model, *data, *trainer, "--trainer.fast_dev_run=true", "--run=run"]


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
