"""Exported models at work: predictions of whole files."""

from lit_compress.serve.predict import predict

__all__ = ["predict"]
