"""Remote files: files behind a URL, in an object store or on a web server.

This is the only importer of fsspec, which has a file system for each scheme. Credentials are found as the provider's
own tools find them: in the environment, in its files, or by the machine's role. A literal secret in a URL is moved to
the environment, and no error shows one.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from towline import extras, files
from towline.config import Frozen, suggest
from towline.config.passwords import expand_variables, hide_passwords, mask_passwords
from towline.errors import ConfigError, DataError, TowlineError, TransientError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_LOCAL, _WEB = ("file", "local"), ("http", "https")
_VERSIONS = ("ETag", "etag", "generation", "Content-MD5", "content_md5", "md5Hash")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")
_SECRET_VARIABLE = re.compile(r"(?i)secret|token|passw|key|credential|connection_string|sas")
_SHORTEST_SECRET = 8  # shorter values of variables may be ordinary words
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_REFUSED = (401, 403)
_DENIED = ("NoCredentials", "PartialCredentials", "Refresh", "DefaultCredentials", "Authentication", "TokenRetrieval")
_BUCKETS = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}
_ALIASES = {"s3a": "s3", "gcs": "gs"}
_IN_EXTRA = ("s3", *_WEB)  # schemes whose packages the extra `remote` brings
_LATER = "check the address, and that it can be reached from here; then run the same command again"
#: stores in which an upload replaces a file at once, when it is complete
_ATOMIC = ("s3", "gs", "abfs", "abfss", "az", "adl", "oss", "memory")


def is_url(address: str) -> bool:
    """Whether an address begins with a scheme such as ``s3://``."""
    return _URL.match(address) is not None


def local_path(address: str) -> str:
    """The path of a ``file://`` URL; any other address is returned as it is.

    Raises:
        ConfigError: the URL names another host.

    Example:
        >>> local_path("file:///data/new%20rows.csv")
        '/data/new rows.csv'
    """
    scheme = _URL.match(address)
    if scheme is None or scheme[1].lower() not in _LOCAL:
        return address
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError("a file URL of another host", where=address, remedy=f"write file:///{parts.netloc}/...")
    return unquote(parts.path)


def name_of(address: str) -> str:
    """The last part of a path or of a URL, without the query of a web address.

    Example:
        >>> name_of("https://host/new.csv?sig=abc")
        'new.csv'
    """
    path = address.partition("?")[0] if address.lower().startswith(("http://", "https://")) else address
    return PurePosixPath(path).name


