"""Two processes: ranks agree on every mask and weight, under DDP and FSDP2, through Lightning's own strategies."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from contracts.training import data_config, differences, student_config
from processes import run_python, run_ranks

from lit_compress.data.logit_cache import LogitStore
from lit_compress.export import load_checkpoint

REPOSITORY = Path(__file__).parent.parent.parent

# Every kind of range: of inputs, outputs, tables, and inside attention.
EVERYTHING = {
    "start": "25%",
    "freeze_observers": "90%",
    "outputs": ["*.query"],
    "embeddings": "uint8",
    "attention": "all",
}

PROBE = '''
import hashlib
import json

import torch
from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor


class Probe(Callback):
    """Writes what a rank holds at the end of training, and what it was shown."""

    def __init__(self, folder: str):
        self.folder, self.rows = folder, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rows += batch.inputs["input_ids"].sum(1).tolist()

    def on_train_end(self, trainer, module):
        digest = {"masks": hashlib.sha256(), "weights": hashlib.sha256()}
        for part in (module.student, module.distillation):
            for name, tensor in part.state_dict().items():
                tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                kind = "masks" if name.endswith(("mask", "kept_groups")) else "weights"
                digest[kind].update(tensor.clone().numpy().tobytes())
        sharded = {isinstance(parameter, DTensor) for parameter in module.parameters()}
        result = {name: value.hexdigest() for name, value in digest.items()}
        result |= {"sharded": sorted(sharded), "rows": len(self.rows), "steps": trainer.global_step}
        with open(f"{self.folder}/rank{trainer.global_rank}.json", "w") as file:
            json.dump(result, file)
'''

# One pair of processes trains them all: to start one takes longer than a training.
ALL = """
import sys

from lit_compress.cli import main

if __name__ == "__main__":
    for folder in sys.argv[2:]:
        main(["fit", f"--config={folder}/task.yaml", f"--config={sys.argv[1]}", "--trainer.devices=2"])
