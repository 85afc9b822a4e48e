"""The fastest that a dense encoder in bf16 is on a GPU without this package: what ours has to be compared with.

Candidates, each with static shapes and without launches that Python makes: eager code as a CUDA graph, and
``torch.compile(mode="reduce-overhead", dynamic=False)``. Attention is torch's flash attention in all of them:

- Under ``torch.compile`` and while a graph is captured, Transformers builds a mask ``(batch, 1, tokens, tokens)`` even
  when nothing is padding, flash attention takes none, and what remains computes in fp32. Here the model gets an
  attention function without an entry among the mask functions, so that it makes no mask.
- Padded batches run padded with their mask, and unpadded: tokens of all sequences one behind the other, through
  ``torch.nn.attention.varlen``.

:func:`faults` reads the names of the kernels that really ran. A candidate with a fault is no baseline.
"""

import copy
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from lit_compress.ops.padding import find_sequences, pad

__all__ = [
    "candidates",
    "captured",
    "compiled",
    "faults",
    "forward",
    "kernel_names",
    "torchao_models",
    "unmasked",
    "unpadded",
]

Batch = dict[str, Tensor]
Forward = Callable[[Batch], Tensor]

# Attention in fp32, or with its scores in memory: of torch, of cuBLAS, of inductor.
_SLOW = re.compile(r"f32f32|sgemm|safe_softmax|softmax_warp|cunn_softmax", re.IGNORECASE)
# Flash attention's own kernels, those of cuDNN, and those that fuse attention with a mask.
_FLASH = re.compile(r"flash", re.IGNORECASE)
_FUSED = re.compile(r"flash|fmha|sdpa", re.IGNORECASE)


def candidates(dense: PreTrainedModel, given: list[Batch]) -> dict[str, Callable[[], Forward]]:
    """What makes dense models in bf16 on a GPU; names begin with ``bf16``, ``padded bf16`` or ``unpadded bf16``.

    Args:
        dense: on the GPU, in bf16.
        given: batches of one shape.

    """
    if "attention_mask" not in given[0]:
        run = partial(forward, unmasked(dense))
        return {"bf16, eager in a graph": partial(captured, run, given), "bf16, compiled": partial(compiled, run)}
    masked = partial(forward, dense)
    packed = unpadded(dense, max(int(batch["attention_mask"].sum()) for batch in given))
    return {
        "padded bf16, eager in a graph": partial(captured, masked, given),
        "padded bf16, compiled": partial(compiled, masked),
        "unpadded bf16, eager in a graph": partial(captured, packed, given),
        "unpadded bf16, compiled": partial(compiled, packed),
    }


def torchao_models(dense: PreTrainedModel) -> dict[str, Callable[[], Forward]]:
    """What makes models of torchao, compiled, for batches without padding; none where it is not installed."""
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8DynamicActivationInt8WeightConfig,
            PerRow,
            quantize_,
        )
    except ImportError:
        return {}

    def made(config: Any) -> Forward:
        theirs = unmasked(dense)
        quantize_(theirs, config)
        return compiled(partial(forward, theirs))

    return {
        "torchao int8": partial(made, Int8DynamicActivationInt8WeightConfig()),
        "torchao fp8": partial(made, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())),
    }


def unmasked(model: PreTrainedModel) -> PreTrainedModel:
    """A copy for batches without padding, whose attention is torch's and gets no mask."""
    return _with_attention(model, "without_mask")


def unpadded(model: PreTrainedModel, rows: int) -> Forward:
    """A copy for padded batches that computes no padding: hidden states ``(batch, length, width)``, 0 at padding.

    Args:
        model: dense.
        rows: of a compiled or captured graph: the unpadded tokens of the largest batch.

    """
    return partial(_forward_unpadded, _with_attention(model, "varlen"), rows)


def forward(model: Any, batch: Batch) -> Tensor:
    """Hidden states ``(batch, length, width)`` of the last layer."""
    return model(**batch).last_hidden_state


def compiled(run: Forward) -> Forward:
    """By ``torch.compile``, in CUDA graphs of its own, for one shape; what cannot be compiled whole is an error."""
    return torch.compile(run, mode="reduce-overhead", dynamic=False, fullgraph=True)


def captured(run: Forward, given: list[Batch]) -> Forward:
    """As a CUDA graph."""
    static = {name: tensor.clone() for name, tensor in given[0].items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hidden = run(static)

    def replay(batch: Batch) -> Tensor:
        for name, tensor in batch.items():
            static[name].copy_(tensor)
        graph.replay()
        return hidden

    return replay


def kernel_names(run: Callable[[], Any]) -> list[str]:
    """Names of the kernels that ``run`` starts on the GPU, in a CUDA graph or not, once for each start."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return [
        event.name
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
    ]


def faults(names: Iterable[str], masked: bool = False) -> list[str]:
    """Why an encoder that started kernels of these names is no fair baseline; empty when it is one.

    Args:
        names: of :func:`kernel_names`.
        masked: whether attention was given a mask, which flash attention does not take.

    Example:
        >>> faults(["flash_fwd_kernel", "sm80_xmma_gemm_bf16bf16_bf16f32_f32"])
        []
        >>> faults(["cutlass_f32f32_gemm"])
        ['attention in fp32: cutlass_f32f32_gemm', 'no flash attention']

    """
    names = list(names)
    found = [f"attention in fp32: {name}" for name in dict.fromkeys(names) if _SLOW.search(name)]
    if not any((_FUSED if masked else _FLASH).search(name) for name in names):
        found.append("no fused attention" if masked else "no flash attention")
    return found


def _forward_unpadded(model: PreTrainedModel, rows: int, batch: Batch) -> Tensor:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    sequences = find_sequences(mask, *ids.shape, ids.device, rows)
    if sequences.order is None:
        places = torch.arange(ids.numel(), device=ids.device)
    else:
        places = sequences.order.clamp(min=0).long()
    hidden = model(
        input_ids=ids.reshape(1, -1)[:, places],
        position_ids=(places % ids.shape[1]).unsqueeze(0),
        cu_seq_lens_q=sequences.starts,
        max_length_q=sequences.longest,
    ).last_hidden_state
    return pad(hidden[0], sequences)


def _with_attention(model: PreTrainedModel, name: str) -> PreTrainedModel:
    made = copy.deepcopy(model)
    # The configuration is the one thing that the model's attention looks at when it is called.
    made.config._attn_implementation = name
    return made


def _without_mask(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **_: Any
) -> tuple[Tensor, None]:
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2), None


def _varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention ``(1, heads, rows, width)`` within sequences."""
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        rows = [x[0].transpose(0, 1) for x in (query, key, value)]
        found = varlen_attn(*rows, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        assert isinstance(found, Tensor)
        return found.unsqueeze(0), None
    # torch has no such operator for processors: the same with a mask, for tests.
    rows = torch.arange(query.shape[2], device=query.device)
    of = torch.bucketize(rows, cu_seq_lens_q[1:].long(), right=True)
    mask = of.unsqueeze(1) == of
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2), None


# No entries in AttentionMaskInterface: a model with these makes no mask.
AttentionInterface.register("without_mask", _without_mask)
AttentionInterface.register("varlen", _varlen)
