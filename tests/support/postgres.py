"""A PostgreSQL server for the tests, which is removed with its data at the end."""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from tests.support.waiting import free_port


def find_postgres() -> Path | None:
    """Finds the folder with initdb and pg_ctl: Debian's newest, which is not on the path, else that on the path."""
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    newest = max(versions, key=lambda folder: int(folder.parent.name), default=None)
    on_path = shutil.which("initdb")
    return newest or (Path(on_path).parent if on_path else None)


@contextmanager
def run_postgres(programs: Path) -> Iterator[str]:
    """Runs a new server on loopback and yields the superuser's URL, whose password has special characters."""
    password = f"{secrets.token_hex(8)}:@/% ?#"
    is_root = os.geteuid() == 0  # PostgreSQL does not run as root; its own user must be able to enter the folder
    folders = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"  # a folder that every user may enter
    folder = Path(tempfile.mkdtemp(prefix="towline-postgres-", dir=folders if is_root else None))
    (folder / "password").write_text(password)
    user = ["runuser", "-u", "postgres", "--"] if is_root else []
    if is_root:
        shutil.chown(folder, "postgres")
    port = free_port()

    def call(program: str, *arguments: str) -> None:
        subprocess.run([*user, programs / program, "-D", folder / "data", *arguments], cwd=folder, check=True)

    try:
        call(
            "initdb", "--username=tester", "--auth=scram-sha-256", f"--pwfile={folder}/password", "--encoding=UTF8",
            "--locale=C", "--no-sync",
        )  # fmt: skip
        options = f"-h 127.0.0.1 -p {port} -k '' -c fsync=off"
        call("pg_ctl", "start", "--wait", "--timeout=120", f"--log={folder}/log", f"--options={options}")
        try:
            yield f"postgresql+psycopg://tester:{quote(password, safe='')}@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "stop", "--wait", "--mode=fast")
    finally:
        shutil.rmtree(folder)
