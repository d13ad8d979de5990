"""MLflow's store: where it is, and opening it; the only importer of mlflow."""

import fcntl
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from siftune import files, redaction

REASON_LENGTH = 300
DEFAULT = "sqlite:///mlflow.db"
# MLflow's own defaults wait minutes for a server that is not there.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "PGCONNECT_TIMEOUT": "10",
}
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


def address() -> str:
    """The address of MLflow's store: the environment's, else an SQLite file in the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT


def connect() -> Any:
    """The mlflow module, with the store of `address` opened.

    Raises:
        Exception: whatever MLflow raises where the store does not answer or refuses.
    """
    for variable, seconds in PATIENCE.items():
        os.environ.setdefault(variable, seconds)
    knock(address(), seconds=float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))
    import mlflow
    from mlflow.store.db import utils

    # A database that refuses would be asked for an hour before its first error is known.
    utils.MAX_RETRY_COUNT = 1
    mlflow.set_tracking_uri(address())
    with _first_opening(address()):
        mlflow.MlflowClient().search_experiments(max_results=1)
    return mlflow


def reason(error: BaseException) -> str:
    """Why MLflow did not take something, in one short line without secrets."""
    last = error
    while (cause := last.__cause__ or last.__context__) is not None:
        last = cause
    # What the network says is plainer than what is told about it.
    told = last if isinstance(last, OSError) else error
    text = redaction.text(str(told).partition("\n")[0])
    if len(text) > REASON_LENGTH:
        text = f"{text[: REASON_LENGTH - 1]}…"
    return text.rstrip(".") or type(told).__name__


def knock(uri: str, *, seconds: float) -> bool:
    """Whether it answers; False: a file, or what is behind a proxy, is not asked.

    Importing mlflow takes seconds of a core, and a database's driver would wait for minutes.

    Raises:
        OSError: nothing listens, or what listens on the web says nothing.
    """
    parts = urlsplit(uri)
    port = _PORTS.get(parts.scheme.partition("+")[0])
    if not port or not parts.hostname or parts.scheme in getproxies():
        return False
    with socket.create_connection((parts.hostname, parts.port or port), seconds) as opened:
        if parts.scheme in ("http", "https"):
            _say_hello(opened, parts.scheme, parts.hostname)
    return True


def _say_hello(opened: socket.socket, scheme: str, host: str) -> None:
    """Whatever comes back is an answer, an error or a certificate that nobody knows, too."""
    try:
        if scheme == "https":
            anyone = ssl.create_default_context()
            anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
            opened = anyone.wrap_socket(opened, server_hostname=host)
        with opened:
            opened.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            if not opened.recv(1):
                raise ConnectionResetError("it ends the connection without a word")
    except ssl.SSLError:
        return


@contextmanager
def _first_opening(uri: str) -> Iterator[None]:
    """Let one process at a time open an SQLite file: the first one makes its tables."""
    path = uri.removeprefix("sqlite:///")
    if path == uri:
        yield
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{path}.lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not Path(path).exists():
            _make(Path(path))
        yield


def _make(path: Path) -> None:
    """Make the tables aside: if it is killed meanwhile, MLflow does not get over half of them."""
    import mlflow

    # Who made these is gone, even if on another node a process has its number: we hold the lock.
    for left in path.parent.glob(f".{path.name}.*.tmp*"):
        left.unlink()
    with files.published_file(path) as aside:
        mlflow.MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