"""


STRATEGIES = {
    "magnitude": [
        {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75, "every": "1 steps"}},
        {"class_path": "QuantAwareTraining", "init_args": EVERYTHING},
    ],
    "second-order": [
        {
            "class_path": "SecondOrderPruning",
            "init_args": {"sparsity": 0.75, "every": "2 steps", "gradients": 10, "gradient_batch_size": 4},
        },
    ],
    "movement": [
        {
            "class_path": "MovementPruning",
            "init_args": {"sparsity": 0.75, "end": "50%", "freeze_masks": "75%"},
        },
    ],
    # Each rank sees its own rows, and ranks look at different ones between the steps.
    "pairs": [
        {
            "class_path": "Pruning",
            "init_args": {"importance": "Taylor", "sparsity": 0.75, "targets": ["*.attention.*"], "every": "2 steps"},
        },
        {
            "class_path": "Pruning",
            "init_args": {
                "importance": {"class_path": "Activations", "init_args": {"batches": 2, "batch_size": 4}},
                "sparsity": 0.75,
                "targets": ["*.intermediate.*", "re:.*layer.\\d+.output.dense"],
                "every": "2 steps",
            },
        },
    ],
    "movement-neurons": [
        {
            "class_path": "Pruning",
            "init_args": {"importance": "Movement", "pattern": "neurons", "sparsity": 0.5, "last_update": "75%"},
        },
    ],
    # Neurons are scored before the first step and heads during training.
    "structured": [
        {"class_path": "StructuredPruning", "init_args": {"neurons": 24, "pruning_steps": 1, "end": "0%"}},
        {"class_path": "StructuredPruning", "init_args": {"heads": 1, "pruning_steps": 1}},
        {"class_path": "LowRankEmbedding", "init_args": {"rank": 6, "pruning_steps": 2}},
    ],
    # Each rank measures on its own half of the rows.
    "layers": [
        {"class_path": "LayerDropping", "init_args": {"drop": 1, "which": "contribution", "examples": 8}},
        {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75}},
    ],
    "gradual-layers": [{"class_path": "GradualLayerDropping", "init_args": {"drop": 1}}],
}


def run_of(folder, strategy, teacher, files, asked="each step"):
    """Write the configuration of a training into a folder of its own."""
    terms = {"kd": {"class_path": "LogitDistillation"}}
    if asked == "each step":
        terms["hidden"] = {"class_path": "HiddenDistillation", "init_args": {"projection": True}}
    stored = {"teacher_cache": str(folder / "answers")} if asked == "once" else {}
    config = student_config(
        teacher, files, run=str(folder / "run"), data=data_config(files, batch_size=8), compression=STRATEGIES[strategy]
    )
    config["model"]["init_args"] |= {"distillation": terms} | stored
    config["trainer"]["callbacks"] = [{"class_path": "probe.Probe", "init_args": {"folder": str(folder)}}]
    folder.mkdir()
    (folder / "task.yaml").write_text(yaml.safe_dump(config))


def train_all(folder, engine, names):
    """Train what is in some folders, all with one pair of processes."""
    (folder / "probe.py").write_text(PROBE)
    (folder / "all.py").write_text(ALL)
    command = ["all.py", str(REPOSITORY / f"configs/trainer/{engine}.yaml"), *(str(folder / name) for name in names)]
    status, said = run_ranks(command, cwd=folder)
    assert status == 0, said[-2000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_teacher, tiny_data):
    """Folders of the trainings of an engine, by the name of the strategy; made when the first one is asked for."""

    @cache
    def folders(engine):
        folder = tmp_path_factory.mktemp(engine)
        for strategy in STRATEGIES:
            run_of(folder / strategy, strategy, tiny_teacher, tiny_data)
        train_all(folder, engine, STRATEGIES)
        return folder

    return folders


@pytest.mark.ddp
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_agree(strategy, engine, trained):
    check_run(trained(engine) / strategy, strategy, engine)


@pytest.mark.ddp
def test_two_ranks_ask_a_teacher_once(tmp_path, tiny_teacher, tiny_data):
    run_of(tmp_path / "magnitude", "magnitude", tiny_teacher, tiny_data, asked="once")
    train_all(tmp_path, "ddp", ["magnitude"])
    check_run(tmp_path / "magnitude", "magnitude", "ddp")
    (store,) = (tmp_path / "magnitude" / "answers").iterdir()
    assert LogitStore.find_damage(store) is None
    assert LogitStore(store).array.shape == (64, 2)


def check_run(folder, strategy, engine):
    """Both ranks hold the same, and what the strategy promises."""
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["steps"] == 8
    assert first["rows"] == 64  # of 64 rows, half in each of two epochs
    assert first["sharded"] == [engine == "fsdp"]  # all parameters alike, those of the terms too
    state = load_checkpoint(folder / "run/checkpoints/last.ckpt")["state_dict"]
    masks = [tensor for name, tensor in state.items() if name.endswith("weight_mask")]
    if strategy == "structured":
        kept = {name: tensor for name, tensor in state.items() if name.endswith("kept_groups")}
        assert {int(tensor.sum()) for name, tensor in kept.items() if ".attention." in name} == {1}
        assert {int(tensor.sum()) for name, tensor in kept.items() if ".attention." not in name} == {24}
    elif strategy == "movement-neurons":
        assert {int(kept.sum()) for name, kept in state.items() if name.endswith("kept_groups")} == {32}
    else:
        pools = [torch.cat([mask.flatten() for mask in masks])] if strategy == "second-order" else masks
        assert all(int((~pool).sum()) == round(0.75 * pool.numel()) for pool in pools)
    for name in (name for name in state if name.endswith("weight_mask")):
        assert not state[name.removesuffix("_mask")][~state[name]].any()
    assert (folder / "run/model/model.safetensors").is_file()


VALIDATE = '''
import json
import sys

sys.path.insert(0, sys.argv[1])
from pathlib import Path

from contracts import tasks
from lightning.pytorch import Trainer



def validate(devices):
    found = {}
    for task in tasks.TASKS:
        # Few examples in a batch, and a number that two ranks cannot share evenly.
        data = tasks.data(task, Path("files"), Path(sys.argv[2]), batch_size=4)
        module = tasks.student(task, Path(sys.argv[2]), data)
        trainer = Trainer(
            accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
            enable_progress_bar=False, enable_checkpointing=False, use_distributed_sampler=False,
        )
        (found[task],) = trainer.validate(module, data, verbose=False)
        rank = trainer.global_rank
    return rank, found


def stream(devices):
    """Texts of a stream: trained through, and stopped after two steps and resumed."""
    seen = []
    for steps, ckpt in ((5, None), (2, None), (5, "stopped.ckpt")):
        data = tasks.data("masked_lm", Path("files"), Path(sys.argv[2]), batch_size=4, streaming=True, packing="line")
        module = tasks.student("masked_lm", Path(sys.argv[2]), data)
        rows = []
        keep = lambda outputs, batch, index, rows=rows: rows.append(batch.inputs["input_ids"].tolist())  # noqa: E731
        module.on_train_batch_end = keep
        trainer = Trainer(
            accelerator="cpu", devices=devices, strategy="ddp", logger=False, max_steps=steps,
            enable_progress_bar=False, enable_checkpointing=False, use_distributed_sampler=False,
        )
        trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
        if steps == 2:
            trainer.save_checkpoint("stopped.ckpt")
        seen.append(rows)
    return seen


if __name__ == "__main__":
    rank, found = validate(int(sys.argv[3]))
    if sys.argv[3] == "2":
        whole, stopped, resumed = stream(2)
        assert whole == stopped + resumed, "stream"
        found["stream"] = whole
    Path(f"devices{sys.argv[3]}-rank{rank}.json").write_text(json.dumps(found))
'''


@pytest.mark.ddp
def test_metrics_of_two_ranks_are_those_of_one(tmp_path, tiny_model):
    (tmp_path / "validate.py").write_text(VALIDATE)
    command = ["validate.py", str(REPOSITORY / "tests"), str(tiny_model)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    # The first one also fills the cache, so that the ranks do not race for it.
    done = run_python([*command, "1"], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    status, said = run_ranks([*command, "2"], cwd=tmp_path, env=environment)
    assert status == 0, said[-2000:]
    alone, *ranks = (
        json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("devices1-rank0", "devices2-rank0", "devices2-rank1")
    )
    del alone["pretraining"]["val/loss"]  # the sum of two means, one over words and one over rows
    del alone["embedding_ranking"]["val/loss"]  # among the texts of a batch, which are fewer on a rank
    del alone["question_answering"]["val/loss"]  # a softmax over the padding, too, and ranks pad otherwise
    for task, metrics in alone.items():
        for rank in ranks:
            found = {name: rank[task][name] for name in metrics}
            assert found == pytest.approx(metrics, rel=1e-5), task
    assert len(ranks[0]["stream"]) == len(ranks[1]["stream"]) == 5
    assert ranks[0]["stream"] != ranks[1]["stream"]


ACCUMULATE = """
import sys

