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
    seed: int = 42,
    dry_run: bool = False,
) -> None:
    """Make an encoder as much faster as asked for your data; measure every member of the family, and recommend one.

    The same command again goes on where it was stopped; with another --max_loss it trains nothing, measures and chooses
    again.

    Args:
        model: folder or hub name of an encoder; with the head of the task it is the teacher, else it is trained first.
        train: file of training examples, as `--data.train_file` takes it.
        val: file of validation examples; without it a tenth of the training examples is held out.
        run: folder for everything: trainings, exports, report.html.
        speedup: how many times as fast as the dense model in fp32 in the same runtime: 4, or '[2,4,8]'.
        max_loss: how many points the recommended member may lose.
        target: runtime and precision of the members.
        shape: rows and tokens at which speed counts, such as 1x128; without it one row of the data's length.
        threads: of the processor; without it as many as PyTorch takes.
        minutes: for all trainings together; they become shorter when that is not enough, and it is said. Measuring
            comes on top.
        task: of the data, where the guess is wrong.
        text_columns: columns with the texts, one or two, where the guess is wrong.
        label_column: column with the labels, where the guess is wrong.
        data: options of the data module: `--data.max_length 64`, `--data.delimiter ';'`.
        label_map: names of the model's classes -> labels of the data, where they differ.
        seed: of every training.
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
    """Fold a trained student and write it in the format of a runtime.

    Args:
        run: run folder of a `fit`; its last checkpoint is taken.
        output: folder to make.
        checkpoint: a checkpoint file, alone or of the run; of a run also `last`, and `best` by what its ModelCheckpoint
            monitors.
        model: a Hugging Face folder instead of a run, of this package or any other with safetensors.
        to: format of the folder.
        unfinished: write it also when its training stopped before its compression was complete.
        overwrite: replace an existing output folder that an export wrote.
        processor: of onnx-int8 and openvino-int8: `any` is right in every session on every processor; `vnni` keeps
            weights that training put on 8 bits as int8, which is faster, and right only where there are 8-bit dot
            products (AVX-512 VNNI, AVX-VNNI, Arm).
        tables: of onnx-int8 and openvino-int8: embedding tables that training left in floating point become `int8` with
            a scale for each row, or stay `float`.
        check: file of examples on which onnx-int8, openvino-int8, fp16 and bf16 are compared with PyTorch's fp32 or
            training form; by default the run's validation data.
        data: options of the data module that reads it, or the run's validation data: `--data.text_columns
            '[sentence]'`; with `label_column`, scores are compared, too.
        strict: refuse an integer, fp16 or bf16 model whose predictions or score are worse than PyTorch's, instead of
            saying so.
        layout: of packed: `auto` chooses for each linear; or one for all: `dense`, `tall_blocks` (blocks of 128 x 32
            zeros left out), `blocks` (64 x 64), `bitmap` (any zeros, small file), `two_four` (2 of 4 kept, small file).
        dtype: of hf: `fp32` (default), `fp16` or `bf16`; of onnx: `fp32` (default) or `fp16`; of packed: `int8`
            runs on every GPU since Ampere, `fp8` needs Ada or Hopper; by default `fp8` on a machine with a Hopper GPU
            unless training found integers, `int8` otherwise.
        calibration_batches: of packed: validation batches of the run on which the ranges of inputs are measured that
            quantization-aware training left open. By default 16 where one is open and the run's data is still there; 0
            measures none.

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
    """Another name of `export --to packed`, whose `--layout` is `--format` here.

    Args:
        run: run folder of a `fit`; the student of its last checkpoint is packed.
        model: exported folder instead of a run.
        output: folder to make.
        format: as `--layout` of `export`.
        dtype: as of `export --to packed`.
        calibration_batches: as of `export`.
        data: as of `export`.
        unfinished: pack it also when its training stopped before its compression was complete.
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
    """Leave out the tokens that a corpus never uses, in tokenizer, embeddings and decoder.

    Args:
        model: Hugging Face folder with a tokenizer.json.
        corpus: text files, one text a line, or a list of them; each also compressed (.gz).
        output: folder to make.
        characters: keep every token of one character, so that words from elsewhere can still be spelled.
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
    """Predict every row of a file with an exported model: a .csv, .jsonl or .parquet, or of vectors an .npy.

    Args:
        file: what the data module reads, labels not needed.
        output: file to write; a run that is interrupted goes on where its last part ends.
        text: one text, whose prediction is shown, instead of a file and an output.
        run: run folder of a `fit`: its `model` folder, and how its data was read.
        model: an exported folder or hub name, instead of a run.
        data: options of the data module: `--data.text_columns '[sentence]'`.
        engine: what computes; by default PyTorch, or the runtime that the folder was exported for.
        device: where PyTorch's model runs; `auto` is a GPU when there is one.
        part_rows: most rows that are predicted before they are written; they are every 30 seconds.
        overwrite: replace earlier predictions.

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
    """Measure accuracy, size, sparsity and latency of a run's model, beside the dense one; print and save them.

    Args:
        run: run folder of a `fit`.
        dense: folder or hub name to compare with; the run's teacher by default, as long as there is one.
        output: folder for report.html, report.md, report.json, pictures and TensorBoard's file; `report` in the run
            folder by default. An earlier report in its place is replaced, anything else is not.
        data: options of the run's data to change: `--data.val_file other.tsv`.
        batch_sizes: batch sizes whose latency is measured, at the run's `max_length`.
        repetitions: forward passes per latency.
        label_map: where the dense model names its classes otherwise than the data: its names, and the data's label
            for each; the run's by default.

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
    """Put runs beside each other: a table, the Pareto fronts, and how each was made; a run without a report gets one.

    Args:
        runs: run folders of `fit`s, or folders of `compress`.
        output: folder that gets report.html, report.md and report.json; they replace those of a comparison only.
        dense: folder or hub name that each run without an up-to-date report is compared with; its teacher by default,
            as long as there is one.
        data: options of the data of such a run to change: `--data.val_file other.tsv`.
        label_map: as in `report`.

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
    """Export a run's student to each format, load each back, and compare accuracy, size, memory and speed.

    Args:
        run: run folder of a `fit`.
        output: folder for one folder of each format, and the figures as formats.json and formats.md.
        to: formats; by default every one whose extra is installed. One that cannot hold the model is said and left
            out.
        dense: folder or hub name of the first line, to which the ratios are; the run's teacher by default, as long as
            there is one.
        data: options of the run's data to change: `--data.val_file other.tsv`.
        batch_sizes: rows of a batch.
        lengths: tokens of a row; the run's `max_length` by default.
        threads: of the processor; all by default.
        warmup: calls before the first measured one, for each size.
        repetitions: measured calls, those of the formats interleaved.
        unfinished: write them also when the training stopped before its compression was complete.
        overwrite: replace existing folders that an export wrote.
        label_map: where the dense model names its classes otherwise than the data: its names, and the data's label
            for each; the run's by default.
        processor: of onnx-int8 and openvino-int8, as of `export`.

    """
    options = locals()
    from lit_compress.report.formats import formats as work

    work(**options)


def benchmark(
    models: list[str],
    engines: list[Literal["eager", "compile", "onnxruntime", "openvino"]] | None = None,
    batch_sizes: list[int] = [1, 16],  # noqa: B006 (jsonargparse shows and never changes it)
    lengths: list[int] = [128],  # noqa: B006 (likewise)
    threads: int | None = None,
    warmup: int = 3,
    repetitions: int = 20,
    tolerance: float = 0.05,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    output: str | None = None,
    int8_tolerance: float = 0.5,
) -> None:
    """Measure latency, throughput, memory and size of models side by side; ratios are to the first.

    Args:
        models: folders of any export, or names on the hub; `name=folder` names it, and those of one name must agree.
        engines: what runs them; by default all that are installed, except `compile`.
        batch_sizes: rows of a batch.
        lengths: tokens of a row; every size is measured with every length.
        threads: of the processor; all by default.
        warmup: calls before the first measured one, for each size.
        repetitions: measured calls, those of the models interleaved.
        tolerance: largest difference between variants of one model, as a share of the largest output.
        device: of PyTorch; the other engines run on the processor.
        output: .json or .csv file for the figures; replaces one of an earlier benchmark only.
        int8_tolerance: `tolerance` where one of the two is packed or a graph with `int8` or `quantized` in its file's
            name, for rounding to 8 bits.

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
    """Measure how long heads, neurons and ranks of a model take on this machine, from its configuration alone.

    Args:
        model: folder or hub name of the dense model; its weights are not read.
        target: format, and with it the runtime, that the times are for; `hf` is Transformers in PyTorch.
        shape: rows and tokens of a batch, `ROWSxTOKENS`.
        threads: of the processor; all by default.
        output: folder for the table as latency.json and its curves as latency.png; replaces an earlier one only.
        remeasure: measure also when there is a table of this model, target, shape, machine and version already.

    """
    options = locals()
    from lit_compress.planning.latency_command import latency as work

    work(**options)


def explain(model: str, tokens: int = 4096, device: str | None = None, output: str | None = None) -> None:
    """Print layer by layer what runs in a packed model, and what it should gain.

    Args:
        model: packed folder.
        tokens: tokens of a batch, padding not counted.
        device: `cpu`, or a GPU that need not be here (`h200`, `h100`, `a100`, `l4`); this machine's by default.
        output: file that the same is written to as JSON; replaces an earlier explanation only.

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
    """Look at a file of examples, and write a teacher.yaml and a student.yaml for it that say why.

    Args:
        file: a table, a column file, SQuAD's .json, text, or a folder: what `--data.train_file` takes.
        val: file to validate on; without it a tenth of the rows is held out.
        model: hub name or folder of the model to begin with; with a folder, lengths are counted in its tokens.
        output: folder for both files; the runs will be in its folder `runs`.
        task: what the file is for, where the guess is wrong.
        text_columns: columns with the texts, one or two, where the guess is wrong: '[title, body]'.
        label_column: column with the labels, where the guess is wrong.
        overwrite: replace existing files that this command made.

    """
    options = locals()
    from lit_compress.initial_configs import init as work

    work(**options)
