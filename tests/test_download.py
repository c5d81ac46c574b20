"""The download, against servers on this machine's loopback that serve, lie, refuse and hang."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxmnist.datasets import download
from jaxmnist.datasets.download import FILES, MNIST_URL, fetch, registered
from jaxmnist.errors import DataError, DataNotFoundError
from tests.servers import Handler, Stall, flip_a_bit, reset, send, send_file, serving

# For a server that keeps silent for ever: however slow this machine is, it is silent for longer.
SOON = 0.5


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def files(mnist_dir) -> Path:
    if not all((mnist_dir / name).is_file() for name in FILES):
        pytest.skip("JAXMNIST_DATA_DIR names no directory with MNIST's four .gz files")
    return mnist_dir


@pytest.fixture
def stall() -> Iterator[Stall]:
    stall = Stall()
    yield stall
    stall.over.set()


def assert_refused(kind: type[DataError], says: str, url: str, timeout: float = 60.0) -> None:
    with pytest.raises(DataError, match=says) as caught:
        fetch(url, timeout=timeout)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)


def test_the_installed_tfds_registers_the_files():
    """Were its table to move in another version, downloads would end here and not at a user's."""
    from tensorflow_datasets.core.download import checksums

    infos = checksums.get_all_url_infos()
    for name, (size, checksum) in registered().items():
        assert (size, checksum) == (infos[MNIST_URL + name].size, infos[MNIST_URL + name].checksum)


def test_without_the_checksums_nothing_is_downloaded(monkeypatch):
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataNotFoundError, match="no checksums to verify"):
        fetch("http://mnist.invalid/")


def test_the_four_files_arrive_silently(files, capfd):
    with serving(send_file(files)) as url:
        contents = fetch(url, timeout=60.0)
    assert contents == {name: (files / name).read_bytes() for name in FILES}
    assert capfd.readouterr() == ("", "")


def test_progress_shows_a_bar_on_standard_error(files, capfd, monkeypatch):
    with serving(send_file(files)) as url:
        fetch(url, progress=True, timeout=60.0)
        out, err = capfd.readouterr()
        assert out == ""
        assert "100%" in err
        assert "11.6M/11.6M" in err
        monkeypatch.setattr(sys, "stderr", None)  # as where it is closed
        assert set(fetch(url, progress=True, timeout=60.0)) == set(FILES)


def test_it_goes_through_the_proxy_that_the_environment_names(files, monkeypatch):
    with serving(send_file(files)) as url:
        monkeypatch.setenv("http_proxy", url)
        assert set(fetch("http://mnist.invalid/", timeout=60.0)) == set(FILES)


def page_of_text(handler: Handler) -> None:
    send(handler, 200, b"<html>Please log in to this network.</html>")


def cut_off(handler: Handler) -> None:
    """Without a length, so that only the checksum can tell."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(bytes(1000))


def test_other_bytes_are_refused(files):
    for get in (page_of_text, cut_off, flip_a_bit(files)):
        with serving(get) as url:
            assert_refused(DataError, "wrong checksum", url)


def test_no_more_is_received_than_a_file_has():
    gone = threading.Event()

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1_000_000))
        except OSError:  # the client has gone
            gone.set()

    with serving(endless) as url:
        assert_refused(DataError, "wrong checksum", url)
        assert gone.wait(60)


@pytest.mark.parametrize("status", [204, 403, 404, 500, 503])
def test_a_server_without_the_files_is_not_asked_again(status):
    asked = []

    def answer(handler: Handler) -> None:
        asked.append(handler.path)
        send(handler, status)

    with serving(answer) as url:
        assert_refused(DataNotFoundError, f"HTTP status {status}", url)
    assert asked == [f"/{FILES[0]}"]


def test_a_connection_that_breaks_is_an_error():
    with serving(lambda handler: send(handler, 200, bytes(1000), length=2000)) as url:
        assert_refused(DataNotFoundError, "ProtocolError", url)
    with serving(reset) as url:
        assert_refused(DataNotFoundError, "ConnectionError", url)


def test_a_refused_connection_is_an_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        assert_refused(DataNotFoundError, "ConnectionError", url)


def test_a_server_that_stalls_is_given_up(stall):
    with serving(stall) as url:
        assert_refused(DataNotFoundError, "nothing arrived", url, timeout=SOON)


def test_a_server_that_never_answers_is_given_up(stall):
    with serving(lambda handler: stall.over.wait()) as url:
        assert_refused(DataNotFoundError, "nothing arrived", url, timeout=SOON)


def test_a_name_lookup_that_hangs_is_given_up(monkeypatch, stall):
    def getaddrinfo(*_: object, **__: object) -> None:
        stall.over.wait()
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert_refused(DataNotFoundError, "nothing arrived", "http://mnist.invalid/", timeout=SOON)


HANGING = """
import signal, socket, sys, threading
from jaxmnist.datasets.download import fetch

signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[1] == "lookup":
    def hang(*_, **__):
        print("reached", flush=True)
        threading.Event().wait()
    socket.getaddrinfo = hang
    url = "http://mnist.invalid/"
else:
    url = sys.argv[1]
try:
    fetch(url, timeout=10_000.0)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("where", ["lookup", "server"])
def test_ctrl_c_ends_it_and_leaves_no_file(tmp_path, stall, where):
    with (
        serving(stall) as url,
        subprocess.Popen(
            [sys.executable, "-c", HANGING, "lookup" if where == "lookup" else url],
            env=os.environ | {"TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
        ) as process,
    ):
        try:
            if where == "lookup":
                assert process.stdout.readline() == b"reached\n"
            else:
                assert stall.reached.wait()
            process.send_signal(signal.SIGINT)
            assert process.wait() == 130
        finally:
            process.kill()
    assert not any(tmp_path.iterdir())