class RemoteFile(Frozen):
    """A file of an object store or a web server; it is read in ranges.

    Attributes:
        url: of the file; literal secrets are moved to the environment.
        size: in bytes; -1 if the server does not give it.
        version: of the content, from the server: an ETag or a time; empty without one.
    """

    url: str
    size: int
    version: str

    def __str__(self) -> str:
        return mask_passwords(self.url)

    @property
    def name(self) -> str:
        return name_of(self.url)

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.name).suffixes

    @property
    def digest(self) -> str:
        """SHA-256 of the address, the size and the version."""
        return hashlib.sha256(f"{self}\n{self.size}\n{self.version}".encode()).hexdigest()

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The bytes as a stream that can be sought; each read asks for its range.

        Raises:
            DataError: the file does not exist, or it changes while it is read.
            ConfigError: it must not be read.
            TransientError: the server does not answer.
        """
        storage = _Storage.of(self.url, "IN")
        with remote_errors(self.url):
            stream = storage.system.open(storage.path, mode, cache_type="none")
        return _RangeStream(stream, self)  # type: ignore[return-value]

    def check_unchanged(self) -> None:
        """Checks that the file has not changed since it was listed.

        Raises:
            DataError: it has changed.
        """
        storage = _Storage.of(self.url, "IN")
        with remote_errors(self.url):
            now = _to_file(self.url, storage.system.info(storage.path))
        if now != self:
            raise _changed_error(str(self))

    @property
    def has_ranges(self) -> bool:
        """Whether the server answers with ranges of bytes, and says if the content changes."""
        if not self.version or self.size < 1:
            return False
        storage = _Storage.of(self.url, "IN")
        if storage.scheme not in _WEB:
            return True
        with remote_errors(self.url):
            try:
                with storage.system.open(storage.path, "rb", cache_type="none") as stream:
                    stream.seek(self.size // 2)
                    return len(stream.read(1)) == 1
            except ValueError:  # the server sent the whole file
                return False

    def copy_to(self, folder: Path) -> Path:
        """Copies the file into its own folder below this one; an existing copy of this version is used.

        Raises:
            DataError: the file does not exist, or it changes while it is copied.
            TransientError: the server does not answer, or the disk is full.
        """
        target = folder / self.digest[:16] / (self.name or "file")
        if target.exists() and self.version:
            return target
        storage = _Storage.of(self.url, "IN")
        partial = target.with_name(f".{secrets.token_hex(4)}")
        with files.disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with remote_errors(self.url):
                storage.system.get_file(storage.path, str(partial))
            self.check_unchanged()
            partial.replace(target)
        return target


class _RangeStream(io.RawIOBase):
    """A stream of fsspec whose errors are those of towline."""

    def __init__(self, stream: Any, file: RemoteFile) -> None:
        self._stream, self._file = stream, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with remote_errors(self._file.url):
            data: bytes = self._stream.read(size)
            return data

    def seek(self, offset: int, whence: int = 0) -> int:
        place: int = self._stream.seek(offset, whence)
        return place

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def list_remote_files(address: str, suffixes: Sequence[str], setting: str) -> list[RemoteFile]:
    """The files of a URL, which is a file, a folder or a glob pattern; sorted by name.

    Args:
        address: the URL.
        suffixes: ends of the names of the files that are read of a folder.
        setting: that names the source, for errors.

    Raises:
        ConfigError: the scheme is unknown, its package is not installed, or the files must not be read.
        DataError: there is no such file.
        TransientError: the server does not answer.
    """
    url = hide_passwords(address)
    storage = _Storage.of(url, setting)
    with remote_errors(url):
        entries = _find(storage, suffixes)
        if not entries and storage.scheme not in _WEB:
            storage.system.ls(storage.path.strip("/").partition("/")[0] or "/")  # a missing bucket is named
    if not entries:
        remedy = f"check {setting}, or give a pattern such as {storage.scheme}://BUCKET/FOLDER/**/*.parquet"
        raise DataError("no such file", where=mask_passwords(url), remedy=remedy)
    if storage.scheme in _WEB:
        return [_to_file(url, entries[0])]
    with remote_errors(url):
        infos = [info if _content_version(info) else storage.system.info(info["name"]) for info in entries]
    return sorted((_to_file(storage.url_of(str(info["name"]), url), info) for info in infos), key=str)


def check_writable(address: str) -> bool:
    """Checks that a file may be written, by writing and removing an empty file next to it.

    Returns:
        Whether the file exists.

    Raises:
        ConfigError: the scheme is unknown or cannot be written, its package is not installed, the URL names no file in
            a bucket, or nothing may be written there.
        DataError: there is no such bucket.
        TransientError: the server does not answer.
    """
    storage = _Storage.of(address, "OUT")
    if storage.scheme in _WEB:
        remedy = "give a path or the URL of an object store as OUT, such as s3://BUCKET/NAME.parquet"
        raise ConfigError(f"{storage.scheme}:// cannot be written", where=mask_passwords(address), remedy=remedy)
    if "/" not in storage.path.strip("/") and storage.scheme != "memory":
        remedy = f"add a name, as in {storage.scheme}://BUCKET/scored.parquet"
        raise ConfigError("OUT names a bucket", where=mask_passwords(address), remedy=remedy)
    trial = f"{storage.path.rstrip('/')}.towline-check"
    with remote_errors(address):
        exists = _exists(storage)
        storage.system.pipe_file(trial, b"")
        _remove(storage.system, trial)
    return exists


def upload(path: Path, address: str) -> str:
    """Uploads a file; it replaces an earlier one when it is complete. Returns its version.

    Raises:
        ConfigError: it must not be written.
        TransientError: the server does not answer.
    """
    storage = _Storage.of(address, "OUT")
    with remote_errors(address):
        if storage.scheme in _ATOMIC:
            storage.system.put_file(str(path), storage.path)
        else:
            partial = f"{storage.path}.towline-partial"
            storage.system.makedirs(str(PurePosixPath(storage.path).parent), exist_ok=True)
            storage.system.put_file(str(path), partial)
            storage.system.mv(partial, storage.path)
    return version_of(address)


def version_of(address: str) -> str:
    """The size and the version of a file; empty if the file does not exist, or the server gives no version.

    Raises:
        ConfigError: it must not be read.
        TransientError: the server does not answer.
    """
    storage = _Storage.of(address, "OUT")
    with remote_errors(address):
        try:
            file = _to_file(address, storage.system.info(storage.path))
        except FileNotFoundError:
            return ""
    return f"{file.size} {file.version}" if file.version else ""


def remove(address: str) -> None:
    """Removes a file, if it exists.

    Raises:
        ConfigError: it must not be removed.
        TransientError: the server does not answer.
    """
    storage = _Storage.of(address, "OUT")
    with remote_errors(address):
        _remove(storage.system, storage.path)


def remove_others(address: str, names: Collection[str]) -> None:
    """Removes the Parquet files of a folder whose names, relative to it, are not among these; as ``remove``."""
    storage = _Storage.of(address, "OUT")
    with remote_errors(address):
        folder = f"{storage.path}/"
        for path in storage.system.find(folder):
            is_table = path.startswith(folder) and path.endswith(".parquet")
            if is_table and path.removeprefix(folder) not in names:
                _remove(storage.system, path)


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turns the errors of a file system into those of towline; ``url`` is the affected one."""
    try:
        yield
    except TowlineError:
        raise
    except Exception as error:  # each provider's library has its own errors, and they may show secrets
        if isinstance(error, OSError) and error.errno in _DISK:
            raise  # of the local disk, for ``files.disk``
        raise _translate(error, url) from None


