"""Finds, on a CPU, what in a training step would wait for a GPU: tensors read on the host, shapes that they decide."""

import traceback
from collections import defaultdict
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

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


class _Host:
    """Tensors that were made of Python's numbers without a device: they are on the host of a GPU, too."""

    def __init__(self):
        self._known = WeakIdKeyDictionary()

    def add(self, tensors):
        self._known.update((tensor, True) for tensor in tensors)

    def has(self, tensors):
        return bool(tensors) and all(tensor in self._known for tensor in tensors)


class _Operators(TorchDispatchMode):
    def __init__(self, host, tell):
        super().__init__()
        self.host, self.tell = host, tell

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, inputs = func._schema.name.removeprefix("aten::"), _tensors((args, kwargs))
        result = func(*args, **(kwargs or {}))
        if name == "lift_fresh" or self.host.has(inputs):
            self.host.add(_tensors(result))
        elif name in _WAITING or (name in _INDEXING and _by_mask(args[1])):
            self.tell(name)
        return result


class _Functions(TorchFunctionMode):
    def __init__(self, host, tell):
        super().__init__()
        self.host, self.tell = host, tell

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _READING and not self.host.has(_tensors(args)[:1]):
            self.tell(name)
        if name in _UPLOADING and (kwargs.get("device") is not None or name == "new_tensor"):
            self.tell(f"{name} to the device")
        return func(*args, **kwargs)


@contextmanager
def noted():
    """A list of what waits inside the block."""
    host, found = _Host(), []
    with _Operators(host, found.append), _Functions(host, found.append):
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
        self._host = _Host()
        update = Scheduled._update_when_due

        def update_noted(strategy, trainer, module):
            if strategy.window is not None and trainer.global_step in strategy.updates(trainer):
                self.updated.add(self._batch)
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
        self._modes = [_Operators(self._host, self._tell), _Functions(self._host, self._tell)]
        for mode in self._modes:
            mode.__enter__()

    def on_exception(self, *_):
        self._end()

    def _end(self):
        self._batch += 1
        while self._modes:
            self._modes.pop().__exit__(None, None, None)

    def _tell(self, what):
        own = [f for f in traceback.extract_stack() if "torch/" not in f.filename and f.filename != __file__]
        self.found[self._batch].append(f"{what} in {own[-1].filename.rpartition('/')[2]}:{own[-1].lineno}")


def _by_mask(indices):
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
