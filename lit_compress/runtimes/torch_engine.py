"""PyTorch as one of the runtimes, and any runtime as a model that takes tensors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from numpy.typing import NDArray

from lit_compress.models.folder import load_whole_model
from lit_compress.models.input_names import model_inputs
from lit_compress.runtimes.engines import Engine

__all__ = ["TorchEngine", "answers"]


class TorchEngine:
    """A folder's model in eager PyTorch or compiled; see :class:`~lit_compress.runtimes.engines.Engine`.

    Args:
        folder: of the model.
        compiled: with ``torch.compile``.
        threads: of the processor; None leaves it to PyTorch.
        device: of the model.

    """

    def __init__(self, folder: Path, compiled: bool, threads: int | None, device: str) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        model: Any = load_whole_model(str(folder), "model")
        model.to(self.device)
        self.inputs = model_inputs(model)
        self._model = torch.compile(model) if compiled else model

    @torch.inference_mode()
    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name, fp32, of a batch with arrays ``(rows, tokens)``."""
        given = {name: torch.as_tensor(batch[name]).to(self.device) for name in self.inputs if name in batch}
        result = self._model(**given, return_dict=True)
        names = [name for name in result if "logits" in name] or [
            name for name in ("last_hidden_state", "sentence_embedding") if name in result
        ]
        return {name: result[name].float().cpu().numpy() for name in names}


def answers(engine: Engine) -> Callable[[Mapping[str, torch.Tensor]], SimpleNamespace]:
    """A function that takes tensors by name and gives what an engine computes, as attributes like Transformers'."""

    def answer(batch: Mapping[str, torch.Tensor]) -> SimpleNamespace:
        arrays = engine({name: tensor.numpy() for name, tensor in batch.items()})
        return SimpleNamespace(**{name: torch.as_tensor(array) for name, array in arrays.items()})

    return answer
