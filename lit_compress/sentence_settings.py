"""How a model's tokens become the vector of a text: in its configuration, and in the files of sentence-transformers."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

from lit_compress.errors import UserError, first_line
from lit_compress.functional.pooling import POOLINGS

__all__ = [
    "ACTIVATIONS",
    "CROSS_ENCODER_KEY",
    "SENTENCE_KEY",
    "SentenceSettings",
    "companion_file",
    "cross_encoder_settings",
    "has_settings",
    "is_bare_encoder",
    "keep_settings",
    "settings_of",
    "tokenizer_length",
    "vector_width",
    "write_settings",
]

# Entry of a model's configuration.
SENTENCE_KEY = "sentence_embedding"
# Entry in which a CrossEncoder of sentence-transformers keeps what becomes of its logits.
CROSS_ENCODER_KEY = "sentence_transformers"
_MODULES, _LENGTH, _PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
_TOKENIZER, _NO_LIMIT = "tokenizer_config.json", 10**6
_EMBEDS = "feature-extraction"
# In the order in which they are run; the last two may be missing.
_KNOWN = ("Transformer", "Pooling", "Dense", "Normalize")
# What may follow the matrix of a Dense: names of classes of torch.nn.
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid")
_DENSE = {"out_features": int, "bias": bool, "activation": str}
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_LEGACY = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}


@dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """What sentence-transformers saves with a model.

    Args:
        pooling: ``mean``, ``cls`` or ``max``.
        normalize: whether vectors have length 1.
        max_length: longest text in tokens; None is that of the tokenizer.
        prompts: texts by name that a program may put before a text.
        default_prompt: the name of the one that it puts there by itself.
        dense: of a projection after the pooling: ``out_features``, ``bias`` and ``activation``, a class of
            ``torch.nn``; None for no projection.
        similarity: how programs compare vectors: ``cosine``, ``dot``, ``euclidean`` or ``manhattan``.

    Raises:
        UserError: another pooling, or a projection that is not known here.

    """

    pooling: str = "mean"
    normalize: bool = True
    max_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    dense: dict[str, Any] | None = None
    similarity: str = "cosine"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling: {self.pooling!r} must be one of {', '.join(POOLINGS)}")
        whole = self.max_length is None or (type(self.max_length) is int and self.max_length > 0)
        if not whole or not isinstance(self.normalize, bool) or not isinstance(self.prompts, dict):
            raise UserError(
                f"{SENTENCE_KEY}: max_length {self.max_length!r}, normalize {self.normalize!r} and prompts "
                f"{self.prompts!r} must be a number of tokens, true or false, and texts by name"
            )
        if self.default_prompt is not None and self.default_prompt not in self.prompts:
            raise UserError(
                f"{SENTENCE_KEY}: default_prompt {self.default_prompt!r} must be one of {list(self.prompts)}, or null"
            )
        if self.similarity not in _SIMILARITIES:
            raise UserError(f"{SENTENCE_KEY}: similarity {self.similarity!r} must be one of {', '.join(_SIMILARITIES)}")
        dense = self.dense
        if dense is None:
            return
        typed = isinstance(dense, dict) and {name: type(value) for name, value in dense.items()} == _DENSE
        if not typed or dense["out_features"] < 1 or dense["activation"] not in ACTIVATIONS:
            raise UserError(
                f"{SENTENCE_KEY}: dense {dense!r} must have out_features, a number, bias, true or false, and "
                f"activation, one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def own_prompt(self) -> str:
        """What a program puts before each text by itself; empty for nothing."""
        return self.prompts.get(self.default_prompt or "", "")


def cross_encoder_settings(config: PretrainedConfig) -> dict[str, Any] | None:
    """What a CrossEncoder of sentence-transformers keeps besides weights; None for a model that is none.

    Args:
        config: as loaded from a folder or the hub, whose name it has.

    Returns:
        ``activation_fn``, the class of what becomes of the logits, where it is known.

    Raises:
        UserError: a prompt before every pair, which is not known here.

    """
    saved = _read(config, _PROMPTS) or {}  # of version 6, which looks here first
    is_one = saved.get("model_type") == "CrossEncoder"
    if is_one and saved.get("default_prompt_name"):
        raise UserError(
            f"{str(config.name_or_path)!r}: its {_PROMPTS} has default_prompt_name "
            f"{saved['default_prompt_name']!r}, a text before every pair, which is not known here for rerankers"
        )
    own = getattr(config, CROSS_ENCODER_KEY, None)
    found: dict[str, Any] = dict(own) if isinstance(own, dict) else {}
    before_4 = getattr(config, "sbert_ce_default_activation_function", None)
    activation = (saved.get("activation_fn") if is_one else None) or found.get("activation_fn") or before_4
    if activation:
        return found | {"activation_fn": str(activation)}
    return found if is_one or isinstance(own, dict) else None


def has_settings(config: PretrainedConfig) -> bool:
    """Whether a model says how its tokens become a vector, in a form that is known here or not."""
    return isinstance(getattr(config, SENTENCE_KEY, None), dict) or _read(config, _MODULES) is not None


def is_bare_encoder(config: PretrainedConfig) -> bool:
    """Whether sentence-transformers saved the model as an encoder without a head, whatever its configuration names."""
    modules = _read(config, _MODULES)
    first = modules[0] if isinstance(modules, list) and modules else None
    if not isinstance(first, dict) or not str(first.get("type")).endswith(f".{_KNOWN[0]}"):
        return False
    # A SPLADE model of its version 6 is a Transformer, too, and has the head of masked words.
    return (_read(config, _LENGTH) or {}).get("transformer_task", _EMBEDS) == _EMBEDS


def settings_of(config: PretrainedConfig) -> SentenceSettings | None:
    """The settings in a configuration, or in the files of sentence-transformers in its folder; None without either.

    Args:
        config: as loaded from a folder or the hub, whose name it has.

    Raises:
        UserError: modules or a pooling that are not known here.

    """
    own = getattr(config, SENTENCE_KEY, None)
    if isinstance(own, dict):
        try:
            return SentenceSettings(**own)
        except TypeError as error:
            raise UserError(f"config.json: {SENTENCE_KEY}: {first_line(error)}") from error
    modules = _read(config, _MODULES)
    if modules is None:
        return None
    source = str(config.name_or_path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise UserError(f"{source!r}: its {_MODULES} is not a list of modules")
    names = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if names != [name for name in _KNOWN if name in names] or not {*_KNOWN[:2]} <= {*names}:
        raise UserError(
            f"{source!r}: its {_MODULES} has {', '.join(names)}; only {' and '.join(_KNOWN[:2])}, and one "
            f"{' and one '.join(_KNOWN[2:])} after them, are known here"
        )
    length, prompts = (_read(config, name) or {} for name in (_LENGTH, _PROMPTS))
    paths = [f"{_plain(module.get('path'))}/config.json" for module in modules[1:]]
    contents: dict[str, Any] = {}
    for name, path in zip(names[1:], paths, strict=True):
        contents[name] = _read(config, path)
        if contents[name] is None and name != "Normalize":  # which has nothing to say
            raise UserError(f"{source!r}: it has no {path}, which its {_MODULES} names; copy or download it again")
    texts, default = (prompts.get(name) or None for name in ("prompts", "default_prompt_name"))
    if not isinstance(texts, dict | None) or not isinstance(default, str | None):
        raise UserError(
            f"{source!r}: its {_PROMPTS} has prompts {texts!r} and default_prompt_name {default!r}, which must be "
            "texts by name, and a name"
        )
    if length.get("do_lower_case") is True and not _lowers_case(config):
        raise UserError(
            f"{source!r}: its {_LENGTH} has do_lower_case, and its tokenizer keeps capitals, which is not known here; "
            "give it a tokenizer that lowers them"
        )
    return SentenceSettings(
        pooling=_pooling(contents["Pooling"], source),
        dense=_dense(contents["Dense"], source) if "Dense" in contents else None,
        normalize="Normalize" in contents,
        max_length=length.get("max_seq_length") or tokenizer_length(config),
        prompts={str(name): str(text) for name, text in (texts or {}).items()},
        default_prompt=default,
        similarity=str(prompts.get("similarity_fn_name") or "cosine"),
    )


def write_settings(config: PretrainedConfig, folder: Path) -> None:
    """Write the files that ``SentenceTransformer(folder)`` reads, in the form that its versions 2 to 6 know.

    Args:
        config: of the model; nothing is written where it has no settings.
        folder: existing.

    """
    if getattr(config, SENTENCE_KEY, None) is None:
        return
    settings = settings_of(config)
    assert settings is not None
    left_out = {"Dense": settings.dense is None, "Normalize": not settings.normalize}
    names = [name for name in _KNOWN if not left_out.get(name)]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{name}" if index else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(names)
    ]
    width: Any = config.hidden_size
    files: dict[str, Any] = {
        _MODULES: modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width}
        | {name: settings.pooling == pooling for name, pooling in _LEGACY.items()},
        _PROMPTS: {"prompts": settings.prompts, "default_prompt_name": settings.default_prompt}
        | {"similarity_fn_name": settings.similarity},
    }
    if settings.dense is not None:
        dense = settings.dense
        files["2_Dense/config.json"] = {"in_features": width, "out_features": dense["out_features"]} | {
            "bias": dense["bias"],
            "activation_function": f"torch.nn.{dense['activation']}",
        }
    if settings.normalize:
        files[f"{names.index('Normalize')}_Normalize/config.json"] = {}  # it has none, and empty folders get lost
    if settings.max_length is not None:
        files[_LENGTH] = {"max_seq_length": settings.max_length, "do_lower_case": False}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def keep_settings(config: PretrainedConfig, settings: SentenceSettings, **changed: Any) -> None:
    """Put settings, some of them changed, into a configuration, which is saved with its model."""
    kept = asdict(replace(settings, **changed))
    for name, usual in (("dense", None), ("similarity", "cosine")):  # which versions before 0.2 do not know
        if kept[name] == usual:
            del kept[name]
    setattr(config, SENTENCE_KEY, kept)


def vector_width(config: PretrainedConfig) -> int:
    """How many numbers a vector of a text has."""
    settings = settings_of(config)
    dense = settings.dense if settings else None
    return dense["out_features"] if dense else config.hidden_size  # type: ignore[attr-defined]  (encoders have it)


def _dense(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings of a projection, from the file of sentence-transformers' Dense."""
    activation = str(content.get("activation_function", "torch.nn.modules.activation.Tanh"))
    inner = "sentence_embedding"
    odd = {
        "activation_function": activation if not activation.startswith("torch.nn.") else None,
        "use_residual": content.get("use_residual") or None,
        "module_input_name": name if (name := content.get("module_input_name", inner)) != inner else None,
        "module_output_name": name if (name := content.get("module_output_name") or inner) != inner else None,
    }
    if unknown := {name: value for name, value in odd.items() if value is not None}:
        raise UserError(f"{source!r}: its Dense has {unknown}, which is not known here")
    return {
        "out_features": content.get("out_features"),
        "bias": content.get("bias", True),
        "activation": activation.rpartition(".")[2],
    }


