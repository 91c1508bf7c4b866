"""A Hub for tests: what huggingface_hub asks of one when it creates, pushes, lists and pulls repositories, over HTTP.

    with serve() as hub:
        os.environ["HF_ENDPOINT"] = hub.url       # of processes that are started then
        hub.private.add("tester/secret")          # seen with the token only
        hub.broken_uploads = 1                    # how many uploads of large files are cut off in the middle
        hub.broken_downloads = 1                  # how many downloads of large files are

Repositories are kept in memory: revisions by name, commits by number, files by their content's hash. Weights go through
LFS, all else within commits. Xet, pull requests and discussions are not spoken: set HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

USER, TOKEN = "tester", "hf_tester"
LARGE = (".safetensors", ".bin")
ID = r"(?P<id>[^/]+/[^/]+)"
Route = tuple[str, re.Pattern, Callable[..., None]]


@dataclass
class File:
    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """As git has it; of large files, as LFS."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    commits: list[dict[str, File]] = field(default_factory=lambda: [{}])
    revisions: dict[str, int] = field(default_factory=lambda: {"main": 0})

    def number(self, revision: str) -> int | None:
        """Of the commit that a branch, a tag or a commit's hash means."""
        hashes = {self.hash(number): number for number in range(len(self.commits))}
        return {**hashes, **self.revisions}.get(revision)

    def hash(self, number: int) -> str:
        return hashlib.sha1(f"{id(self)} {number}".encode()).hexdigest()


