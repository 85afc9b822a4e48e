"""The commands that work on models: their options, and the help of each.

What a command does is imported when it is called, so that help and a wrong option need neither torch nor Transformers.
None is called like a public name or package, where jsonargparse would look for it and import what is there.
"""

import shlex
from typing import Any, Literal

from lit_compress.choices import Dtype, EngineName, Format, GuessedTask, LayoutChoice, Precision, Processor, Target
from lit_compress.errors import UserError

__all__ = [
    "benchmark",
    "compare",
    "compress_family",
    "explain",
    "export_model",
    "formats",
    "init_configs",
    "latency",
    "pack_model",
    "predict",
    "report",
    "trim_vocabulary",
]


def compress_family(
    model: str = "",
    train: str = "",
    val: str | None = None,
    run: str = "runs/compressed",
    speedup: list[float] = [2.0, 4.0, 8.0],  # noqa: B006 (jsonargparse shows and never changes it)
    max_loss: float = 1.0,
    target: Target = "onnx-int8",
    shape: str | None = None,
    threads: int | None = None,
    minutes: float | None = None,
    task: GuessedTask | None = None,
    text_columns: list[str] | None = None,
    label_column: str | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (as above)
    label_map: dict[str, str | int] | None = None,
    retrieval: str | None = None,
    seed: int = 42,
    dry_run: bool = False,
) -> None:
    """Make an encoder as much faster as asked for your data; measure every member of the family, and recommend one.

    Running the same command again continues where it stopped; with another --max_loss or --retrieval it trains
    nothing, and only measures and chooses again.

    Args:
        model: hub name or folder of an encoder; if it has a head for the task it is the teacher, otherwise a teacher is
            fine-tuned first.
        train: file of training examples, as `--data.train_file` takes it.
        val: file of validation examples; without it a tenth of the training examples is held out.
        run: folder for everything: checkpoints, exports, report.html.
        speedup: how many times the speed of the dense fp32 model in the same runtime: 4, or '[2,4,8]'.
        max_loss: how many points the recommended member may lose.
        target: runtime and precision to export to.
        shape: batch size and tokens at which speed is measured, such as 1x128; default: one text of data.max_length.
        threads: CPU threads; default: PyTorch's.
        minutes: time limit for all trainings together; they are shortened to fit, with a message. Measuring takes extra
            time.
        task: task, if the guess is wrong.
        text_columns: columns with the texts, one or two, if the guess is wrong.
        label_column: column with the labels, if the guess is wrong.
        data: options of the data module: `--data.max_length 64`, `--data.delimiter ';'`.
        label_map: class names of the model -> labels of the data, if they differ.
        retrieval: file with a query and the text to find in each row; sentence encoders are measured on it, too.
        seed: random seed of every training.
        dry_run: print the plan and train nothing.

    """
    options = locals()
    from lit_compress.auto import compress as work

    work(**options)


