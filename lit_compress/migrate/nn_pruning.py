"""Arguments of nn_pruning's scripts (a JSON of its sparse and Hugging Face's training arguments) as a draft."""

from collections.abc import Mapping
from typing import Any

from lit_compress.migrate.draft import Draft, Options
from lit_compress.migrate.expressions import number

__all__ = ["from_nn_pruning", "is_nn_pruning"]

_MARKS = (
    "dense_pruning_method",
    "attention_pruning_method",
    "mask_scores_learning_rate",
    "regularization_final_lambda",
)
_SOFT = ("sigmoied_threshold", "threshold")
_TRAINING = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "adam_epsilon": "epsilon",
    "mask_scores_learning_rate": "score_learning_rate",
}
_DATA = {
    "train_file": "train_file",
    "validation_file": "val_file",
    "dataset_name": "hub",
    "dataset_config_name": "hub_config",
    "version_2_with_negative": "no_answer",
}
_SIZES = {
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "max_seq_length": "max_length",
    "doc_stride": "doc_stride",
}
_TRAINER = {
    "max_steps": "max_steps",
    "gradient_accumulation_steps": "accumulate_grad_batches",
    "max_grad_norm": "gradient_clip_val",
    "logging_steps": "log_every_n_steps",
}
_SCRIPT = "the command line does it: run folder, checkpoints, validation and logs are its own"
_SCRIPT_NAMES = (
    *("output_dir", "logging_dir", "overwrite_output_dir", "overwrite_cache", "do_train", "do_eval", "run_name"),
    *("evaluation_strategy", "save_strategy", "save_steps", "eval_steps", "save_total_limit", "report_to"),
    *("logging_first_step", "disable_tqdm", "dataset_cache_dir", "cache_dir", "preprocessing_num_workers"),
)
_GUESSES = {"squad": "question_answering", "squad_v2": "question_answering", "conll2003": "token_classification"}


def is_nn_pruning(content: Mapping[str, Any]) -> bool:
    """Whether a JSON file has arguments of nn_pruning."""
    return any(name in content for name in _MARKS)


def from_nn_pruning(content: Mapping[str, Any], draft: Draft) -> None:
    """Fill a draft from the arguments, all in one mapping as the scripts take them."""
    options = Options("arguments", content, draft)
    draft.pretrained = options.take("model_name_or_path") or draft.pretrained
    if (guess := _GUESSES.get(str(content.get("dataset_name")))) and draft.task == "classification":
        draft.task = guess  # type: ignore[assignment]
    _pruning(options, draft)
    _distillation(options, draft)
    _training(options, draft)
    if "hub" in draft.data:
        draft.data["train_file"] = None
    if draft.task != "question_answering":
        for name in ("doc_stride", "no_answer"):
            if name in draft.data:
                draft.left_out.append(f"arguments.{name}: {draft.data.pop(name)}: it only concerns question answering")
    if "seed" in options:
        draft.seed = int(options.numeric("seed", 42))
    options.drop(_SCRIPT, *_SCRIPT_NAMES)
    options.finish()


def _training(options: Options, draft: Draft) -> None:
    for theirs, ours in _DATA.items():
        options.take_into(theirs, draft.data, ours)
    for names, target in ((_TRAINING, draft.optimization), (_SIZES, draft.data), (_TRAINER, draft.trainer)):
        for theirs, ours in names.items():
            options.take_number_into(theirs, target, ours)
    if draft.trainer.get("max_steps", 1) <= 0:
        del draft.trainer["max_steps"]


