"""The configurations that come with the package: ``@sst2/teacher`` where the path of a file could stand."""

import sys
from difflib import get_close_matches
from pathlib import Path

from lit_compress.errors import UserError

__all__ = ["config_path", "configs", "short_path"]

_MARK = "@"
_FOLDER = Path(__file__).parent / "configs"


def configs(name: str | None = None) -> None:
    """List the configurations that come with the package, or print one of them.

    Args:
        name: one of them, for example ``@sst2/teacher``; it is printed, to be copied and changed.

    """
    if name is not None:
        given = name if name.startswith(_MARK) else _MARK + name
        sys.stdout.write(Path(config_path(given, "configs")).read_text())
        return
    width = max(map(len, _names()))
    for each in _names():
        described = (_FOLDER / f"{each}.yaml").read_text().partition("\n")[0].lstrip("# ")
        sys.stdout.write(f"{_MARK}{each:{width}}  {described}\n")


def config_path(given: str, key: str) -> str:
    """The file behind a name that begins with ``@``; every other path as it is.

    Args:
        given: name or path.
        key: option named in the error.

    Raises:
        UserError: the package has no configuration of this name.

    """
    if not given.startswith(_MARK):
        return given
    name, names = given.removeprefix(_MARK).removesuffix(".yaml"), _names()
    if name not in names:
        ends = {each.rpartition("/")[2]: each for each in names}
        near = get_close_matches(name, names) or [ends[end] for end in get_close_matches(name, ends)]
        meant = f"did you mean {' or '.join(_MARK + each for each in near)}?" if near else "none is like it;"
        raise UserError(f"{key}: no configuration is called {given!r}; {meant} `lit_compress configs` lists all")
    return str(_FOLDER / f"{name}.yaml")


def short_path(path: Path) -> str | None:
    """The name of a configuration of the package by its path; None for another file."""
    names = {_FOLDER / f"{name}.yaml": _MARK + name for name in _names()}
    return names.get(path)


def _names() -> list[str]:
    return sorted(path.relative_to(_FOLDER).with_suffix("").as_posix() for path in _FOLDER.glob("**/*.yaml"))
