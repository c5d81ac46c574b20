"""The download, against servers on this machine's loopback that serve, lie, refuse and hang."""

import contextlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jaxmnist.datasets.tfds import FILES, download, probe
from jaxmnist.errors import DataError, DataNotFoundError

Handler = http.server.BaseHTTPRequestHandler


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def files() -> Path:
    data_dir = os.environ.get("JAXMNIST_DATA_DIR")
    if not data_dir or not all(Path(data_dir, name).is_file() for name in FILES):
        pytest.skip("JAXMNIST_DATA_DIR names no directory with MNIST's four .gz files")
    return Path(data_dir)


@contextlib.contextmanager
def serving(get: Callable[[Handler], None], head: Callable[[Handler], None]) -> Iterator[str]:
    """A server's address, whose requests these two functions answer."""

    class Answers(Handler):
        def do_GET(self):
            get(self)

        def do_HEAD(self):
            head(self)

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


def ok(handler: Handler) -> None:
    send(handler, 200)


def send_file(files: Path) -> Callable[[Handler], None]:
    return lambda handler: send(handler, 200, (files / Path(handler.path).name).read_bytes())


class Stall:
    """Sends a little of what it announced, then nothing; `reached` is set once it is doing so."""

    def __init__(self):
        self.reached, self.over = threading.Event(), threading.Event()

    def __call__(self, handler: Handler) -> None:
        send(handler, 200, bytes(100_000), length=9_912_422)
        self.reached.set()
        self.over.wait(60)


@pytest.fixture
def stall() -> Iterator[Stall]:
    stall = Stall()
    yield stall
    stall.over.set()


def assert_refused(
    kind: type[DataError], says: str, destination: Path, url: str, **options
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        download(destination, base_url=url, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)
    assert not destination.exists() or not any(destination.iterdir())


def test_the_four_files_arrive_silently(tmp_path, files, capfd):
    with serving(send_file(files), head=ok) as url:
        assert download(tmp_path / "new" / "mnist", base_url=url) == tmp_path / "new" / "mnist"
    assert {path.name for path in tmp_path.glob("new/mnist/*")} == set(FILES)
    for name in FILES:
        assert (tmp_path / "new" / "mnist" / name).read_bytes() == (files / name).read_bytes()
    assert capfd.readouterr() == ("", "")


def test_progress_shows_a_bar_on_standard_error(tmp_path, files, capfd):
    with serving(send_file(files), head=ok) as url:
        download(tmp_path, base_url=url, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err
    assert "11.6M/11.6M" in err


def test_it_goes_through_the_proxy_that_the_environment_names(tmp_path, files, monkeypatch):
    with serving(send_file(files), head=ok) as url:
        monkeypatch.setenv("http_proxy", url)
        download(tmp_path, base_url="http://mnist.invalid/")
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


def test_other_bytes_are_refused(tmp_path):
    def get(handler: Handler) -> None:
        send(handler, 200, b"<html>Please log in to this network.</html>")

    with serving(get, head=ok) as url:
        assert_refused(DataError, "wrong checksum", tmp_path, url)


def test_what_is_already_in_the_destination_stays(tmp_path):
    (tmp_path / "notes.txt").touch()
    with serving(lambda handler: send(handler, 404), head=ok) as url, pytest.raises(DataError):
        download(tmp_path, base_url=url)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_server_without_the_files_is_not_waited_for(tmp_path, status):
    def answer(handler: Handler) -> None:
        send(handler, status)

    with serving(answer, head=answer) as url:
        assert_refused(DataNotFoundError, f"HTTP status {status}", tmp_path / "new", url)
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_missing_is_not_retried(tmp_path):
    with serving(lambda handler: send(handler, 404), head=ok) as url:
        assert_refused(DataNotFoundError, "HTTP code: 404", tmp_path, url)


def test_a_server_error_after_the_probe_ends_within_the_stall_time(tmp_path):
    with serving(lambda handler: send(handler, 500), head=ok) as url:
        start = time.monotonic()
        assert_refused(
            DataNotFoundError, "nothing arrived for 2 s", tmp_path, url, stall_seconds=2.0
        )
        assert time.monotonic() - start < 5


def test_a_connection_that_breaks_is_an_error(tmp_path):
    def get(handler: Handler) -> None:
        send(handler, 200, bytes(1000), length=2000)

    with serving(get, head=ok) as url:
        assert_refused(DataNotFoundError, "IncompleteRead", tmp_path, url)


def test_a_server_that_stalls_is_given_up(tmp_path, stall):
    with serving(stall, head=ok) as url:
        start = time.monotonic()
        assert_refused(
            DataNotFoundError, "nothing arrived for 2 s", tmp_path, url, stall_seconds=2.0
        )
        assert stall.reached.is_set()
        assert time.monotonic() - start < 6


def test_a_refused_connection_is_reported_at_once(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        start = time.monotonic()
        assert_refused(DataNotFoundError, "ConnectionError", tmp_path, url)
        assert time.monotonic() - start < 2


def test_a_server_that_never_answers_is_given_up_within_5_seconds(tmp_path, stall):
    with serving(ok, head=lambda handler: stall.over.wait(60)) as url:
        start = time.monotonic()
        assert_refused(DataNotFoundError, "no answer within 4 s|Timeout", tmp_path, url)
        assert time.monotonic() - start < 5


def test_a_name_lookup_that_hangs_is_given_up_within_5_seconds(monkeypatch, stall):
    def getaddrinfo(*_: object, **__: object) -> None:
        stall.over.wait(60)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    start = time.monotonic()
    with pytest.raises(DataNotFoundError, match="no answer within 4 s"):
        probe("http://mnist.invalid/")
    assert time.monotonic() - start < 5


def children(pid: int) -> list[int]:
    """The living (not merely unreaped) children of a process; see proc(5) on the fields of stat."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(path.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to see processes in")
@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_download_leaves_no_process_and_no_file(tmp_path, stall, number):
    # No `if __name__ == "__main__"`: the child process must not run the user's script again.
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\n"
        "from jaxmnist.datasets.tfds import download\n"
        "download(pathlib.Path(sys.argv[1]), base_url=sys.argv[2])\n"
    )
    destination = tmp_path / "mnist"
    with (
        serving(stall, head=ok) as url,
        subprocess.Popen(
            [sys.executable, script, destination, url],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.DEVNULL,
        ) as parent,
    ):
        try:
            assert stall.reached.wait(30)
            (child,) = children(parent.pid)
            assert any(destination.iterdir())
            start = time.monotonic()
            parent.send_signal(number)
            parent.wait(10)
            while is_alive(child) and time.monotonic() - start < 10:
                time.sleep(0.02)
            assert time.monotonic() - start < 3
        finally:
            parent.kill()
    assert parent.returncode == -number
    assert not any(destination.iterdir())
