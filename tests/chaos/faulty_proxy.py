"""An HTTP proxy before a real server that answers late, wrongly or not at all, by a seed."""

import http.client
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mlflow_server import free_port

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
FORWARD_TIMEOUT_S = 60.0


class FaultyProxy:
    """Forwards to a port of this machine, doing a fault to a share of the requests.

    Faults: `refuse` (500, nothing forwarded), `forget` (forwarded, answered by 500), `drop`
    (forwarded, the connection closed without an answer), `late` (answered after `late_s`), `hang`
    (never answered, nothing forwarded), `torn` (half of the answer, then closed).

    Args:
        port: of the server behind.
        faults: which faults are done.
        share: of the requests that get one.
        seed: decides which.
        late_s: how long `late` waits.
    """

    def __init__(
        self,
        port: int,
        faults: tuple[str, ...],
        share: float,
        seed: int,
        late_s: float = 1.0,
        only: str = "",
    ) -> None:
        self.done: Counter[str] = Counter()
        self._behind = port
        self._faults = faults
        self._share = share
        self._late_s = late_s
        self._only = only
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", free_port()), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def heal(self) -> None:
        """Do no fault from now on."""
        with self._lock:
            self._share = 0.0

    def close(self) -> None:
        """Stop serving and let go of what hangs."""
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _next_fault(self, path: str) -> str:
        with self._lock:
            may_be_hit = self._only in path and not path.endswith("/health")
            is_hit = may_be_hit and self._random.random() < self._share
            fault = self._random.choice(self._faults) if is_hit else "none"
            self.done[fault] += 1
            return fault

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_ANY(self) -> None:
                proxy.serve(self)

            # The names under which the standard library looks for them.
            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_ANY  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        return Handler

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self._next_fault(request.path)
        if fault == "hang":
            self._ending.wait()
            request.close_connection = True
            return
        if fault == "refuse":
            _answer(request, 500, [], b'{"error_code": "INTERNAL_ERROR"}')
            return
        if fault == "late":
            self._ending.wait(self._late_s)
        status, headers, data = self._forward(request, body)
        if fault == "forget":
            _answer(request, 500, [], b'{"error_code": "INTERNAL_ERROR"}')
        elif fault == "drop":
            request.close_connection = True
        elif fault == "torn":
            _answer(request, status, headers, data, sent=len(data) // 2)
            request.close_connection = True
        else:
            _answer(request, status, headers, data)

    def _forward(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        behind = http.client.HTTPConnection("127.0.0.1", self._behind, timeout=FORWARD_TIMEOUT_S)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
            behind.request(request.command, request.path, body, headers)
            answer = behind.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except OSError:  # the server behind is away
            return 502, [], b""
        finally:
            behind.close()


def _answer(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: list[tuple[str, str]],
    data: bytes,
    sent: int | None = None,
) -> None:
    request.send_response(status)
    for name, value in headers:
        if name.lower() not in HOP_BY_HOP:
            request.send_header(name, value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data if sent is None else data[:sent])
