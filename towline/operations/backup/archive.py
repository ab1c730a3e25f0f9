"""A backup archive is a compressed tar of files and folders; its last member is a manifest with the digest of each.

Members are ``store/…``, ``folders/<name>/…`` and ``databases/<name>.<kind>``. Archives are not trusted: links, devices
and names outside of the target are refused. ``tar`` and ``zstd`` can open an archive too.
"""

import hashlib
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa
from pydantic import Field, ValidationError

from towline import files
from towline.config import Frozen
from towline.errors import ConfigError, ReleaseError, TransientError

MANIFEST = "MANIFEST.json"
STORE = "store"
_ROOTS = (STORE, "folders", "databases")
_CODECS = {".tar.zst": ("zstd", b"\x28\xb5\x2f\xfd"), ".tar.gz": ("gzip", b"\x1f\x8b")}
_BLOCK = 2**20
_SMALL_FILE = 2**24  # read in one call: such a file may be rewritten during the backup
_MAX_MANIFEST = 2**29


class Member(Frozen):
    """The sha256, size in bytes and permissions of a file. The sha256 of a folder is empty."""

    sha256: str = Field(pattern=r"^([0-9a-f]{64})?$")
    size: int = Field(ge=0)
    mode: int = Field(ge=0, le=0o777)


class ServedRelease(Frozen):
    """The version of a model that serves, its release and its manifest's digest; empty if the release is damaged."""

    version: int
    release: str
    digest: str


class BackupManifest(Frozen):
    """The content of a backup; ``store`` is the path of the store."""

    format: Literal[4] = 4
    towline: str
    created: str
    store: str
    models: dict[str, ServedRelease]
    folders: tuple[str, ...]
    members: dict[str, Member]

    @property
    def files(self) -> int:
        return sum(bool(member.sha256) for member in self.members.values())

    @property
    def size(self) -> int:
        """Bytes of all files, unpacked."""
        return sum(member.size for member in self.members.values())

    @property
    def dumps(self) -> dict[str, str]:
        """The member that holds each database; its suffix is the kind of the database."""
        return {Path(name).stem: name for name in self.members if name.startswith("databases/")}


class _HashingReader(io.RawIOBase):
    """Hashes a file while it is read; tarfile raises OSError where a file ends too early."""

    def __init__(self, source: IO[bytes]) -> None:
        self.source, self.digest = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self.source.read(size)
        self.digest.update(block)
        return block


