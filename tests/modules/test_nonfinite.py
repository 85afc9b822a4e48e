"""A loss or gradient that is not finite: the update is left out on the device, and the error comes at the next look."""

import math

import pytest
import torch
from contracts.table import build
from contracts.training import StopAt, data, differences, fit
from lightning.pytorch import Callback, Trainer

from lit_compress.errors import UserError
from lit_compress.modules import Distillation, LitStudent, Optimization, encoder
from lit_compress.modules.gradient_clipping import clip_on_device
from lit_compress.modules.nonfinite import LossWatch, all_or_nan
from lit_compress.tasks import IGNORED, Batch
from lit_compress.tasks.batch import count_of, counted, tied

# Nothing looks at the loss but what the test is about and, at the latest, the end of the first epoch of 4 batches.
UNSEEN = {"each_step": False, "log_every_n_steps": 100}


class Odd(Distillation):
    """A term that is not a number in one call, and fine before and after it."""

    def __init__(self, call=None):
        super().__init__()
        self.calls, self.call = 0, call

    def forward(self, student, teacher, batch):
        self.calls += 1
        return student.logits.mean() * (math.nan if self.calls == self.call else 1.0)


class Constant(Odd):
    """The same without a gradient: the loss is not a number and its gradient would be one."""

    def forward(self, student, teacher, batch):
        return super().forward(student, teacher, batch).detach()


class Steep(Odd):
    """A term that is 0 and whose gradient in one call is not a number."""

    def forward(self, student, teacher, batch):
        self.calls += 1
        nothing = (student.logits * 0).sum()
        return nothing.sqrt() if self.calls == self.call else nothing


class Infinite(Odd):
    """A term that is infinite in one call."""

    def forward(self, student, teacher, batch):
        self.calls += 1
        return student.logits.abs().mean() * (math.inf if self.calls == self.call else 1.0)


@pytest.fixture
def train(tiny_teacher, tiny_data, tmp_path):
    """A fit with such a term; its module, and what it ended with."""

    def run(term, *callbacks, name="run", **options):
        torch.manual_seed(0)
        module = LitStudent(
            str(tiny_teacher),
            str(tiny_teacher),
            distillation={"odd": term},
            labels=["0", "1"],
            optimization=Optimization(learning_rate=1e-2, weight_decay=0.1, warmup="0%"),
        )
        datamodule = data(tiny_data, tiny_teacher, batch_size=16 // options.get("accumulate_grad_batches", 1))
        try:
            fit(module, datamodule, list(callbacks), tmp_path / name, **UNSEEN | options)
        except (UserError, StopAt.Killed) as error:
            return module, error
        return module, None

    return run


def state(module):
    """Weights, masks and moments, without what is collected beside them."""
    kept = {name: value.clone() for name, value in module.state_dict().items() if "quantizer" not in name}
    return {name: value for name, value in kept.items() if not name.endswith(("weight_scores", "group_scores"))} | {
        "optimizer": module.trainer.optimizers[0].state_dict()["state"]
    }


@pytest.mark.parametrize("term", [Odd, Constant, Steep, Infinite])
def test_the_model_stays_as_it_was_before_the_step(term, train):
    before, _ = train(term(), StopAt(step=2), name="before")
    after, error = train(term(call=3))
    assert "step 2" in str(error)
    assert "\n" not in str(error)
    assert after.trainer.global_step == 3  # it was not looked at before the end of the fourth
    assert differences(state(before), state(after)) == []


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (Odd, "the training loss is nan at step 2 (part: odd); no checkpoint was saved yet; lower model.optimization."),
        (Infinite, "the training loss is inf at step 2 (part: odd); no checkpoint"),
        (Steep, "the norm of the gradient is nan at step 2; no checkpoint was saved yet; lower"),
    ],
)
def test_the_error_says_what_is_not_finite(term, said, train):
    assert str(train(term(call=3))[1]).startswith(said)


