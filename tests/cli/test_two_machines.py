"""One party a command, as on two machines; here both on loopback."""

import json
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from reluctant.checkpoints import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.secure


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_both(cli, teacher):
    """Run server and client, and return how each ended: exit code, output, error."""
    here, there = (f"127.0.0.1:{free_port()}" for _ in range(2))
    words = ["run", str(teacher), "--party", "server", "--listen", there, "--peer", here, "--json"]
    server = subprocess.Popen(
        [sys.executable, "-m", "reluctant", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        ended = cli(
            "run", "--party", "client", "--task", "digits", "--images", "2", "--listen", here, "--peer", there, "--json"
        )
        out, err = server.communicate(timeout=60)
    finally:
        server.kill()
    return (server.returncode, out, err), (ended.code, ended.out, ended.err)


def test_server_and_client_each_with_what_is_theirs(cli, teacher, digits):
    server, client = run_both(cli, teacher)
    assert (client[0], server[0]) == (0, 0), client[2] + server[2]
    client_side, server_side = json.loads(client[1]), json.loads(server[1])
    assert client_side["comparisons"] == server_side["comparisons"] == 2 * 2304
    assert client_side["bytes"] == server_side["bytes"]
    assert server_side["fixed_point"]["certified"]
    assert server_side["fixed_point"]["input_range"] == list(digits.train.input_range)


def test_client_refuses_images_that_the_servers_certificate_is_not_for(cli, teacher):
    """The alarm: its own images are looked at before a share of them is sent."""
    given = load_checkpoint(teacher)
    facts = {**given.origin.facts, "input_range": [-0.5, 0.5]}
    save_checkpoint(teacher, given.dense, replace(given.origin, facts=facts))
    server, client = run_both(cli, teacher)
    assert (client[0], server[0]) == (2, 2)
    assert client[2].startswith("error: an image holds values outside of [-0.5, 0.5], for which")
    assert "the client refused: an image holds values outside of" in server[2]


def test_a_port_in_use(refused, teacher):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused("run", teacher, "--party", "server", "--listen", f"127.0.0.1:{port}", "--peer", "127.0.0.1:9")
    assert str(port) in line
    assert "in use" in line


def test_a_party_that_never_connects(refused, teacher):
    here, there = (f"127.0.0.1:{free_port()}" for _ in range(2))
    line = refused("run", teacher, "--party", "server", "--listen", here, "--peer", there, "--timeout", "1")
    assert there in line


def test_parties_that_make_no_sense(refused, teacher):
    where = ("--listen", "a:1", "--peer", "b:2")
    assert "unknown party 'dealer'" in refused("run", teacher, "--party", "dealer")
    assert "host:port" in refused("run", teacher, "--party", "server", "--listen", "here", "--peer", "there")
    assert "the server gives a checkpoint to serve" in refused("run", "--party", "server", *where)
    assert "the client gives no checkpoint" in refused("run", "--party", "client", *where)
    assert "the helper gives neither" in refused("run", teacher, "--party", "helper", "--engine", "aby3", *where)
    assert "--party is for" in refused("run", teacher, "--engine", "twin", "--party", "server", *where)
    assert "CHEETAH has no helper" in refused("run", "--party", "helper", *where)
    assert "1 peers for this server" in refused("run", teacher, "--party", "server", "--engine", "aby3", *where)
    assert "not for the client" in refused("run", "--party", "client", "--task", "digits", "--without", "carry", *where)
    assert "name the checkpoint" in refused("run")
    assert "unknown rewrite 'squared'" in refused("run", teacher, "--engine", "twin", "--without", "squared")