class ArchiveWriter:
    """Adds files and folders to an archive; ``members`` lists them."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self.members: dict[str, Member] = {}
        self._tar = tar

    def add_folder(self, name: str, mode: int) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, mode & 0o777
        self._tar.addfile(info)
        self.members[name] = Member(sha256="", size=0, mode=info.mode)

    def add_file(self, name: str, path: Path) -> None:
        """Adds a file with its current length, although it may grow during the call.

        Raises:
            FileNotFoundError: it does not exist any more.
            TransientError: it became shorter while it was read, or cannot be read.
        """
        try:
            with path.open("rb") as source:
                status, info, content = os.fstat(source.fileno()), tarfile.TarInfo(name), _HashingReader(source)
                info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), status.st_mode & 0o777
                if info.size <= _SMALL_FILE:
                    data = source.read(info.size)
                    info.size, content.source = len(data), io.BytesIO(data)
                self._tar.addfile(info, content)
        except FileNotFoundError:
            raise
        except OSError as error:
            problem = f"cannot be backed up: {error.strerror or error}"
            remedy = "run it again, as a user who may read the file"
            raise TransientError(problem, where=str(path), remedy=remedy) from None
        self.members[name] = Member(sha256=content.digest.hexdigest(), size=info.size, mode=info.mode)

    def add_manifest(self, manifest: BackupManifest) -> None:
        text = manifest.model_dump_json(indent=1).encode()
        info = tarfile.TarInfo(MANIFEST)
        info.size, info.mode = len(text), 0o600
        self._tar.addfile(info, io.BytesIO(text))


@contextmanager
def open_writer(path: Path) -> Iterator[ArchiveWriter]:
    """A new archive, which replaces ``path`` when the block succeeds; only its owner can read it.

    Raises:
        ConfigError: the name ends neither in .tar.zst nor in .tar.gz.
        TransientError: the disk is full or the folder cannot be written.
    """
    codec = next((codec for suffix, (codec, _) in _CODECS.items() if path.name.endswith(suffix)), None)
    if codec is None:
        remedy = f"let it end in {' or '.join(_CODECS)}"
        raise ConfigError(f"not a name of a backup: {path.name}", where=str(path), remedy=remedy)
    with files.replacing(path, 0o600) as file:
        sink = os.fdopen(os.dup(file.fileno()), "wb", _BLOCK)  # the compressor closes it
        with (
            pa.CompressedOutputStream(pa.PythonFile(sink, "w"), codec) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BLOCK) as tar,
        ):
            yield ArchiveWriter(tar)
    files.sync(path.parent)


def unpack(path: Path, target: Path | None = None) -> BackupManifest:
    """Reads an archive to its end and compares every member with the manifest.

    Args:
        path: the archive.
        target: an empty folder for the members; None writes nothing. The caller removes it if an error follows.

    Raises:
        ReleaseError: a member differs from the manifest or is not allowed in a backup; the error names it.
        TransientError: the disk is full or cannot be written.
    """
    members: dict[str, Member] = {}
    manifest: BackupManifest | None = None
    name = path.name
    try:
        with _open_reader(path) as tar:
            for info in tar:
                name = info.name
                if problem := "comes after the manifest" if manifest else _member_problem(info, members):
                    raise _damage_error(path, name, problem)
                if name == MANIFEST:
                    manifest = _read_manifest(path, tar, info)
                else:
                    members[name] = _unpack_member(tar, info, target and target / name)
    except (tarfile.TarError, pa.ArrowException, EOFError, UnicodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a disk error; errors of a codec have no number
            raise
        raise _damage_error(path, name, f"is followed by bytes that cannot be read ({error})") from None
    if manifest is None:
        raise _damage_error(path, name, "is the last one: the manifest is missing, the archive is cut short")
    for name in sorted(manifest.members.keys() | members.keys()):
        expected, present = manifest.members.get(name), members.get(name)
        if present != expected:
            raise _damage_error(path, name, f"is {present or 'missing'}, the manifest says {expected or 'nothing'}")
    return manifest


@contextmanager
def _open_reader(path: Path) -> Iterator[tarfile.TarFile]:
    """An archive whose members the block reads to the last; nothing may follow them."""
    with path.open("rb") as file:
        start = file.read(4)
        codec = next((codec for codec, magic in _CODECS.values() if start.startswith(magic)), None)
        if codec is None:
            raise _damage_error(path, path.name, "is neither zstd nor gzip")
        file.seek(0)
        with (
            pa.CompressedInputStream(pa.PythonFile(file, "r"), codec) as stream,
            tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK) as tar,
        ):
            yield tar
            while tar.fileobj is not None and (block := tar.fileobj.read(_BLOCK)):  # a tar ends at an empty block
                if block.strip(b"\0"):
                    raise _damage_error(path, path.name, "has content after its last member: something was appended")


def _member_problem(info: tarfile.TarInfo, members: dict[str, Member]) -> str:
    parts = info.name.split("/")
    if not (info.isreg() or info.isdir()) or info.issparse():
        return "is neither a file nor a folder"
    if info.name != MANIFEST and (parts[0] not in _ROOTS or not {"", ".", ".."}.isdisjoint(parts) or "\0" in info.name):
        return "has a name that no backup holds"
    return "is in the archive twice" if info.name in members else ""


def _unpack_member(tar: tarfile.TarFile, info: tarfile.TarInfo, target: Path | None) -> Member:
    mode, source = info.mode & 0o777, tar.extractfile(info)
    content = _HashingReader(source or io.BytesIO())
    with files.disk(target or Path(os.devnull)):  # errors of a codec have no number and pass through
        if target and not source:
            target.mkdir(parents=True, exist_ok=True)
            target.chmod(mode | stat.S_IRWXU)
        elif target:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with target.open("xb") as out:
                shutil.copyfileobj(content, out, _BLOCK)
            target.chmod(mode)
            os.utime(target, (info.mtime, info.mtime))
        while content.read(_BLOCK):
            pass  # without a target the content is only hashed
    return Member(sha256=content.digest.hexdigest() if source else "", size=info.size, mode=mode)


def _read_manifest(path: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> BackupManifest:
    source = tar.extractfile(info)
    if source is None or info.size > _MAX_MANIFEST:
        raise _damage_error(path, MANIFEST, f"has {info.size:,} bytes, which is too large or too small for a manifest")
    try:
        return BackupManifest.model_validate_json(source.read())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _damage_error(path, MANIFEST, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _damage_error(path: Path, member: str, problem: str) -> ReleaseError:
    message = f"the backup differs from its manifest: {member} {problem}"
    return ReleaseError(message, where=str(path), remedy="take another copy of the backup, or an earlier one")
