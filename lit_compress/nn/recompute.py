"""Whether a layer runs a second time, in the backward pass, to have its activations again."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

__all__ = ["checkpoint_contexts", "is_recomputed"]

# A plain global: the backward pass of a GPU runs in a thread of its own, while the others wait for it.
_recomputed = False


def is_recomputed() -> bool:
    """Whether what runs now has run before, for the same batch: then nothing may be counted twice."""
    return _recomputed


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """``context_fn`` of ``torch.utils.checkpoint.checkpoint``: around the first run, and around the second."""
    return nullcontext(), _again()


@contextmanager
def _again() -> Iterator[None]:
    global _recomputed
    _recomputed = True
    try:
        yield
    finally:
        _recomputed = False
