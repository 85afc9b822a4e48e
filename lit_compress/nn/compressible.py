"""The training form of a linear layer: dense weight, optional mask, optional weight and input quantizers."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_compress.functional.movement import masked_by_scores
from lit_compress.nn.quantizers import FakeQuantizer, MinMaxWeightQuantizer
from lit_compress.storage.weight import QuantizedWeight

__all__ = ["CompressibleLinear"]


class CompressibleLinear(nn.Linear):
    """An ``nn.Linear`` whose ``weight`` keeps its name and its Parameter, with optional slots.

    ``forward`` computes ``linear(input_quantizer(x), weight_quantizer(weight * weight_mask), bias)``, and
    ``output_quantizer`` of that. A quantizer maps 0 to 0 exactly, so the mask needs to be applied only once, before it.

    Args:
        *args: as for ``nn.Linear``.
        **kwargs: as for ``nn.Linear``.

    Attributes:
        weight_mask: bool buffer ``(out_features, in_features)``, True keeps; None until :meth:`add_mask`.
        mask_scores: Parameter of the same shape that the mask is made from and that learns in its place (movement
            pruning); None until :meth:`add_mask_scores`.
        weight_scores: fp32 buffer ``(out_features, in_features)``, importance collected since the last pruning; None
            until :meth:`add_weight_scores`.
        weight_quantizer: module on the masked weight; None when weights are not quantized.
        input_quantizer: module on the input; None when activations are not quantized.
        output_quantizer: module on the output; None when it stays as precise as it was summed up.
        kept_groups: bool buffer ``(groups,)``; the inputs are equal groups (attention heads, single neurons) of which
            those that are False are masked and will be cut out of the folded model; None until :meth:`add_groups`.
        group_scores: fp32 buffer ``(groups,)``, importance of the groups collected since the last pruning.

    """

    weight_mask: Tensor | None
    weight_scores: Tensor | None
    kept_groups: Tensor | None
    group_scores: Tensor | None
    mask_scores: nn.Parameter | None
    weight_quantizer: FakeQuantizer | None
    input_quantizer: FakeQuantizer | None
    output_quantizer: FakeQuantizer | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("weight_mask", None)
        self.register_buffer("weight_scores", None)
        self.register_buffer("kept_groups", None)
        self.register_buffer("group_scores", None)
        self.register_parameter("mask_scores", None)
        self.weight_quantizer = None
        self.input_quantizer = None
        self.output_quantizer = None

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """Take over the Parameters of ``linear`` (the same objects: an optimizer on them stays valid)."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def add_mask(self) -> None:
        """Install an all-True mask; does nothing when there is one."""
        if self.weight_mask is None:
            self.weight_mask = torch.ones_like(self.weight, dtype=torch.bool)

    def add_groups(self, count: int) -> None:
        """Divide the inputs into ``count`` groups, all kept; does nothing when they are divided already."""
        if self.kept_groups is None:
            device = self.weight.device
            self.kept_groups = torch.ones(count, dtype=torch.bool, device=device)
            self.group_scores = torch.zeros(count, device=device)

    def add_weight_scores(self) -> None:
        """Install a buffer of 0 for importance that is collected; does nothing when there is one."""
        if self.weight_scores is None:
            self.weight_scores = torch.zeros(self.weight.shape, device=self.weight.device)

    def add_mask_scores(self) -> None:
        """Install a mask, and scores of 0 for it; does nothing when there are some."""
        self.add_mask()
        if self.mask_scores is None:
            self.mask_scores = nn.Parameter(torch.zeros_like(self.weight))

    def effective_weight(self) -> Tensor:
        """The weight that the layer really uses: masked, then fake-quantized; ``(out_features, in_features)``."""
        weight = self._masked_weight()
        return weight if self.weight_quantizer is None else self.weight_quantizer(weight)

    def quantized_weight(self) -> QuantizedWeight | None:
        """The same as integers and their scales; None when the weight is not quantized."""
        quantizer = self.weight_quantizer
        return quantizer.quantize(self._masked_weight()) if isinstance(quantizer, MinMaxWeightQuantizer) else None

    def _masked_weight(self) -> Tensor:
        if self.weight_mask is None:
            return self.weight
        if self.mask_scores is not None:
            return masked_by_scores(self.weight, self.weight_mask, self.mask_scores)
        return self.weight * self.weight_mask

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        y = F.linear(x, self.effective_weight(), self.bias)
        return y if self.output_quantizer is None else self.output_quantizer(y)

    @torch.no_grad()
    def to_linear(self, quantized: QuantizedWeight | None = None) -> nn.Linear:
        """A plain ``nn.Linear`` with the effective weight: what the layer has become, for export.

        Args:
            quantized: of :meth:`quantized_weight`, where it is known already.

        """
        weight = self.effective_weight().detach() if quantized is None else quantized.weight().to(self.weight.dtype)
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.clone() if weight.data_ptr() == self.weight.data_ptr() else weight)
        linear.bias = self.bias
        return linear.train(self.training)
