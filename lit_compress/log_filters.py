"""What other libraries say at every start and a user can do nothing about."""

import logging
import os
import sys
import warnings

from lightning.pytorch.utilities import rank_zero_only

from lit_compress.models.load import transformers_progress

__all__ = ["quieten"]


def quieten() -> None:
    """Leave out what Lightning and Transformers say at every start and a user can do nothing about."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if rank_zero_only.rank:  # what is said is said once
        logging.getLogger("lit_compress").setLevel(logging.ERROR)
    # A file that cannot be read is logged and then raised; the error alone says it.
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    transformers_progress(False)
    if not sys.stderr.isatty():  # a bar in a log file is a page of control characters
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
        if "datasets" in sys.modules:
            sys.modules["datasets"].disable_progress_bars()
    for message in (
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        # The command passes on the words that it was given.
        "LightningCLI's args parameter is intended to run from within Python.*",
        # Texts are tokenized before training; loading them is no work for another process.
        ".*does not have many workers.*",
        # The frozen teacher is in evaluation mode on purpose.
        "Found .* module\\(s\\) in eval mode at the start of training.*",
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message)
