"""Real draft/verify runs of a task: controllers, exactness, measured over predicted time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from experiments.config import TaskConfig
from uara.decoding.exactness import ExactCheck, check_greedy_exact
from uara.decoding.kv import TransformerModel
from uara.decoding.models import ModelPair, Prompt
from uara.decoding.requests import make_requests
from uara.decoding.run import DecodingConfig, DecodingResult, run_decoding
from uara.decoding.scenario import Request
from uara.decoding.state_view import GainView
from uara.errors import UserError
from uara.network import Controller, Decision, NetworkState, Phase, SlotOutcome
from uara.prediction import Physics, predict
from uara.radio.bank import ChannelBank
from uara.serving.acceptance import AcceptanceTable, load_acceptance


@dataclass
class PredictionLog:
    """Wraps a controller and notes the predicted time per token of every decoding device."""

    controller: Controller
    physics: Physics
    predicted: dict[int, list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )  # device -> (time, seconds per token)

    @property
    def name(self) -> str:
        """Name of the controller."""
        return self.controller.name

    @property
    def observes(self) -> str:
        """What the controller observes."""
        return self.controller.observes

    def reset(self, mask: torch.Tensor, generator: torch.Generator) -> None:
        """Reset the controller."""
        self.controller.reset(mask, generator)

    def decide(self, state: NetworkState) -> Decision:
        """Decide, and predict what the decision leads to in the state the controller saw."""
        decision = self.controller.decide(state)
        plan = predict(state, decision, self.physics)
        decoding = (state.phase[0] == Phase.DECODING) & ~plan.handover[0]
        for device in decoding.nonzero().squeeze(1).tolist():
            self.predicted[device].append((float(state.time_s[0]), float(plan.tpot_s[0, device])))
        return decision

    def observe(self, outcome: SlotOutcome) -> None:
        """Pass the outcome on."""
        self.controller.observe(outcome)


@dataclass(frozen=True)
class DecodeRow:
    """What one controller's real run gave."""

    controller: str
    observes: str
    result: DecodingResult
    predicted_tpot_s: float
    measured_tpot_s: float
    acceptance_by_task: dict[str, float]

    def as_json(self) -> dict[str, object]:
        """Return the row of a table."""
        return {
            "controller": self.controller,
            "observes": self.observes,
            **self.result.summary(),
            "acceptance_by_position": self.result.acceptance_by_position(),
            "predicted_tpot_s": self.predicted_tpot_s,
            "measured_over_predicted_tpot": self.measured_tpot_s / self.predicted_tpot_s,
            "acceptance_by_task": self.acceptance_by_task,
        }


@dataclass(frozen=True)
class DecodeSetup:
    """Everything that real runs of a task share, so that controllers meet the same requests."""

    task: TaskConfig
    pair: ModelPair
    gains: GainView
    requests: list[Request]
    physics: Physics
    acceptance: AcceptanceTable

    @classmethod
    def of(
        cls, task: TaskConfig, bank: ChannelBank, pair: ModelPair, prompts: Sequence[Prompt]
    ) -> DecodeSetup:
        """Draw the requests of a task's real runs and take its evaluation world.

        Raises:
            UserError: if the bank has no such evaluation world or prompts of a task are missing.
        """
        worlds = bank.worlds("evaluation")
        if task.decode.world >= len(worlds):
            raise UserError(f"decode.world is {task.decode.world}, allowed: 0 to {len(worlds) - 1}")
        world = worlds[task.decode.world]
        requests = make_requests(
            pair,
            prompts,
            task.world,
            num_devices=task.bank.num_devices,
            count=task.decode.requests,
            output_tokens=task.decode.output_tokens,
            seed=task.decode.seed,
        )
        return cls(
            task=task,
            pair=pair,
            gains=GainView.of(bank.gain()[world], bank.position_m[world], task.world),
            requests=requests,
            physics=Physics.of(task.physics),
            acceptance=load_acceptance(task.acceptance_path),
        )

    def run(self, controller: Controller, *, temperature: float | None = None) -> DecodeRow:
        """Drive the pair with a controller.

        Args:
            controller: decides at every slot of the virtual clock.
            temperature: of sampling; the acceptance table's by default, 0 for greedy decoding.
        """
        log = PredictionLog(controller, self.physics)
        config = DecodingConfig(
            temperature=self.acceptance.temperature if temperature is None else temperature,
            seed=self.task.decode.seed,
        )
        result = run_decoding(
            self.pair,
            self.requests,
            self.gains,
            log,
            world=self.task.world,
            physics=self.physics,
            acceptance=self.acceptance,
            config=config,
        )
        measured, predicted = _times_per_token(result, log)
        return DecodeRow(
            controller=controller.name,
            observes=controller.observes,
            result=result,
            predicted_tpot_s=predicted,
            measured_tpot_s=measured,
            acceptance_by_task=self._acceptance_by_task(result),
        )

    def check_greedy(self, controller: Controller) -> ExactCheck:
        """Run greedily and compare every answer with the target model's own greedy output."""
        result = self.run(controller, temperature=0.0).result
        target = TransformerModel(self.pair.target, self.pair.vocab_size)
        return check_greedy_exact(target, self.requests, result.requests)

    def _acceptance_by_task(self, result: DecodingResult) -> dict[str, float]:
        """Divide accepted by tested draft tokens, per task type."""
        rates = {}
        for index, task in enumerate(self.task.world.requests.tasks):
            own = [record for record in result.requests if record.task == index]
            tested = sum(record.tested for record in own)
            if tested:
                rates[task.name] = sum(record.accepted for record in own) / tested
        return rates


def _times_per_token(result: DecodingResult, log: PredictionLog) -> tuple[float, float]:
    """Compute measured and predicted seconds per token, means over requests.

    A request's prediction is the mean over the slots in which it decoded.
    """
    measured, predicted = [], []
    for record in result.requests:
        slots = [
            seconds
            for time_s, seconds in log.predicted[record.device]
            if record.start_s <= time_s <= record.end_s
        ]
        if slots and not record.refusal:
            measured.append(record.tpot_s)
            predicted.append(sum(slots) / len(slots))
    if not measured:
        return math.nan, math.nan
    return sum(measured) / len(measured), sum(predicted) / len(predicted)
