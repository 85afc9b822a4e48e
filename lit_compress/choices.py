"""Words that options choose from, where nothing else has to be imported for them."""

from typing import Literal

__all__ = [
    "Dtype",
    "EngineName",
    "Format",
    "GuessedTask",
    "Half",
    "LayoutChoice",
    "Precision",
    "Processor",
    "Target",
    "TrainerPrecision",
]

Dtype = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
EngineName = Literal["eager", "compile", "onnxruntime", "openvino"]
Format = Literal["hf", "packed", "sparse", "onnx", "onnx-int8", "openvino", "openvino-int8", "compressed-tensors"]
Half = Literal["fp16", "bf16"]
GuessedTask = Literal[
    "classification",
    "regression",
    "multi-label",
    "token-classification",
    "question-answering",
    "pretraining",
    "embedding",
    "reranking",
]
LayoutChoice = Literal["auto", "dense", "tall_blocks", "blocks", "bitmap", "two_four"]
Precision = Literal["int8", "fp8"]
Processor = Literal["any", "vnni"]
Target = Literal["onnx-int8", "onnx", "openvino-int8", "openvino", "hf"]
TrainerPrecision = Literal["32-true", "bf16-mixed"]
