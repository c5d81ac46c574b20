"""The download, against servers on this machine's loopback that serve, lie, refuse and hang."""

import hashlib
import socket
import time

import pytest

from jaxmnist.datasets import download
from jaxmnist.datasets.idx import FILES
from jaxmnist.errors import DataNotFoundError
from tests.servers import send, send_file, serving


@pytest.fixture
def files(monkeypatch, blank_dir):
    """A directory with the blank files, which are registered in the place of MNIST's."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    table = {}
    for name, (file, _) in FILES.items():
        content = (blank_dir / f"{file}.gz").read_bytes()
        table[name] = (len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(download, "registered", lambda: table)
    return blank_dir


@pytest.mark.slow
def test_the_installed_tfds_registers_the_files():
    """Were its table to move in another version, downloads would end here and not at a user's."""
    from tensorflow_datasets.core.download import checksums

    infos = checksums.get_all_url_infos()
    for name, found in download.registered().items():
        info = infos[f"{download.MIRRORS[0]}{FILES[name][0]}.gz"]
        assert found == (info.size, info.checksum)


def test_the_next_mirror_is_asked_where_one_fails(files, capfd):
    lines = []
    with serving(lambda handler: send(handler, 503)) as bad, serving(send_file(files)) as good:
        arrays = download.fetch(lines.append, (bad, good), timeout=60.0)
    assert [array.shape for array in arrays.values()] == [shape for _, shape in FILES.values()]
    assert lines == [f"Downloading MNIST (11.6 MB) from {url[7:-1]}" for url in (bad, good)]
    assert capfd.readouterr() == ("", "")


def send_without_end(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:  # until the client has gone
        handler.wfile.write(bytes(1_000_000))


@pytest.mark.parametrize(
    ("get", "says"),
    [
        (lambda handler: send(handler, 503), "HTTP status 503"),
        (lambda handler: send(handler, 200, b"<html>Please log in</html>"), "wrong checksum"),
        (lambda handler: send(handler, 200, bytes(1000), length=2000), "wrong checksum"),
        (send_without_end, "wrong checksum"),
    ],
)
def test_other_answers_are_refused(files, get, says):
    with serving(get) as url, pytest.raises(DataNotFoundError, match=rf"downloaded \({says}"):
        download.fetch(mirrors=[url], timeout=60.0)


@pytest.mark.parametrize("sent", [0, 100_000])
def test_a_server_that_stalls_is_given_up(files, sent):
    def stall(handler):
        if sent:
            send(handler, 200, bytes(sent), length=9_912_422)
        time.sleep(60)

    with serving(stall) as url, pytest.raises(DataNotFoundError, match="Timeout"):
        download.fetch(mirrors=[url], timeout=0.5)


def test_a_name_lookup_that_hangs_is_given_up(files, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(60))
    with pytest.raises(DataNotFoundError, match=r"\(TimeoutError\); name"):
        download.fetch(mirrors=["http://a.invalid/", "http://b.invalid/"], timeout=0.2)
