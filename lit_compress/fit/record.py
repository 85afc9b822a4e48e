"""What made a run is kept in it."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_compress.data.same_tokens import check_tokenizer
from lit_compress.data.text_data import TextData
from lit_compress.export.run_folder import TOKENIZER, absolute_paths
from lit_compress.files import atomic_folder
from lit_compress.report.tensorboard import experiment

__all__ = ["RunRecord", "flat_settings"]


class RunRecord(SaveConfigCallback):
    """Keeps what made a run in it: `config.yaml`, the same as text in TensorBoard, hyper-parameters, the tokenizer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Not beside the events: a logger of another kind has a folder of its own.
        super().__init__(*args, save_to_log_dir=False, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # a later `validate` must not replace the configuration that made the model
            # Where a run was resumed from is no part of how to repeat it.
            self.config = self.config.clone()
            self.config["ckpt_path"] = None
            absolute_paths(self.config)
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        run = Path(trainer.default_root_dir)
        run.mkdir(parents=True, exist_ok=True)
        path = run / self.config_filename
        self.parser.save(self.config, str(path), skip_unset=False, overwrite=self.overwrite, multifile=self.multifile)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        tokenizer = run / TOKENIZER
        if isinstance(data, TextData) and not tokenizer.exists():
            with atomic_folder(tokenizer, kind="tokenizer") as staging:
                data.tokenizer.save_pretrained(staging)
                check_tokenizer(staging, data)
        if isinstance(trainer.logger, TensorBoardLogger):
            text = self.parser.dump(self.config, skip_unset=False)
            indented = "\n".join(f"    {line}" for line in text.splitlines())
            trainer.logger.experiment.add_text("config", indented)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.logger, TensorBoardLogger):
            final = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
            config = self.config.as_dict()
            chosen = {key: config[key] for key in ("model", "data", "compression", "seed_everything")}
            chosen["max_epochs"] = config["trainer"]["max_epochs"]
            trainer.logger.log_metrics(final)
            writer = trainer.logger.experiment._get_file_writer()
            for summary in experiment(flat_settings(chosen), final):
                writer.add_summary(summary)
            trainer.logger.save()


def flat_settings(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as a table of dotted names and scalars; a class is named by its last name.

    Example:
        >>> flat_settings({"prune": [{"class_path": "a.Prune", "init_args": {"sparsity": 0.8}}]})
        {'prune.Prune.sparsity': 0.8}

    """
    if isinstance(settings, dict) and "class_path" in settings:
        name = settings["class_path"].rpartition(".")[2]
        return flat_settings(settings.get("init_args") or {name: True}, f"{prefix}{name}.")
    if isinstance(settings, dict):
        return {k: v for key, value in settings.items() for k, v in flat_settings(value, f"{prefix}{key}.").items()}
    if isinstance(settings, list):
        return {k: v for value in settings if isinstance(value, dict) for k, v in flat_settings(value, prefix).items()}
    return {prefix.rstrip("."): settings} if isinstance(settings, str | int | float) else {}
