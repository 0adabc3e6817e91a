"""The sample zoos: those of a clone, or release archives that are downloaded once, checked and unpacked whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lol_core.collections.cache import cache_folder
from lol_core.collections.http import download
from lol_core.collections.names import user_path
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ZooError

CLONE = Path(__file__).resolve().parents[2] / "sample_loras"
MANIFEST = Path(__file__).with_name("samples.json")
RELEASE = "LOL_RELEASE"
"""The environment variable that names where the release archives lie: a URL or a folder."""
ALWAYS = (1980, 1, 1, 0, 0, 0)
"""When every member of an archive was made, so that the same files make the same archive."""


@dataclass(frozen=True)
class Sample:
    """subject: what its LoRAs are; parts: what of `sample_loras` belongs to it, the zoo itself first."""

    subject: str
    parts: tuple[str, ...]


SAMPLES = {
    "glosses": Sample("A sentence encoder on questions from twenty sources", ("glosses", "checkpoints/glosses-*")),
    "faces": Sample(
        "A small diffusion model, each LoRA on one drawn person",
        ("faces", "checkpoints/faces-*", "small-diffusion", "small-judge"),
    ),
    "emojinette": Sample(
        "The same model, each LoRA on a subset of ten classes of drawings",
        ("emojinette", "checkpoints/emojinette-*", "small-diffusion"),
    ),
}


@dataclass(frozen=True)
class Archive:
    """A release archive. bytes: its size; sha256: of its content."""

    file: str
    bytes: int
    sha256: str


def samples_folder() -> Path:
    """Where the sample zoos lie with their models and base models: in the clone, or else in the user's cache."""
    return CLONE if CLONE.is_dir() else cache_folder() / "sample_loras"


def sample_zoos() -> dict[str, Path]:
    """Name → folder of the sample zoos that are here."""
    return {name: samples_folder() / name for name in SAMPLES if (samples_folder() / name / "labels.csv").is_file()}


def release() -> str:
    """Where the release archives lie, a URL or a folder: LOL_RELEASE, or what the manifest says; "" where no release
    has been published.
    """
    return os.environ.get(RELEASE) or str(json.loads(MANIFEST.read_text())["release"])


def archive_of(name: str) -> Archive:
    """Raises ZooError."""
    archives = json.loads(MANIFEST.read_text())["archives"]
    if name not in archives:
        raise ZooError(f"There is no sample zoo {name!r}. There are {', '.join(archives)}.")
    return Archive(**archives[name])


def get(name: str, place: str = "", reporter: Reporter = SILENT) -> Path:
    """The folder of a sample zoo, downloaded and unpacked where it is not here yet. A download that was cut goes on.

    place: where the archives lie, a URL or a folder, by default `release()`. Raises ZooError, Stopped.
    """
    archive, folder = archive_of(name), samples_folder()
    if name in sample_zoos():
        return folder / name
    place = place or release()
    if not place:
        raise ZooError(
            f"No release of the sample zoos has been published yet. They are in a clone of the program, in"
            f" {CLONE.name}. Or name the URL or folder that holds {archive.file}: by --from, or in {RELEASE}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{archive.file}.part"
    try:
        with FileLock(folder / f"{archive.file}.lock", timeout=0):
            _fetch(archive, place, part, reporter.part(0.0, 0.9))
            _check(archive, part, place)
            _unpack(name, part, folder, reporter.part(0.9, 1.0))
            part.unlink()
    except Timeout as error:
        raise ZooError(f"{name} is being downloaded by another window or command. Wait for it.") from error
    return folder / name


def _fetch(archive: Archive, place: str, part: Path, reporter: Reporter) -> None:
    if "://" in place:
        download(f"{place.rstrip('/')}/{archive.file}", part, archive.bytes, reporter)
        return
    source = user_path(place) / archive.file
    try:
        shutil.copyfile(source, part)
    except OSError as error:
        raise ZooError(f"{source} cannot be read ({error.strerror}). Name the folder with {archive.file}.") from error


def _check(archive: Archive, part: Path, place: str) -> None:
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
        part.unlink()
        raise ZooError(
            f"{archive.file} of {place} is not the file that was published: its checksum is {digest}, expected"
            f" {archive.sha256}. It was removed. Try again; if it stays so, the release is of another version."
        )


def _unpack(name: str, part: Path, folder: Path, reporter: Reporter) -> None:
    """Everything beside the zoo first, so that a zoo that is there is there with its models."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as temporary, zipfile.ZipFile(part) as archive:
        members = archive.infolist()
        for number, member in enumerate(members):
            if number % 100 == 0:
                reporter.check("The download is kept.")
                reporter.show(f"Unpacking {name}", number / len(members))
            archive.extract(member, temporary)
        for pattern in reversed(SAMPLES[name].parts):
            for new in Path(temporary).glob(pattern):
                there = folder / new.relative_to(temporary)
                there.parent.mkdir(exist_ok=True)
                if not there.exists():
                    new.rename(there)


def pack(name: str, samples: Path, out: Path) -> Archive:
    """Write the release archive of a sample zoo into the folder `out`; the same files make the same archive. It is not
    compressed: weights and pictures do not shrink. Raises ZooError.
    """
    if not (samples / name / "labels.csv").is_file():
        raise ZooError(f"{samples / name} is no sample zoo: it has no labels.csv.")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(_files(name, samples), key=lambda file: file.relative_to(samples).as_posix()):
            member = zipfile.ZipInfo(file.relative_to(samples).as_posix(), ALWAYS)
            member.create_system, member.external_attr = 3, 0o644 << 16
            archive.writestr(member, file.read_bytes())
    with path.open("rb") as content:
        return Archive(path.name, path.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest())


def _files(name: str, samples: Path) -> Iterator[Path]:
    for pattern in SAMPLES[name].parts:
        for part in samples.glob(pattern):
            yield from (file for file in part.rglob("*") if file.is_file() and not file.name.startswith("."))


def write_manifest(place: str, archives: dict[str, Archive], path: Path = MANIFEST) -> None:
    """What `get` goes by. place: where the archives will lie."""
    listed = {name: asdict(archive) for name, archive in archives.items()}
    path.write_text(json.dumps({"release": place, "archives": listed}, indent=1) + "\n")