sys.path.insert(0, sys.argv[1])
from pathlib import Path

from contracts.training import ACCUMULATED, data, fit, fit_through_kills, student
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry

StrategyRegistry.register(
    "fsdp2", ModelParallelStrategy, data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
)


def make():
    return student(sys.argv[2]), data(Path(sys.argv[3]), sys.argv[2], batch_size=4), []


if __name__ == "__main__":
    options = {"devices": 2, "strategy": sys.argv[4]}
    module, datamodule, callbacks = make()
    fit(module, datamodule, callbacks, Path("whole"), each_step=False, **ACCUMULATED, **options)
    fit_through_kills(make, Path("killed"), (4, 5, 12), **options)
"""


@pytest.mark.ddp
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_ranks_resume_in_the_middle_of_an_accumulation(engine, tmp_path, tiny_teacher, tiny_data):
    (tmp_path / "accumulate.py").write_text(ACCUMULATE)
    command = ["accumulate.py", str(REPOSITORY / "tests"), str(tiny_teacher), str(tiny_data), engine]
    status, said = run_ranks(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert status == 0, said[-2000:]
    expected, got = (load_checkpoint(tmp_path / name / "run/checkpoints/last.ckpt") for name in ("whole", "killed"))
    assert expected["global_step"] == 8
    for part in ("state_dict", "optimizer_states"):
        assert differences(expected[part], got[part]) == []


TERMINATE = """
import os
import signal
from lightning.pytorch import Callback


class Terminate(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 2 and trainer.global_rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.ddp
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_ranks_stop_when_one_is_told(engine, tmp_path, tiny_teacher, tiny_data):
    (tmp_path / "telling.py").write_text(TERMINATE)
    config = student_config(tiny_teacher, tiny_data, run="run", data=data_config(tiny_data, batch_size=8))
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "lit_compress", "fit", "--config=task.yaml", "--trainer.devices=2"]
    command += [f"--config={REPOSITORY / 'configs/trainer' / engine}.yaml", "--trainer.callbacks+=telling.Terminate"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(20000 + (os.getpid() + 17) % 20000)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 143, done.stderr[-2000:]
    assert done.stderr.count("stopped by SIGTERM at step 3, which is saved") == 1
    assert load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3


ODD = '''
import hashlib
import json

import torch
from lightning.pytorch import Callback


class Odd(Callback):
    """The third loss of rank 1 is not a number; what the weights were before it, and at the end."""

    def digest(self, module):
        content = b"".join(value.detach().numpy().tobytes() for value in module.student.state_dict().values())
        return hashlib.sha256(content).hexdigest()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 2:
            self.before = self.digest(module)
            if trainer.global_rank == 1:
                losses = module.losses
                module.losses = lambda batch: {n: part * torch.nan for n, part in losses(batch).items()}

    def on_exception(self, trainer, module, error):
        told = {"before": self.before, "after": self.digest(module), "error": str(error)}
        with open(f"rank{trainer.global_rank}.json", "w") as file:
            json.dump(told, file)
'''


@pytest.mark.ddp
def test_all_ranks_leave_out_what_is_not_finite_on_one(tmp_path, tiny_teacher, tiny_data):
    (tmp_path / "odd.py").write_text(ODD)
    config = student_config(tiny_teacher, tiny_data, run="run", data=data_config(tiny_data, batch_size=8))
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    command = ["-m", "lit_compress", "fit", "--config=task.yaml", "--trainer.callbacks+=odd.Odd"]
    command += [f"--config={REPOSITORY / 'configs/trainer/ddp.yaml'}", "--trainer.devices=2"]
    status, said = run_ranks(command, cwd=tmp_path)
    assert status != 0, said
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert len({rank[when] for rank in ranks for when in ("before", "after")}) == 1
    for rank in ranks:
        assert rank["error"].startswith("the training loss is nan at step 2 (part: task, kd); no checkpoint was saved")
    assert not list(tmp_path.rglob("*.ckpt"))
