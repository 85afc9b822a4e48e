"""What made a run is kept in it."""

from pathlib import Path
from typing import Any

import yaml
from lightning import __version__
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_compress.data.text_data import TextData
from lit_compress.data.tokenizer_check import check_tokenizer
from lit_compress.export.run_folder import TOKENIZER
from lit_compress.files import atomic_file, atomic_folder, begins
from lit_compress.report.hyperparameters import CURVES, experiment
from lit_compress.training.compared_settings import compared_settings

__all__ = ["RunRecord", "is_written"]

_MARK = "# lightning.pytorch"
# Whether a fit wrote a configuration.
is_written = begins(_MARK)


class RunRecord(Callback):
    """Keeps what made a run in it: `config.yaml`, the same as text in TensorBoard, hyper-parameters, the tokenizer.

    Args:
        settings: of the run, as a configuration has them, with absolute paths.

    """

    # Optimizer steps before the last validation, for what a fit says at its end; no part of a training.
    validated: int | None = None

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.is_global_zero:
            self._write(trainer)
        trainer.strategy.barrier()

    def _write(self, trainer: Trainer) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        run = Path(trainer.default_root_dir)
        text = yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)
        with atomic_file(run / "config.yaml") as staging:
            staging.write_text(f"{_MARK}=={__version__}\n{text}")
        tokenizer = run / TOKENIZER
        if isinstance(data, TextData) and not tokenizer.exists():
            with atomic_folder(tokenizer, kind="tokenizer") as staging:
                data.tokenizer.save_pretrained(staging)
                check_tokenizer(staging, data)
        if isinstance(trainer.logger, TensorBoardLogger):
            indented = "\n".join(f"    {line}" for line in text.splitlines())
            trainer.logger.experiment.add_text("config", indented)
            trainer.logger.experiment.add_custom_scalars(CURVES)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = trainer.global_step

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.logger, TensorBoardLogger):
            final = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
            # At the step that the last validation has: TensorBoard hides what is before a smaller one.
            trainer.logger.log_metrics(final, step=(self.validated or trainer.global_step) - 1)
            writer = trainer.logger.experiment._get_file_writer()
            for summary in experiment(compared_settings(self.settings), final):
                writer.add_summary(summary)
            trainer.logger.save()
