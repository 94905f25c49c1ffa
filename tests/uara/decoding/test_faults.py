"""Both ends of connections under a virtual clock, with links that lose, repeat and spoil frames."""

# ruff: noqa: D102 -- the names of test doubles say what they do

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uara.decoding import device as dev
from uara.decoding import device_front as up
from uara.decoding import server_front as down
from uara.decoding.contract import Contract
from uara.decoding.control import Hello, Plan, encode_control
from uara.decoding.device_front import DeviceFront
from uara.decoding.drafter import Drafter
from uara.decoding.evolve import evolve
from uara.decoding.kv import Feed, SequenceModel
from uara.decoding.model_verifier import ModelVerifier
from uara.decoding.protocol import (
    NO_TOKEN,
    Close,
    Draft,
    Format,
    NeedP,
    Open,
    RuleCode,
    encode,
)
from uara.decoding.randomness import Draws, Ledger, Purpose
from uara.decoding.row import Floats, Pairs
from uara.decoding.rules import GREEDY, Sampling, warp
from uara.decoding.server_front import ServerFront, ServerLimits

VOCAB = 5
MODES = {"sd": 0, "psd": 1, "async": 2}
Model = Callable[[int, int], SequenceModel]


def contract_of(rule: RuleCode) -> Contract:
    return Contract(rule, GREEDY if rule is RuleCode.IDS else Sampling(), 2, 2)


def opening(rule: RuleCode, seed: int = 7, max_new: int = 14) -> Open:
    heat = contract_of(rule).sampling.temperature
    return Open(1, rule, 2, VOCAB, 2, max_new, 0, seed, heat, 0, 1.0, NO_TOKEN, (0, 0, 1, 2))


@dataclass(frozen=True)
class Fault:
    """What happens to one frame, counted over both ways."""

    kind: str = "none"  # or repeat, hold, cut, swell, break, restart
    size: int = 0


