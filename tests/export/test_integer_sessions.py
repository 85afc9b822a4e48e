"""Integer files are right in every session of ONNX Runtime, whatever the processor; and weights say why."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export.quantized import quantized, tiny_tokenizer
from models.families import FAMILIES, batch, build
from onnx import TensorProto, numpy_helper
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import lit_compress.runtimes.onnx_session
from lit_compress.export import from_student, write
from lit_compress.export.onnx import IntegerOptions, write_onnx_int8
from lit_compress.runtimes.onnx_session import adds_in_16_bits, open_session

HEADS = (
    *(AutoModelForSequenceClassification, AutoModelForTokenClassification),
    *(AutoModelForQuestionAnswering, AutoModelForMaskedLM),
)
# Weights that ONNX Runtime multiplies with integers, and where their zero point is among the inputs.
PRODUCTS = {"DequantizeLinear": (0, 2), "MatMulInteger": (1, 3)}


def export(model, folder, processor="any"):
    options = IntegerOptions(processor=processor)
    write(from_student(model, tiny_tokenizer(folder)), folder / "out", lambda *given: write_onnx_int8(*given, options))
    return folder / "out/onnx/model_quantized.onnx"


def weights_of(path):
    """Integers of each product of two of them, and what is stored as their zero point."""
    graph = onnx.load(path).graph
    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    aliases = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            continue
        place, zero = PRODUCTS[node.op_type]
        name = node.input[place]
        while name in aliases:
            name = aliases[name]
        if name in stored and stored[name].ndim == 2:
            point = node.input[zero] if len(node.input) > zero else None
            yield stored[name], point if point is None or point not in made else made[point]


def product_in_16_bits(inputs, weight):
    """``inputs @ weight`` of bytes as x86 processors without VNNI add it: two products in 16 bits, which saturate."""
    rows = len(weight) // 2 * 2
    pairs = inputs[:, :rows].astype(int)[:, :, None] * weight[:rows].astype(int)
    pairs = pairs.reshape(len(inputs), -1, 2, weight.shape[1]).sum(2)
    rest = inputs[:, rows:].astype(int) @ weight[rows:].astype(int)
    return pairs.clip(-(2**15), 2**15 - 1).sum(1) + rest


def outputs(session):
    ids = batch(4, 9) | {"token_type_ids": torch.zeros(4, 9, dtype=torch.long)}
    return session.run(None, {each.name: ids[each.name].numpy() for each in session.get_inputs()})


@pytest.mark.parametrize("made", ["trained", "rounded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_opens_in_default_and_precise_sessions_with_the_same_outputs(family, made, tmp_path):
    model = quantized(family) if made == "trained" else build(family, initializer_range=0.3)
    path = export(model, tmp_path)
    default, precise = (open_session(path, 1, precise=precise) for precise in (False, True))
    for ours, theirs in zip(outputs(default), outputs(precise), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_every_head_opens_in_default_and_precise_sessions_with_the_same_outputs(head, tmp_path):
    path = export(build("bert", head, initializer_range=0.3), tmp_path)
    default, precise = (open_session(path, 1, precise=precise) for precise in (False, True))
    for ours, theirs in zip(outputs(default), outputs(precise), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "stored"),
    [
        (lambda: quantized("bert"), np.uint8),  # 8 bits in training
        (lambda: quantized("bert", bits=7), np.int8),
        (lambda: quantized("bert", inputs="dynamic"), np.uint8),
        (lambda: build("bert"), np.int8),  # rounded to 7 bits
    ],
)
def test_no_product_overflows_16_bits(model, stored, tmp_path):
    found = list(weights_of(export(model(), tmp_path)))
    assert len(found) == 18
    assert {weight.dtype.type for weight, _ in found} == {stored}
    for weight, _ in found:
        if weight.dtype == np.int8:  # products with uint8 are added in 32 bits
            largest = np.full((1, len(weight)), 255)
            np.testing.assert_array_equal(product_in_16_bits(largest, weight), largest @ weight.astype(int))


def test_weights_of_8_bits_overflow_where_they_were_asked_to_stay(tmp_path):
    weights = [weight for weight, _ in weights_of(export(quantized("bert"), tmp_path, "vnni"))]
    assert {weight.dtype.type for weight in weights} == {np.int8}
    inputs = np.where(weights[0][:, :1].T > 0, 255, 0)
    assert (product_in_16_bits(inputs, weights[0]) != inputs @ weights[0].astype(int)).any()


def test_no_zero_point_is_shared_by_weights_that_a_precise_session_changes(tmp_path):
    found = list(weights_of(export(quantized("bert"), tmp_path, "vnni")))
    assert [point for _, point in found] == [None] * 18
    open_session(tmp_path / "out/onnx/model_quantized.onnx", 1, precise=True)


def test_the_probe_tells_what_this_processor_does():
    cpu = Path("/proc/cpuinfo")
    has_dot_products = not cpu.exists() or any(word in cpu.read_text() for word in ("vnni", "asimddp"))
    assert adds_in_16_bits() == (not has_dot_products)


def shared_zero_point(path):
    """Two products with one zero point of their weights, which ONNX Runtime 1.31 does not open precisely."""
    helper = onnx.helper
    weight = np.full((8, 8), 127, np.int8)
    stored = {"a": weight, "b": weight + 0, "s": np.ones(8, np.float32), "z": np.zeros(8, np.int8)}
    stored |= {"xs": np.float32(1), "xz": np.uint8(0)}
    nodes = [helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"])]  # fmt: skip
    for name in ("a", "b"):
        nodes.append(helper.make_node("DequantizeLinear", [name, "s", "z"], [f"{name}d"], axis=1))
        nodes.append(helper.make_node("MatMul", ["d", f"{name}d"], [f"{name}y"]))
    nodes.append(helper.make_node("Add", ["ay", "by"], ["y"]))
    value = helper.make_tensor_value_info
    ends = [[value(name, TensorProto.FLOAT, [1, 8])] for name in "xy"]
    tensors = [numpy_helper.from_array(np.asarray(tensor), name) for name, tensor in stored.items()]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_a_session_that_cannot_be_precise_says_so_and_runs(tmp_path, monkeypatch):
    shared_zero_point(tmp_path / "old.onnx")
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        open_session(tmp_path / "old.onnx", 1, precise=True)
    monkeypatch.setattr(lit_compress.runtimes.onnx_session, "adds_in_16_bits", lambda: True)
    with pytest.warns(UserWarning, match="x64quantprecision=1"):
        open_session(tmp_path / "old.onnx", 1)


def test_a_file_for_any_processor_needs_no_precise_session(tmp_path, monkeypatch):
    asked = []
    opening = lit_compress.runtimes.onnx_session._open
    monkeypatch.setattr(lit_compress.runtimes.onnx_session, "adds_in_16_bits", lambda: True)
    monkeypatch.setattr(
        lit_compress.runtimes.onnx_session,
        "_open",
        lambda *a, precise: (asked.append(precise), opening(*a, precise))[1],
    )
    open_session(export(quantized("bert"), tmp_path), 1)
    assert not any(asked)
    (tmp_path / "second").mkdir()
    open_session(export(quantized("bert"), tmp_path / "second", "vnni"), 1)
    assert asked[-1]
