"""`lit_compress predict`: a model's answers about every row of a file, as a file."""

import json
from collections.abc import Callable
from pathlib import Path
from pydoc import locate
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import yaml
from lightning.fabric.utilities import move_data_to_device

from lit_compress.console import say
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.export.run_folder import task_of, text_data, text_data_of, use_labels
from lit_compress.models.load import load_config, load_model
from lit_compress.models.positions import check_length
from lit_compress.progress import counted
from lit_compress.runtimes.engines import EngineName, open_engine, variants
from lit_compress.runtimes.torch_engine import answers
from lit_compress.serve.prediction_file import PredictionFile, check_predictions
from lit_compress.serve.records import Records, schema_of
from lit_compress.sources import resolve_package
from lit_compress.tasks import Batch, Task, task_class_of

__all__ = ["NOT_FOR_PREDICTION", "fingerprint", "predict"]

# Options of a run's data that a file to predict has nothing to do with.
NOT_FOR_PREDICTION = (
    *("train_file", "val_file", "test_file", "hub", "hub_config", "hub_val_split"),
    *("augmentation", "limit", "answer_marks"),
)
# How a file of one text is read, whatever those of the run are like.
_OF_ONE_TEXT = {"encoding": "utf-8", "token_column": "tokens"}


def predict(
    file: str | None = None,
    output: str | None = None,
    text: str | None = None,
    run: str | None = None,
    model: str | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (jsonargparse shows and never changes it)
    engine: EngineName | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    part_rows: int = 10_000,
    overwrite: bool = False,
) -> None:
    """Predict every row of a file with an exported model, and write a .csv, .jsonl or .parquet with a row for each.

    Options: :func:`lit_compress.commands.results.predict`.
    """
    if (run is None) == (model is None):
        raise UserError("predict: give either --run or --model; or --config, as for validate")
    if text is not None:
        if file is not None or output is not None:
            raise UserError("--text: is predicted and shown; leave out --file and --output")
        _show(text, run=run, model=model, data=data, engine=engine, device=device)
        return
    if file is None or output is None:
        raise UserError(f"--{'file' if file is None else 'output'}: missing; or give one --text")
    count = _predict_file(file, output, run, model, data, engine, device, part_rows, overwrite)
    say(f"{count} rows saved as {output}")


def _show(text: str, run: str | None, model: str | None, data: dict[str, Any], **options: Any) -> None:
    """Predict one text and print what a file would have of it."""
    kind, options_of_run = _of_run(Path(run)) if run is not None else (_reader_of(str(model)), {})
    module = locate(kind)
    reader = module if isinstance(module, type) and issubclass(module, TextData) else TextData
    # What is said of the run's files is not true of the one that is made here.
    data = {**data, **{name: own for name, own in _OF_ONE_TEXT.items() if name in options_of_run}}
    names = reader.predicted_columns({**options_of_run, **data})
    if len(names) != 1:
        raise UserError(f"--text: the model reads {len(names)} texts, {', '.join(names)}; give --file")
    with TemporaryDirectory() as folder:
        file, output = Path(folder) / "text.jsonl", Path(folder) / "answers.jsonl"
        # Words of a sentence are what a tagger reads.
        file.write_text(json.dumps({names[0]: text, "tokens": text.split()}) + "\n")
        _predict_file(str(file), str(output), run, model, data, part_rows=1, overwrite=False, **options)
        answer = json.loads(output.read_text())
    say(json.dumps({name: value for name, value in answer.items() if name != "row"}, ensure_ascii=False))


def _reader_of(model: str) -> str:
    """Class of the data module that reads for a model; empty for one of no known task, which is refused later."""
    task = task_class_of(load_config(resolve_package(model, "--model"), "--model"))
    return task.data_module if task is not None else ""


