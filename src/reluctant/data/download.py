"""Files from their official addresses, whole and checked, or not there at all."""

import hashlib
import http.client
import logging
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from reluctant.errors import DataError

VARIABLE = "RELUCTANT_DATA"
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a file is published, and the MD5 sum that is published for it."""

    url: str
    md5: str


def missing(path: Path, task: str) -> DataError:
    """Return the error for a data file that is not there."""
    return DataError(
        f"{task}: {path} is not there; name the folder that holds the data sets with --data or {VARIABLE}, "
        "or let --download fetch them"
    )


def fetch(source: Source, path: Path) -> None:
    """Download ``source`` to ``path``, which is not there before it is whole and checked.

    Raises:
        DataError: no network, a wrong checksum, or a disk that is full.
    """
    with _beside(path) as place:
        _download(source, place / path.name)
        (place / path.name).replace(path)


def fetch_folder(source: Source, folder: Path) -> None:
    """Download the archive ``source`` and put its folder of the same name at ``folder``; the archive is not kept.

    Raises:
        DataError: no network, a wrong checksum, a disk that is full, or an archive with another content.
    """
    with _beside(folder) as place:
        _download(source, place / "archive")
        _extract(place / "archive", place / "content", source.url)
        if not (place / "content" / folder.name).is_dir():
            raise DataError(f"{source.url} holds no folder {folder.name}")
        (place / "content" / folder.name).replace(folder)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a temporary folder on the same disk as ``path``, and say it in one line when that disk is at fault."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as place:
            yield Path(place)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error


def _download(source: Source, path: Path) -> None:
    log.info("downloading %s", source.url)
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("wb") as file:
        for chunk in _chunks(source.url):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != source.md5:
        raise DataError(f"{source.url} has the MD5 sum {digest.hexdigest()}, {source.md5} is expected; nothing is kept")


def _chunks(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            while chunk := response.read(CHUNK_BYTES):
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"cannot download {url}: {reason}; is this machine online?") from error


def _extract(archive: Path, into: Path, url: str) -> None:
    try:
        for name, content in _members(archive):
            target = (into / name).resolve()
            if not target.is_relative_to(into.resolve()):
                raise DataError(f"{url} holds {name!r}, which leads out of its folder; nothing is kept")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{url} is no whole archive: {error}") from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of every plain file in a tar or zip archive; links and devices are left out."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not info.is_dir():
                    with packed.open(info) as content:
                        yield info.filename, content
        return
    with tarfile.open(archive) as tape:
        for member in tape:
            plain = tape.extractfile(member) if member.isfile() else None
            if plain is not None:
                yield member.name, plain
