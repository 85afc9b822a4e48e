import pytest
import torch
from models.families import build
from torch import nn
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from lit_compress.export import fold
from lit_compress.models.manifest_file import manifest_with_scales
from lit_compress.nn import MinMaxWeightQuantizer, make_compressible
from lit_compress.nn.quantizers import TableQuantizer
from lit_compress.nn.replace_layers import make_tables_compressible
from lit_compress.report.size import Size, model_size, tensor_size


def entry(bits=None, scales=1, enabled=True, mask=True):
    quantizer = {"spec": {"bits": bits}, "enabled": enabled} if bits else None
    return {"mask": mask, "weight_quantizer": quantizer, "scales": {"weight": [0.1] * scales} if bits else {}}


def tensor(count, nonzeros):
    values = torch.zeros(count)
    values[:nonzeros] = 1
    return values


# Values, non-zeros, what was done -> bytes of values, bytes of index.
TENSORS = {
    "fp32": (tensor(100, 100), None, 400, 0),
    "zeros nobody made are stored": (tensor(100, 10), None, 400, 0),
    "pruned": (tensor(800, 80), entry(), 320, 100),
    "a bitmap that just pays": (tensor(800, 774), entry(), 3096, 100),
    "a bitmap that does not": (tensor(800, 775), entry(), 3200, 0),
    "no zeros": (tensor(800, 800), entry(), 3200, 0),
    "all zeros": (tensor(800, 0), entry(), 0, 100),
    "index rounds up to bytes": (tensor(9, 1), entry(), 4, 2),
    "int8": (tensor(800, 800), entry(8, 10), 800 + 40, 0),
    "int8 pruned": (tensor(800, 80), entry(8, 10), 80 + 40, 100),
    "int8 with too few zeros": (tensor(800, 700), entry(8, 10), 800 + 40, 0),
    "int8 per tensor": (tensor(800, 800), entry(8, 1), 800 + 4, 0),
    "int4": (tensor(800, 800), entry(4, 10), 400 + 40, 0),
    "int4 rounds up to bytes": (tensor(3, 3), entry(4, 1), 2 + 4, 0),
    "int3 pruned": (tensor(800, 81), entry(3, 10), 31 + 40, 100),
    "a quantizer that is off": (tensor(800, 80), entry(8, 10, enabled=False), 320, 100),
}


@pytest.mark.parametrize(("values", "what", "value_bytes", "index_bytes"), TENSORS.values(), ids=TENSORS)
def test_a_tensor_takes_its_smaller_form(values, what, value_bytes, index_bytes):
    size = tensor_size(values, what)
    assert (size.parameters, size.nonzeros) == (values.numel(), int(values.count_nonzero()))
    assert size.dense_bytes == 4 * values.numel()
    assert (size.value_bytes, size.index_bytes) == (value_bytes, index_bytes)
    assert size.compressed_bytes == value_bytes + index_bytes


def test_sizes_add():
    first = Size(parameters=1, nonzeros=2, dense_bytes=3, value_bytes=4, index_bytes=5)
    second = Size(parameters=10, nonzeros=20, dense_bytes=30, value_bytes=40, index_bytes=50)
    assert first + second == Size(parameters=11, nonzeros=22, dense_bytes=33, value_bytes=44, index_bytes=55)