def export_model(
    run: str | None = None,
    output: str = "",
    checkpoint: str | None = None,
    model: str | None = None,
    to: Format = "hf",
    unfinished: bool = False,
    overwrite: bool = False,
    processor: Literal["any", "vnni"] = "any",
    tables: Literal["int8", "float"] = "int8",
    check: str | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (jsonargparse shows and never changes it)
    strict: bool = False,
    layout: LayoutChoice = "auto",
    dtype: Dtype | None = None,
    calibration_batches: int | None = None,
) -> None:
    """Fold a trained student and write it in a runtime's format.

    Args:
        run: run folder of a `fit`; its last checkpoint is exported.
        output: folder to create.
        checkpoint: checkpoint file, alone or of the run; with --run also `last`, or `best` by the metric its
            ModelCheckpoint monitors.
        model: Hugging Face folder instead of a run, from this package or any other, with safetensors.
        to: output format.
        unfinished: export even if training stopped before its compression was complete.
        overwrite: replace an existing output folder that an export wrote.
        processor: for onnx-int8 and openvino-int8: `any` is correct in every session on every processor; `vnni` keeps
            8-bit weights from training as int8, which is faster but correct only on processors with 8-bit dot products
            (AVX-512 VNNI, AVX-VNNI, Arm).
        tables: for onnx-int8 and openvino-int8: embedding tables that training left in floating point become `int8`
            with a scale per row, or stay `float`.
        check: file of examples on which onnx-int8, openvino-int8, fp16 and bf16 exports are compared with PyTorch;
            default: the run's validation data.
        data: options of the data module that reads the examples: `--data.text_columns '[sentence]'`; with
            `label_column` the scores are compared as well.
        strict: fail if predictions or score of an integer, fp16 or bf16 model are worse than PyTorch's, instead of
            printing a warning.
        layout: for packed: `auto` chooses per linear layer; or one for all: `dense`, `tall_blocks` (skips 128 x 32
            blocks of zeros), `blocks` (64 x 64), `bitmap` (any zeros, small file), `two_four` (2 of 4 kept, small
            file).
        dtype: for hf: `fp32` (default), `fp16` or `bf16`; for onnx: `fp32` (default) or `fp16`; for packed: `int8` runs
            on every GPU since Ampere, `fp8` needs Ada or Hopper; default: `fp8` on a machine with a Hopper GPU unless
            training produced integers, otherwise `int8`.
        calibration_batches: for packed: validation batches of the run used to calibrate input ranges that
            quantization-aware training did not set. Default: 16 if a range is missing and the run's data is available;
            0 turns calibration off.

    """
    options = locals()
    from lit_compress.export.command import export as work

    work(**options)
    from lit_compress.console import say

    say(f"Next: lit_compress benchmark {shlex.quote(output)}")


def pack_model(
    run: str | None = None,
    model: str | None = None,
    output: str = "",
    format: LayoutChoice = "auto",
    dtype: Precision | None = None,
    calibration_batches: int | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (as above)
    unfinished: bool = False,
    overwrite: bool = False,
) -> None:
    """Same as `export --to packed`; its `--layout` is called `--format` here.

    Args:
        run: run folder of a `fit`; the student of its last checkpoint is packed.
        model: exported folder instead of a run.
        output: folder to create.
        format: see `export --layout`.
        dtype: see `export --to packed`.
        calibration_batches: see `export`.
        data: see `export`.
        unfinished: pack even if training stopped before its compression was complete.
        overwrite: replace an existing output folder that an export wrote.

    """
    options = locals()
    from lit_compress.export.command import pack_command as work

    work(**options)


def trim_vocabulary(
    model: str = "",
    corpus: str | list[str] = "",
    output: str = "",
    characters: bool = True,
    overwrite: bool = False,
) -> None:
    """Remove the tokens that a corpus never uses from tokenizer, embeddings and decoder.

    Args:
        model: Hugging Face folder with a tokenizer.json.
        corpus: text files with one text per line, or a list of them; each may be compressed (.gz).
        output: folder to create.
        characters: keep every single-character token, so that other words can still be tokenized.
        overwrite: replace an existing output folder that an export wrote.

    """
    options = locals()
    from lit_compress.export.trim_vocabulary import trim_vocabulary as work

    work(**options)


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
    """Predict every row of a file with an exported model: writes .csv, .jsonl, .parquet, or .npy for embeddings.

    Args:
        file: input in any format of the data module; labels are not needed.
        output: file to write; an interrupted run continues where it stopped.
        text: a single text to predict and print, instead of a file and an output.
        run: run folder of a `fit`: uses its `model` folder and its data options.
        model: exported folder or hub name, instead of a run.
        data: options of the data module: `--data.text_columns '[sentence]'`.
        engine: runtime; default: the one that the folder was exported for, otherwise PyTorch.
        device: device for PyTorch; `auto` is a GPU when there is one.
        part_rows: most rows held in memory before they are written; they are written every 30 seconds at least.
        overwrite: replace an earlier output.

    """
    options = locals()
    from lit_compress.serve.predict import predict as work

    work(**options)


