"""The Python client against a real Unix socket: who listens, what is spoken, and every way it can go wrong."""

import os
import socket
import threading

import pytest
from fake_daemon import FakeDaemon, a_job

from gpusched.client import Client, peer_uid
from gpusched.model.errors import GpuschedError, NotAllowed, NotFound, Unavailable, VersionMismatch


@pytest.fixture
def daemon(tmp_path):
    with FakeDaemon(str(tmp_path / "s")) as server:
        yield server


def test_a_socket_path_longer_than_107_bytes_works(tmp_path):
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    with FakeDaemon(str(directory / "gpusched.sock")) as daemon, Client(daemon.path) as client:
        assert client.status()["version"] == "9.9.9"


def test_another_protocol_is_told_with_what_to_do(daemon):
    daemon.api = "2"
    with Client(daemon.path) as client, pytest.raises(VersionMismatch) as caught:
        client.status()
    assert "protocol 2" in caught.value.message and "restart the daemon" in caught.value.hint


def test_every_answer_of_an_error_becomes_its_class(daemon):
    with Client(daemon.path) as client:
        with pytest.raises(NotFound, match="there is no job 7"):
            client.job("7")
        daemon.answers["GET", "/v1/last"] = lambda asked: (500, {"oh": "dear"})
        with pytest.raises(GpuschedError, match="500"):
            client.last()


def test_one_connection_serves_many_questions_and_survives_a_restart(tmp_path):
    path = str(tmp_path / "s")
    with FakeDaemon(path) as first, Client(path) as client:
        first.jobs["1"] = a_job("1")
        assert client.job("1")["job"] == "1"
        client._connection.sock.shutdown(socket.SHUT_RDWR)  # as the end of the daemon does
        assert client.job("1")["job"] == "1"


def test_words_are_quoted_in_urls(daemon):
    with Client(daemon.path) as client:
        client.jobs(name="a b&c=d*/ä", users=["x", "y"])
    assert daemon.asked[-1].query == {"name": "a b&c=d*/ä", "user": "x,y"}


def test_very_many_jobs_are_asked_about_in_parts(daemon):
    keys = [str(number) for number in range(1, 12001)]
    with Client(daemon.path) as client:
        assert [result["job"] for result in client.hold(keys)] == keys
    assert [len(body["jobs"]) for body in daemon.bodies("/v1/jobs/hold")] == [5000, 5000, 2000]


def test_nobody_listens(tmp_path):
    with pytest.raises(Unavailable, match="not found") as caught:
        Client(str(tmp_path / "none")).status()
    assert caught.value.exit_code == 69 and "gpusched daemon start" in caught.value.hint
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead"))
    dead.close()
    with pytest.raises(Unavailable, match="nobody listens"):
        Client(str(tmp_path / "dead")).status()


def serve_once(path, *answers):
    """A listener that reads a request and sends these bytes, once per answer."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def work():
        with listener:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-hello\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nGpusched-Api: 1\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nGpusched-Api: 1\r\n\r\n{}",
        b"x" * 70000,
    ],
)
def test_something_else_that_listens_is_recognised(tmp_path, answer):
    thread = serve_once(str(tmp_path / "s"), answer)
    with Client(str(tmp_path / "s")) as client, pytest.raises(Unavailable, match="not gpusched"):
        client.status()
    thread.join(30)


def test_an_answer_that_breaks_off_is_asked_for_again_but_a_request_is_never_repeated(tmp_path):
    broken = b"HTTP/1.1 200 OK\r\nGpusched-Api: 1\r\nContent-Length: 99\r\n\r\n{"
    thread = serve_once(str(tmp_path / "s"), broken)
    with Client(str(tmp_path / "s")) as client, pytest.raises(Unavailable, match="may or may not have been done"):
        client.cancel(["1"])
    thread.join(30)
    os.unlink(tmp_path / "s")
    thread = serve_once(str(tmp_path / "s"), b"")
    with Client(str(tmp_path / "s")) as client, pytest.raises(Unavailable, match="was lost"):
        client.status()
    thread.join(30)


def test_a_daemon_that_does_not_answer_is_given_up(tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    with listener, Client(str(tmp_path / "s"), timeout=0.05) as client:
        with pytest.raises(Unavailable, match="did not answer within"):
            client.status()


def test_the_kernel_tells_who_listens(daemon):
    with Client(daemon.path) as client:
        client.open()
        assert peer_uid(client._connection.sock) == os.getuid()


def test_an_environment_goes_only_to_root_or_myself(daemon, monkeypatch):
    with Client(daemon.path) as client:
        monkeypatch.setattr("gpusched.client.peer_uid", lambda sock: 4711)
        with pytest.raises(NotAllowed, match="uid 4711"):
            client.submit({"command": ["true"], "cwd": "/", "env": {"TOKEN": "x"}})
        assert daemon.asked == []
        monkeypatch.setattr("gpusched.client.peer_uid", lambda sock: 0)
        assert client.submit({"command": ["true"], "cwd": "/", "env": {}})["job"] == "42"