@contextmanager
def naming_originals(folder: Path) -> Iterator[None]:
    """Names a remote file in a DataError instead of the path of its copy (``copy_to``) below a folder."""
    try:
        yield
    except DataError as error:
        copied = re.compile(re.escape(f"{folder}/") + r"(?:[^/]+/)?[0-9a-f]{16}/")
        if not copied.search(error.where):
            raise
        where = copied.sub("", error.where)
        raise DataError(error.what, where=where, remedy=error.remedy, details=error.details) from None


class _Storage(NamedTuple):
    """A file system of fsspec, and a path in it."""

    scheme: str
    system: Any
    path: str

    @classmethod
    def of(cls, url: str, setting: str) -> "_Storage":
        """The file system of a URL, of which ``setting`` is the option that gave it."""
        match = _URL.match(url)
        given = match[1].lower() if match else ""
        where, scheme = mask_passwords(url), _ALIASES.get(given, given)
        if scheme in _IN_EXTRA or not extras.is_installed("fsspec"):
            extras.require(f"{setting}: {scheme}://", "remote")
        from fsspec.registry import get_filesystem_class, known_implementations

        if scheme in _BUCKETS and "@" in url.split("/")[2]:
            what, remedy = f"a {scheme}:// URL has no user or password", f"leave it out, and set {_BUCKETS[scheme]}"
            raise ConfigError(what, where=where, remedy=remedy)
        try:
            kind = get_filesystem_class(scheme)
        except ImportError:
            package = known_implementations[scheme]["class"].partition(".")[0]
            remedy = f"pip install {package}" if package != "fsspec" else f"install what fsspec needs for {scheme}://"
            raise ConfigError(f"not installed: the package for {scheme}://", where=where, remedy=remedy) from None
        except ValueError:
            remedy = suggest(scheme, ("s3", "gs", "abfs", "https", "file", "postgresql", "sqlite"))
            raise ConfigError(f"unknown scheme {scheme}://", where=where, remedy=remedy) from None
        full = expand_variables(url, setting)
        with remote_errors(url):
            options = {**kind._get_kwargs_from_urls(full), "use_listings_cache": False}
            return cls(scheme, kind(**options), str(kind._strip_protocol(full)))

    def url_of(self, path: str, url: str) -> str:
        """The URL of a path of this file system; ``url`` is another one, with the same bucket or host."""
        authority, first, rest = url.split("/")[2], *path.lstrip("/").partition("/")[::2]
        bucket = expand_variables(authority).partition("@")[0]
        return f"{self.scheme}://{authority}/{rest if first == bucket else path.lstrip('/')}"


