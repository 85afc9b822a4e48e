"""Build a student or teacher from a hub name, a folder or an installed package; safetensors only, no remote code."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import MODEL_MAPPING, AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from lit_compress.errors import UserError, first_line
from lit_compress.hub import check_hub
from lit_compress.models.labels import LabelMap, label_order, reorder_head
from lit_compress.models.sentence_embedding import give_embeddings
from lit_compress.sentence_settings import is_bare_encoder
from lit_compress.sources import absolute_source, check_safetensors, resolve_source

if TYPE_CHECKING:  # reading a packed model needs no metrics
    from lit_compress.tasks import Task

__all__ = [
    "check_compatible",
    "check_same_vocabulary",
    "load_classifier",
    "load_config",
    "load_model",
    "quiet_transformers",
    "transformers_progress",
]

_PRETRAINING = ("ForMaskedLM", "ForPreTraining")


def load_model(source: str, task: "Task", key: str, label_map: LabelMap | None = None) -> PreTrainedModel:
    """Load an encoder with the head of a task in fp32; a head that the source lacks is new and random.

    Weights of the encoder are never made up. A head whose classes are in another order than the task's labels is
    brought into theirs, which is said.

    Args:
        source: hub name, folder, or ``package:name/inner/folder``.
        task: says which head, and the names of its classes.
        key: config key named in errors.
        label_map: names of the model's classes -> labels, where they differ.

    Raises:
        UserError: nothing loadable there, a head for other labels, or a family without such a head.

    """
    config = load_config(source, key)
    has_head = task.has_head(config)
    order = _set_labels(config, task, source, key, label_map) if task.outputs is not None else None
    task.configure(config)
    model, missing = _from_pretrained(source, config, key, task)
    give_embeddings(model)
    task.check_head(model, key)
    if lacking := [name for name in missing if not _may_be_new(name, model, has_head, task)]:
        raise UserError(f"{key}: the weights in {source!r} lack {lacking[0]!r}; download or export them again")
    if order is not None:
        reorder_head(model, order)
    return model


def load_classifier(source: str, labels: Sequence[str] | None, key: str) -> PreTrainedModel:
    """:func:`load_model` for a classification, or without labels a regression."""
    from lit_compress.tasks import make_task

    return load_model(source, make_task(None, labels), key)


def _set_labels(
    config: PretrainedConfig, task: "Task", source: str, key: str, label_map: LabelMap | None
) -> list[int] | None:
    """Make a configuration that of the task's labels; which class of the head each of them is, if the order differs."""
    # A configuration that names no architecture may be that of a head all the same.
    order = None
    if task.has_head(config) or (not config.architectures and config.num_labels == task.outputs):
        order = label_order(config, task.labels, label_map, source, key)
    config.num_labels = task.outputs  # type: ignore[assignment]  (of a task that says how many)
    if task.labels is not None:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: index for index, label in enumerate(task.labels)}
    return order


def _may_be_new(name: str, model: PreTrainedModel, has_head: bool, task: "Task") -> bool:
    """Whether a weight that the source lacks may start at random: of the head, and the pooler before a new one."""
    if name.startswith(f"{model.base_model_prefix}."):
        return ".pooler." in name and not has_head
    return task.may_be_new(name, model.config)


