"""`lit_compress predict --config ... --output`: predictions of the training form, as a file."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.export.run_folder import task_of
from lit_compress.serve.predict import NOT_FOR_PREDICTION, fingerprint
from lit_compress.serve.prediction_file import PredictionFile
from lit_compress.serve.records import Records, schema_of
from lit_compress.sources import resolve_package

__all__ = ["WritePredictions"]


class WritePredictions(Callback):
    """Writes what ``predict_step`` gives; an interrupted run continues where its last full part ends.

    Args:
        output: ``.csv``, ``.jsonl`` or ``.parquet``.
        model: the checkpoint, or the model without one.
        data: options of the data module. Parts that are there must have been made with the same of both.

    """

    def __init__(self, output: str, model: str, data: Mapping[str, Any]) -> None:
        self.output, self.model, self.data = output, model, data
        self._file: PredictionFile | None = None
        self._records: Records | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, TextData):
            raise UserError("--output: the data module does not say which rows it predicts; write a TextData")
        if trainer.world_size > 1:
            raise UserError(f"--output: {trainer.world_size} devices would write one file; give trainer.devices 1")
        source = data.source("predict")
        if data.files["predict"] is None or source is None:
            raise UserError("data.predict_file: missing; give the file to predict on")
        rows = data.predict_rows()
        if not len(rows):
            raise UserError(
                f"data.predict_file: no row of {source!r} makes an example; give --model instead of --config, which "
                "writes the empty answers"
            )
        task = task_of(data)
        options = {name: value for name, value in self.data.items() if name not in NOT_FOR_PREDICTION}
        settings = {"model": fingerprint(self.model), "data": options, "precision": str(trainer.precision)}
        settings["file"] = fingerprint(resolve_package(source, "data.predict_file"))
        self._file = PredictionFile(self.output, schema_of(task), settings)
        done = self._file.done
        # All rows may be written: a loader without examples would be an error, so that the last is predicted again.
        data.predict_from = min(done, int(rows[-1]))
        self._records = Records(task, rows[data.predict_start :], min(done, int(rows[data.predict_start])))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._file is not None
        assert self._records is not None
        self._file.add(self._records.add(outputs))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._file is not None
        assert self._records is not None
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._file.add(self._records.finish(data.predict_count()))
        self._file.finish()