def report(
    run: str,
    dense: str | None = None,
    output: str | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (jsonargparse shows and never changes it)
    batch_sizes: list[int] = [1, 32],  # noqa: B006 (jsonargparse shows and never changes it)
    repetitions: int = 10,
    label_map: dict[str, str | int] | None = None,
) -> None:
    """Measure accuracy, size, sparsity and latency of a run's model, and compare with the dense model.

    Args:
        run: run folder of a `fit`.
        dense: folder or hub name to compare with; default: the run's teacher, if there is one.
        output: folder for report.html, report.md, report.json, images and TensorBoard events; default: `report` in the
            run folder. An earlier report there is replaced, anything else is an error.
        data: options that override the run's data: `--data.val_file other.tsv`.
        batch_sizes: batch sizes at which latency is measured, with the run's `max_length` tokens.
        repetitions: forward passes per latency measurement.
        label_map: class names of the dense model -> labels of the data, if they differ; default: the run's.

    """
    options = locals()
    from lit_compress.report.measure import report as work

    work(**options)


def compare(
    runs: list[str],
    output: str,
    dense: str | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (jsonargparse shows and never changes it)
    label_map: dict[str, str | int] | None = None,
) -> None:
    """Compare runs: a table, Pareto fronts, and how each run was made; a run without a report gets one.

    Args:
        runs: run folders of `fit`, or folders of `compress`.
        output: folder for report.html, report.md and report.json; an earlier comparison there is replaced.
        dense: folder or hub name to compare runs without an up-to-date report with; default: the run's teacher, if
            there is one.
        data: options that override the data of such a run: `--data.val_file other.tsv`.
        label_map: see `report`.

    """
    options = locals()
    if any(map(_is_family, runs)):
        from lit_compress.auto.families import compare_families

        if given := [name for name in ("dense", "data", "label_map") if options[name]]:
            raise UserError(f"compare: --{given[0]} has no effect on families of `compress`; leave it out")
        compare_families(runs, output)
        return
    from lit_compress.report.compare import compare_runs as work

    work(**options)


def _is_family(run: str) -> bool:
    from lit_compress.auto.request import is_family

    return is_family(run)


def formats(
    run: str,
    output: str,
    to: list[Format] | None = None,
    dense: str | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (jsonargparse shows and never changes it)
    batch_sizes: list[int] = [1, 16],  # noqa: B006 (jsonargparse shows and never changes it)
    lengths: list[int] | None = None,
    threads: int | None = None,
    warmup: int = 3,
    repetitions: int = 10,
    unfinished: bool = False,
    overwrite: bool = False,
    label_map: dict[str, str | int] | None = None,
    processor: Processor = "any",
) -> None:
    """Export a run's student to every format, load each back, and compare accuracy, size, memory and speed.

    Args:
        run: run folder of a `fit`.
        output: folder with one subfolder per format, formats.json and formats.md.
        to: formats; default: all whose extra is installed. A format that cannot hold the model is skipped with a
            message.
        dense: folder or hub name of the baseline in the first line; default: the run's teacher, if there is one.
        data: options that override the run's data: `--data.val_file other.tsv`.
        batch_sizes: batch sizes to measure.
        lengths: sequence lengths in tokens; default: the run's `max_length`.
        threads: CPU threads; default: all.
        warmup: unmeasured calls before the first measured one, for each shape.
        repetitions: measured calls per format, interleaved between formats.
        unfinished: export even if training stopped before its compression was complete.
        overwrite: replace existing folders that an export wrote.
        label_map: class names of the dense model -> labels of the data, if they differ; default: the run's.
        processor: for onnx-int8 and openvino-int8, see `export`.

    """
    options = locals()
    from lit_compress.report.formats import formats as work

    work(**options)


