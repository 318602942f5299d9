"""A PostgreSQL server of the tests' own."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


class CannotStartError(Exception):
    """No server can be started here, and why."""


def programs() -> Path:
    """Folder of `initdb` and `pg_ctl`: on the path, or where Debian keeps those of its newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("pg_ctl")
    if not found and not on_path:
        raise CannotStartError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


def _run(command: list[str], user: str | None) -> None:
    done = subprocess.run(
        command, user=user, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise CannotStartError(f"{command[0]}: {done.stdout.decode(errors='replace').strip()[-300:]}")


@contextmanager
def server() -> Iterator[str]:
    """Start a server that listens on a socket in its own folder alone; yield the URL of its database.

    PostgreSQL will not run as root: then it runs as the user its package made.
    """
    folder_of_programs = programs()
    user = "postgres" if os.geteuid() == 0 else None
    with TemporaryDirectory(prefix="pg", dir="/tmp") as name:  # a socket's path has at most 107 characters
        folder = Path(name)
        if user is not None:
            try:
                os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
            except KeyError as error:
                raise CannotStartError(f"there is no user {user} to run the server as") from error
        data = folder / "data"
        _run([f"{folder_of_programs}/initdb", "-D", str(data), "-U", "twig", "-A", "trust", "--no-sync"], user)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c shared_buffers=16MB"
        control = [f"{folder_of_programs}/pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log")]
        _run([*control, "-o", options, "start"], user)
        try:
            yield f"postgresql://twig@/postgres?host={folder}"
        finally:
            _run([*control, "-m", "immediate", "stop"], user)
