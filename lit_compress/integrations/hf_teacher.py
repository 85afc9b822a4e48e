"""Distillation in the Hugging Face Trainer: the loss of a step takes terms from a teacher's outputs."""

from collections.abc import Mapping
from types import MethodType
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer

from lit_compress.errors import UserError
from lit_compress.integrations.hf_trainer import TERMS, check_untouched, student_in
from lit_compress.models.attention import visible_attention
from lit_compress.models.projections import read_projections
from lit_compress.modules.distillation import Distillation, LogitDistillation, label_weight, named_terms
from lit_compress.nn.teacher import FrozenTeacher
from lit_compress.tasks import Batch

__all__ = ["add_teacher"]


def add_teacher(
    trainer: Trainer, teacher: PreTrainedModel, distillation: Mapping[str, Distillation] | None = None
) -> None:
    """Let a Trainer's model learn from a teacher, too.

    The loss of a training step becomes ``(1 - sum of hardness) * loss + sum of weight * term``, as in ``LitStudent``;
    that of an evaluation stays what it is.

    Args:
        trainer: not trained yet; its ``compute_loss`` is wrapped, whatever class of Trainer it is.
        teacher: fine-tuned for the same task, with the same tokenizer.
        distillation: terms by name; without any ``{"kd": LogitDistillation()}``.

    Raises:
        UserError: the models do not go together, or the Trainer has an optimizer or a teacher already.

    """
    student = student_in(trainer.model)
    if trainer.model is not student:
        raise UserError(
            "teacher: the model has a Hugging Face model in it but is not one, and terms do not know its outputs; "
            "use a distillation loss of sentence-transformers"
        )
    check_untouched(trainer, "teacher")
    if teacher is student:
        raise UserError("teacher: it is the model that is trained; load it a second time")
    if trainer.optimizer is not None:
        raise UserError("teacher: the Trainer has an optimizer already; call add_teacher before train()")
    if hasattr(student, TERMS):
        raise UserError("teacher: this Trainer has one already")
    if teacher.config.vocab_size != student.config.vocab_size:
        raise UserError(
            f"teacher: it has a vocabulary of {teacher.config.vocab_size} and the model one of "
            f"{student.config.vocab_size}; both read the same token ids"
        )
    if getattr(teacher.config, "num_labels", None) != getattr(student.config, "num_labels", None):
        raise UserError(
            f"teacher: it has {teacher.config.num_labels} labels and the model {student.config.num_labels}; give one "
            "that was trained on the same labels"
        )
    terms = dict(distillation or {"kd": LogitDistillation()})
    for term in terms.values():
        term.prepare(student.config, [teacher.config])
        if term.needs_attentions:
            visible_attention(student, "model")
            visible_attention(teacher, "teacher")
    module = named_terms(terms, "distillation")
    # Losses of many models take the number of a step's labels and leave it unused; means of batches, which the Trainer
    # then divides by the number of batches, are what terms are, too.
    trainer.model_accepts_loss_kwargs = False
    # A part of the model, so that learned projections are trained, moved and saved in checkpoints with it.
    setattr(student, TERMS, module.to(student.device))
    _Distilled(trainer, FrozenTeacher(teacher), terms, label_weight(list(terms.values()))).install()


class _Distilled:
    """The loss of a Trainer with the terms of a teacher."""

    def __init__(self, trainer: Trainer, teacher: FrozenTeacher, terms: dict[str, Distillation], share: float) -> None:
        self.theirs = trainer.compute_loss
        self.teacher, self.terms, self.share = teacher.to(trainer.args.device), terms, share
        self.options = {"output_hidden_states": any(term.needs_hidden_states for term in terms.values())}
        if any(term.needs_attentions for term in terms.values()):
            self.options["output_attentions"] = True
        layers = [term.needs_projections for term in terms.values() if term.needs_projections is not None]
        self.layers = [{pair[side] for pair in layers} for side in range(2)]
        self.trainer = trainer

    def install(self) -> None:
        this = self

        def compute_loss(_: Trainer, model: nn.Module, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            return this(model, inputs, return_outputs, **more)

        self.trainer.compute_loss = MethodType(compute_loss, self.trainer)  # type: ignore[method-assign]

    def __call__(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        if not model.training:
            return self.theirs(model, inputs, return_outputs=return_outputs, **more)
        seen = {name: value for name, value in inputs.items() if "label" not in name}
        targets = {name: value for name, value in inputs.items() if "label" in name}
        with read_projections(student_in(self.trainer.model), self.layers[0]) as projections:
            answered: Any = self.theirs(model, dict(inputs) | self.options, return_outputs=True, **more)
        loss, output = answered
        if projections:
            output.projections = projections
        with read_projections(self.teacher.model, self.layers[1]) as projections:
            answer: Any = self.teacher(**seen, **self.options)
        if projections:
            answer.projections = projections
        batch = Batch(seen, targets, {})
        total = self.share * loss
        scale = self._share_of_a_step()
        for term in self.terms.values():
            total = total + scale * term.weight * term(output, answer, batch)
        return (total, output) if return_outputs else total

    def _share_of_a_step(self) -> float:
        """What a batch's terms count in an optimizer step, where the Trainer does not divide the loss afterwards."""
        trainer = self.trainer
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)  # said by a subclass, in newer versions
        if scaled is None:
            scaled = trainer.compute_loss_func is not None
        return 1.0 / trainer.current_gradient_accumulation_steps if scaled else 1.0