@dataclass
class World:
    """One server and one device; every frame takes a second unless its fault says otherwise."""

    target: SequenceModel
    draft: SequenceModel
    faults: list[Fault]
    now: float = 0.0
    line: int = 0  # number of the connection; 0: none yet
    finished: up.Finished | None = None
    sent: int = 0
    is_over: bool = False
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.boot()
        self.device = DeviceFront(b"d" * 16, stall_s=100.0)

    def boot(self) -> None:
        self.verifier = ModelVerifier(self.target)
        self.server = ServerFront(self.verifier, VOCAB, 0, ServerLimits(idle_s=30.0))
        self.generation = self.count

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay_s, self.count, action))

    def play(self, frame: Open, plan: Plan) -> up.Finished:
        contract = contract_of(frame.rule)
        self.drafter = Drafter(self.draft, contract, Draws(frame.seed, ledger=Ledger(False)))
        self.obey(self.device.start(frame, plan))
        self.connect()
        self.at(5.0, self.tick)
        steps = 0
        while self.finished is None:
            self.now, _, action = heapq.heappop(self.events)
            action()
            steps += 1
            assert steps < 20_000, "the request hangs"
        return self.finished

    def settle(self) -> None:
        """Let what is under way come to its end."""
        self.is_over = True
        while self.events:
            self.now, _, action = heapq.heappop(self.events)
            action()

    def tick(self) -> None:
        if self.is_over:
            return
        self.obey(self.device.tick(self.now))
        self.serve(self.server.tick(self.now))
        self.at(5.0, self.tick)

    def connect(self) -> None:
        self.line += 1
        self.serve(self.server.connect(self.line, self.now))
        self.obey(self.device.connected(self.now))

    def cut(self) -> None:
        """Lose the connection at both ends; the device dials again."""
        self.serve(self.server.disconnect(self.line, self.now))
        self.line += 1
        self.obey(self.device.disconnected())
        self.at(1.0, self.connect)

    def carry(self, data: bytes, deliver: Callable[[bytes], None]) -> None:
        fault = self.faults[self.sent] if self.sent < len(self.faults) else Fault()
        self.sent += 1
        line = self.line

        def arrive(what: bytes) -> None:
            if line == self.line:
                deliver(what)

        match fault.kind:
            case "none":
                self.at(1.0, lambda: arrive(data))
            case "repeat":
                self.at(1.0, lambda: arrive(data))
                self.at(1.0 + fault.size, lambda: arrive(data))
            case "hold":
                self.at(1.0 + fault.size, lambda: arrive(data))
            case "cut":
                body = data[4 : 4 + fault.size % max(len(data) - 4, 1)]
                self.at(1.0, lambda: arrive(struct.pack("<I", len(body)) + body))
            case "swell":
                body = data[4:] + bytes(1 + fault.size)
                self.at(1.0, lambda: arrive(struct.pack("<I", len(body)) + body))
            case "break":
                self.cut()
            case "restart":
                self.boot()
                self.cut()

    def obey(self, actions: list[up.Action]) -> None:
        for action in actions:
            match action:
                case up.Write(data):
                    self.carry(data, self.to_server)
                case up.Compute(job, number):
                    event = self.compute(job)
                    self.at(0.7, lambda e=event, n=number: self.obey(self.device.computed(e, n)))
                case up.HangUp():
                    if self.finished is None:
                        self.cut()
                    return
                case up.Finished():
                    self.finished = action

    def compute(self, job: dev.DraftToken | dev.Resolve) -> dev.Drafted | dev.Resolved:
        if isinstance(job, dev.DraftToken):
            drawn = self.drafter.draft(job.context, job.epoch)
            return dev.Drafted(drawn.token, drawn.row, 1, job.epoch)
        found = self.drafter.resolve(job.top, job.tails, job.drawn, job.position, job.epoch)
        return dev.Resolved(found.token, found.drawn)

    def to_server(self, data: bytes) -> None:
        self.serve(self.server.receive(self.line, data, self.now))

    def serve(self, actions: list[down.Action]) -> None:
        line, generation = self.line, self.generation
        for action in actions:
            if generation != self.generation:
                return
            match action:
                case down.Write(peer, data):
                    if peer == line:
                        self.carry(data, lambda d: self.obey(self.device.receive(d, self.now)))
                case down.Run(forward):
                    outcomes = tuple(self.verifier.forward(forward.works)) if forward.works else ()
                    self.at(1.3, lambda o=outcomes, g=generation: self.forward_done(o, g))
                case down.HangUp(peer, _):
                    if peer == line and self.finished is None:
                        self.at(0.5, lambda x=line: self.line == x and self.cut())

    def forward_done(self, outcomes: tuple, generation: int) -> None:
        if generation == self.generation:
            self.serve(self.server.forward_done(outcomes, self.now))


def alone(target: SequenceModel, frame: Open) -> tuple[int, ...]:
    """Decode with the target alone: greedily, or by the noise that coupled drafts share."""
    sampling, draws = contract_of(frame.rule).sampling, Draws(frame.seed, ledger=Ledger(False))
    context = list(frame.prompt[len(frame.prompt) - frame.text_tokens :])
    cache, fresh, answer = target.new_cache(), list(context), []
    for _ in range(frame.max_new):
        row: Floats = warp(target.forward([Feed(cache, fresh, len(fresh) - 1)])[0][-1], sampling)
        position = len(context) + len(answer)
        coupled = frame.rule is RuleCode.GUMBEL
        token = draws.race(Purpose.TARGET, position, row) if coupled else int(np.argmax(row))
        answer.append(token)
        fresh = [token]
    return tuple(answer)


