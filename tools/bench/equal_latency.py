"""What a plan is worth: a member of a `compress` run beside simpler models that take as long, trained alike.

Every model begins with the run's teacher and has as many steps, the same data, distillation and integers:

- ``planned``: the structure that was planned for the member;
- ``uniform``: every layer with the same share of heads and neurons, of the member's time by the latency table; left
  out, and said so, where even one head in every layer takes longer;
- ``lowest``: the lowest layers whole, the fewest that take at least as long;
- ``sparse``: the whole model with 80 % of the encoder's weights pruned, which takes as long as its integers alone.

All are exported, scored on the validation rows and timed side by side, as `compress` does; the page and report.json are
in the output folder. A command that was stopped goes on when it is given again.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from lit_compress.auto.compress import train_stages
from lit_compress.auto.job import begin
from lit_compress.auto.measure import verify
from lit_compress.auto.plans import Planned
from lit_compress.auto.request import Request
from lit_compress.auto.stages import member_stage
from lit_compress.errors import UserError
from lit_compress.planning.latency_table import LatencyTable
from lit_compress.planning.random_models import dense_structure
from lit_compress.planning.structure import LayerShape, Structure
from lit_compress.recipe import read_recipe

_MULTIPLE = 16  # of neurons
_SPARSITY = 0.8


def equal_latency(run: str, member: str, output: str, steps: int | None = None) -> None:
    """Train a member of a run and simpler models of its latency, and measure them side by side.

    Args:
        run: folder of a finished `compress`.
        member: name of the one that is compared, such as ``5x``.
        output: folder to make.
        steps: of the optimizer, for each; as many as the member had by default.

    """
    folder = Path(run)
    asked = json.loads((folder / "compress.json").read_text())["asked"]
    planned = [Planned.from_json(each) for each in json.loads((folder / "plan.json").read_text())["members"]]
    trainings = read_recipe(folder / "recipe.yaml")["stages"]
    there = {each.name: each for each in planned if each.asked and each.name in trainings}
    if member not in there:
        raise UserError(f"--member: {member!r} must be one of {', '.join(there)}")
    chosen = there[member]
    table = LatencyTable.from_json(json.loads((folder / "latency.json").read_text())["table"])
    steps = steps or trainings[member]["trainer"]["max_steps"]
    teacher = folder / "teacher/model"
    given: dict[str, Any] = asked | {
        "speedups": tuple(asked["speedups"]),
        "minutes": None,
        "shape": asked["shape"] and tuple(asked["shape"]),
    }
    request = Request(**given | ({"model": str(teacher.resolve())} if teacher.is_dir() else {}))
    job = begin(request, Path(output), dry_run=False)
    dense = dense_structure(job.config)
    seconds = table.seconds(chosen.structure)
    equal = uniform(dense, table, seconds)
    if equal is None:
        print("uniform is left out: one head and 16 neurons in every layer take longer than the member")
    structures = {
        "planned": chosen.structure,
        **({"uniform": equal} if equal else {}),
        "lowest": lowest(dense, table, seconds),
        "sparse": dense,
    }
    stages = {
        name: member_stage(job.training, (job.teacher, dense), job.teacher, structure, steps, request.int8)
        for name, structure in structures.items()
    }
    pruning = {"class_path": "MagnitudePruning", "init_args": {"sparsity": _SPARSITY, "end": "50%"}}
    stages["sparse"]["compression"] = [pruning, *stages["sparse"].get("compression", [])]
    train_stages(job, stages)
    members = [
        replace(chosen, name=name, structure=structure, corrected=False) for name, structure in structures.items()
    ]
    verify(job, members, {name: job.folder / name / "model" for name in structures})


def uniform(dense: Structure, table: LatencyTable, seconds: float) -> Structure | None:
    """All layers with the same shares of heads and neurons, as equal as counts allow, in no more than the time."""
    whole = dense.shapes[0]

    def shapes() -> Iterator[LayerShape]:
        for heads in range(1, whole.heads + 1):
            fitting = [
                shape
                for neurons in range(_MULTIPLE, whole.neurons + 1, _MULTIPLE)
                if table.seconds(_equal(dense, shape := LayerShape(heads, neurons))) <= seconds
            ]
            yield from fitting[-1:]  # the most neurons

    def imbalance(shape: LayerShape) -> float:
        return abs(shape.heads / whole.heads - shape.neurons / whole.neurons)

    best = min(shapes(), key=imbalance, default=None)
    return best and _equal(dense, best)


def _equal(dense: Structure, shape: LayerShape) -> Structure:
    return Structure(layers=(shape,) * len(dense.layers))


def lowest(dense: Structure, table: LatencyTable, seconds: float) -> Structure:
    """The lowest layers whole, the fewest that take at least the time."""
    found = [
        Structure(layers=(*dense.layers[:count], *(None,) * (len(dense.layers) - count)))
        for count in range(1, len(dense.layers) + 1)
    ]
    return next(structure for structure in found if table.seconds(structure) >= seconds)


if __name__ == "__main__":
    try:
        auto_cli(equal_latency, as_positional=False)
    except UserError as error:
        raise SystemExit(f"equal_latency: {error}") from error
