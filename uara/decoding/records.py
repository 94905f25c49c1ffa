"""What a run leaves behind: one record per request and one per round, and sums over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from uara.decoding.batcher import Forward
from uara.decoding.branches import Stem
from uara.decoding.device import Corrected
from uara.decoding.protocol import Frame
from uara.decoding.traffic import ForwardRecord, FrameRecord

Work = Literal["prefill", "decode", "verify"]
Records = Literal["none", "rounds", "all"]


class Backlog(Protocol):
    """A link whose queue can be asked for."""

    def bits_left(self, now: float) -> float:
        """Compute the bits not served at `now`."""


class RoundRecord(msgspec.Struct, kw_only=True):
    """One forward's share of one request; times in seconds of the virtual clock.

    `draft_start_s` to `uplink_end_s` are the forward's start where nothing was drafted.
    """

    sid: int
    device: int
    server: int = -1
    work: Work = "verify"
    position: int = 0  # context tokens before this round's first
    draft_length: int = 0
    is_cut: bool = False  # its last block was ended by its budget of drafting time
    accepted: int = 0
    draft_start_s: float = 0.0
    draft_end_s: float = 0.0
    uplink_end_s: float = 0.0
    verify_start_s: float = 0.0
    verify_end_s: float = 0.0
    downlink_end_s: float = 0.0
    uplink_bytes: int = 0
    downlink_bytes: int = 0

    @property
    def tested(self) -> int:
        """Draft tokens that were tested: those accepted and the first rejected one."""
        return min(self.accepted + 1, self.draft_length)

    @property
    def wasted(self) -> int:
        """Draft tokens that were thrown away."""
        return self.draft_length - self.accepted


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request; times in seconds of the virtual clock."""

    sid: int
    device: int
    task: int
    arrival_s: float
    prompt_tokens: int  # priced
    text_tokens: int  # read by the models
    start_s: float = 0.0  # of its first slot
    upload_end_s: float = 0.0  # when a server has the prompt
    first_token_s: float = 0.0
    end_s: float = 0.0  # of the last token so far
    finish_s: float = math.inf
    tokens: list[int] = []
    accepted: int = 0
    tested: int = 0
    drafted: int = 0  # draft steps, those of dead epochs included
    judged: int = 0  # drafted tokens that stood or fell with a verdict
    verifications: int = 0
    cut_blocks: int = 0  # ended by their budget of drafting time
    verified: int = 0  # tokens that verifications committed
    prompt_bytes: int = 0  # of the opening frame and what was attached to it
    uplink_bytes: int = 0  # of all frames
    downlink_bytes: int = 0
    handovers: int = 0
    memory_wait_s: float = 0.0  # at servers whose KV memory was taken
    draws: int = 0  # random choices of both ends
    lost_residuals: list[float] = []  # lossy sessions: share of each rejection's residual left out
    refusal: str = ""
    corrections: int = 0  # tokens after a rejection, where branches were drafted for them
    guessed_corrections: int = 0  # of them, those behind which a branch was taken up
    branch_tokens: int = 0  # drafted behind guessed corrections
    branch_tokens_taken: int = 0  # of the branch that was taken up
    branch_tokens_passed: int = 0  # wasted: the token in whose place they were guessed stood
    branch_tokens_missed: int = 0  # wasted: another correction came in that place
    branch_tokens_voided: int = 0  # wasted: an earlier token was rejected
    is_capped: bool = False  # still unfinished when the run was stopped; its times end there

    @property
    def ttft_s(self) -> float:
        """Time from arrival to the first committed token."""
        return self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> float:
        """Time from arrival to the last committed token."""
        return self.end_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Time per token after the first; 0 for an answer of one token."""
        return (self.end_s - self.first_token_s) / max(len(self.tokens) - 1, 1)

    @property
    def acceptance(self) -> float:
        """Accepted over tested draft tokens; nan if none was tested."""
        return self.accepted / self.tested if self.tested else float("nan")

    @property
    def rejected(self) -> int:
        """Draft tokens that were tested and did not pass."""
        return self.tested - self.accepted

    @property
    def rolled_back(self) -> int:
        """Draft tokens behind a rejected one, thrown away with it."""
        return self.judged - self.tested

    @property
    def late(self) -> int:
        """Draft tokens that no verdict has met: of a dead epoch, or behind the answer's end."""
        return self.drafted - self.judged

    @property
    def hit_rate(self) -> float:
        """Share of corrections that a branch foresaw; nan if no branch was drafted for any."""
        return self.guessed_corrections / self.corrections if self.corrections else float("nan")

    @property
    def tokens_per_verification(self) -> float:
        """Committed tokens per verification, correction or bonus included; nan without any.

        Parallel modes draw no bonus: a block that passes whole counts its drafts alone.
        """
        return self.verified / self.verifications if self.verifications else float("nan")

    @property
    def uplink_bytes_per_token(self) -> float:
        """Bytes up per committed token, overhead included, the prompt not."""
        return (self.uplink_bytes - self.prompt_bytes) / max(len(self.tokens), 1)

    @property
    def downlink_bytes_per_token(self) -> float:
        """Bytes down per committed token, overhead included."""
        return self.downlink_bytes / max(len(self.tokens), 1)