FAULTS = st.lists(
    st.one_of(
        st.just(Fault()),
        st.builds(
            Fault,
            st.sampled_from(["repeat", "hold", "cut", "swell", "break", "restart"]),
            st.integers(0, 40),
        ),
    ),
    max_size=60,
)
RULE = st.sampled_from(list(RuleCode))
MODE = st.sampled_from(sorted(MODES))
FAULTY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FAULTY
@given(faults=FAULTS, rule=RULE, mode=MODE, length=st.integers(0, 4), seed=st.integers(0, 99))
def test_no_fault_of_the_line_brings_a_wrong_token(
    table_model: Model, faults: list[Fault], rule: RuleCode, mode: str, length: int, seed: int
) -> None:
    target, draft = table_model(VOCAB, 1), table_model(VOCAB, 1)
    draft.logits = draft.logits + np.random.default_rng(seed).normal(0, 0.7, draft.logits.shape)
    frame, plan = opening(rule, seed), Plan(length, MODES[mode], 2)
    world = World(target, draft, faults)
    done = world.play(frame, plan)
    expected = World(target, draft, []).play(frame, plan).tokens
    if rule in (RuleCode.IDS, RuleCode.GUMBEL):
        assert expected == alone(target, frame)
    assert done.tokens == expected[: len(done.tokens)]
    assert done.refusal or done.tokens == expected
    # Nothing is left of the session once its connection is gone and its last forward has ended.
    world.server.disconnect(world.line, world.now)
    world.settle()
    assert (world.server.num_sessions, dict(world.server.state.parked)) == (0, {})
    assert all(world.verifier.cached_tokens(sid) == 0 for sid in range(99))


@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("rule", list(RuleCode))
def test_a_request_survives_every_loss_of_its_connection(
    table_model: Model, rule: RuleCode, mode: str
) -> None:
    target, draft = table_model(VOCAB, 1), table_model(VOCAB, 2)
    frame, plan = opening(rule), Plan(3, MODES[mode], 2)
    expected = World(target, draft, []).play(frame, plan)
    for lost in range(3, 12):
        kind = "break" if lost % 2 else "restart"
        world = World(target, draft, [Fault()] * lost + [Fault(kind)])
        assert world.play(frame, plan) == expected


def test_a_server_that_stays_away_ends_a_request_with_a_reason(table_model: Model) -> None:
    world = World(table_model(VOCAB, 1), table_model(VOCAB, 2), [Fault("break")] * 500)
    done = world.play(opening(RuleCode.IDS), Plan(3))
    assert done.tokens == ()
    assert "connection was lost" in done.refusal


# Frames that no honest device sends


class Customer:
    """An honest device on a server that others attack: its frames arrive at once."""

    def __init__(self, server: ServerFront, verifier: ModelVerifier, draft: SequenceModel) -> None:
        self.server, self.verifier, self.draft = server, verifier, draft

    def ask(self, number: int, frame: Open, plan: Plan) -> tuple[int, ...]:
        drafter = Drafter(self.draft, contract_of(frame.rule), Draws(frame.seed))
        device = DeviceFront(b"honest customers")
        self.server.connect(number, 0.0)
        todo: list[object] = [*device.start(frame, plan), *device.connected(0.0)]
        while todo:
            match action := todo.pop(0):
                case up.Write(data):
                    todo += self.server.receive(number, data, 0.0)
                case down.Write(peer, data) if peer == number:
                    todo += device.receive(data, 0.0)
                case down.Run(forward):
                    done = tuple(self.verifier.forward(forward.works)) if forward.works else ()
                    todo += self.server.forward_done(done, 0.0)
                case up.Compute(dev.DraftToken(context, epoch), job):
                    drawn = drafter.draft(context, epoch)
                    todo += device.computed(dev.Drafted(drawn.token, drawn.row, 1, epoch), job)
                case up.Finished(tokens, refusal):
                    assert not refusal
                    self.server.disconnect(number, 0.0)
                    return tokens
        raise AssertionError(f"the request hangs after {action}")


