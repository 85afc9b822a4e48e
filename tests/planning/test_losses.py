import math
from copy import deepcopy

import pytest
import torch
from contracts import tasks
from models.families import FAMILIES, build
from torch.nn import functional as F

from lit_compress.functional import head_scores, logit_kl, neuron_scores
from lit_compress.models.drop_layers import drop_layers
from lit_compress.models.heads_and_neurons import removable_groups, remove_groups
from lit_compress.models.layout import LAYOUTS
from lit_compress.planning.losses import measure_losses
from lit_compress.planning.plan import Losses
from lit_compress.planning.structure import LayerShape
from lit_compress.tasks import Batch, ClassificationTask, RegressionTask

TASK = ClassificationTask(labels=["0", "1"])


def rows(count=2):
    """Batches of four rows, of which two have padding."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        ids = torch.randint(5, 30, (4, 7), generator=generator)
        mask = torch.ones_like(ids)
        mask[2:, 5:] = 0
        labels = torch.randint(0, 2, (4,), generator=generator)
        made.append(Batch({"input_ids": ids * mask, "attention_mask": mask}, {"labels": labels}, {}))
    return made


def model_of(family="bert", **settings):
    """One whose parts matter."""
    return build(family, initializer_range=0.5, **settings)


def divergence(dense, pruned, batches):
    with torch.no_grad():
        both = [[model(**batch.inputs).logits for batch in batches] for model in (pruned, dense)]
    return logit_kl(*map(torch.cat, both)).item()


def test_widths_are_measured_as_if_they_were_cut_out():
    model, batches = model_of(num_attention_heads=4, hidden_size=32), rows()
    losses = measure_losses(model, batches, TASK)
    gradients = {name: 0 for name, _ in model.named_parameters()}
    for batch in batches:
        model.zero_grad()
        F.cross_entropy(model(**batch.inputs).logits, batch.targets["labels"]).backward()
        gradients = {name: total + model.get_parameter(name).grad.abs() for name, total in gradients.items()}
    scores = {name: (value * gradients[name]).abs().detach() for name, value in model.named_parameters()}
    for kind, known in (("heads", losses.heads), ("neurons", losses.neurons)):
        for layer, groups in enumerate(removable_groups(model, kind)):
            out = scores[f"{groups.consumer}.weight"]
            if kind == "heads":
                importance = head_scores(out, groups.count)
            else:
                importance = neuron_scores(scores[f"{groups.producers[0]}.weight"], out)
            highest = 0.0
            for left in sorted(known[layer], reverse=True)[1:]:
                pruned = deepcopy(model)
                remove_groups(pruned, groups, importance >= importance.sort(descending=True).values[left - 1])
                highest = max(highest, divergence(model, pruned, batches))
                assert known[layer][left] == pytest.approx(highest, rel=1e-3)
                assert highest > 1e-5
    assert [set(known) for known in losses.heads] == [{4, 2, 1}] * 3
    assert [set(known) for known in losses.neurons] == [{24, 12, 6, 3, 1}] * 3


def test_layers_are_measured_as_if_they_were_dropped():
    model, batches = model_of(), rows()
    for layer, loss in enumerate(measure_losses(model, batches, TASK).layers):
        pruned = deepcopy(model)
        drop_layers(pruned, [index for index in range(3) if index != layer])
        assert loss == pytest.approx(divergence(model, pruned, batches), rel=1e-3)
        assert loss > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loses_what_it_can_do_without(family):
    model = model_of(family)
    losses = measure_losses(model, rows(1), TASK)
    cannot = set(LAYOUTS[family].unsupported)
    fixed = family == "albert"  # one stored layer: the widths of one are those of all
    assert losses.dense.layers == (LayerShape(2, 24),) * 3
    assert {len(known) for known in losses.heads} == {1 if fixed or "heads" in cannot else 2}
    assert {len(known) for known in losses.neurons} == {1 if fixed else 5}
    expected = [fixed, fixed, fixed] if fixed or "first_layer" not in cannot else [True, False, False]
    assert [math.isinf(loss) for loss in losses.layers] == expected
    for known in (*losses.heads, *losses.neurons):
        values = [known[left] for left in sorted(known, reverse=True)]
        assert values[0] == 0
        assert values == sorted(values)
    assert fixed or max(max(known.values()) for known in losses.neurons) > 0


def test_layers_with_the_same_heads_keep_those_that_are_most_important_to_all():
    model, batches = model_of("mpnet", num_attention_heads=4, hidden_size=32), rows()
    losses = measure_losses(model, batches, TASK)
    assert losses.same_heads
    assert not measure_losses(model_of(), rows(1), TASK).same_heads
    total = 0
    for batch in batches:
        model.zero_grad()
        F.cross_entropy(model(**batch.inputs).logits, batch.targets["labels"]).backward()
        total = total + torch.stack([layer.attention.attn.o.weight.grad.abs() for layer in model.mpnet.encoder.layer])
    outputs = [layer.attention.attn.o for layer in model.mpnet.encoder.layer]
    importance = sum(
        head_scores((o.weight * gradient).abs().detach(), 4) for o, gradient in zip(outputs, total, strict=True)
    )
    columns = (importance == importance.max()).repeat_interleave(8)
    for layer, known in enumerate(losses.heads):
        pruned = deepcopy(model)
        pruned.mpnet.encoder.layer[layer].attention.attn.o.weight.data[:, ~columns] = 0
        assert known[1] == pytest.approx(max(divergence(model, pruned, batches), known[2]), rel=1e-3)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_is_measured(task, tmp_path, tiny_model):
    data = tasks.data(task, tmp_path, tiny_model)
    data.prepare_data()
    data.setup("fit")
    model = tasks.student(task, tiny_model, data).student
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    batches = list(data.train_dataloader())[:2]
    losses = measure_losses(model, batches, data.task)
    assert all(0 < loss < math.inf for loss in losses.layers)
    assert losses == measure_losses(model, batches, data.task)


def test_a_regression_is_measured_by_its_square():
    model, batches = model_of(num_labels=1), rows()
    batches = [batch._replace(targets={"labels": batch.targets["labels"].float()}) for batch in batches]
    losses = measure_losses(model, batches, RegressionTask())
    drop_layers(pruned := deepcopy(model), [1, 2])
    with torch.no_grad():
        moved = [(model(**b.inputs).logits - pruned(**b.inputs).logits).square().mean() for b in batches]
    assert losses.layers[0] == pytest.approx(float(sum(moved)) / 2, rel=1e-3)


def test_uneven_layers_begin_at_what_they_have():
    model = model_of()
    remove_groups(model, removable_groups(model, "neurons")[1], torch.arange(24) < 10)
    losses = measure_losses(model, rows(1), TASK)
    assert [max(known) for known in losses.neurons] == [24, 10, 24]
    assert losses.neurons[1].keys() == {10, 5, 2, 1}


class Broken(ClassificationTask):
    def count(self, batch):
        raise RuntimeError


@pytest.mark.parametrize("task", [TASK, Broken(labels=["0", "1"])])
def test_the_model_is_left_as_it_was(task):
    model = model_of().train()
    model.bert.pooler.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    try:
        assert isinstance(measure_losses(model, rows(), task), Losses)
    except RuntimeError:
        assert isinstance(task, Broken)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
