"""A student: the task, and what a teacher says about it."""

from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.models.load import check_compatible, load_config, load_model
from lit_compress.modules.distillation import Distillation, LogitDistillation, label_weight, named_terms
from lit_compress.modules.encoder import LitEncoder, model_inputs
from lit_compress.modules.optim import Optimization
from lit_compress.nn.teacher import FrozenTeacher

__all__ = ["LitStudent"]


class LitStudent(LitEncoder):
    """Learns from labels and from a frozen teacher; strategies compress it on the way.

    ``loss = (1 - sum of hardness) * task + sum of weight * term``, each part logged as ``train/<name>``.

    Args:
        pretrained: where the student starts; usually the teacher's own folder.
        teacher: hub name or folder of the fine-tuned teacher; None trains on the labels alone.
        distillation: terms by name; with a teacher and no terms, ``{"kd": LogitDistillation()}``.
        labels: class names, None where there are none; comes from the data on the command line.
        tokenizer: tokenizer exported beside the weights; comes from the data likewise.
        optimization: learning rate, weight decay, warm-up and decay.
        compile: compile the student with ``torch.compile``.
        task: what the heads are for; comes from the data likewise.

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
        task: str | None = None,
    ) -> None:
        if teacher is None and distillation:
            raise UserError(f"model.distillation: {list(distillation)} need a teacher; give model.teacher")
        teacher_config = load_config(teacher, "model.teacher") if teacher else None
        super().__init__(pretrained, labels, tokenizer, optimization, compile, task)
        terms = distillation or ({"kd": LogitDistillation()} if teacher else {})
        self.distillation = named_terms(terms, "model.distillation")
        self.label_weight = label_weight(list(terms.values()))
        self.teacher = None
        if teacher and teacher_config:
            check_compatible(self.student.config, teacher_config, teacher, self.task_name)
            self.teacher = FrozenTeacher(load_model(teacher, self.task_name, labels, key="model.teacher"))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The task's loss, each distillation term, and their weighted sum."""
        hidden = any(term.needs_hidden_states for term in self.distillation.values())
        output = self(batch, output_hidden_states=hidden)
        parts = {"task": self.task.loss(output, batch)}
        loss = self.label_weight * parts["task"]
        if self.teacher is not None:
            answer = self.teacher(**model_inputs(batch), output_hidden_states=hidden)
            for name, term in self.distillation.items():
                assert isinstance(term, Distillation)
                parts[name] = term(output, answer, batch)
                loss = loss + term.weight * parts[name]
        return parts | {"loss": loss}