def _predict_file(
    file: str,
    output: str,
    run: str | None,
    model: str | None,
    data: dict[str, Any],
    engine: EngineName | None,
    device: Literal["auto", "cpu", "cuda"],
    part_rows: int,
    overwrite: bool,
) -> int:
    """Write a file of predictions; how many rows it has."""
    check_predictions(output, overwrite, inputs=[file])
    folder, key = (str(Path(run) / "model"), "--run") if run is not None else (str(model), "--model")
    of_run = None if run is None else _of_run(Path(run))  # says what is wrong with it
    if of_run is not None and not Path(folder).is_dir():
        raise UserError(f"--run: {run!r} has no folder 'model', which a `fit` leaves at its end; give --model")
    folder = resolve_package(folder, key)
    config: Any = load_config(folder, key)
    options = {**data, "predict_file": file, "tokenizer": folder}
    settings: dict[str, Any] = {}
    if of_run is None:
        module = text_data_of(config, folder, options)
    else:
        name, settings = of_run
        module = text_data(name, settings | options)
    check_length(config, module.max_length, f"{key} {folder!r}", "--data.max_length")
    use_labels(module, config)
    task = task_of(module)
    schema = schema_of(task)
    check_predictions(output, overwrite, inputs=[file], column=schema.names[1])
    answer = _loaded(folder, engine, task, key, _device(device))
    settings = {"model": fingerprint(folder), "data": {**settings, **data}, "engine": engine}
    settings["file"] = fingerprint(resolve_package(file, "--file"))
    count = module.predict_count()  # reads and checks the rows, before anything is written
    target = PredictionFile(output, schema, settings, part_rows, overwrite)
    module.predict_from = target.done
    rows = module.predict_rows()[module.predict_start :]
    # The batch of the first row that is left is predicted again from its beginning, which may be before that row.
    records = Records(task, rows, min([target.done, *rows[:1]]) if target.done < count else count)
    if target.done:
        say(f"{target.done:,} of {count:,} rows were predicted before; continuing after them")
    with torch.inference_mode(), counted("Predicting", len(rows)) as tell:
        examples = 0
        for batch in module.predict_dataloader() if target.done < count else ():
            target.add(records.add(task.predictions(*answer(batch))))
            tell(examples := examples + batch.rows)
        target.add(records.finish(count))
        target.finish()
    return count


def _loaded(
    folder: str, engine: EngineName | None, task: Task, key: str, device: str
) -> Callable[[Batch], tuple[Any, Batch]]:
    """A function from a batch to the model's output, and the batch where the output is."""
    found = variants(Path(folder)) if Path(folder).is_dir() else []
    if engine is None and (not found or found[0].engine == "eager"):
        network: Any = load_model(folder, task, key).eval()
        network.to(device)

        def compute(batch: Batch) -> tuple[Any, Batch]:
            moved = move_data_to_device(batch, network.device)
            return network(**moved.inputs), moved

        return compute
    variant = next((variant for variant in found if engine in (None, variant.engine)), None)
    if variant is None:
        there = ", ".join(sorted({variant.engine for variant in found})) or "none"
        raise UserError(f"--engine: {engine!r} has nothing to run in {folder!r}; it is made for: {there}")
    answer = answers(open_engine(variant, None, device))
    return lambda batch: (answer(batch.inputs), batch)


def fingerprint(path: str) -> list[Any]:
    """What tells a file or a folder from another version of itself: name, sizes and times."""
    found = Path(path)
    files = sorted(file for file in (found.rglob("*") if found.is_dir() else [found]) if file.is_file())
    return [str(found), *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]


def _of_run(run: Path) -> tuple[str, dict[str, Any]]:
    """Class and options of the data module of a run, without what belongs to training."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"--run: {str(run)!r} has no config.yaml; give the run folder of a finished `fit`, or --model")
    try:
        section = yaml.safe_load(path.read_text())["data"]
        name, options = section["class_path"], dict(section["init_args"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"--run: {str(path)!r} is damaged or has no data section; give --model instead") from error
    return name, {key: value for key, value in options.items() if key not in NOT_FOR_PREDICTION}


def _device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: 'cuda' is not there; give cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