def _lowers_case(config: PretrainedConfig) -> bool:
    """Whether the tokenizer in a configuration's folder lowers capitals itself, as far as its files say."""
    normalizer = json.dumps((_read(config, "tokenizer.json") or {}).get("normalizer"))
    said = (_read(config, _TOKENIZER) or {}).get("do_lower_case")
    return '"lowercase": true' in normalizer or '"Lowercase"' in normalizer or (normalizer == "null" and said is True)


def tokenizer_length(config: PretrainedConfig) -> int | None:
    """The longest text of the tokenizer in a configuration's folder; None where that is not a limit."""
    length = (_read(config, _TOKENIZER) or {}).get("model_max_length")
    positions = getattr(config, "max_position_embeddings", None) or _NO_LIMIT
    return min(length, positions) if isinstance(length, int) and 0 < length < _NO_LIMIT else None


def _pooling(content: Mapping[str, Any], source: str) -> str:
    """The pooling that the file of sentence-transformers' Pooling names, in its old or its new form."""
    legacy = [name for name, value in content.items() if name.startswith("pooling_mode_") and value is True]
    found = content.get("pooling_mode") or [_LEGACY.get(name, name) for name in legacy]
    names = found if isinstance(found, list) else [found]
    if len(names) != 1 or names[0] not in POOLINGS:
        raise UserError(
            f"{source!r}: its pooling is {' and '.join(map(str, names)) or 'not named'}; known here are "
            f"{', '.join(POOLINGS)}, one at a time"
        )
    if content.get("include_prompt") is False:
        raise UserError(
            f"{source!r}: its pooling leaves the prompt out (include_prompt: false), which is not known here"
        )
    return names[0]


def _plain(path: Any) -> str:
    """A folder's name in ``modules.json``, which must not lead out of the folder."""
    name = str(path)
    if Path(name).name != name or name in (".", "..") or "\\" in name:
        raise UserError(f"{_MODULES}: {name!r} is not the name of a folder next to it")
    return name


def companion_file(config: PretrainedConfig, name: str) -> Path | None:
    """A file in a configuration's folder, local or on the hub; None where there is none."""
    source = str(config.name_or_path or "")
    if not source:
        return None
    if Path(source).is_dir():
        path = Path(source) / name
    else:
        try:
            found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError):  # gone, or no name on the hub: a configuration outlives its folder
            return None
        path = Path(found) if found else Path(source) / name
    return path if path.is_file() else None


def _read(config: PretrainedConfig, name: str) -> Any:
    """A JSON file in a configuration's folder, local or on the hub; None where there is none."""
    source = str(config.name_or_path or "")
    path = companion_file(config, name)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{source!r}: its {name} cannot be read: {first_line(error)}") from error
    if name != _MODULES and not isinstance(content, dict | None):
        raise UserError(f"{source!r}: its {name} is not a mapping")
    return content