def benchmark(
    models: list[str],
    engines: list[Literal["eager", "compile", "onnxruntime", "openvino"]] | None = None,
    batch_sizes: list[int] = [1, 16],  # noqa: B006 (jsonargparse shows and never changes it)
    lengths: list[int] = [128],  # noqa: B006 (as above)
    threads: int | None = None,
    warmup: int = 3,
    repetitions: int = 20,
    tolerance: float = 0.05,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    output: str | None = None,
    int8_tolerance: float = 0.5,
) -> None:
    """Measure latency, throughput, memory and size of models side by side; ratios are to the first model.

    Args:
        models: folders of any export, or hub names; `name=folder` gives a name, and folders with the same name must
            give the same outputs.
        engines: runtimes; default: all that are installed, except `compile`.
        batch_sizes: batch sizes to measure.
        lengths: sequence lengths in tokens; every batch size is measured with every length.
        threads: CPU threads; default: all.
        warmup: unmeasured calls before the first measured one, for each shape.
        repetitions: measured calls per model, interleaved between models.
        tolerance: largest allowed difference between variants of one model, as a fraction of the largest output.
        device: device for PyTorch; other runtimes use the CPU.
        output: .json or .csv file for the results; an earlier benchmark there is replaced.
        int8_tolerance: `tolerance` when one of the two is packed, or its file name contains `int8` or `quantized`;
            allows for 8-bit rounding.

    """
    options = locals()
    from lit_compress.report.benchmark import benchmark as work

    work(**options)


def latency(
    model: str,
    target: Target = "onnx-int8",
    shape: str = "1x128",
    threads: int | None = None,
    output: str | None = None,
    remeasure: bool = False,
) -> None:
    """Measure how long heads, neurons and ranks of a model take on this machine; needs only its configuration.

    Args:
        model: folder or hub name of the dense model; its weights are not loaded.
        target: format, and so the runtime, to measure; `hf` is Transformers in PyTorch.
        shape: batch size and tokens, `BATCHxTOKENS`.
        threads: CPU threads; default: all.
        output: folder for latency.json (the table) and latency.png (its curves); an earlier table there is replaced.
        remeasure: measure even if there is a table for this model, target, shape, machine and version.

    """
    options = locals()
    from lit_compress.planning.latency_command import latency as work

    work(**options)


def explain(model: str, tokens: int = 4096, device: str | None = None, output: str | None = None) -> None:
    """Print which kernel runs each layer of a packed model, and the expected gain.

    Args:
        model: packed folder.
        tokens: unpadded tokens in a batch.
        device: `cpu`, or a GPU that need not be in this machine (`h200`, `h100`, `a100`, `l4`); default: this
            machine's.
        output: also write the explanation to this JSON file; an earlier one is replaced.

    """
    options = locals()
    from lit_compress.report.explain import explain as work

    work(**options)


def init_configs(
    file: str,
    val: str | None = None,
    model: str | None = None,
    output: str = ".",
    task: GuessedTask | None = None,
    text_columns: list[str] | None = None,
    label_column: str | None = None,
    overwrite: bool = False,
) -> None:
    """Inspect a file of examples, and write a commented teacher.yaml and student.yaml for it.

    Args:
        file: a table, a column file, SQuAD .json, plain text, or a folder: whatever `--data.train_file` accepts.
        val: validation file; default: a tenth of the examples is held out.
        model: hub name or folder of the pretrained model; with a folder, lengths are counted in its tokens.
        output: folder for both files; runs go to its subfolder `runs`.
        task: task, if the guess is wrong.
        text_columns: columns with the texts, one or two, if the guess is wrong: '[title, body]'.
        label_column: column with the labels, if the guess is wrong.
        overwrite: replace existing files written by this command.

    """
    options = locals()
    from lit_compress.initial_configs import init as work

    work(**options)
