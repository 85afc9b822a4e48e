"""The commands that work on models: their options, and the help of each.

What a command does is imported when it is called, so that help and a wrong option need neither torch nor Transformers.
None is called like a public name or package, where jsonargparse would look for it and import what is there.
"""

from lit_compress.commands.models import compress_family, export_model, init_configs, pack_model, trim_vocabulary
from lit_compress.commands.results import benchmark, compare, explain, formats, latency, predict, report

__all__ = [
    "benchmark",
    "compare",
    "compress_family",
    "explain",
    "export_model",
    "formats",
    "init_configs",
    "latency",
    "pack_model",
    "predict",
    "report",
    "trim_vocabulary",
]
