"""`lit_compress compress`: from a model and a file of examples to a family of faster models, measured."""

from lit_compress.auto.compress import Family, Member, compress

__all__ = ["Family", "Member", "compress"]
