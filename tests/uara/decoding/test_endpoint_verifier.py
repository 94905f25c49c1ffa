"""A target behind an HTTP endpoint, which a small server plays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from uara.decoding.contract import Contract
from uara.decoding.kv import Feed, SequenceModel
from uara.decoding.model_verifier import ModelVerifier
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import Draws
from uara.decoding.rules import GREEDY
from uara.decoding.verifier import Work

endpoint_verifier = pytest.importorskip("uara.decoding.endpoint_verifier")
VOCAB = 12
CONTRACT = Contract(RuleCode.IDS, GREEDY, 1, 1)
Model = Callable[[int, int], SequenceModel]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def complete(model: SequenceModel, prompt: list[int]) -> dict:
    """Answer one prompt as vLLM does: log-probabilities of the prompt and one more token."""
    rows = model.forward([Feed(model.new_cache(), prompt, 0)])[0]
    told: list[dict | None] = [None]
    for row, token in zip(rows, prompt[1:], strict=False):
        logs = log_softmax(row)
        rank = {int(t): 1 + int((logs > logs[t]).sum()) for t in (int(np.argmax(row)), token)}
        told.append({f"{t}": {"logprob": float(logs[t]), "rank": r} for t, r in rank.items()})
    last = int(np.argmax(rows[-1]))
    return {"prompt_logprobs": told, "logprobs": {"tokens": [f"token_id:{last}"]}, "text": "?"}


@pytest.fixture
def endpoint(table_model: Model) -> Iterator[tuple[str, SequenceModel, dict]]:
    """A server on loopback, the model behind it, and what it changes about its answers."""
    model, twist = table_model(VOCAB, 3), {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/completions"
            assert (body["max_tokens"], body["temperature"], body["prompt_logprobs"]) == (1, 0, 1)
            choices = [
                {**complete(model, prompt), "index": index, **twist.get("choice", {})}
                for index, prompt in enumerate(body["prompt"])
            ]
            data = json.dumps({"choices": choices[::-1]}).encode()
            self.send_response(twist.get("status", 200))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", model, twist
    server.shutdown()
    server.server_close()


def test_an_endpoint_decides_as_the_model_in_this_process(
    endpoint: tuple[str, SequenceModel, dict],
) -> None:
    url, model, _ = endpoint
    far = endpoint_verifier.EndpointVerifier(url)
    generator = np.random.default_rng(0)
    for trial in range(25):
        near = ModelVerifier(model)
        works = []
        for sid in range(3):
            for verifier in (near, far):
                verifier.open(sid, CONTRACT, Draws(0))
            context = tuple(generator.integers(0, VOCAB, 4 + trial % 3).tolist())
            # Half of the drafts follow the target, so that all lengths of acceptance occur.
            tokens: list[int] = []
            for _ in range(int(generator.integers(0, 5))):
                feed = [*context, *tokens]
                own = int(np.argmax(model.forward([Feed(model.new_cache(), feed, 0)])[0][-1]))
                tokens.append(own if generator.random() < 0.7 else int(generator.integers(VOCAB)))
            works.append(Work(sid, context, tuple(tokens)))
        works.append(Work(9, (1, 2), draw=False))
        near.open(9, CONTRACT, Draws(0))
        assert far.forward(works) == near.forward(works)
    assert far.tokens_sent > 0


def test_every_round_reads_its_whole_context(endpoint: tuple[str, SequenceModel, dict]) -> None:
    far = endpoint_verifier.EndpointVerifier(endpoint[0])
    far.forward([Work(0, (1, 2, 3), (4, 5))])
    far.forward([Work(0, (1, 2, 3, 4), ())])
    far.forward([Work(0, (1, 2, 3, 4), draw=False)])
    assert far.tokens_sent == 5 + 4


@pytest.mark.parametrize(
    "twist",
    [
        {"status": 500},
        {"choice": {"prompt_logprobs": None}},
        {"choice": {"logprobs": {"tokens": [" word"]}}},
        {"choice": {"prompt_logprobs": [None, {"1": {"logprob": 0.0, "rank": 2}}] * 9}},
    ],
)
def test_an_endpoint_that_speaks_otherwise_is_an_error(
    endpoint: tuple[str, SequenceModel, dict], twist: dict
) -> None:
    url, model, answers = endpoint
    answers.update(twist)
    far = endpoint_verifier.EndpointVerifier(url)
    own = int(np.argmax(model.forward([Feed(model.new_cache(), [1, 2, 3], 0)])[0][-1]))
    with pytest.raises(endpoint_verifier.EndpointError):
        far.forward([Work(0, (1, 2, 3), (own,))])


def test_what_an_endpoint_cannot_do_it_says(endpoint: tuple[str, SequenceModel, dict]) -> None:
    able = endpoint_verifier.EndpointVerifier(endpoint[0]).capabilities
    assert able.rules == {RuleCode.IDS}
    assert not able.samples
    assert not able.returns_rows