def _pruning(options: Options, draft: Draft) -> None:
    warmup, epochs = options.numeric("warmup_steps", 0), options.numeric("num_train_epochs", 3)
    draft.lasts(epochs)
    draft.optimization["warmup"] = f"{int(warmup)} steps"
    methods = {part: str(options.take(f"{part}_pruning_method", "topK")) for part in ("dense", "attention")}
    blocks = {part: [options.take(f"{part}_block_{side}", 1) for side in ("rows", "cols")] for part in methods}
    for part, (rows, columns) in blocks.items():
        if (rows, columns) != (1, 1):
            options.leave_out(
                f"{part}_block_rows, cols", f"{rows}x{columns}", "every weight has a score of its own here"
            )
    names = {part: method.partition(":") for part, method in methods.items()}
    for part, (_, _, kind) in names.items():
        if kind and kind != "default":
            options.leave_out(f"{part}_pruning_method", methods[part], "rows, columns and heads share no scores here")
    method = names["dense"][0]
    if names["attention"][0] != method:
        options.leave_out("attention_pruning_method", methods["attention"], f"{method} is taken for all linears")
    given = _schedule(options, draft, warmup, soft=method in _SOFT)
    if method in (*_SOFT, "topK"):
        draft.add("MovementPruning", **given)
    else:
        options.leave_out(
            "dense_pruning_method", method, "soft (sigmoied_threshold) and hard (topK) movement are known"
        )
    for name, neutral in (("ampere_pruning_method", "disabled"), ("layer_norm_patch", False), ("gelu_patch", False)):
        if (value := options.take(name, neutral)) != neutral:
            options.leave_out(name, value, "there is nothing like it; MagnitudePruning has the pattern '2:4'")
    unused = {"ampere": "no 2:4 scores are learned", "patch": "norms and activations are not exchanged"}
    for key, reason in unused.items():
        options.drop(reason, *(name for name in list(options) if key in name))
    options.drop("scores start at 0", "mask_init", "mask_scale")
    options.drop("biases are never pruned", "bias_mask")


def _schedule(options: Options, draft: Draft, warmup: float, soft: bool) -> dict[str, Any]:
    first, last = options.numeric("initial_threshold", 1.0), options.numeric("final_threshold", 0.5)
    before, after = options.numeric("initial_warmup", 1) * warmup, options.numeric("final_warmup", 2) * warmup
    end, steps = "80%", number(options.peek("max_steps"))
    if steps is not None and steps > before + after:
        end = f"{int(steps - after)} steps"
    else:
        what = f"the last {after:g} steps keep their sparsity; {end} is taken, for the length of the run is not known"
        options.change("final_warmup", what)
    given: dict[str, Any] = {"start": f"{int(before)} steps", "end": end, "freeze_masks": "100%"}
    kind, weight = options.take("regularization", "disabled"), options.numeric("regularization_final_lambda", 0.0)
    lambdas = {part: options.numeric(f"{part}_lambda", 1.0) for part in ("attention", "dense")}
    if not soft:
        if kind not in ("disabled", None):
            options.leave_out("regularization", kind, "the number of weights is fixed with topK; no penalty is needed")
        # There the thresholds are the shares that are kept.
        return given | {"method": "hard", "sparsity": round(1 - last, 6), "initial_sparsity": round(1 - first, 6)}
    if first:
        options.change("initial_threshold", f"{first:g}; the threshold of soft pruning grows from 0 here")
    if kind != "l1":
        options.leave_out("regularization", kind, "an L1 penalty on the scores is what soft pruning prunes with")
    if lambdas != {"attention": 1.0, "dense": 1.0}:
        options.leave_out("attention_lambda, dense_lambda", lambdas, "all linears share one penalty")
    draft.penalties["scores"] = {"class_path": "ScorePenalty", "init_args": {"weight": weight}}
    options.drop("at least 0.5 % of a matrix stay", "linear_min_parameters")
    return given | {"method": "soft", "threshold": last}


def _distillation(options: Options, draft: Draft) -> None:
    teacher = options.take("distil_teacher_name_or_path")
    label, soft = options.numeric("distil_alpha_ce", 0.5), options.numeric("distil_alpha_teacher", 0.5)
    temperature = options.numeric("distil_temperature", 2.0)
    if not teacher:
        return
    draft.teacher = str(teacher)
    hardness = soft / (label + soft) if label + soft > 0 else 0.5
    if abs(label + soft - 1) > 1e-9:
        options.change("distil_alpha_ce", f"{label:g} and {soft:g} keep their ratio; their sum is 1 here")
    term = {"hardness": round(hardness, 6), "temperature": temperature}
    draft.distillation["kd"] = {"class_path": "LogitDistillation", "init_args": term}
