"""Opening MLflow's store."""

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from siftune import store


def test_processes_that_open_a_new_sqlite_file_at_once_all_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    code = "from siftune import store; store.connect()"
    several = [
        subprocess.Popen([sys.executable, "-P", "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    complaints = [one.communicate(timeout=120)[1] for one in several]
    assert [one.returncode for one in several] == [0, 0], complaints


def test_a_process_killed_while_it_makes_the_file_leaves_no_half_of_it(tmp_path, monkeypatch):
    folder = tmp_path / "new"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    code = "from siftune import store; store.connect()"

    def databases() -> list[Path]:
        # Not its journals, which come and go.
        return [path for path in folder.glob("*mlflow.db*") if path.suffix in (".db", ".tmp")]

    first = subprocess.Popen([sys.executable, "-P", "-c", code])
    deadline = time.monotonic() + 60
    # Of 950,000 bytes: in the midst of a migration, which MLflow would begin again.
    while not any(path.stat().st_size > 300_000 for path in databases()):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.001)
    first.kill()
    first.wait()
    # As on another node, where another process has the number of the dead one.
    [left] = [path for path in databases() if path.suffix == ".tmp"]
    left.rename(folder / f".mlflow.db.{os.getpid()}.tmp")
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_database_that_is_not_there_is_known_at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://u:p@127.0.0.1:9/mlflow")
    with pytest.raises(OSError, match="refused"):
        store.connect()


def test_a_server_that_says_nothing_is_known_before_mlflow_is_imported(monkeypatch):
    """Importing it would take seconds of a core from the training beside it."""
    code = """
import sys
from siftune import store
try:
    store.connect()
except OSError as error:
    print(error, "mlflow" in sys.modules)
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        asked = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert asked.stdout == "timed out False\n", asked.stderr


@pytest.mark.parametrize("word", [b"HTTP/1.1 401 Unauthorized\r\n\r\n", b""])
def test_a_certificate_that_nobody_knows_is_no_silence(certificate, word):
    """Whether it is trusted is MLflow's to say, which may have been told of another authority."""

    def answer() -> None:
        with encrypted.accept()[0] as opened:
            opened.recv(1000)
            opened.sendall(word)

    with socket.create_server(("127.0.0.1", 0)) as server:
        encrypted = certificate.wrap_socket(server, server_side=True)
        threading.Thread(target=answer).start()
        address = f"https://127.0.0.1:{encrypted.getsockname()[1]}"
        if word:
            assert store.knock(address, seconds=10)
        else:
            with pytest.raises(ConnectionResetError, match="without a word"):
                store.knock(address, seconds=10)


@pytest.fixture
def certificate(tmp_path) -> ssl.SSLContext:
    """What a server shows that made its certificate itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "elsewhere")])
    now = datetime.now(UTC)
    signed = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now, now + timedelta(days=1)
    ).sign(key, hashes.SHA256())
    file = tmp_path / "both.pem"
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, *form) + signed.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context