class Hub:
    """What the server knows; tests look into it and break it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploaded: dict[str, bytes] = {}  # by SHA-256
        self.private: set[str] = set()
        self.broken_uploads = self.broken_downloads = 0
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.url = ""
        self.lock = threading.Lock()


class Refused(Exception):
    """An answer with an error, as the Hub words it."""

    def __init__(self, status: int, code: str, message: str):
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""

    def answer(self) -> None:
        path, self.data = unquote(urlparse(self.path).path), self.read()
        self.hub.requests.append(f"{self.command} {path}")
        for method, pattern, action in ROUTES:
            if method == self.command.replace("HEAD", "GET") and (match := pattern.fullmatch(path)):
                try:
                    action(self, **match.groupdict())
                except Refused as refused:
                    headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
                    self.send(refused.status, {"error": refused.message}, headers)
                return
        self.hub.unknown.append(f"{self.command} {path}")
        self.send(404, {"error": "no such route"})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read(self) -> bytes:
        """The request's body; whole, or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            if self.path.startswith("/lfs/") and length and self.hub.broken_uploads:
                self.hub.broken_uploads -= 1
                self.rfile.read(length // 2)
                self.connection.close()
                raise ConnectionAbortedError("an upload that shall break")
            return self.rfile.read(length)
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, status: int, answer: Any = None, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        body = body or (b"" if answer is None else json.dumps(answer).encode())
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def repository(self, id: str) -> Repository:
        """Raises `Refused` as the Hub does: who may not see a repository is told what who asks for none is told."""
        hidden = id in self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if hidden or id not in self.hub.repositories:
            status = 404 if self.headers.get("Authorization") else 401
            raise Refused(status, "RepoNotFound", "Repository not found")
        return self.hub.repositories[id]

    def files(self, id: str, revision: str) -> tuple[str, dict[str, File]]:
        repository = self.repository(id)
        number = repository.number(revision)
        if number is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository.hash(number), repository.commits[number]

    def who(self) -> None:
        token = {"type": "access_token", "accessToken": {"role": "write", "displayName": "test"}}
        self.send(200, {"type": "user", "name": USER, "orgs": [], "auth": token})

    def nothing(self) -> None:
        """What the client asks for on its own behalf, and does without."""
        raise Refused(404, "NotFound", "Not here")

    def check_card(self) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def create(self) -> None:
        asked = json.loads(self.data)
        id = f"{asked.get('organization') or USER}/{asked['name']}"
        exists = id in self.hub.repositories
        self.hub.repositories.setdefault(id, Repository())
        if asked.get("private"):
            self.hub.private.add(id)
        url = f"{self.hub.url}/{id}"
        self.send(409 if exists else 200, {"url": url, "id": id, "error": "You already created this model repo"})

    def how_to_upload(self, id: str, revision: str) -> None:
        _, files = self.files(id, revision)
        asked = [file["path"] for file in json.loads(self.data)["files"]]
        modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in asked}
        answer = [
            {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": files[path].oid if path in files else None}
            for path, mode in modes.items()
        ]
        self.send(200, {"files": answer})

    def where_to_upload(self, id: str) -> None:
        self.repository(id)
        objects = []
        for asked in json.loads(self.data)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
            known = asked["oid"] in self.hub.uploaded
            objects.append({**asked, **({} if known else {"actions": upload})})
        self.send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.data).hexdigest() != oid:
            raise Refused(400, "BadContent", "the content does not have its hash")
        self.hub.uploaded[oid] = self.data
        self.send(200, {})

    def commit(self, id: str, revision: str) -> None:
        with self.hub.lock:
            _, files = self.files(id, revision)
            files, repository = dict(files), self.repository(id)
            for line in self.data.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), large=False)
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = File(self.hub.uploaded[value["oid"]], large=True)
                elif entry["key"] == "deletedFile":
                    files.pop(value["path"], None)
            repository.commits.append(files)
            repository.revisions[revision] = number = len(repository.commits) - 1
        oid = repository.hash(number)
        url = f"{self.hub.url}/{id}/commit/{oid}"
        self.send(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def name_revision(self, id: str, revision: str) -> None:
        """A branch or a tag."""
        repository, asked = self.repository(id), json.loads(self.data or b"{}")
        if "tag" in asked:  # the revision stands in the address, the tag's name in the body
            repository.revisions[asked["tag"]] = repository.number(revision)
        else:
            repository.revisions[revision] = repository.number(asked.get("startingPoint") or "main")
        self.send(200, {})

    def refs(self, id: str) -> None:
        repository = self.repository(id)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": repository.hash(number)}
            for name, number in repository.revisions.items()
        ]
        self.send(200, {"branches": branches, "converts": [], "tags": []})

    def tree(self, id: str, revision: str, folder: str | None = None) -> None:
        _, files = self.files(id, revision)
        inside = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        answer = []
        for path, file in files.items():
            if path.startswith(inside):
                size = len(file.content)
                lfs = {"lfs": {"oid": file.oid, "size": size, "pointerSize": 130}} if file.large else {}
                answer.append({"type": "file", "path": path, "size": size, "oid": file.oid, **lfs})
        if inside and not answer:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist")
        self.send(200, answer)

    def info(self, id: str, revision: str | None = None) -> None:
        oid, files = self.files(id, revision or "main")
        siblings = [{"rfilename": path} for path in files]
        about = {"private": id in self.hub.private, "tags": [], "downloads": 0, "likes": 0}
        self.send(200, {"_id": id, "id": id, "modelId": id, "sha": oid, "siblings": siblings, **about})

    def resolve(self, id: str, revision: str, path: str) -> None:
        oid, files = self.files(id, revision)
        if path not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid}
            self.send(404, {"error": "Entry not found"}, headers)
            return
        file, content = files[path], files[path].content
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if file.large:
            headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": len(content)}
        status = 200
        if asked := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        if file.large and self.command == "GET" and self.hub.broken_downloads:
            self.hub.broken_downloads -= 1
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(content)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.connection.close()
            raise ConnectionAbortedError("a download that shall break")
        self.send(status, headers={"Content-Type": "application/octet-stream", **headers}, body=content)


ROUTES: list[Route] = [
    (method, re.compile(pattern), action)
    for method, pattern, action in (
        ("GET", "/api/whoami-v2", Handler.who),
        ("GET", "/api/agent-harnesses", Handler.nothing),
        ("POST", "/api/validate-yaml", Handler.check_card),
        ("POST", "/api/repos/create", Handler.create),
        ("POST", f"/api/models/{ID}/preupload/(?P<revision>.+)", Handler.how_to_upload),
        ("POST", rf"/{ID}\.git/info/lfs/objects/batch", Handler.where_to_upload),
        ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.upload),
        ("POST", f"/api/models/{ID}/commit/(?P<revision>.+)", Handler.commit),
        ("POST", f"/api/models/{ID}/(?:branch|tag)/(?P<revision>.+)", Handler.name_revision),
        ("GET", f"/api/models/{ID}/refs", Handler.refs),
        ("GET", f"/api/models/{ID}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", Handler.tree),
        ("GET", f"/api/models/{ID}(?:/revision/(?P<revision>[^/]+))?", Handler.info),
        ("GET", f"/{ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    )
]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that shall break, and clients that hang up, are no news."""


@contextmanager
def serve() -> Iterator[Hub]:
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = hub = Hub()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
