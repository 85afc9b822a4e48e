"""A student: learns the task from labels and from teachers."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from lit_compress.data.logit_cache import LogitStore
from lit_compress.errors import UserError
from lit_compress.models.attention import visible_attention
from lit_compress.models.load import check_compatible, check_same_vocabulary, load_config, load_model
from lit_compress.models.projections import read_projections
from lit_compress.modules.cached_teacher import CacheDtype, by_text, open_answers, teacher_digest
from lit_compress.modules.distillation import Distillation, LogitDistillation, label_weight, named_terms
from lit_compress.modules.embedding_distillation import EmbeddingDistillation
from lit_compress.modules.encoder import LitEncoder
from lit_compress.modules.optim import Optimization
from lit_compress.modules.saved_arguments import made_again
from lit_compress.nn.teacher import FrozenTeacher
from lit_compress.tasks import Batch, EmbeddingTask, Task

__all__ = ["LitStudent"]

# Entry of a batch's `meta`: cached outputs, by teacher.
_ANSWERS = "answers"


class LitStudent(LitEncoder):
    """Learns from labels and from frozen teachers while strategies compress it.

    ``loss = (1 - sum of hardness) * task + sum of weight * term``, each part logged as ``train/<name>``.

    Args:
        pretrained: pretrained model of the student; usually the teacher's own folder.
        teacher: hub name or folder of the fine-tuned teacher; None trains on the labels alone.
        distillation: terms by name; with a teacher and no terms, ``{"kd": LogitDistillation()}``, and for
            sentence embeddings ``{"kd": EmbeddingDistillation()}``.
        labels: class names, None for regression; comes from the data on the command line.
        tokenizer: tokenizer exported with the weights; comes from the data as well.
        optimization: learning rate, weight decay, warm-up and decay.
        compile: compile the student with ``torch.compile``.
        task: what the heads are for; comes from the data, too.
        teachers: several teachers by name, instead of ``teacher``; each term uses one of them or the mean of all.
        teacher_cache: folder for the teachers' logits: each teacher runs once on each training example before training,
            and never again in this run or any other; None runs it at every step.
        teacher_cache_dtype: of the stored logits.
        label_map: class names of a model, for example the teacher, -> labels of the data, if they differ.
        gradient_checkpointing: keep only the input of each layer of the student, and recompute it in the backward pass:
            less memory, the same gradients, the time of one more forward pass.

    """

    def __init__(
        self,
        pretrained: str,
        teacher: str | None = None,
        distillation: dict[str, Distillation] | None = None,
        labels: list[str] | None = None,
        tokenizer: str | None = None,
        optimization: Optimization = Optimization(),  # noqa: B008 (frozen)
        compile: bool = False,
        task: Task | str | None = None,
        teachers: dict[str, str] | None = None,
        teacher_cache: str | None = None,
        teacher_cache_dtype: CacheDtype = "float32",
        label_map: dict[str, str | int] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        distillation = made_again(distillation, dict[str, Distillation], "model.distillation")
        if teacher is not None and teachers:
            raise UserError("model.teachers: there is a model.teacher, too; give one or the other")
        # Of each teacher its name, its source, and the key that an error names.
        sources = {"teacher": teacher} if teacher else dict(teachers or {})
        keys = {name: "model.teacher" if teacher else f"model.teachers.{name}" for name in sources}
        if not sources and distillation:
            raise UserError(f"model.distillation: {list(distillation)} need a teacher; give model.teacher")
        terms = distillation or ({"kd": _default_term(task)} if sources else {})
        _check_teacher_names(terms, sources)
        _check_cache(terms, sources, teacher_cache, teacher_cache_dtype)
        configs = {name: load_config(source, keys[name]) for name, source in sources.items()}
        super().__init__(pretrained, labels, tokenizer, optimization, compile, task, label_map, gradient_checkpointing)
        held = {}
        for name, source in sources.items():
            check_compatible(self.student.config, configs[name], source, self.task, keys[name])
            rows = self.student.config.vocab_size, configs[name].vocab_size
            check_same_vocabulary(self.tokenizer, source, rows, keys[name])
            held[name] = FrozenTeacher(load_model(source, self.task, keys[name], label_map))
        self.read_from |= {keys[name]: (source, configs[name]) for name, source in sources.items()}
        self.teachers = named_terms(held, "model.teachers")
        for term in terms.values():
            used = [name for name in sources if term.teacher in (None, name)]
            term.prepare(self.student.config, [configs[name] for name in used])
            _open_up(term, self.student, {keys[name]: held[name].model for name in used})
        self.distillation = named_terms(terms, "model.distillation")
        self.label_weight = label_weight(list(terms.values()))
        self.teacher_cache = teacher_cache
        self.teacher_cache_dtype: CacheDtype = teacher_cache_dtype
        # Of the weights as they were loaded: a run in half precision casts them.
        self._digests = {name: teacher_digest(one.model) for name, one in held.items()} if teacher_cache else {}
        self._answers: dict[str, LogitStore] = {}

    @property
    def teacher(self) -> FrozenTeacher | None:
        """The teacher, when there is just one."""
        held = list(self.teachers.values())
        return held[0] if len(held) == 1 else None  # type: ignore[return-value]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The task's loss, each distillation term, and their weighted sum."""
        terms = self._terms()
        with read_projections(self.student, _layers(terms, 0)) as projections:
            output = self(batch, **_needs(terms))
        if projections:
            output.projections = projections
        parts = {"task": self.task.loss(output, batch)}
        loss = self.label_weight * parts["task"]
        answers = {name: self._ask(name, batch) for name in self.teachers}
        for name, term in self.distillation.items():
            assert isinstance(term, Distillation)
            used = [output for who, output in answers.items() if term.teacher in (None, who)]
            parts[name] = term(output, used[0], batch) if len(used) == 1 else term.average(output, used, batch)
            loss = loss + term.weight * parts[name]
        return parts | {"loss": loss}

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.teacher_cache is None:
            return
        for name, held in self.teachers.items():
            assert isinstance(held, FrozenTeacher)
            store = open_answers(self.trainer, held, self._digests[name], self.teacher_cache, self.teacher_cache_dtype)
            if store.per_token and any(getattr(term, "tokens", None) == "all" for term in self._terms(name)):
                raise UserError(
                    "distillation tokens: 'all' includes padding, about which model.teacher_cache has no answers; "
                    "set tokens to attended, or leave the cache out"
                )
            self._answers[name] = store
            held.cpu()  # all its outputs are cached, so its memory can be freed

    def on_host(self, batch: Batch) -> Batch:
        batch = super().on_host(batch)
        if not self._answers or not self.trainer.training:
            return batch
        # A GPU would be waited for to have the numbers of the examples back.
        answers = {name: self._look_up(name, batch) for name in self._answers}
        return batch._replace(meta=batch.meta | {_ANSWERS: answers})

    def _teacher_models(self) -> Iterable[Any]:
        return (held.model for held in self.teachers.values() if isinstance(held, FrozenTeacher))

    def configure_model(self) -> None:
        super().configure_model()
        if self.device_mesh is not None:
            # One optimizer step handles all parameters alike, so those of the terms are sharded like the student's.
            for term in self._terms():
                if next(term.parameters(), None) is not None:
                    fully_shard(term, mesh=self.device_mesh["data_parallel"])

    def _ask(self, name: str, batch: Batch) -> Any:
        """A teacher's output, or its cached output from before training."""
        if name in batch.meta.get(_ANSWERS, {}):
            return SimpleNamespace(**batch.meta[_ANSWERS][name])
        if name in self._answers:
            return SimpleNamespace(**self._look_up(name, batch))
        terms, teacher = self._terms(name), self.teachers[name]
        assert isinstance(teacher, FrozenTeacher)
        with read_projections(teacher.model, _layers(terms, 1)) as projections:
            answer = teacher(**self.inputs_of(teacher.model, batch), **_needs(terms))
        if projections:
            answer.projections = projections
        return answer

    def _look_up(self, name: str, batch: Batch) -> dict[str, Tensor]:
        """A teacher's cached output for a batch, on the device of its indices; on the host in pinned memory."""
        found = vars(self._answers[name].read(batch.meta["index"], batch.inputs["input_ids"].shape[1]))
        found = {key: by_text(value, batch.rows) for key, value in found.items()}
        pins = torch.cuda.is_available()
        return {key: value.pin_memory() if pins and not value.is_cuda else value for key, value in found.items()}

    def _terms(self, teacher: str | None = None) -> list[Distillation]:
        """All terms, or those that use one teacher."""
        terms = [term for term in self.distillation.values() if isinstance(term, Distillation)]
        return [term for term in terms if teacher is None or term.teacher in (None, teacher)]


