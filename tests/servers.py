"""HTTP servers on this machine's loopback that serve MNIST's files, or answer as bad ones do."""

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

Handler = http.server.BaseHTTPRequestHandler


@contextlib.contextmanager
def serving(get: Callable[[Handler], object]) -> Iterator[str]:
    """A server's address, whose requests this function answers."""

    class Answers(Handler):
        def do_GET(self):
            get(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.handle_error = lambda *_: None  # the client going away is what is tested
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def send(handler: Handler, status: int, body: bytes = b"", length: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def send_file(files: Path) -> Callable[[Handler], None]:
    return lambda handler: send(handler, 200, (files / Path(handler.path).name).read_bytes())