def _from_pretrained(
    source: str, config: PretrainedConfig, key: str, task: "Task"
) -> tuple[PreTrainedModel, list[str]]:
    """A model, and the names of the weights that its source lacks and that are random now."""
    path = resolve_source(source, key)
    check_safetensors(path, config.architectures, key)
    check_hub(path, key)
    try:
        # The report about the new head would be the loudest line of every run, and it is what was asked for.
        with quiet_transformers():
            model, info = task.head.from_pretrained(
                absolute_source(path),  # the checkpoint keeps it, and a relative path could be read as a hub name
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise UserError(f"{key}: the weights in {source!r} are damaged ({error}); download them again") from error
    except Exception as error:  # whatever a foreign folder makes Transformers raise is that folder's fault
        raise UserError(f"{key}: {source!r} cannot be loaded: {first_line(error)}") from error
    # Transformers 5.17 continues with random weights where later versions raise.
    if mismatched := sorted(str(entry) for entry in info.get("mismatched_keys") or ()):
        raise UserError(
            f"{key}: {source!r} cannot be loaded: its configuration says another shape than its weights have "
            f"({mismatched[0]})"
        )
    return model, sorted(info["missing_keys"])


def load_config(source: str, key: str) -> PretrainedConfig:
    """The configuration of a model, without its weights.

    Raises:
        UserError: no such folder or hub model, or not an encoder's configuration.

    """
    path = resolve_source(source, key)
    folder = Path(path)
    if folder.is_file() or (folder.is_dir() and not (folder / "config.json").is_file()):
        raise UserError(f"{key}: {source!r} is not a model folder: it has no config.json")
    check_hub(path, key)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever a foreign folder or hub entry makes Transformers raise
        raise UserError(
            f"{key}: {source!r} is neither a folder nor a hub model that can be reached: {first_line(error)}"
        ) from error
    # sentence-transformers leaves the name of the model that it began from: all-mpnet-base-v2 says MPNetForMaskedLM.
    encoder: Any = MODEL_MAPPING.get(type(config), None)
    if encoder and str((config.architectures or [""])[0]).endswith(_PRETRAINING) and is_bare_encoder(config):
        config.architectures = [(encoder[0] if isinstance(encoder, tuple) else encoder).__name__]
    return config


def check_compatible(
    student: PretrainedConfig, teacher: PretrainedConfig, source: str, task: "Task", key: str = "model.teacher"
) -> None:
    """A teacher must have no head of another task and answer about as many labels.

    A bare encoder can be a teacher of hidden states.

    Args:
        student: configuration of the student.
        teacher: configuration of the teacher.
        source: where the teacher comes from, for the error.
        task: what the heads are for.
        key: config key named in the error.

    Raises:
        UserError: another head, or another number of labels.

    """
    other = next((name for name in teacher.architectures or [] if "For" in name), None)
    if other and not task.can_teach(teacher):
        raise UserError(
            f"{key}: {source!r} is a {other} without a head for {task.name}; give a teacher trained on this task"
        )
    if other and task.problem_type is not None and teacher.problem_type not in (None, task.problem_type):
        raise UserError(
            f"{key}: {source!r} was trained for {teacher.problem_type}, and the data is for {task.name}; "
            "give a teacher trained on this task"
        )
    if task.outputs is not None and teacher.num_labels != student.num_labels:
        raise UserError(
            f"{key}: {source!r} has {teacher.num_labels} labels and the data has {student.num_labels}; "
            "give a teacher fine-tuned on the same labels"
        )


def check_same_vocabulary(student: str, teacher: str, rows: tuple[int, int], key: str) -> None:
    """Every token of the student's tokenizer has the same id in the teacher's, and a row in the teacher's table.

    Tables are often filled up to a round number, so their sizes say something only where either has no tokenizer.

    Args:
        student: hub name, folder or ``package:`` of the student's tokenizer.
        teacher: hub name, folder or ``package:`` of the teacher's tokenizer.
        rows: of the tables of word embeddings, the student's and the teacher's.
        key: config key named in the error.

    Raises:
        UserError: a token has another id, or none, or no row; or without tokenizers, the tables differ in size.

    """
    if student == teacher and rows[0] == rows[1]:
        return
    ours, theirs = (_vocabulary(resolve_source(source, key)) for source in (student, teacher))
    if ours is None or theirs is None:
        if rows[0] != rows[1]:
            raise UserError(
                f"{key}: {teacher!r} has a vocabulary of {rows[1]} and the student one of {rows[0]}; both read the "
                "same token ids, so give a teacher whose folder has the same tokenizer"
            )
        return
    for token, index in sorted(ours.items(), key=lambda entry: entry[1]):
        if theirs.get(token) != index:
            raise UserError(
                f"{key}: {teacher!r} has another vocabulary: {token!r} is {index} for the student and "
                f"{theirs.get(token, 'nothing')} for the teacher; give a teacher with the same tokenizer"
            )
    if rows[1] < rows[0] and (largest := max(ours.values(), default=0)) >= rows[1]:
        raise UserError(
            f"{key}: {teacher!r} has {rows[1]} word embeddings and the tokenizer ids up to {largest}; "
            "give a teacher with the same tokenizer"
        )


def _vocabulary(path: str) -> dict[str, int] | None:
    try:
        # Without this file, which every tokenizer has, Transformers makes an empty one up from the configuration.
        if cached_file(path, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False) is None:
            return None
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False).get_vocab()
    except Exception:  # a teacher need not come with a tokenizer; then the sizes of the tables are compared
        return None


def transformers_progress(show: bool) -> None:
    """Show or hide Transformers' own bars for reading and writing weights."""
    (transformers_logging.enable_progress_bar if show else transformers_logging.disable_progress_bar)()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers says nothing but errors inside the block."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
