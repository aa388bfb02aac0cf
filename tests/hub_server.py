"""A small Hub on this machine that serves repositories to huggingface_hub over HTTP; standard library only.

It has the guarantees of the real Hub that pushes rely on: a commit is all or nothing, `parentCommit` is checked, large
files are content-addressed and must be uploaded before a commit names them, tags do not move, writing needs a token of
the repository's owner. It has no xet storage: clients run with `HF_HUB_DISABLE_XET=1`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


__all__ = ["HubServer", "Repository"]

_LARGE = 10 * 2**20  # bytes; larger files, and files with these suffixes, are uploaded as LFS
_LARGE_SUFFIXES = (".safetensors", ".parquet", ".bin")
_HEX = re.compile(r"[0-9a-f]{40}")


@dataclass
class Repository:
    """A repository: commit id -> tree (path -> content), and branches and tags that point at commits."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)  # sha256 of contents that were uploaded as LFS

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Add a commit to a branch; return its id."""
        parent = self.branches.get(branch)
        text = repr((parent, message, sorted((path, _sha256(content)) for path, content in files.items())))
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.parents[sha], self.messages[sha] = dict(files), parent, message
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch, a tag or an id, or `None`."""
        if _HEX.fullmatch(revision):
            return revision if revision in self.commits else None
        return self.branches.get(revision) or self.tags.get(revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision: path -> content."""
        return self.commits[self.find(revision)]


class HubServer:
    """
    A server in a thread of its own: `with HubServer({"token": "user"}) as hub: ...`.

    Args:
        tokens (`dict[str, str]`): token -> user; users may write to their own repositories only.
    """

    def __init__(self, tokens: dict[str, str]):
        self.tokens = tokens
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.storage: dict[str, bytes] = {}  # sha256 -> content
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, user
        # Called before each answer; returns a status to refuse the request with, or None
        self.interfere: Callable[[str, str], int | None] = lambda method, path: None
        self._lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        # As on the Hub, large files lie on another host, to which a client must not send its token
        self.storage_url = f"http://localhost:{port}/storage"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repository(self, name: str, kind: str = "models") -> Repository:
        """Return an existing repository."""
        return self.repositories[kind, name]

    def create(self, name: str, kind: str = "models", private: bool = False) -> Repository:
        """Create a repository; like a new one on the Hub, it has `.gitattributes` only."""
        made = self.repositories[kind, name] = Repository(private)
        made.commit(
            "main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit"
        )
        return made


class _Refused(Exception):
    """An error to answer with."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def _serve(self) -> None:
        split = urlsplit(self.path)
        path, self.query = unquote(split.path), parse_qs(split.query)
        self.raw_path = split.path
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        else:
            self.body = self.rfile.read(length)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.user = self.hub.tokens.get(token)
        self.hub.requests.append((self.command, path, self.user))
        try:
            status = self.hub.interfere(self.command, path)
            if status is not None:
                raise _Refused(status, "refused by the test")
            if token is not None and self.user is None:
                raise _Refused(401, "Invalid credentials in Authorization header")
            with self.hub._lock:
                self._route(path)
        except _Refused as refused:
            headers = {"X-Error-Message": str(refused), **refused.headers}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self._answer(refused.status, {"error": str(refused)}, **headers)
        except (BrokenPipeError, ConnectionResetError):  # the client has gone
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: dict | list | bytes | None = None, **headers: str) -> None:
        if content is not None and not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers = {"Content-Type": "application/json", **headers}
        content = content or b""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _route(self, path: str) -> None:
        if path == "/api/whoami-v2":
            return self._whoami()
        if path == "/api/repos/create":
            return self._create()
        if path == "/api/validate-yaml":
            return self._validate()
        if match := re.fullmatch(r"/storage/([0-9a-f]{64})", path):
            return self._store(match[1]) if self.command == "PUT" else self._content(self.hub.storage[match[1]])
        if match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(match[1] or "models", match[2])
        if match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/(.+)", path):
            return self._resolve(match[1] or "models", match[2])
        if match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/.*)?)?", path):
            kind, name, action = match.groups()
            answers = {
                None: self._revision,
                "revision": self._revision,
                "refs": self._refs,
                "branch": self._branch,
                "tag": self._tag,
                "tree": self._tree,
                "paths-info": self._paths_info,
                "preupload": self._preupload,
                "commit": self._commit,
            }
            if action in answers:
                return answers[action](kind, name)
        raise _Refused(404, f"no such path: {path}")

    # --- users and permissions

    def _whoami(self) -> None:
        if self.user is None:
            raise _Refused(401, "Invalid credentials in Authorization header")
        self._answer(200, {"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token"}})

    def _readable(self, kind: str, name: str) -> Repository:
        found = self.hub.repositories.get((kind, name))
        if found is None or (found.private and self.user != name.split("/")[0]):
            status = 401 if self.user is None else 404
            raise _Refused(status, "Repository not found", "RepoNotFound")
        return found

    def _writable(self, kind: str, name: str) -> Repository:
        if self.user is None:
            raise _Refused(401, "Invalid username or password.")
        found = self._readable(kind, name)
        if self.user != name.split("/")[0]:
            raise _Refused(403, "You don't have the rights to write to this repository")
        return found

    def _at(self, kind: str, name: str, place: int) -> tuple[Repository, str, list[str]]:
        """Return a repository, the commit in position `place` of the path, and the parts after it."""
        found = self._readable(kind, name)
        parts = self.raw_path.split("/")[place:]
        revision = unquote(parts[0]) if parts else "main"
        sha = found.find(revision)
        if sha is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found, sha, [unquote(part) for part in parts[1:]]

    # --- repositories

    def _create(self) -> None:
        if self.user is None:
            raise _Refused(401, "Invalid username or password.")
        wanted = json.loads(self.body)
        owner, kind = wanted.get("organization") or self.user, f"{wanted.get('type') or 'model'}s"
        name = f"{owner}/{wanted['name']}"
        answer = {"url": f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}", "name": name}
        if owner != self.user:
            raise _Refused(403, f"You don't have the rights to create a {kind[:-1]} under the namespace {owner!r}")
        if (kind, name) in self.hub.repositories:
            return self._answer(409, {**answer, "error": "You already created this repo"})
        self.hub.create(name, kind, wanted.get("visibility") == "private")
        self._answer(200, answer)

    def _validate(self) -> None:
        content = json.loads(self.body)["content"]
        if not content.startswith("---\n"):
            return self._answer(400, {"errors": [{"message": "no metadata"}], "warnings": []})
        self._answer(200, {"errors": [], "warnings": []})

    def _revision(self, kind: str, name: str) -> None:
        found, sha, _ = self._at(kind, name, 6)
        siblings = [{"rfilename": path} for path in sorted(found.commits[sha])]
        facts = {"id": name, "sha": sha, "private": found.private, "siblings": siblings, "tags": [], "downloads": 0}
        self._answer(200, facts)

    def _refs(self, kind: str, name: str) -> None:
        found = self._readable(kind, name)

        def listed(refs: dict[str, str], prefix: str) -> list[dict]:
            return [{"name": n, "ref": f"{prefix}/{n}", "targetCommit": sha} for n, sha in refs.items()]

        branches, tags = listed(found.branches, "refs/heads"), listed(found.tags, "refs/tags")
        self._answer(200, {"branches": branches, "tags": tags, "converts": []})

    def _branch(self, kind: str, name: str) -> None:
        found = self._writable(kind, name)
        branch = unquote(self.raw_path.split("/")[6])
        if branch in found.branches:
            raise _Refused(409, f"Reference already exists: {branch}")
        start = found.find(json.loads(self.body or b"{}").get("startingPoint") or "main")
        found.branches[branch] = start
        self._answer(200, {})

    def _tag(self, kind: str, name: str) -> None:
        found = self._writable(kind, name)
        _, sha, _ = self._at(kind, name, 6)
        tag = json.loads(self.body)["tag"]
        if tag in found.tags:
            raise _Refused(409, f"Tag reference exists already: {tag}")
        found.tags[tag] = sha
        self._answer(200, {})

    def _entry(self, found: Repository, path: str, content: bytes) -> dict:
        sha = _sha256(content)
        entry = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
        if sha in found.large:
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        return entry

    def _tree(self, kind: str, name: str) -> None:
        found, sha, rest = self._at(kind, name, 6)
        folder, files = "/".join(rest).strip("/"), found.commits[sha]
        prefix = f"{folder}/" if folder else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("1", "true")
        entries, folders = [], set()
        for path, content in sorted(files.items()):
            if not path.startswith(prefix):
                continue
            inner = path.removeprefix(prefix).split("/")
            folders.update(prefix + "/".join(inner[:depth]) for depth in range(1, len(inner)))
            if recursive or len(inner) == 1:
                entries.append(self._entry(found, path, content))
        if folder and not entries and not folders:
            raise _Refused(404, f"{folder} does not exist", "EntryNotFound")
        shown = [each for each in sorted(folders) if recursive or "/" not in each.removeprefix(prefix)]
        entries += [{"type": "directory", "path": each, "oid": _blob_id(each.encode()), "size": 0} for each in shown]
        self._answer(200, entries)

    def _paths_info(self, kind: str, name: str) -> None:
        found, sha, _ = self._at(kind, name, 6)
        if "json" in (self.headers.get("Content-Type") or ""):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        entries = []
        for path in paths:
            if path in found.commits[sha]:
                entries.append(self._entry(found, path, found.commits[sha][path]))
            elif any(each.startswith(f"{path}/") for each in found.commits[sha]):
                entries.append({"type": "directory", "path": path, "oid": _blob_id(path.encode()), "size": 0})
        self._answer(200, entries)

    # --- uploads

    def _preupload(self, kind: str, name: str) -> None:
        self._writable(kind, name)
        found, sha, _ = self._at(kind, name, 6)
        answers = []
        for file in json.loads(self.body)["files"]:
            large = file["size"] > _LARGE or file["path"].endswith(_LARGE_SUFFIXES)
            there = found.commits[sha].get(file["path"])
            # as the Hub does: the id of the present content, so that the client can skip unchanged files
            oid = None if there is None else (_sha256(there) if large else _blob_id(there))
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": answers})

    def _batch(self, kind: str, name: str) -> None:
        self._writable(kind, name)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.storage:
                answer["actions"] = {"upload": {"href": f"{self.hub.storage_url}/{wanted['oid']}"}}
            objects.append(answer)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, sha: str) -> None:
        if _sha256(self.body) != sha:
            raise _Refused(400, "the content does not have the announced hash")
        self.hub.storage[sha] = self.body
        self._answer(200)

    def _commit(self, kind: str, name: str) -> None:
        found = self._writable(kind, name)
        branch = unquote(self.raw_path.split("/")[6])
        tip = found.branches.get(branch)
        if tip is None:
            raise _Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        answer = {}
        if self.query.get("create_pr") == ["1"]:
            number = 1 + sum(name.startswith("refs/pr/") for name in found.branches)
            branch = f"refs/pr/{number}"
            found.branches[branch] = tip
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
        files, message, description = dict(found.commits[tip]), "", ""
        large = set()
        for line in self.body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "header":
                message, parent = value["summary"], value.get("parentCommit")
                description = value.get("description") or ""
                if parent is not None and not tip.startswith(parent):
                    raise _Refused(412, f"A commit has happened since. Expected {parent}, found {tip}")
            elif step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                if value["oid"] not in self.hub.storage:
                    raise _Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = self.hub.storage[value["oid"]]
                large.add(value["oid"])
            elif step["key"] == "deletedFile":
                if value["path"] not in files:
                    raise _Refused(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
                del files[value["path"]]
            else:
                raise _Refused(400, f"unknown operation {step['key']}")
        # the commit is valid: apply all of it
        found.large |= large
        sha = found.commit(branch, files, message)
        found.descriptions[sha] = description
        prefix = "" if kind == "models" else f"{kind}/"
        url = f"{self.hub.url}/{prefix}{name}/commit/{sha}"
        self._answer(200, {"success": True, "commitUrl": url, "commitOid": sha, **answer})

    # --- downloads

    def _resolve(self, kind: str, name: str) -> None:
        place = 4 if kind == "models" else 5
        found, sha, rest = self._at(kind, name, place)
        path = "/".join(rest)
        content = found.commits[sha].get(path)
        if content is None:
            raise _Refused(404, f"{path} does not exist on {sha}", "EntryNotFound", **{"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha}
        digest = _sha256(content)
        if digest in found.large:
            headers.update({"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))})
            # redirect, as the Hub does for large files
            return self._answer(302, b"", Location=f"{self.hub.storage_url}/{digest}", **headers)
        self._content(content, ETag=f'"{_blob_id(content)}"', **headers)

    def _content(self, content: bytes, **headers: str) -> None:
        headers["Accept-Ranges"] = "bytes"
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not span:
            return self._answer(200, content, **headers)
        first, last = int(span[1]), int(span[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
        self._answer(206, content[first : last + 1], **headers)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob_id(content: bytes) -> str:
    """Return the id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
