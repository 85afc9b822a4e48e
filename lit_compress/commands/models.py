"""Commands that make a model, or the files to make one with."""

import shlex
from typing import Any, Literal

from lit_compress.choices import Dtype, Format, GuessedTask, LayoutChoice, Precision, Target, TrainerPrecision

__all__ = [
    "compress_family",
    "export_model",
    "init_configs",
    "pack_model",
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
    precision: TrainerPrecision = "32-true",
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
        precision: of every training; bf16-mixed takes less time where the hardware computes in bf16.
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