class Small(nn.Module):
    """One encoder layer of 8 x 16 weights with its bias, a table of 4 x 8, and a head of 2 x 8."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 8)
        self.layer = nn.ModuleList([nn.Linear(16, 8)])
        self.head = nn.Linear(8, 2, bias=False)
        for parameter in self.parameters():
            nn.init.ones_(parameter)


def test_a_dense_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = Small()

    sizes = model_size(Model(), {})
    assert sizes["encoder"] == Size(parameters=128, nonzeros=128, dense_bytes=512, value_bytes=512)
    total = 128 + 8 + 32 + 16
    assert sizes["model"] == Size(parameters=total, nonzeros=total, dense_bytes=4 * total, value_bytes=4 * total)


@pytest.mark.parametrize(("bits", "value_bytes"), [(None, 4 * 32), (8, 32 + 8 * 4)])
def test_a_pruned_model(bits, value_bytes):
    model = Small()
    with torch.no_grad():
        model.layer[0].weight[:, 4:] = 0  # 32 of 128 are left
        model.table.weight[0] = 0  # zeros by chance: nobody stores a table sparsely
    sizes = model_size(model, {"layer.0": entry(bits, scales=8)})
    assert sizes["encoder"] == Size(
        parameters=128, nonzeros=32, dense_bytes=512, value_bytes=value_bytes, index_bytes=16
    )
    rest = 4 * (8 + 32 + 16)
    assert sizes["model"].nonzeros == 32 + 8 + 24 + 16
    assert sizes["model"].dense_bytes == 512 + rest
    assert sizes["model"].compressed_bytes == value_bytes + 16 + rest


def test_biases_of_compressed_layers_are_not_encoder_linears():
    assert model_size(Small(), {"layer.0": entry()})["encoder"].parameters == 128


def test_a_shared_tensor_counts_once(tiny_model):
    model = AutoModelForMaskedLM.from_pretrained(tiny_model)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model_size(model, {})["model"].parameters == sum(p.numel() for p in model.parameters())


def test_a_real_manifest(tiny_teacher):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    names = ["bert.encoder.layer.0.output.dense", "bert.encoder.layer.1.output.dense"]  # 32 x 64
    layers = make_compressible(model, names)
    for layer in layers.values():
        layer.add_mask()
        layer.weight_mask[:, 8:] = False
    layers[names[1]].weight_quantizer = MinMaxWeightQuantizer(32)
    sizes = model_size(fold(model), manifest_with_scales(model)["linears"])
    index = 2 * 32 * 64 // 8
    assert sizes["encoder"].index_bytes == index
    pruned = 4 * 32 * 8 + 32 * 8 + 32 * 4
    rest = sizes["encoder"].dense_bytes - 2 * 4 * 32 * 64
    assert rest > 0
    assert sizes["encoder"].value_bytes == pytest.approx(rest + pruned, abs=8)  # a weight may round to 0
    assert sizes["model"].parameters == sum(p.numel() for p in model.parameters())


def test_a_quantized_table_counts_in_the_model_and_not_in_the_encoder():
    model = nn.ModuleDict({"words": nn.Embedding(100, 8), "dense": nn.Linear(8, 8, bias=False)})
    sizes = model_size(model, {"dense": entry(8)}, {"words": entry(8, scales=100)})
    assert (sizes["encoder"].value_bytes, sizes["encoder"].parameters) == (64 + 4, 64)
    assert sizes["model"].value_bytes == 64 + 4 + 800 + 400
    assert model_size(model, {"dense": entry(8)})["model"].value_bytes == 64 + 4 + 3200


def test_layers_left_alone_are_part_of_the_encoder():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Module()
            self.encoder.layers = nn.ModuleList([nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)])
            nn.init.ones_(self.encoder.layers[0].weight)
            nn.init.zeros_(self.encoder.layers[1].weight)

    sizes = model_size(Model(), {"encoder.layers.1": entry()})
    assert sizes["encoder"].dense_bytes == 2 * 400
    assert sizes["encoder"].compressed_bytes == 400 + 13


def test_layers_that_share_their_weights_count_once():
    model = build("albert")
    linears = [m for m in model.albert.encoder.modules() if isinstance(m, nn.Linear)]
    inside = [m for m in linears if m is not model.albert.encoder.embedding_hidden_mapping_in]
    assert model_size(model, {})["encoder"].parameters == sum(m.weight.numel() for m in inside) > 0


@pytest.mark.parametrize("per_row", [True, False])
def test_a_table_as_quantization_aware_training_leaves_it(tiny_teacher, per_row):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    name = "bert.embeddings.word_embeddings"
    table = make_tables_compressible(model, [name], "targets")[name]
    table.weight_quantizer = TableQuantizer(table.num_embeddings, per_row)
    manifest = manifest_with_scales(model)
    size = model_size(fold(model), {}, manifest["embeddings"])["model"]
    scales = table.num_embeddings if per_row else 1
    assert size.dense_bytes - size.value_bytes == 3 * table.weight.numel() - 4 * scales
