"""Commands that are functions: their options from the signature, their help from the docstring."""

from collections.abc import Callable
from typing import NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]  (lazily exported)

from lit_compress.shipped_configs import config_path
from lit_compress.usage_errors import option_names, refuse, split

__all__ = ["function_parser", "run"]

_RECIPE_OPTIONS = ("--run", "--only", "--dry-run", "--unfinished", "-h", "--help")
_CHECK_OPTIONS = ("-h", "--help")
# These load no model, and answer at once.
_WITHOUT_MODELS = ("configs", "migrate")


class ShippedConfigFile(ActionConfigFile):
    """`--config`: a file, or by a name that begins with ``@`` one of the package."""

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        ActionConfigFile.apply_config(parser, cfg, dest, config_path(str(value), "--config"))


class Parser(ArgumentParser):
    """Explains a wrong option in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        refuse(message, ex, option_names([], [option for action in self._actions for option in action.option_strings]))


def run(name: str, function: Callable[..., None], args: list[str]) -> None:
    """Call the function of a command with the options that are given."""
    # What a recipe does not know itself is passed on to the fits of its stages, and what a check does not, to its fit.
    known = {"recipe": _RECIPE_OPTIONS, "check": _CHECK_OPTIONS}.get(name)
    own, overrides = (args, None) if known is None else split(args, known)
    parser = function_parser(name, function)
    options = vars(parser.parse_args(_listed(parser, own)))
    if name == "compress":
        del options["config"]  # whose options are in the others; a recipe's is an argument of its own
    if overrides is not None:
        options["overrides"] = overrides
    if name not in _WITHOUT_MODELS and not (name == "recipe" and options["dry_run"]):
        from lit_compress.log_filters import quieten

        quieten()
    function(**options)


def _listed(parser: Parser, words: list[str]) -> list[str]:
    """The words with one value where a list is expected as a list of one."""
    lists = {
        option
        for action in parser._actions
        if "list[" in str(getattr(action, "_typehint", ""))
        for option in action.option_strings
    }
    found: list[str] = []
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if equals and option in lists and value[:1] not in "[{":
            word = f"{option}=[{value}]"
        elif index and words[index - 1] in lists and word[:1] not in "[{":
            word = f"[{word}]"
        found.append(word)
    return found


def function_parser(name: str, function: Callable[..., None]) -> Parser:
    """The options of a command are the parameters of its function, which say what they are in its docstring."""
    parser = Parser(prog=f"lit_compress {name}", description=(function.__doc__ or "").splitlines()[0])
    if name == "recipe":
        parser.add_function_arguments(function, as_positional=True, skip={"overrides", "dry_run"})
        parser.add_argument("--dry-run", action="store_true", help="print the plan and do nothing")
    elif name == "compress":
        parser.add_argument("--config", action=ShippedConfigFile, help="YAML file with options, or one of the package")
        parser.add_function_arguments(function, skip={"dry_run"})
        parser.add_argument("--dry-run", action="store_true", help="print the plan and train nothing")
    elif name == "check":
        parser.add_argument(
            "sources", type=str, nargs="*", help="a model; or YAML files of a fit, whose options may follow"
        )
    elif name == "benchmark":
        parser.add_argument(
            "models", type=str, nargs="*", help="folders of exports or hub names; name=folder names one"
        )
        parser.add_function_arguments(function, skip={"models"})
    elif name == "migrate":
        parser.add_argument("file", type=str, help="SparseML's .yaml or .md; NNCF's or nn_pruning's .json")
        parser.add_function_arguments(function, skip={"file"})
    elif name == "configs":
        parser.add_argument("name", type=str, nargs="?", help="one of them, to be printed as it is")
    elif name == "compare":
        parser.add_argument("runs", nargs="+", type=str, help="run folders of fits")
        parser.add_function_arguments(function, skip={"runs"})
    else:
        # `explain packed/`, `init train.csv`: what they look at needs no name.
        parser.add_function_arguments(function, as_positional=name in ("explain", "init", "latency"))
    return parser
