from pathlib import Path

import pytest
import torch
import yaml
from contracts.training import STEPS, data, fit, student, trainer
from lightning.pytorch import LightningModule
from models.families import build
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    ModernBertConfig,
    RobertaConfig,
)

from lit_compress.errors import UserError
from lit_compress.models import encoder_layers, layer_linears
from lit_compress.models.layout import LAYOUTS
from lit_compress.nn import compressible_layers
from lit_compress.strategies import (
    CompressionMonitor,
    FreezeEmbeddings,
    MagnitudePruning,
    PatternLock,
    QuantAwareTraining,
    Strategy,
)
from lit_compress.strategies.strategy import amount_of
from lit_compress.tasks import Batch

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = {
    "roberta": RobertaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=72, pad_token_id=0
    ),
    "distilbert": DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=2, vocab_size=72),
    "modernbert": ModernBertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=72, pad_token_id=0,
        cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
    ),
}  # fmt: skip


class Plain(Strategy):
    """The base with nothing of its own."""

    def prepare(self, layers):
        self.prepared = list(layers)


class Holder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.student = model


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path, tiny_model):
    """A folder with a tiny model of another family and the tokenizer of the tiny data."""
    AutoModelForSequenceClassification.from_config(FAMILIES[request.param]).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_default_targets_are_the_linears_of_the_layers(family):
    holder = Holder(AutoModelForSequenceClassification.from_pretrained(family))
    inside = {id(m) for layer in encoder_layers(holder.student) for m in layer.modules() if isinstance(m, nn.Linear)}
    expected = [name for name, module in holder.student.named_modules() if id(module) in inside]
    strategy = Plain()
    strategy.setup(None, holder, "fit")
    assert strategy.prepared == expected
    assert len(expected) in (8, 12)
    assert [name for name, _ in compressible_layers(holder.student)] == expected
    assert list(strategy.layers(holder)) == expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_default_targets_of_every_family(name):
    holder = Holder(build(name))
    strategy = Plain()
    if name == "xlnet":  # half an encoder must not be taken for the whole
        with pytest.raises(UserError, match=r"^Plain\.targets: XLNet's attention has no linears .*'\*\.ff\.\*'"):
            strategy.setup(None, holder, "fit")
        strategy.targets = ["*.ff.*"]
    strategy.setup(None, holder, "fit")
    assert strategy.prepared == list(layer_linears(holder.student))


def test_default_targets_of_a_family_outside_the_table():
    config = AutoConfig.for_model(
        "deberta", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=30
    )
    holder = Holder(AutoModelForSequenceClassification.from_config(config))
    strategy = Plain()
    strategy.setup(None, holder, "fit")
    assert len(strategy.prepared) == 8
    assert all(".encoder.layer." in target for target in strategy.prepared)


def test_every_strategy_trains_another_family(family, tiny_data, tmp_path):
    module = student(family, family)
    strategies = [MagnitudePruning(end="50%"), QuantAwareTraining(start="50%"), FreezeEmbeddings()]
    run = fit(module, data(tiny_data, family), strategies, tmp_path / "run")
    assert run.global_step == STEPS
    for _, layer in compressible_layers(module.student):
        assert int((~layer.weight_mask).sum()) == round(0.8 * layer.weight.numel())
        assert layer.weight_quantizer.scale.all()
    assert not module.student.get_input_embeddings().weight.requires_grad


def test_setup_twice_changes_nothing_more(tiny_model):
    holder = Holder(AutoModel.from_pretrained(tiny_model))
    strategies = [PatternLock(), QuantAwareTraining(start="0%"), Plain()]
    for strategy in strategies:
        strategy.setup(None, holder, "validate")
    first = {name: id(module) for name, module in holder.named_modules()}
    for strategy in strategies:
        strategy.setup(None, holder, "validate")
    assert {name: id(module) for name, module in holder.named_modules()} == first


