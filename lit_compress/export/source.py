"""A run folder, a checkpoint or a model folder as the plain model that every format is written from."""

from dataclasses import replace
from pathlib import Path

from lit_compress.data.tables import load_tokenizer
from lit_compress.errors import UserError
from lit_compress.export.checkpoint import last_checkpoint, load_checkpoint, student_from_checkpoint
from lit_compress.export.run_folder import run_tokenizer
from lit_compress.models.folded import Folded, check_finite, use_student
from lit_compress.models.folder import load_whole_model
from lit_compress.models.manifest_file import UNFINISHED, check_unfinished, read_manifest
from lit_compress.models.packed import packed_linears
from lit_compress.sources import resolve_package
from lit_compress.tasks import TokenClassificationTask

__all__ = ["from_source"]


def from_source(run: str | None = None, checkpoint: str | None = None, model: str | None = None) -> Folded:
    """What a run folder, a checkpoint file or a Hugging Face folder holds; give one of the three.

    Raises:
        UserError: not exactly one, or nothing usable there.

    """
    if sum(source is not None for source in (run, checkpoint, model)) != 1:
        raise UserError("export: give one of --run, --checkpoint and --model")
    if model is not None:
        model = resolve_package(model, "--model")
        loaded = load_whole_model(model, "--model")
        if packed_linears(loaded):
            raise UserError(f"--model: {model!r} is packed already; give the run or the folder that it was made from")
        check_finite(loaded)
        tokenizer = load_tokenizer(model, "--model")
        return Folded(model=loaded, manifest=read_manifest(Path(model), loaded), tokenizer=tokenizer)
    if checkpoint is not None:
        path, content = Path(checkpoint), load_checkpoint(checkpoint)
    else:
        path, content = last_checkpoint(run or "")
    folder = path.absolute().parent  # a checkpoint may be named from its own folder
    kept = run_tokenizer(folder.parent) if folder.name == "checkpoints" else None
    source = content["lit_compress"]
    words = source["architecture"].endswith(TokenClassificationTask.architectures)  # as the data module reads it
    tokenizer = load_tokenizer(kept or source["tokenizer"], "checkpoint tokenizer", words)
    student = student_from_checkpoint(content)
    try:
        left = check_unfinished(content["lit_compress"].get(UNFINISHED, []))
    except ValueError as error:
        raise UserError(f"checkpoint: {str(path)!r} is damaged: {error}; use another one") from error
    del content  # a second copy of the weights, and the optimizer's state
    folded = use_student(student, tokenizer)
    return replace(folded, manifest=folded.manifest | {UNFINISHED: left}) if left else folded
