"""An output behind a URL: it is written to this machine, then uploaded; a file appears when it is complete."""

import json
import shutil
from pathlib import Path
from typing import Any

from towline import files, remote_files
from towline.batch.batch_summary import BatchResult
from towline.batch.job import QUARANTINE, SUMMARY, copies_folder, quarantine_path
from towline.batch.job_options import Destination
from towline.config import Frozen
from towline.config.passwords import hide_passwords, mask_passwords

MARK = "_SUCCESS"  # the last file of a folder, as Hadoop and Spark write it


class RemoteOutput(Frozen):
    """A file or a folder behind a URL.

    Attributes:
        url: without a slash at its end; literal secrets are moved to the environment.
    """

    url: str

    @classmethod
    def parse(cls, address: str) -> "RemoteOutput":
        """Reads a URL; a slash at its end is left out.

        Example:
            >>> RemoteOutput.parse("s3://bucket/scored/").name
            'scored'
        """
        return cls(url=hide_passwords(address.rstrip("/")))

    def __str__(self) -> str:
        return mask_passwords(self.url)

    @property
    def name(self) -> str:
        return remote_files.name_of(self.url)

    def inspect(self, local: Path) -> Destination:
        """Checks that the output can be written.

        Args:
            local: path of the output on this machine.

        Raises:
            ConfigError: the scheme is unknown or cannot be written, its package is not installed, or nothing may be
                written there.
            DataError: there is no such bucket.
            TransientError: the server does not answer.
        """
        exists = remote_files.check_writable(self.url)
        record = _record_file(local)
        if not exists or not record.exists():
            return Destination(address=str(self), exists=exists)
        uploaded: dict[str, Any] = json.loads(record.read_bytes())
        unchanged = all(
            version and remote_files.version_of(self.url + name) == version
            for name, version in uploaded["versions"].items()
        )
        result = BatchResult.model_validate(uploaded["result"]) if unchanged else None
        return Destination(address=str(self), exists=exists, result=result)

    def upload(self, local: Path, result: BatchResult) -> None:
        """Uploads the quarantine, the output and the summary, in this order.

        Raises:
            ConfigError: they must not be written.
            TransientError: the server does not answer; the same command uploads them again without scoring.
        """
        quarantine, versions = quarantine_path(local), dict[str, str]()
        if quarantine.exists():
            versions[QUARANTINE] = remote_files.upload(quarantine, self.url + QUARANTINE)
        else:  # of an earlier output
            remote_files.remove(self.url + QUARANTINE)
        versions |= self._upload_folder(local) if local.is_dir() else {"": remote_files.upload(local, self.url)}
        summary = local.parent / f"{local.name}{SUMMARY}"
        versions[SUMMARY] = remote_files.upload(summary, self.url + SUMMARY)
        record = {"versions": versions, "result": result.model_dump(mode="json")}
        files.write(_record_file(local), json.dumps(record))

    def _upload_folder(self, local: Path) -> dict[str, str]:
        """Uploads the files of a folder, removes those of an earlier output, and marks the folder as complete."""
        remote_files.remove(f"{self.url}/{MARK}")
        names = sorted(path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file())
        versions = {f"/{name}": remote_files.upload(local / name, f"{self.url}/{name}") for name in names}
        remote_files.remove_others(self.url, names)
        with files.replacing(local.parent / MARK):
            pass
        return {**versions, f"/{MARK}": remote_files.upload(local.parent / MARK, f"{self.url}/{MARK}")}


def remove_local(local: Path) -> None:
    """Removes an uploaded output from this machine; the record of the upload remains."""
    shutil.rmtree(local) if local.is_dir() else local.unlink(missing_ok=True)
    for extra_file in (quarantine_path(local), local.parent / f"{local.name}{SUMMARY}", local.parent / MARK):
        extra_file.unlink(missing_ok=True)
    shutil.rmtree(copies_folder(local), ignore_errors=True)


def _record_file(local: Path) -> Path:
    return local.parent / f"{local.name}.uploaded.json"