@dataclass
class Recorder:
    """Collects records while a run goes on; rounds are named by (sid, position).

    Attributes:
        level: what is kept beside the requests.
        requests: by id.
        rounds: in the order of their ends.
        frames: in the order in which they were sent.
        forwards: in the order of their starts.
    """

    level: Records = "rounds"
    requests: dict[int, RequestRecord] = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    frames: list[FrameRecord] = field(default_factory=list)
    forwards: list[ForwardRecord] = field(default_factory=list)
    _open: dict[tuple[int, int], RoundRecord] = field(default_factory=dict)
    _branches: dict[int, dict[tuple[int, int], int]] = field(default_factory=dict)

    def round(self, sid: int, position: int) -> RoundRecord:
        """Return the open round of a session at a position, opening it if there is none."""
        key = (sid, position)
        if key not in self._open:
            device = self.requests[sid].device
            self._open[key] = RoundRecord(sid=sid, device=device, position=position)
        return self._open[key]

    def verify(
        self, sid: int, position: int, server: int, start_s: float, end_s: float, work: Work
    ) -> None:
        """Note when and where a round was verified, or a token decoded without any draft."""
        record = self.round(sid, position)
        record.server, record.verify_start_s, record.verify_end_s = server, start_s, end_s
        if work != "verify":
            record.work = work
            record.draft_start_s = record.draft_end_s = record.uplink_end_s = start_s

    def send(
        self, frame: Frame, size: int, link: Backlog, now: float, *, is_up: bool
    ) -> FrameRecord | None:
        """Begin the record of a frame, if those are kept."""
        if self.level != "all":
            return None
        record = FrameRecord(
            sid=frame.sid,
            device=self.requests[frame.sid].device,
            is_up=is_up,
            kind=type(frame).__name__,
            size=size,
            epoch=getattr(frame, "epoch", -1),
            backlog_bits=link.bits_left(now),
            enqueue_s=now,
        )
        self.frames.append(record)
        return record

    def forward(self, forward: Forward, server: int, end_s: float, idle_since_s: float) -> None:
        """Keep a record of a forward, if those are kept."""
        if self.level == "all":
            self.forwards.append(
                ForwardRecord(
                    server=server,
                    start_s=forward.started_s,
                    end_s=end_s,
                    rows=forward.rows,
                    new_tokens=forward.new_tokens,
                    context_tokens=forward.context_tokens,
                    works=len(forward.works),
                    idle_before_s=forward.started_s - idle_since_s,
                )
            )

    def close_round(
        self, sid: int, position: int, accepted: int, now: float, *, has_bonus: bool = True
    ) -> None:
        """End a round, when its verdict or token has reached the device.

        Args:
            sid: session.
            position: of the round's first token.
            accepted: draft tokens that stand.
            now: when the verdict or token arrived.
            has_bonus: whether a draft that stands whole brings one more token.
        """
        record = self._open.pop((sid, position))
        record.accepted, record.downlink_end_s = accepted, now
        if self.level != "none":
            self.rounds.append(record)
        request = self.requests[sid]
        request.accepted += accepted
        request.tested += record.tested
        request.judged += record.draft_length
        if record.draft_length > 0:
            request.verifications += 1
            request.verified += accepted + 1 if has_bonus else record.tested

    def settle_round(self, sid: int, base: int, accepted: int, drafted: int, now: float) -> None:
        """End the round of a verdict that was reached while drafting went on.

        Args:
            sid: session.
            base: first position that the verdict judged.
            accepted: tokens that stand.
            drafted: tokens that stand or fall with it.
            now: when the device took it in.
        """
        record = self.round(sid, base)
        parts = [record]
        for i in range(1, drafted):
            part = self._open.pop((sid, base + i), None)
            if part is None or not part.uplink_bytes:
                continue
            record.uplink_bytes += part.uplink_bytes
            # What was sent behind a rejected token had no say in the verdict.
            if i <= accepted:
                parts.append(part)
        # The rest of a block has no start of its own where its first token was judged before.
        record.draft_start_s = min(part.draft_start_s or part.draft_end_s for part in parts)
        record.draft_end_s = max(part.draft_end_s for part in parts)
        record.uplink_end_s = max(part.uplink_end_s for part in parts)
        record.is_cut = any(part.is_cut for part in parts)
        record.draft_length = drafted
        self.close_round(sid, base, accepted, now, has_bonus=False)

    def grow_branches(self, sid: int, stems: Sequence[Stem]) -> None:
        """Count a token behind each of these branches."""
        self.requests[sid].branch_tokens += len(stems)
        counts = self._branches.setdefault(sid, {})
        for stem in stems:
            key = (stem.position, stem.correction)
            counts[key] = counts.get(key, 0) + 1

    def branches_of(self, sid: int) -> dict[tuple[int, int], int]:
        """Return the branch tokens of a session that nothing has been said of yet."""
        return self._branches.get(sid, {})

    def settle_branches(self, sid: int, corrected: Corrected) -> None:
        """Say what became of a session's branches, when the token after a rejection is known."""
        request, position = self.requests[sid], corrected.position
        request.corrections += 1
        request.guessed_corrections += corrected.is_guessed
        for (place, guess), count in self._branches.pop(sid, {}).items():
            if place < position:
                request.branch_tokens_passed += count
            elif place > position:
                request.branch_tokens_voided += count
            elif corrected.is_guessed and guess == corrected.token:
                request.branch_tokens_taken += count
            else:
                request.branch_tokens_missed += count

    def commit(self, sid: int, tokens: Sequence[int], now: float) -> None:
        """Note the answer as it stands at the device."""
        request = self.requests[sid]
        if not request.tokens and tokens:
            request.first_token_s = now
        if len(tokens) > len(request.tokens):
            request.end_s = now
        request.tokens = list(tokens)

    def cap(self, now: float) -> None:
        """Close what is unfinished when a run is stopped."""
        for request in self.requests.values():
            if math.isinf(request.finish_s):
                if not request.tokens:
                    request.first_token_s = now
                request.end_s = request.finish_s = now
                request.is_capped = True
