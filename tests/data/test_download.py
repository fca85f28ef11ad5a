"""Downloads, from a server on this machine."""

import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from layouts import write_cifar10, write_cifar100, write_fashion, write_tiny

from reluctant.data import cifar, folders, idx
from reluctant.data.download import Source, fetch, fetch_folder
from reluctant.errors import DataError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a server shows it."""
    root = tmp_path / "served"
    root.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def publish(served: tuple[Path, str], name: str, content: bytes) -> Source:
    root, address = served
    (root / name).write_bytes(content)
    return Source(f"{address}/{name}", hashlib.md5(content).hexdigest())


def tape(files: dict[str, bytes], **links: str) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return raw.getvalue()


def packed(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return raw.getvalue()


def left(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder to download to."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_a_file_comes_whole(served: tuple[Path, str], place: Path) -> None:
    content = bytes(range(256)) * 10_000
    fetch(publish(served, "a.bin", content), place / "deep" / "a.bin")
    assert (place / "deep" / "a.bin").read_bytes() == content
    assert left(place / "deep") == ["a.bin"]


def test_a_wrong_checksum_keeps_nothing(served: tuple[Path, str], place: Path) -> None:
    source = publish(served, "a.bin", b"altered")
    with pytest.raises(DataError, match=f"has the MD5 sum {source.md5}, {'0' * 32} is expected; nothing is kept"):
        fetch(Source(source.url, "0" * 32), place / "a.bin")
    with pytest.raises(DataError, match="MD5"):
        fetch_folder(Source(source.url, "0" * 32), place / "folder")
    assert left(place) == []


def test_no_server_is_one_line(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.bin"
        with pytest.raises(DataError, match=r"^cannot download [^\n]*refused; is this machine online\?$"):
            fetch(Source(url, "0" * 32), place / "a.bin")
    assert left(place) == []


def test_a_page_not_found_is_one_line(served: tuple[Path, str], place: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download .*: "):
        fetch(Source(f"{served[1]}/absent", "0" * 32), place / "a.bin")
    assert left(place) == []


@pytest.mark.parametrize("pack", [tape, packed])
def test_an_archive_becomes_its_folder(pack: object, served: tuple[Path, str], place: Path) -> None:
    assert callable(pack)
    source = publish(served, "x", pack({"set/train/a": b"1", "set/b": b"22", "other": b"3"}))
    fetch_folder(source, place / "set")
    assert left(place) == ["set"]
    assert (place / "set" / "train" / "a").read_bytes() == b"1"
    assert (place / "set" / "b").read_bytes() == b"22"


@pytest.mark.parametrize("pack", [tape, packed])
@pytest.mark.parametrize("name", ["../out", "set/../../out", "/tmp/reluctant-must-not-write-this"])
def test_an_archive_cannot_leave_its_folder(pack: object, name: str, served: tuple[Path, str], place: Path) -> None:
    assert callable(pack)
    source = publish(served, "x", pack({"set/a": b"1", name: b"2"}))
    with pytest.raises(DataError, match="leads out of its folder; nothing is kept"):
        fetch_folder(source, place / "set")
    assert left(place) == []
    assert not Path("/tmp/reluctant-must-not-write-this").exists()


def test_links_in_an_archive_are_left_out(served: tuple[Path, str], place: Path) -> None:
    fetch_folder(publish(served, "x", tape({"set/a": b"1"}, **{"set/link": "/etc/passwd"})), place / "set")
    assert left(place / "set") == ["a"]


@pytest.mark.parametrize(
    "content", [tape({"set/a": b"1" * 9999})[:60], b"neither tar nor zip", b""], ids=["cut", "text", "empty"]
)
def test_a_damaged_archive_is_refused(content: bytes, served: tuple[Path, str], place: Path) -> None:
    with pytest.raises(DataError, match="is no whole archive"):
        fetch_folder(publish(served, "x", content), place / "set")
    assert left(place) == []


def test_an_archive_of_something_else_is_refused(served: tuple[Path, str], place: Path) -> None:
    with pytest.raises(DataError, match="holds no folder set"):
        fetch_folder(publish(served, "x", tape({"other/a": b"1"})), place / "set")
    assert left(place) == []


def test_a_place_that_cannot_be_written_is_one_line(served: tuple[Path, str], place: Path) -> None:
    (place / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"^cannot write [^\n]+$"):
        fetch(publish(served, "a.bin", b"1"), place / "file" / "a.bin")


def archive_of(folder: Path, pack: object) -> bytes:
    assert callable(pack)
    files = {f"{folder.name}/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    content = pack(files)
    assert isinstance(content, bytes)
    return content


def test_readers_download_what_is_missing(
    served: tuple[Path, str],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = tmp_path / "made"
    whole = write_tiny(made).rename(made / "tiny-imagenet-200")
    monkeypatch.setattr(cifar, "CIFAR10", publish(served, "10", archive_of(write_cifar10(made), tape)))
    monkeypatch.setattr(cifar, "CIFAR100", publish(served, "100", archive_of(write_cifar100(made), tape)))
    monkeypatch.setattr(folders, "TINY_IMAGENET", publish(served, "tiny", archive_of(whole, packed)))
    assert len(cifar.cifar10(place, download=True).labels) == 60
    assert len(cifar.cifar100(place, download=True).labels) == 200
    assert folders.tiny_imagenet(place, download=True).name == "tiny-imagenet"
    for path in served[0].iterdir():
        path.unlink()  # what is there is not fetched again
    assert len(cifar.cifar10(place, download=True).labels) == 60
    assert len(folders.tiny_imagenet(place, download=True).labels) == 50


def test_fashion_mnist_downloads_the_files_that_are_missing(
    served: tuple[Path, str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {}
    for path in write_fashion(tmp_path / "made").iterdir():
        sources[path.name.removesuffix(".gz")] = publish(served, path.name, path.read_bytes())
    raw = write_fashion(place)
    (raw / "train-images-idx3-ubyte.gz").unlink()
    (served[0] / "train-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr(idx, "SOURCES", sources)
    assert len(idx.fashion_mnist(place, download=True).labels) == 30
    assert (raw / "train-images-idx3-ubyte.gz").exists()


def test_the_official_addresses_are_encrypted() -> None:
    sources = [cifar.CIFAR10, cifar.CIFAR100, folders.TINY_IMAGENET, *idx.SOURCES.values()]
    assert all(source.url.startswith("https://") and len(source.md5) == 32 for source in sources)