def _default_term(task: Task | str | None) -> Distillation:
    name = task.name if isinstance(task, Task) else task
    return EmbeddingDistillation() if name == EmbeddingTask.name else LogitDistillation()


def _open_up(term: Distillation, student: Any, teachers: dict[str, Any]) -> None:
    """Enable the outputs that a term needs in both models, or raise at once; teachers by their config key."""
    if term.needs_attentions:
        for key, model in {"model.pretrained": student, **teachers}.items():
            visible_attention(model, key)
    if term.needs_projections is not None:
        ours, theirs = term.needs_projections
        for model, layer in ((student, ours), *((model, theirs) for model in teachers.values())):
            with read_projections(model, {layer}):
                pass


def _needs(terms: Iterable[Distillation]) -> dict[str, bool]:
    """Options of a Hugging Face forward."""
    terms = list(terms)
    needs = {"output_hidden_states": any(term.needs_hidden_states for term in terms)}
    if any(term.needs_attentions for term in terms):
        needs["output_attentions"] = True
    return needs


def _layers(terms: Iterable[Distillation], side: int) -> set[int]:
    return {term.needs_projections[side] for term in terms if term.needs_projections is not None}


def _check_teacher_names(terms: dict[str, Distillation], sources: dict[str, str]) -> None:
    for name, term in terms.items():
        if term.teacher is not None and term.teacher not in sources:
            raise UserError(
                f"model.distillation.{name}: teacher {term.teacher!r} is none of {list(sources)}; "
                "name one of them, or leave it out for the mean of all"
            )
    for name in sources:
        if not any(term.teacher in (None, name) for term in terms.values()):
            raise UserError(f"model.teachers.{name}: no term of model.distillation uses it; leave it out")


def _check_cache(terms: dict[str, Distillation], sources: dict[str, str], cache: str | None, dtype: CacheDtype) -> None:
    if dtype not in ("float32", "float16"):
        raise UserError(f"model.teacher_cache_dtype: {dtype!r} must be float32 or float16")
    if cache is None:
        if dtype != "float32":
            raise UserError(f"model.teacher_cache_dtype: {dtype!r} has no effect without model.teacher_cache")
        return
    if not sources:
        raise UserError("model.teacher_cache: there is no teacher; give model.teacher, or leave it out")
    for name, term in terms.items():
        if term.needs_hidden_states or term.needs_attentions or term.needs_projections is not None:
            raise UserError(
                f"model.teacher_cache: it holds logits, and the term {name!r} looks inside the teacher; "
                "remove the term, or the cache"
            )
