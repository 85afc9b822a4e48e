"""Operators of packed models, each one launch on a GPU; on other devices torch computes the same.

All are ``torch.library`` operators of the namespace ``lit_compress``: they can be compiled, exported and captured in
CUDA graphs, and none waits for the GPU. ``TRITON_INTERPRET=1`` runs the kernels on the CPU, slowly, to test them.
"""

from lit_compress.ops.attention import attention_varlen
from lit_compress.ops.gate import gate_quantize
from lit_compress.ops.linear import dynamic_linear, quantized_linear
from lit_compress.ops.padding import Sequences, find_sequences, gather_rows, pad, unpad
from lit_compress.ops.relative_attention import attention_relative
from lit_compress.ops.rows import layernorm_quantize, quantize_rows, rotate_rows

__all__ = [
    "Sequences",
    "attention_relative",
    "attention_varlen",
    "dynamic_linear",
    "find_sequences",
    "gate_quantize",
    "gather_rows",
    "layernorm_quantize",
    "pad",
    "quantize_rows",
    "quantized_linear",
    "rotate_rows",
    "unpad",
]