def _find(storage: _Storage, suffixes: Sequence[str]) -> list[Mapping[str, Any]]:
    """The entries of the files of a storage's path."""
    system, path = storage.system, storage.path
    try:
        info = system.info(path)
    except FileNotFoundError:
        if storage.scheme in _WEB:
            raise
        entries = system.glob(path, detail=True).values() if any(mark in path for mark in "*?[") else ()
        return [entry for entry in entries if _is_visible_file(entry, path.rpartition("/")[2])]
    except OSError:
        if storage.scheme == "s3":
            system.cat_file(path, 0, 1)  # its error has a reason, that of a HEAD request has none
        raise
    if info["type"] == "file":
        return [info]
    entries = filter(_is_visible_file, system.ls(path, detail=True))
    return [entry for entry in entries if entry["name"].lower().endswith(tuple(suffixes))]


def _is_visible_file(entry: Mapping[str, Any], pattern: str = "") -> bool:
    """Hidden files, such as those that macOS adds, are not tables."""
    return entry["type"] == "file" and files.is_visible(entry["name"].rpartition("/")[2], pattern)


def _to_file(url: str, info: Mapping[str, Any]) -> RemoteFile:
    version = _content_version(info) or next((str(info[key]) for key in _TIMES if info.get(key)), "")
    size = info.get("size")
    return RemoteFile(url=url, size=-1 if size is None else int(size), version=version)


def _content_version(info: Mapping[str, Any]) -> str:
    return next((str(info[key]) for key in _VERSIONS if info.get(key)), "")


def _exists(storage: _Storage) -> bool:
    try:
        storage.system.info(storage.path)
    except FileNotFoundError:
        return False
    return True


def _remove(system: Any, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        system.rm_file(path)


def _changed_error(where: str) -> DataError:
    remedy = "run the same command again when nothing writes to it"
    return DataError("the file has changed since it was opened", where=where, remedy=remedy)


def _translate(error: Exception, url: str) -> TowlineError:
    where, reason = mask_passwords(url), _reason(error, url)
    if type(error).__name__ == "FileExpired":
        return _changed_error(where)
    cause = error.__cause__ or error
    if isinstance(error, FileNotFoundError) and isinstance(cause, OSError | TimeoutError) and cause is not error:
        return TransientError(f"the server does not answer: {_reason(cause, url)}", where=where, remedy=_LATER)
    denied = isinstance(error, PermissionError) or any(name in type(error).__name__ for name in _DENIED)
    if denied or getattr(cause, "status", 0) in _REFUSED or _code(cause) in ("400", "ExpiredToken", "403"):
        remedy = "check the credentials in the environment, that they have not expired, and what they may do"
        return ConfigError(f"no access: {reason}", where=where, remedy=remedy)
    if isinstance(error, FileNotFoundError):
        return DataError(f"no such file or bucket: {reason}", where=where, remedy="check the URL")
    if isinstance(error, NotImplementedError):
        return ConfigError(
            "this file system does not support the operation", where=where, remedy="give the URL of an object store"
        )
    return TransientError(f"the server does not answer: {reason}", where=where, remedy=_LATER)


def _code(error: BaseException) -> str:
    """The code of an error of S3."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, Mapping) else ""


def _reason(error: BaseException, url: str) -> str:
    """The first line of an error without secrets: those of the URL and of the environment."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    with contextlib.suppress(ConfigError):  # a variable is not set
        text = text.replace(expand_variables(url), mask_passwords(url))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(name):
            text = text.replace(value, "***").replace(quote(value, safe=""), "***")
    text = re.sub(r"(://)[^/\s@]*@", r"\1***@", re.sub(r"\?[^\s'\"]*=[^\s'\"]*", "?***", text))
    return text[:200]
