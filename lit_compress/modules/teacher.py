"""The dense model that comes first."""

from lit_compress.modules.encoder import LitEncoder

__all__ = ["LitTeacher"]


class LitTeacher(LitEncoder):
    """A dense encoder fine-tuned on the task alone.

    Its run ends with a plain Hugging Face folder ``model/``, which a :class:`LitStudent` takes as ``teacher``.
    """
