"""An S3 server of a few lines whose troubles are planned: answers with errors, lost connections, no conditions."""

import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

SECRET = "a-secret-that-nobody-may-print"

# What a real server says in some errors: texts that belong in no message.
LEAK = f"<StringToSign>AWS4 {SECRET}</StringToSign><Token-0>{SECRET}</Token-0>"


@dataclass(frozen=True)
class Trouble:
    """What happens to one request.

    Args:
        status, code: The answer, if there is one. Without: the connection is cut.
        done: Whether the request has its effect first.
        hang_s: How long nothing happens before the connection is cut.
    """

    status: int = 0
    code: str = ""
    done: bool = False
    hang_s: float = 0.0


@dataclass
class PlannedStore:
    """The state of the server. `plan` maps a method and a number, from 1, to the trouble of this request."""

    conditions: str = "kept"  # or ignored, unknown, or late: the object appears after the answer was lost
    checksums: bool = False  # whether it wants one with each object
    bulk: bool = True  # whether it knows deleting many objects with one request
    plan: dict[tuple[str, int], Trouble] = field(default_factory=dict)
    always: Trouble | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    turn: threading.Lock = field(default_factory=threading.Lock)
    endpoint: str = ""

    def count(self, method):
        return sum(found == method for found, _ in self.requests)


@contextmanager
def planned_store(tls=None, **state) -> Iterator[PlannedStore]:
    """The running server; `tls`: an SSLContext."""
    store = PlannedStore(**state)

    class Handler(_Handler):
        pass

    Handler.store = store
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *arguments: None  # a client that refuses the certificate
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    store.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer goes out in one piece, so that no acknowledgement is waited for
    store: PlannedStore

    def log_message(self, *arguments):
        pass

    def _serve(self):
        store = self.store
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        place = urllib.parse.urlsplit(self.path)
        key = urllib.parse.unquote(place.path).partition("/")[2].partition("/")[2]
        query = dict(urllib.parse.parse_qsl(place.query, keep_blank_values=True))
        with store.turn:
            store.requests.append((self.command, key))
            store.headers.append({name.lower(): value for name, value in self.headers.items()})
            trouble = store.always or store.plan.get((self.command, store.count(self.command)))
        if trouble is not None and not trouble.done:
            return self._fail(trouble)
        with store.turn:
            answer = getattr(self, f"_{self.command.lower()}")(key, query, body)
        return self._fail(trouble) if trouble is not None else self._answer(*answer)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve  # noqa: N815

    def _fail(self, trouble):
        time.sleep(trouble.hang_s)
        if not trouble.status:
            self.close_connection = True
            return
        text = f"<Error><Code>{trouble.code}</Code><Message>no</Message>{LEAK}</Error>"
        self._answer(trouble.status, b"" if self.command == "HEAD" else text.encode())

    def _answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name == "content-length" for name, _ in headers):
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _put(self, key, query, body):
        store = self.store
        if store.checksums and "x-amz-checksum-sha256" not in self.headers:
            text = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock"
            return 400, f"<Error><Code>InvalidRequest</Code><Message>{text}</Message></Error>".encode()
        if "if-none-match" in self.headers:
            if store.conditions == "unknown":
                return 501, b"<Error><Code>NotImplemented</Code></Error>"
            if store.conditions == "kept" and key in store.objects:
                return 412, b"<Error><Code>PreconditionFailed</Code></Error>"
        store.objects[key] = body
        return 200, b"", [("etag", '"x"')]

    def _get(self, key, query, body):
        store = self.store
        if not key:
            now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            prefix, after = query.get("prefix", ""), query.get("start-after", "")
            found = [name for name in sorted(store.objects) if name.startswith(prefix) and name > after]
            rows = "".join(
                f"<Contents><Key>{escape(name)}</Key><Size>{len(store.objects[name])}</Size>"
                f"<LastModified>{now}</LastModified></Contents>"
                for name in found
            )
            return (
                200,
                f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode(),
            )
        if key not in store.objects:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>"
        content = store.objects[key]
        headers = [("etag", '"x"'), ("last-modified", formatdate(usegmt=True))]
        if "range" not in self.headers:
            return 200, content, headers
        first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
        if int(first) >= len(content):
            return 416, b"<Error><Code>InvalidRange</Code></Error>"
        end = min(int(last or len(content)) + 1, len(content))
        headers.append(("content-range", f"bytes {first}-{end - 1}/{len(content)}"))
        return 206, content[int(first) : end], headers

    def _head(self, key, query, body):
        if key not in self.store.objects:
            return 404, b""
        headers = [("etag", '"x"'), ("last-modified", formatdate(usegmt=True))]
        return 200, b"", [*headers, ("content-length", str(len(self.store.objects[key])))]

    def _delete(self, key, query, body):
        self.store.objects.pop(key, None)
        return 204, b""

    def _post(self, key, query, body):
        if not self.store.bulk:
            return 400, b"<Error><Code>InvalidRequest</Code></Error>"
        keys = [part.partition("</Key>")[0] for part in body.decode().split("<Key>")[1:]]
        for name in keys:
            self.store.objects.pop(name, None)
        rows = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in keys)
        return 200, f"<DeleteResult>{rows}</DeleteResult>".encode()
