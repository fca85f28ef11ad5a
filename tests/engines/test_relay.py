"""The imitated link: late by half a round trip, no faster than its rate, and honest about a party that is gone."""

import socket
import threading
import time

import pytest

from reluctant.costs.networks import NETWORKS, Network, parse_network
from reluctant.engines.cheetah import Cheetah
from reluctant.engines.relay import Direction, Relay
from reluctant.errors import UsageError


def test_networks_by_name_and_by_description():
    assert parse_network("wan") == Network("wan", 100e6, 0.04)
    assert not parse_network("loopback").emulated
    assert parse_network("400mbps/20ms") == Network("400mbps/20ms", 400e6, 0.02)
    for text in ("wlan", "fast/20ms", "400mbps/soon", "0mbps/1ms", "400/20"):
        with pytest.raises(UsageError, match=r"400mbps|20ms"):
            parse_network(text)


def test_what_enters_comes_out_after_queueing_sending_and_travelling():
    link = Direction(Network("made", 8000.0, 2.0))
    assert link.arrival(10.0, 1000) == pytest.approx(10 + 1 + 1)
    assert link.arrival(10.5, 500) == pytest.approx(11 + 0.5 + 1)
    assert link.arrival(50.0, 1000) == pytest.approx(50 + 1 + 1)


@pytest.fixture
def echo():
    """A server that sends everything back, and its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def through(relay):
    host, port = relay.ports[0].split(":")
    return socket.create_connection((host, int(port)))


def exchange(connection, size):
    begun = time.monotonic()
    threading.Thread(target=connection.sendall, args=(bytes(size),), daemon=True).start()
    got = 0
    while got < size:
        got += len(connection.recv(1 << 16))
    return time.monotonic() - begun


def test_a_round_trip_and_a_rate_are_what_they_should_be(echo):
    with Relay(Network("far", 1e9, 0.2), (echo, echo)) as relay, through(relay) as connection:
        assert exchange(connection, 10) >= 0.2
    with Relay(Network("slow", 8e6, 0.0), (echo, echo)) as relay, through(relay) as connection:
        assert exchange(connection, 300_000) >= 0.3


def test_an_end_that_closes_is_seen_at_the_other(echo):
    with Relay(NETWORKS["lan"], (echo, echo)) as relay:
        with through(relay) as connection:
            connection.sendall(b"hello")
            assert connection.recv(5) == b"hello"
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        nobody = Relay(NETWORKS["lan"], ("127.0.0.1:9", "127.0.0.1:9"))
        with nobody, through(nobody) as connection:
            assert connection.recv(1) == b""


@pytest.mark.secure
def test_a_run_over_a_far_link_answers_the_same_and_takes_longer(small_program, small_images):
    near = Cheetah().run(small_program, small_images[:1])
    far = Cheetah(network=Network("far", 1e9, 0.05)).run(small_program, small_images[:1])
    assert far.outputs.argmax(1).tolist() == near.outputs.argmax(1).tolist()
    assert far.comparisons == near.comparisons
    assert far.seconds > 20 * 0.025
