"""A hub of models and data sets on 127.0.0.1, from a folder, for tests of what fetches.

`python fake_hub.py FOLDER` prints its address, then serves FOLDER/{models,datasets}/ORG/NAME as
repositories of one commit until it is killed. One that has a file `.gated` gives its files to the
owner of the token ACCEPTED only.
"""

import hashlib
import json
import re
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
ACCEPTED = "hf_accepted"
API = re.compile(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree|paths-info)/.*)?")
FILE = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/[^/]+/(.+)")


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub and datasets ask for; anything else is 404."""

    def __init__(self, *arguments, root: Path) -> None:
        self.root = root
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := API.fullmatch(path):
            folder = self.root / match[1] / match[2]
            if not folder.is_dir():
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif match[3] in ("tree", "paths-info"):
                self.answer(200, json.dumps(list(map(entry(folder), files(folder)))).encode())
            else:
                names = [
                    {"rfilename": path.relative_to(folder).as_posix()} for path in files(folder)
                ]
                facts = {"id": match[2], "sha": COMMIT, "siblings": names, "private": False,
                         "tags": [], "disabled": False, "gated": False}  # fmt: skip
                self.answer(200, json.dumps(facts).encode())
        elif match := FILE.fullmatch(path):
            folder = self.root / ("datasets" if match[1] else "models") / match[2]
            file = folder / match[3]
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if (folder / ".gated").exists() and token != ACCEPTED:
                self.answer(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
            elif file.is_file():
                data = file.read_bytes()
                etag = f'"{hashlib.sha1(data).hexdigest()}"'
                self.answer(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT})
            else:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"{}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match = API.fullmatch(self.path)
        folder = self.root / match[1] / match[2]
        found = [path for name in asked["paths"] if (path := folder / name).is_file()]
        self.answer(200, json.dumps(list(map(entry(folder), found))).encode())

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        print(self.command, self.path, file=sys.stderr)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def entry(folder: Path):
    def describe(path: Path) -> dict:
        data = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        oid = hashlib.sha1(data).hexdigest()
        return {"type": "file", "path": name, "size": len(data), "oid": oid}

    return describe


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root=Path(sys.argv[1])))
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
