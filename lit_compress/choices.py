"""Words that options choose from, where nothing else has to be imported for them."""

from typing import Literal

__all__ = ["EngineName", "Format", "GuessedTask", "LayoutChoice", "Precision", "Processor"]

EngineName = Literal["eager", "compile", "onnxruntime", "openvino"]
Format = Literal["hf", "packed", "sparse", "onnx", "onnx-int8", "openvino", "openvino-int8", "compressed-tensors"]
GuessedTask = Literal[
    "classification", "regression", "multi-label", "token-classification", "question-answering", "pretraining"
]
LayoutChoice = Literal["auto", "dense", "tall_blocks", "blocks", "bitmap", "two_four"]
Precision = Literal["int8", "fp8"]
Processor = Literal["any", "vnni"]