class Attack:
    """A server with one honest customer, and frames thrown at it."""

    def __init__(self, table_model: Model) -> None:
        target = table_model(VOCAB, 1)
        self.verifier = ModelVerifier(target)
        self.server = ServerFront(self.verifier, VOCAB, 0, ServerLimits(kv_capacity_tokens=1000))
        self.customer = Customer(self.server, self.verifier, table_model(VOCAB, 2))
        self.expected = alone(target, opening(RuleCode.IDS))
        self.number = 0

    def throw(self, *frames: bytes, greets: bool = True) -> None:
        """Throw frames from a connection of their own; the last one has to be answered."""
        self.number += 1
        number, server = self.number, self.server
        server.connect(number, 0.0)
        if greets:
            client = self.number.to_bytes(16, "little")
            server.receive(number, encode_control(Hello(1, client)), 0.0)
        answers: list[down.Action] = []
        for data in frames:
            answers = server.receive(number, data, 0.0)
            while runs := [action for action in answers if isinstance(action, down.Run)]:
                done = tuple(self.verifier.forward(runs[0].forward.works))
                answers = [a for a in answers if a not in runs] + server.forward_done(done, 0.0)
            if any(isinstance(action, down.HangUp) for action in answers):
                break
        assert answers, "a bad frame was neither answered nor hung up on"
        server.disconnect(number, 0.0)

    def serve_customer(self) -> None:
        """Serve an honest request amid it all."""
        self.number += 1
        assert self.server.num_sessions == 0
        tokens = self.customer.ask(self.number, opening(RuleCode.IDS), Plan(3, self.number % 3))
        assert tokens == self.expected


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_frames_harm_nobody(table_model: Model, count: int) -> None:
    generator = np.random.default_rng(0)
    attack = Attack(table_model)
    good = encode(opening(RuleCode.ID_PROB), Format(RuleCode.ID_PROB, VOCAB, 2))
    for index in range(count):
        if index % 3:
            body = generator.bytes(int(generator.integers(0, 80)))
        else:
            # A good frame with one byte changed goes further than noise.
            changed = bytearray(good[4:])
            changed[int(generator.integers(len(changed)))] = int(generator.integers(256))
            body = bytes(changed)
        attack.throw(struct.pack("<I", len(body)) + body, greets=index % 5 > 0)
        if index % 250 == 0:
            attack.serve_customer()
    attack.serve_customer()


def law(*values: float) -> Pairs:
    return Pairs(range(len(values)), np.array(values))


def illegal_drafts(generator: np.random.Generator) -> list[tuple[RuleCode, Draft | NeedP | Close]]:
    """Make well-formed frames behind the first token of an answer that say what cannot be."""
    far = int(generator.integers(20, 2**32))
    token = (int(generator.integers(VOCAB)),)
    some = float(generator.uniform(0.01, 0.9))
    one = RuleCode.ID_PROB
    twice = Pairs((1, 1), (0.5, 0.5))
    heavy = Pairs((1, 2), (1.0, 1.0))
    return [
        (RuleCode.IDS, Draft(1, 0, 0, 3, NO_TOKEN, (int(generator.integers(VOCAB, 65_536)),), ())),
        (RuleCode.IDS, Draft(1, 0, 0, far, NO_TOKEN, token, ())),
        (RuleCode.IDS, Draft(1, 0, 0, 3, NO_TOKEN, token * 1_000_000, ())),
        (RuleCode.IDS, Draft(1, 0, far, 3, NO_TOKEN, token, ())),
        (RuleCode.IDS, Draft(1, 0, 0, 3, far, token, ())),
        (RuleCode.IDS, Draft(far, 0, 0, 3, NO_TOKEN, token, ())),
        (one, Draft(1, 0, 0, 3, NO_TOKEN, token, (Pairs(token, (np.nan,)),))),
        (one, Draft(1, 0, 0, 3, NO_TOKEN, token, (Pairs(token, (-some,)),))),
        (one, Draft(1, 0, 0, 3, NO_TOKEN, token, (Pairs(token, (0.0,)),))),
        (one, NeedP(1, 0, 3, far)),
        (RuleCode.FULL, Draft(1, 0, 0, 3, NO_TOKEN, (0,), (law(some, 0, 0, 0, 0.95),))),
        (RuleCode.FULL, Draft(1, 0, 0, 3, NO_TOKEN, (1,), (law(1.0, 0, 0, 0, 0),))),
        (RuleCode.TOPK, Draft(1, 0, 0, 3, NO_TOKEN, (1,), (twice,))),
        (RuleCode.TOPK, Draft(1, 0, 0, 3, NO_TOKEN, (1,), (heavy,))),
    ]  # fmt: skip


