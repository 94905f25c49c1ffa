"""A device that answers alone with its draft model, as a pure machine; lossy against the target."""

from __future__ import annotations

import msgspec

from uara.decoding.answer import Answer
from uara.decoding.device import (
    NO_ANSWER,
    DeviceEffect,
    DeviceEvent,
    Drafted,
    DraftToken,
    Finish,
    Replan,
    Start,
)
from uara.decoding.evolve import evolve
from uara.decoding.protocol import ProtocolError


class LocalState(msgspec.Struct, frozen=True, gc=False):
    """All that the device knows of its current request."""

    sid: int = -1
    text: tuple[int, ...] = ()
    answer: Answer = NO_ANSWER

    @property
    def position(self) -> int:
        """Position of the next token."""
        return len(self.text) + len(self.answer.tokens)


def step_local_device(
    state: LocalState, event: DeviceEvent
) -> tuple[LocalState, tuple[DeviceEffect, ...]]:
    """Advance the device by one event.

    Raises:
        ProtocolError: if a frame comes: no server knows of the request.
    """
    match event:
        case Start(opening=opening):
            text = opening.prompt[len(opening.prompt) - opening.text_tokens :]
            answer = Answer((), opening.max_new, opening.eos)
            return LocalState(opening.sid, text, answer), (DraftToken(text, 0),)
        case Drafted():
            state = evolve(state, answer=state.answer.extend((event.token,)))
            if state.answer.is_finished:
                return LocalState(), (Finish(state.answer.tokens),)
            return state, (DraftToken((*state.text, *state.answer.tokens), 0),)
        case Replan():
            return state, ()
    raise ProtocolError(f"a device alone does not take {event}")