@pytest.mark.parametrize("case", ["magnitude", "movement", "structured", "qat-everything", "low-rank"])
def test_no_strategy_goes_on_after_it(case, train):
    before, _ = train(Odd(), build(case), StopAt(step=2), name="before")
    after, error = train(Odd(call=3), build(case))
    assert "nan at step 2 (part: odd)" in str(error)
    assert differences(state(before), state(after)) == []
    assert all(value.isfinite().all() for value in after.state_dict().values())


@pytest.mark.parametrize("call", [5, 6])
def test_one_batch_spoils_the_whole_accumulated_gradient(call, train):
    before, _ = train(Odd(), StopAt(step=2), name="before", accumulate_grad_batches=2)
    after, error = train(Odd(call=call), accumulate_grad_batches=2)
    assert "nan at step 2 (part: odd)" in str(error)
    assert differences(state(before), state(after)) == []


@pytest.mark.parametrize(
    "clip", [{"gradient_clip_val": 0}, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}]
)
def test_however_gradients_are_clipped(clip, train):
    before, _ = train(Odd(), StopAt(step=2), name="before", **clip)
    after, error = train(Odd(call=3), **clip)
    assert "step 2" in str(error)
    assert differences(state(before), state(after)) == []


def test_under_bf16(train):
    before, _ = train(Odd(), StopAt(step=2), name="before", precision="bf16-mixed")
    after, error = train(Odd(call=3), precision="bf16-mixed")
    assert "step 2" in str(error)
    assert differences(state(before), state(after)) == []