def test_the_parameters_stay_the_same_objects(tiny_model):
    holder = Holder(AutoModel.from_pretrained(tiny_model))
    before = dict(holder.named_parameters())
    MagnitudePruning().setup(None, holder, "validate")
    after = dict(holder.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


class Nameless(LightningModule):
    """Keeps its network under another name."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    def training_step(self, batch, batch_idx):
        return self.net(batch["x"]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    "strategy", [MagnitudePruning(), PatternLock(), QuantAwareTraining(), FreezeEmbeddings(), CompressionMonitor(1)]
)
def test_a_module_without_a_student(strategy, tmp_path):
    rows = DataLoader([{"x": torch.ones(2), "labels": torch.ones(())}] * 2)
    run = trainer(tmp_path, [strategy], max_epochs=1)
    with pytest.raises(UserError, match=r"self\.student.*Nameless") as caught:
        run.fit(Nameless(), rows)
    assert "\n" not in str(caught.value)


class Stream(IterableDataset):
    """Batches without an end, as from a hub dataset that is streamed."""

    def __iter__(self):
        while True:
            ids = torch.randint(5, 40, (4, 6))
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            yield Batch(inputs, {"labels": torch.zeros(4, dtype=torch.long)}, {})


def fit_stream(pretrained, root, *strategies, max_steps=STEPS):
    module = student(pretrained)
    run = trainer(root, list(strategies), max_epochs=-1, max_steps=max_steps)
    run.fit(module, DataLoader(Stream(), batch_size=None))
    return module, run


def test_durations_of_a_run_without_epochs(tiny_teacher, tmp_path):
    pruning, quantization = MagnitudePruning(start="1 steps", end="50%"), QuantAwareTraining(start="75%")
    module, run = fit_stream(tiny_teacher, tmp_path, pruning, quantization)
    assert run.global_step == STEPS
    for _, layer in compressible_layers(module.student):
        assert int((~layer.weight_mask).sum()) == round(0.8 * layer.weight.numel())
        assert layer.weight_quantizer.enabled


@pytest.mark.parametrize(
    "strategy", [MagnitudePruning(end="1 epochs"), QuantAwareTraining(start="0.5 epochs")], ids=["pruning", "qat"]
)
def test_epochs_of_a_run_without_epochs_are_a_one_line_error(strategy, tiny_teacher, tmp_path):
    with pytest.raises(UserError, match="epochs") as caught:
        fit_stream(tiny_teacher, tmp_path, strategy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "strategies", [[], [MagnitudePruning()], [QuantAwareTraining()]], ids=["dense", "pruned", "quantized"]
)
def test_a_run_without_an_end_is_a_one_line_error(strategies, tiny_teacher, tmp_path):
    with pytest.raises(UserError, match="max_steps") as caught:
        fit_stream(tiny_teacher, tmp_path, *strategies, max_steps=-1)
    assert "\n" not in str(caught.value)


def test_epochs_of_a_run_that_is_given_in_steps(tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    strategies = [MagnitudePruning(start="0.5 epochs", end="1 epochs"), QuantAwareTraining(start="1.5 epochs")]
    fit(module, data(tiny_data, tiny_teacher), strategies, tmp_path, max_epochs=-1, max_steps=STEPS)
    assert all(int((~layer.weight_mask).sum()) for _, layer in compressible_layers(module.student))


def test_a_strategy_without_prepare_says_its_name(tiny_model):
    class Unfinished(Strategy):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished"):
        Unfinished().setup(None, Holder(AutoModel.from_pretrained(tiny_model)), "fit")


# What papers say of BERT-base, and our small recipes of MiniLM: whole, and what the shipped fractions are of it.
BASE, SMALL = ({"drop": layers, "heads": 12, "neurons": neurons, "rank": width} for layers, neurons, width in ((12, 3072, 768), (6, 1536, 384)))  # noqa: E501  # fmt: skip
AMOUNTS = {
    "full": {"drop": {4, 6}, "heads": {2}, "neurons": {512}, "rank": {128}},
    "small": {"drop": {2, 3}, "heads": {6}, "neurons": {384}, "rank": {128}},
}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_configurations_say_fractions_of_the_model(path):
    whole, kind = (SMALL, "small") if path.name == "small.yaml" else (BASE, "full")
    for name, value in amounts(yaml.safe_load(path.read_text())):
        assert isinstance(value, float), f"{name}: {value}"
        assert amount_of(value, whole[name]) in AMOUNTS[kind][name], f"{name}: {value}"


def amounts(content):
    if isinstance(content, dict):
        own = [(name, value) for name, value in content.items() if name in BASE and isinstance(value, int | float)]
        return own + [pair for value in content.values() for pair in amounts(value)]
    return [pair for value in content for pair in amounts(value)] if isinstance(content, list) else []
