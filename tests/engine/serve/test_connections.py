"""Clients that take their time: connections that send no request, half of one, or do not read their answer."""

import socket
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx2
import pytest

from servers import running, wait_for

HEAD = b"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture
def quick(served_engine, plain_config, tmp_path):
    """A server without patience, that keeps six connections."""
    config = plain_config.with_("records", folder=tmp_path).with_("bounds", steps=200)
    with running(served_engine, config.with_("listen", patience=0.3, connections=6)) as server:
        yield server


def connect(served, *sent):
    """A plain connection over which something was sent."""
    parts = urlsplit(served.url)
    opened = socket.create_connection((parts.hostname, parts.port), timeout=20)
    for data in sent:
        opened.sendall(data)
    return opened


def ended(opened) -> bool:
    """Whether the other end closes it before anything comes."""
    try:
        return opened.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD, HEAD + b"content-length: 30\r\n\r\n{"])
def test_a_request_that_does_not_come_is_not_waited_for(quick, sent):
    with connect(quick, sent) as slow:
        began = time.monotonic()
        assert ended(slow)
        assert time.monotonic() - began > 0.2
    assert httpx2.get(f"{quick.url}/livez").status_code == 200


def test_a_byte_now_and_then_is_no_request_either(quick):
    with connect(quick, HEAD + b"content-length: 1000\r\n\r\n") as slow:
        for _ in range(100):
            try:
                slow.sendall(b" ")
            except OSError:
                break
            time.sleep(0.02)
        else:
            pytest.fail("it went on sending")


def test_connections_over_which_nothing_is_asked_give_way(quick):
    quick.server.config.http_protocol_class.keywords["patience"] = 60.0
    with ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(connect(quick, b"GET /"))
        assert httpx2.get(f"{quick.url}/livez").status_code == 200
        assert len(quick.server.server_state.connections) <= 6
        for _ in range(6):
            stack.enter_context(connect(quick, HEAD + b"content-length: 30\r\n\r\n"))
        wait_for(lambda: sum(not each.idle for each in list(quick.server.server_state.connections)) == 6)
        with connect(quick) as late:
            assert ended(late), "the others have begun to ask for something"


def test_who_does_not_read_holds_no_slot_and_is_cut_off(quick, served_engine):
    body = b'{"prompt": "a red star", "n": 4, "stream": true, "twig": {"steps": 4, "sheet": true, "always": true}}'
    head = HEAD + b"content-length: %d\r\n\r\n" % len(body)
    parts = urlsplit(quick.url)
    quick.server.config.http_protocol_class.keywords["patience"] = 1.0
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        for listener in quick.server.servers[0].sockets:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        deaf.connect((parts.hostname, parts.port))
        deaf.sendall(head + body)
        wait_for(lambda: quick.server.server_state.tasks)
        wait_for(lambda: served_engine.pending == 0)
        wait_for(lambda: any(each.flow.write_paused for each in list(quick.server.server_state.connections)))
        wait_for(lambda: not quick.server.server_state.connections and not quick.server.server_state.tasks)
    assert httpx2.get(f"{quick.url}/livez").status_code == 200


@pytest.mark.parametrize("head", [b"x-%d: " % 1 + b"y" * 2**17, b"".join(b"x-%d: y\r\n" % i for i in range(20000))])
def test_a_flood_of_headers_is_refused(quick, head):
    with connect(quick) as flooding:
        try:
            flooding.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + head)
        except OSError:  # it was cut off already
            return
        assert flooding.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")
