"""`uara serve` and `uara device` as a user starts them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from uara.errors import UserError

RUNNER = CliRunner()


def refusal(*arguments: str) -> str:
    result = RUNNER.invoke(app, list(arguments))
    assert isinstance(result.exception, UserError)
    return str(result.exception)


@pytest.mark.parametrize("missing", ["token", "tls", "both"])
def test_a_server_beyond_loopback_asks_for_token_and_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv("UARA_TOKEN", raising=False)
    arguments = ["serve", "--listen", "0.0.0.0:0"]
    if missing == "token":
        # Neither is read before the refusal.
        monkeypatch.setattr("experiments.serve_command.server_context", lambda *_: object())
        arguments += ["--certificate", str(tmp_path / "c"), "--key", str(tmp_path / "k")]
    if missing == "tls":
        monkeypatch.setenv("UARA_TOKEN", "word")
    assert "give a token" in refusal(*arguments)


def test_mistakes_of_both_commands_end_in_one_line(tmp_path: Path) -> None:
    assert "no HOST:PORT" in refusal("serve", "--listen", "here")
    assert "both --certificate and --key" in refusal("serve", "--key", str(tmp_path / "k"))
    assert "does not exist" in refusal("serve", "--token-file", str(tmp_path / "none"))
    assert "no model at" in refusal("serve", "--target", str(tmp_path))
    assert "allowed: sd, psd, async" in refusal("device", "--mode", "ar")
    assert "no HOST:PORT" in refusal("device", "--server", "x")
    assert "unknown; allowed: virtual, wall" in refusal("decode", "x.yaml", "--kernel", "real")


class Process:
    """A server process on a port of its own."""

    def __init__(self, port: int = 0) -> None:
        command = [sys.executable, "-m", "uara", "serve", "--listen", f"127.0.0.1:{port}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "UARA_TOKEN": "the token"}
        self.process = subprocess.Popen(
            [*command, "--metrics-port", "0"], stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stderr is not None
        self.metrics = self.process.stderr.readline().split()[-1]
        self.port = int(json.loads(self.process.stderr.readline())["port"])

    def rounds(self) -> int:
        """Count the drafts that it has taken."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        text = opener.open(self.metrics, timeout=20).read().decode()
        found = re.search(r'uara_events_total{event="rounds"} (\S+)', text)
        return int(float(found.group(1))) if found else 0

    def stop(self, number: int) -> str:
        """Send a signal; return what was logged."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=60)
        return log


@pytest.fixture
def server() -> Iterator[Process]:
    process = Process()
    yield process
    process.process.kill()
    process.process.wait()


def device(port: int, records: Path, *options: str, token: str = "the token") -> subprocess.Popen:
    command = [sys.executable, "-m", "uara", "device", "--server", f"127.0.0.1:{port}"]
    command += ["--count", "1", "--records", str(records), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "UARA_TOKEN": token}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def tokens_of(records: Path) -> list[int]:
    return pq.read_table(records)["tokens"].to_pylist()[0]


@pytest.mark.slow
def test_a_killed_server_process_changes_no_token(server: Process, tmp_path: Path) -> None:
    options = ("--tokens", "48", "--mode", "async", "--payload", "id_prob")
    plain = device(server.port, tmp_path / "plain.parquet", *options)
    assert plain.wait(300) == 0
    # At this rate an answer takes seconds, so that the server is killed in the middle of it.
    slow = device(
        server.port,
        tmp_path / "slow.parquet",
        *options,
        "--uplink-bps",
        "12000",
        "--rtt-s",
        "0.1",
        "--patience-s",
        "300",
    )
    before = server.rounds()
    while server.rounds() < before + 3:
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert slow.wait(0.05) is None
    log = server.stop(signal.SIGKILL)
    assert "tokens" not in log
    again = Process(server.port)
    try:
        assert slow.wait(300) == 0
        assert tokens_of(tmp_path / "slow.parquet") == tokens_of(tmp_path / "plain.parquet")
        guest = device(again.port, tmp_path / "no.parquet", token="a guess")
        _, told = guest.communicate(timeout=300)
        assert guest.returncode == 2
        assert "the token is wrong or missing" in told
        assert '"event": "stopped"' in again.stop(signal.SIGTERM)
    finally:
        again.process.kill()
        again.process.wait()
