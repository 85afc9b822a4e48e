"""Commands that say what a model answers, how good it is and how fast."""

from typing import Any, Literal

from lit_compress.choices import EngineName, Format, Processor, Target
from lit_compress.errors import UserError

__all__ = [
    "benchmark",
    "compare",
    "explain",
    "formats",
    "latency",
    "predict",
    "report",
]


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
        lengths: sequence lengths in tokens; default: the run's `max_length`, or its longest validation text where the
            data module has no such option.
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
