"""Baselines of a GPU, as far as a machine without one can tell: what they compute, and that no mask is made."""

from functools import partial

import pytest
import torch
from transformers import BertConfig, BertModel

from tools.bench.baselines import faults, forward, unmasked, unpadded
from tools.bench.encoder import batches


@pytest.fixture
def dense():
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    return BertModel(config, add_pooling_layer=False).eval()


def masks(run, batch):
    """What each attention of the graph that dynamo makes is given as a mask."""
    seen = []

    def backend(graph, _):
        for node in graph.graph.nodes:
            if "scaled_dot_product" in str(node.target):
                mask = node.kwargs.get("attn_mask")
                seen.append(None if mask is None else tuple(mask.meta["example_value"].shape))
        return graph.forward

    torch._dynamo.reset()
    with torch.inference_mode():
        torch.compile(run, backend=backend, fullgraph=True, dynamic=False)(batch)
    return seen


@torch.inference_mode()
def test_without_padding_no_mask_is_made_and_the_outputs_are_those_of_eager(dense):
    batch = batches("3x8", 1.0, 50, "cpu")[0]

    torch.testing.assert_close(forward(unmasked(dense), batch), forward(dense, batch))
    assert masks(partial(forward, unmasked(dense)), batch) == [None, None]
    assert dense.config._attn_implementation == "sdpa"


def test_a_padded_batch_is_compiled_whole_with_its_mask(dense):
    batch = batches("3x8", 0.5, 50, "cpu")[0]

    assert masks(partial(forward, dense), batch) == [(3, 1, 8, 8)] * 2


@pytest.mark.parametrize("rows", [16, 24])
@torch.inference_mode()
def test_an_unpadded_batch_gives_the_outputs_of_a_padded_one(dense, rows):
    batch = batches("3x8", 0.5, 50, "cpu")[0]
    inside = batch["attention_mask"].unsqueeze(-1)
    expected = forward(dense, batch) * inside

    torch.testing.assert_close(unpadded(dense, rows)(batch), expected)
    # As in a graph, where the number of rows is fixed and the last ones stand for no token.
    traced = torch.compile(unpadded(dense, rows), backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(traced(batch), expected)


def test_a_batch_that_has_no_room_is_no_number_instead_of_wrong(dense):
    batch = batches("3x8", 0.5, 50, "cpu")[0]

    traced = torch.compile(unpadded(dense, 4), backend="eager", fullgraph=True, dynamic=False)

    with torch.inference_mode():
        assert traced(batch).isnan().all()


FLASH = "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>(Flash_fwd_params)"
PRODUCT = "nvjet_tst_128x256_64x4_2x1_v_bz_TNN"


@pytest.mark.parametrize(
    "name",
    [
        "sm80_xmma_gemm_f32f32_f32f32_f32_nn_n_tilesize64x64x8_stage3_warpsize1",
        "triton_per_fused__safe_softmax_add_arange_exp_expand_ge_prepare_softma",
        "void (anonymous namespace)::softmax_warp_forward<float, float, float, 7, false, false>",
        "ampere_sgemm_64x64_tn",
    ],
)
def test_attention_in_fp32_is_a_fault(name):
    assert faults([PRODUCT, FLASH, name]) == [f"attention in fp32: {name}"]


def test_flash_attention_is_demanded_and_a_mask_may_take_another_fused_one():
    efficient = "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)"

    assert not faults([PRODUCT, FLASH])
    assert faults([PRODUCT, efficient]) == ["no flash attention"]
    assert not faults([PRODUCT, efficient], masked=True)
    assert faults([PRODUCT], masked=True) == ["no fused attention"]
