"""What `fit` keeps to about its run folder: who writes into it, checkpoints, signals, resuming."""

from lit_compress.training.fit import FittedRun, fit

__all__ = ["FittedRun", "fit"]