def test_no_checkpoint_is_written_after_it(train, tmp_path):
    _, error = train(Odd(call=2), checkpoint_every=2, log_every_n_steps=100)
    assert "no checkpoint was saved yet" in str(error)
    assert list(tmp_path.rglob("*.ckpt*")) == []
    _, error = train(Odd(call=4), name="later", checkpoint_every=2)
    assert "nan at step 3 (part: odd); the last checkpoint is from before it" in str(error)
    saved = torch.load(tmp_path / "later" / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2


def test_it_is_said_before_a_validation(train):
    class Validated(Callback):
        seen = 0

        def on_validation_batch_start(self, run, *_):
            self.seen += not run.sanity_checking

    validated = Validated()
    _, error = train(Odd(call=2), validated, val_check_interval=2)
    assert "nan at step 1" in str(error)
    assert validated.seen == 0


def test_an_optimizer_that_cannot_leave_out_a_step_is_asked_at_every_step(train, monkeypatch):
    build_of = Optimization.build
    monkeypatch.setattr(Optimization, "build", lambda *args, fused: build_of(*args, fused=False))
    module, error = train(Odd(call=3))
    assert "nan at step 2 (part: odd)" in str(error)
    assert module.trainer.global_step == 2


# Every way to clip with the strategies that read gradients or have parameters of their own; the others once.
CLIPPED = [
    {"accumulate_grad_batches": 2, "gradient_clip_val": 0},
    {"gradient_clip_val": 0.01},
    {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"},
]


@pytest.mark.parametrize(
    ("case", "options"),
    [
        *((case, {}) for case in ("magnitude", "movement", "structured", "qat-everything", "second-order")),
        *((case, options) for case in ("movement", "structured") for options in CLIPPED),
    ],
    ids=str,
)
def test_leaving_out_nothing_changes_nothing(case, options, train, monkeypatch):
    # To the last bit what Lightning's own clipping and a check at every step give.
    watched, _ = train(Odd(), build(case), name="watched", **options)
    monkeypatch.setattr(encoder, "skips_on_device", lambda *_: False)
    plain, _ = train(Odd(), build(case), name="plain", **options)
    assert differences(dict(plain.state_dict()), dict(watched.state_dict())) == []
    moments = [module.trainer.optimizers[0].state_dict() for module in (plain, watched)]
    assert differences(*moments) == []


def test_the_first_of_several_is_told():
    watch = LossWatch()
    for step, value in enumerate([1.0, math.inf, math.nan]):
        watch.add_loss(step, {"task": torch.tensor(value), "loss": torch.tensor(value)})
        watch.add_norm(step, torch.tensor(value))
    broken = watch.read()
    assert (broken.what, broken.value, broken.step, broken.parts) == ("training loss", math.inf, 1, ("task",))
    assert watch.read() is None
    assert watch.found == 1


def test_a_finite_loss_keeps_its_value_and_its_gradient():
    for value in (3.7, -1e38, 0.0):
        loss = torch.tensor(value, requires_grad=True)
        same = all_or_nan(loss)
        same.backward()
        assert same == loss
        assert loss.grad == 1
    loss = torch.tensor(math.inf, requires_grad=True)
    all_or_nan(loss).backward()
    assert loss.grad.isnan()


class Loose(LitStudent):
    """Hides the last token of each example on the device, as a data module of somebody's own might."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch.inputs["attention_mask"][:, -1] = 0
        return batch


def test_what_is_changed_on_the_device_is_not_what_was_counted_on_the_host():
    mask, labels = torch.ones(2, 3, dtype=torch.int64), torch.tensor([[1, IGNORED, 0], [0, 1, 1]])
    batch = tied(counted(Batch({"attention_mask": mask}, {"labels": labels}, {})))
    assert count_of(batch, "attended", mask) == 6
    assert count_of(batch, "labelled", labels) == 5
    assert count_of(batch, "attended", mask.clone()) is None
    twice = batch._replace(targets={"labels": torch.cat([labels, labels])})
    assert count_of(twice, "labelled", twice.targets["labels"]) is None
    mask[0, 0] = 0
    assert count_of(batch, "attended", mask) is None


@pytest.mark.parametrize(("kind", "known"), [(LitStudent, 6), (Loose, None)])
def test_a_hook_after_the_transfer_makes_counts_unknown(kind, known, tiny_teacher):
    module = kind(str(tiny_teacher), str(tiny_teacher), labels=["0", "1"])
    given = Batch({"attention_mask": torch.ones(2, 3, dtype=torch.int64)}, {"labels": torch.tensor([0, 1])}, {})
    batch = module._apply_batch_transfer_handler(counted(given), torch.device("cpu"))
    assert count_of(batch, "attended", batch.inputs["attention_mask"]) == known


def test_a_scaler_that_leaves_out_a_step_is_no_fault():
    trainer = Trainer(accelerator="cpu", logger=False, barebones=False)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)
    trainer.strategy.optimizers = [optimizer]
    assert encoder.skips_on_device(trainer)
    trainer.precision_plugin.scaler = torch.amp.GradScaler("cpu")
    assert not encoder.skips_on_device(trainer)


def test_bf16_goes_on_from_an_optimizer_that_was_not_fused(train, tmp_path):
    train(Odd(), precision="bf16-mixed", max_steps=2, name="first")
    (file,) = (tmp_path / "first").rglob("last.ckpt")
    checkpoint = torch.load(file, weights_only=False)
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        group["fused"] = False
    torch.save(checkpoint, file)
    module, error = train(
        Odd(), precision="bf16-mixed", gradient_clip_val=1.0, max_steps=4, name="first", ckpt_path=str(file)
    )
    assert error is None
    assert module.trainer.global_step == 4


class Monitor(Callback):
    monitor = "train/loss"

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(float(trainer.callback_metrics["train/loss"]))


def test_a_loss_that_a_callback_monitors_is_that_of_each_step(train):
    monitor = Monitor()
    train(Odd(), monitor, name="monitored")
    assert len(set(monitor.seen)) == len(monitor.seen) > 2


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_an_infinite_gradient_is_seen_however_it_is_clipped(algorithm):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([torch.inf, 0.0])
    assert clip_on_device(torch.optim.SGD([weight]), 1.0, algorithm) == torch.inf
