"""Finds, on a CPU, what in a training step would wait for a GPU: tensors read on the host, shapes that they decide."""

import sys
from collections import defaultdict
from contextlib import contextmanager
from functools import cache

import torch
from lightning.pytorch import Callback
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_compress.models import attention
from lit_compress.modules import encoder
from lit_compress.strategies import Scheduled

# Their results are on the host, or have as many elements as some tensor says.
_WAITING = {
    "_local_scalar_dense", "_unique", "_unique2", "allclose", "bincount", "equal", "is_nonzero", "masked_select",
    "nonzero", "unique_consecutive", "unique_dim",
}  # fmt: skip
_INDEXING = {"_index_put_impl_", "_unsafe_index", "index", "index_put", "index_put_"}
_READING = {
    *("__array__", "__bool__", "__contains__", "__float__", "__index__", "__int__"),
    *("cpu", "item", "numpy", "tolist"),
}
# With a device: a copy from memory that is not pinned, for which torch waits.
_UPLOADING = {"as_tensor", "from_numpy", "new_tensor", "tensor"}


# An attribute of tensors that were made of Python's numbers without a device: they are on the host of a GPU, too.
_ON_HOST = "_made_of_numbers"


def _on_host(tensors):
    return bool(tensors) and all(hasattr(tensor, _ON_HOST) for tensor in tensors)


class _Operators(TorchDispatchMode):
    def __init__(self, tell):
        super().__init__()
        self.tell = tell

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = _name(func)
        result = func(*args, **(kwargs or {}))
        if name == "lift_fresh" or _on_host(_tensors([*args, *(kwargs or {}).values()])):
            for tensor in _tensors((result,)):
                setattr(tensor, _ON_HOST, True)
        elif name in _WAITING or (name in _INDEXING and _by_mask(args[1])):
            self.tell(name)
        return result


@cache
def _name(func):
    return func._schema.name.removeprefix("aten::")


class _Functions(TorchFunctionMode):
    def __init__(self, tell):
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _READING and not _on_host(_tensors(args[:1])):
            self.tell(name)
        if name in _UPLOADING and (kwargs.get("device") is not None or name == "new_tensor"):
            self.tell(f"{name} to the device")
        return func(*args, **kwargs)


@contextmanager
def noted():
    """A list of what waits inside the block."""
    found = []
    with _Operators(found.append), _Functions(found.append):
        yield found


class Waits(Callback):
    """Notes by batch what waited, from its start until everything is logged. Comes before all other callbacks.

    Attributes:
        found: number of the batch in the run to descriptions.
        updated: batches after which a strategy changed something.

    """

    def __init__(self, monkeypatch):
        for module in (attention, encoder):
            monkeypatch.setattr(module, "waited_for", lambda device: True)
        self.found, self.updated, self._batch, self._modes = defaultdict(list), set(), 0, []
        update = Scheduled._update_when_due

        def update_noted(strategy, trainer, module):
            if strategy.window is not None and trainer.global_step in strategy.updates(trainer):
                self.updated.add(self._batch)
                self._leave()  # nobody asks what waited in this batch, and second-order statistics have many operators
            update(strategy, trainer, module)

        monkeypatch.setattr(Scheduled, "_update_when_due", update_noted)

    def ordinary(self, logged):
        """Batches that neither log nor change masks."""
        return [batch for batch in range(self._batch) if batch not in self.updated and batch not in logged]

    def on_train_start(self, trainer, module):
        loop = trainer.fit_loop.epoch_loop
        ended = loop.on_advance_end

        def after(fetcher):  # and before a validation
            self._end()
            ended(fetcher)

        loop.on_advance_end = after

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._modes = [_Operators(self._tell), _Functions(self._tell)]
        for mode in self._modes:
            mode.__enter__()

    def on_exception(self, *_):
        self._end()

    def _end(self):
        self._batch += 1
        self._leave()

    def _leave(self):
        while self._modes:
            self._modes.pop().__exit__(None, None, None)

    def _tell(self, what):
        frame = sys._getframe(1)
        while "torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
            frame = frame.f_back
        self.found[self._batch].append(f"{what} in {frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}")


def _by_mask(indices):
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _tensors(values):
    """Tensors among some arguments, and in lists among them; by hand, because each operator passes here."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _tensors(value)
    return found
