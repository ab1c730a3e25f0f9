"""The file: a compressed tar of ordinary files, with a manifest of every one's digest as its last member.

``tar`` opens it. Members are ``store/…``, ``folders/<name>/…`` and ``databases/…``. Nothing else is written or
taken, no link and no device.
"""

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa
from pydantic import Field, ValidationError

from towline import files
from towline.config import Frozen
from towline.errors import ConfigError, ReleaseError, TransientError

MANIFEST = "MANIFEST.json"
ROOMS = ("store", "folders", "databases")
_CODECS = {".tar.zst": "zstd", ".tar.gz": "gzip"}
_MAGIC = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}
_BLOCK = 2**20
_SMALL = 2**24  # bytes up to which a file is read before its length is written down
_MOST = 2**29  # bytes of a manifest
REMEDY = "take another copy of the backup, or an earlier one"


class Member(Frozen):
    """What one file must be: its digest, its size in bytes, its permissions."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    mode: int = Field(ge=0, le=0o777)


class Champion(Frozen):
    """The version of a model that served; ``release`` is its folder within the store."""

    version: int
    release: str
    digest: str


class Dump(Frozen):
    """A database: what kind, and which member holds it."""

    kind: Literal["sqlite", "postgresql"]
    member: str


class Manifest(Frozen):
    """What a backup is of, and every file in it; ``store`` is where that lay, ``folders`` are those besides it."""

    format: Literal[1] = 1
    towline: str
    created: str
    store: str
    models: dict[str, Champion]
    databases: dict[str, Dump]
    folders: tuple[str, ...]
    directories: dict[str, int]
    members: dict[str, Member]

    @property
    def size(self) -> int:
        """Bytes of all files, unpacked."""
        return sum(member.size for member in self.members.values())


class Writer:
    """Adds files one after the other; what was added stands in ``members``."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self.members: dict[str, Member] = {}
        self.directories: dict[str, int] = {}
        self._tar = tar

    def folder(self, name: str, mode: int) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, stat.S_IMODE(mode) & 0o777
        self._tar.addfile(info)
        self.directories[name] = info.mode

    def file(self, name: str, path: Path) -> bool:
        """Adds a file as long as it is now, though it may grow meanwhile; False where it is gone.

        Raises:
            TransientError: it became shorter while it was read, or cannot be read.
        """
        try:
            source = path.open("rb")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unread(path, os.strerror(error.errno or 0)) from None
        with source:
            status = os.fstat(source.fileno())
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), status.st_mode & 0o777
            content: IO[bytes] = source
            if info.size <= _SMALL:
                content = io.BytesIO(source.read(info.size))
                info.size = len(content.getbuffer())
            hashed = _Hashed(content)
            self._tar.addfile(info, hashed)
            if hashed.size != info.size:
                raise _unread(path, "it became shorter while it was read")
        self.members[name] = Member(sha256=hashed.hexdigest(), size=info.size, mode=info.mode)
        return True

    def close(self, manifest: Manifest) -> None:
        """Writes the last member."""
        text = manifest.model_dump_json(indent=1).encode()
        info = tarfile.TarInfo(MANIFEST)
        info.size, info.mode = len(text), 0o600
        self._tar.addfile(info, io.BytesIO(text))


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is read; ends in zeros where it falls short, so that the tar stays one."""

    def __init__(self, source: IO[bytes]) -> None:
        self.size = 0
        self._source, self._digest = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._source.read(size)
        self.size += len(block)
        self._digest.update(block)
        return block if len(block) == size else block.ljust(size, b"\0")

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """A new archive, which takes ``path``'s place when the block ends well; only its owner can read it.

    Raises:
        ConfigError: the name ends neither in .tar.zst nor in .tar.gz.
        TransientError: the disk is full or the folder cannot be written.
    """
    codec = next((codec for end, codec in _CODECS.items() if path.name.endswith(end)), None)
    if codec is None:
        raise ConfigError(
            f"not a name of a backup: {path.name}", where=str(path), remedy=f"let it end in {' or '.join(_CODECS)}"
        )
    with files.replacing(path, 0o600) as file:
        sink = os.fdopen(os.dup(file.fileno()), "wb", _BLOCK)  # which the compressor closes
        with (
            pa.CompressedOutputStream(pa.PythonFile(sink, "w"), codec) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BLOCK) as tar,
        ):
            yield Writer(tar)
    files.sync(path.parent)


def unpack(path: Path, place: Callable[[str], Path] | None = None) -> Manifest:
    """Reads an archive to its end and compares every member with the manifest.

    Args:
        path: the archive.
        place: where a member's file goes; without it nothing is written. What was written before something turns out
            to be wrong is the caller's to remove.

    Raises:
        ReleaseError: names the member that is not what the manifest says, or that no backup may hold.
        TransientError: the disk is full or cannot be written.
        ConfigError: there is no such file.
    """
    reading = _Reading(path, place)
    with _legible(reading), _opened(path) as tar:
        for info in tar:
            reading.member(tar, info)
        _ended(path, tar)
    if reading.manifest is None:
        last = reading.last or path.name
        raise _refused(path, last, "is the last one: the manifest is missing, the archive is cut short")
    _compare(path, reading.manifest, reading.found, reading.folders)
    if place:
        with files.disk(path):
            for name, member in reading.manifest.members.items():
                place(name).chmod(member.mode)
            for name, mode in reading.manifest.directories.items():
                place(name).chmod(mode | stat.S_IRWXU)
    return reading.manifest


class _Reading:
    """What was found so far: of each file digest and size."""

    def __init__(self, path: Path, place: Callable[[str], Path] | None) -> None:
        self.path, self.place = path, place
        self.found: dict[str, tuple[str, int]] = {}
        self.folders: set[str] = set()
        self.manifest: Manifest | None = None
        self.last = ""

    def member(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        if self.manifest is not None:
            raise _refused(self.path, info.name, "comes after the manifest")
        _check(self.path, info)
        self.last = name = info.name
        if name in self.found or name in self.folders:
            raise _refused(self.path, name, "stands there twice")
        target = self.place(name) if self.place else None
        if name == MANIFEST:
            self.manifest = _manifest(self.path, tar, info)
        elif not info.isdir():
            self.found[name] = _take(tar, info, target)
        else:
            self.folders.add(name)
            if target:
                with files.disk(target):
                    target.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def _legible(reading: _Reading) -> Iterator[None]:
    """Tells damage of the tar, or of its compression, as what it is."""
    try:
        yield
    except (tarfile.TarError, pa.ArrowException, EOFError, UnicodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's; that of a codec has no number
            raise
        last = reading.last or reading.path.name
        raise _refused(reading.path, last, f"is followed by what cannot be read ({error})") from None


def present(path: Path) -> None:
    """Raises ConfigError where there is no such file."""
    if not path.is_file():
        raise ConfigError("no such file", where=str(path), remedy="name a file that towline backup has written")


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    present(path)
    with path.open("rb") as file:
        start = file.read(4)
        codec = next((codec for magic, codec in _MAGIC.items() if start.startswith(magic)), None)
        if codec is None:
            raise _refused(path, path.name, "is neither zstd nor gzip")
        file.seek(0)
        with (
            pa.CompressedInputStream(pa.PythonFile(file, "r"), codec) as stream,
            tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK) as tar,
        ):
            yield tar


def _ended(path: Path, tar: tarfile.TarFile) -> None:
    """Reads the file to its end: a tar ends at its first empty block, whatever was appended to it."""
    stream = tar.fileobj
    while stream is not None and (block := stream.read(_BLOCK)):
        if block.strip(b"\0"):
            raise _refused(path, path.name, "has content after its last member: something was appended")


def _check(path: Path, info: tarfile.TarInfo) -> None:
    """An archive may come from anywhere: nothing in it may lead out of the folder it is unpacked to."""
    name = info.name
    if not (info.isreg() or info.isdir()) or info.issparse():
        raise _refused(path, name, "is neither a file nor a folder")
    words = name.split("/")
    if name != MANIFEST and (words[0] not in ROOMS or not {"", ".", ".."}.isdisjoint(words) or "\0" in name):
        raise _refused(path, name, "has a name that no backup holds")


def _take(tar: tarfile.TarFile, info: tarfile.TarInfo, target: Path | None) -> tuple[str, int]:
    source = tar.extractfile(info)
    if source is None:
        raise tarfile.ReadError(f"no content: {info.name}")
    digest, size = hashlib.sha256(), 0
    if target is None:
        while block := source.read(_BLOCK):
            digest.update(block)
            size += len(block)
        return digest.hexdigest(), size
    with files.disk(target):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    with file:
        while block := source.read(_BLOCK):
            digest.update(block)
            size += len(block)
            with files.disk(target):
                file.write(block)
        with files.disk(target):
            file.flush()
    os.utime(target, (info.mtime, info.mtime))
    return digest.hexdigest(), size


def _manifest(path: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Manifest:
    source = tar.extractfile(info)
    if source is None or info.size > _MOST:
        raise _refused(path, MANIFEST, f"has {info.size:,} bytes, which is no manifest's size")
    try:
        return Manifest.model_validate_json(source.read())
    except ValidationError as invalid:
        first = invalid.errors(include_url=False)[0]
        raise _refused(path, MANIFEST, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _compare(path: Path, manifest: Manifest, found: dict[str, tuple[str, int]], folders: set[str]) -> None:
    for name in sorted(manifest.members.keys() | found.keys()):
        member = manifest.members.get(name)
        if member is None:
            raise _refused(path, name, "is not in the manifest")
        if name not in found:
            raise _refused(path, name, "is missing")
        digest, size = found[name]
        if size != member.size:
            raise _refused(path, name, f"has {size:,} bytes, the manifest says {member.size:,}")
        if digest != member.sha256:
            raise _refused(path, name, f"has the sha256 {digest[:12]}…, the manifest says {member.sha256[:12]}…")
    for name in sorted(manifest.directories.keys() ^ folders):
        raise _refused(path, name, "is a folder of either the manifest or the archive alone")
    for name, dump in manifest.databases.items():
        if dump.member not in found:
            raise _refused(path, dump.member, f"is missing: it is the database {name}")


def _refused(path: Path, member: str, finding: str) -> ReleaseError:
    what = f"the backup is not what its manifest says: {member} {finding}"
    return ReleaseError(what, where=str(path), remedy=REMEDY)


def _unread(path: Path, finding: str) -> TransientError:
    return TransientError(
        f"cannot be backed up: {finding}",
        where=str(path),
        remedy="run the same command again, as a user who may read it",
    )