def illegal_openings(generator: np.random.Generator) -> list[Open]:
    frame = opening(RuleCode.ID_PROB)
    far = int(generator.integers(2_000, 2**32))
    return [
        evolve(frame, temperature=float(generator.choice([np.nan, np.inf, -1.0, 1e-300, 1e300]))),
        evolve(frame, top_p=float(generator.choice([np.nan, 0.0, -0.5, 1.5, np.inf]))),
        evolve(frame, max_new=0),
        evolve(frame, max_new=far),
        evolve(frame, text_tokens=0),
        evolve(frame, row_top_k=int(generator.choice([0, VOCAB + 1, 65_535]))),
        evolve(frame, prompt=(1,) * 1_000_000),
        evolve(frame, tokenizer_hash=far),
        evolve(frame, vocab_size=VOCAB + 1),
    ]


@pytest.mark.parametrize("wanted", [60, pytest.param(2_000, marks=pytest.mark.slow)])
def test_illegal_values_harm_nobody(table_model: Model, wanted: int) -> None:
    generator = np.random.default_rng(1)
    attack, count = Attack(table_model), 0
    while count < wanted:
        for rule, frame in illegal_drafts(generator):
            form = Format(rule, VOCAB, 2)
            begun = [
                encode_control(Plan(3, int(generator.integers(3)))),
                encode(opening(rule), form),
            ]
            attack.throw(*begun, encode(frame, form))
            count += 1
        for opened in illegal_openings(generator):
            form = Format(opened.rule, opened.vocab_size, opened.row_top_k)
            attack.throw(encode_control(Plan(2)), encode(opened, form))
            count += 1
        attack.serve_customer()
    attack.serve_customer()


def test_a_replayed_opening_ends_its_connection_and_frees_all_of_it(table_model: Model) -> None:
    attack, form = Attack(table_model), Format(RuleCode.IDS, VOCAB, 2)
    data = encode(opening(RuleCode.IDS), form)
    attack.throw(encode_control(Plan(2)), data, data)
    assert attack.server.num_sessions == 0
    attack.serve_customer()


def test_the_sessions_of_a_connection_are_its_own(table_model: Model) -> None:
    attack, form = Attack(table_model), Format(RuleCode.IDS, VOCAB, 2)
    server, draft = attack.server, encode(Draft(1, 0, 0, 3, NO_TOKEN, (1,), ()), form)
    server.connect(9, 0.0)
    server.receive(9, encode_control(Hello(1, b"c" * 16)), 0.0)
    server.receive(9, encode_control(Plan(2)), 0.0)
    server.receive(9, encode(evolve(opening(RuleCode.IDS), sid=1), form), 0.0)
    before = server.state.sessions
    own = encode(evolve(opening(RuleCode.IDS), sid=2), form)
    attack.throw(encode_control(Plan(2)), own, draft)  # session 1 is not theirs
    attack.throw(encode_control(Plan(2)), own, encode(Close(1), form), draft)
    assert server.state.sessions == before


def test_a_request_without_a_plan_is_refused(table_model: Model) -> None:
    attack = Attack(table_model)
    attack.throw(encode(opening(RuleCode.IDS), Format(RuleCode.IDS, VOCAB, 2)))
    assert attack.server.counts["refused_frames"] == 1
