"""What `uara plan --execute` needs beyond the plan; apart from it, so that plans load no models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from uara.decoding.contract import Contract
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.rules import GREEDY, Sampling

Rule = Literal["greedy", "gumbel", "maxc"]


class ExecutionConfig(BaseModel):
    """What `uara plan --execute` needs beyond the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Rule = Field(
        "maxc",
        description="how drafts are tested: the most likely token, noise that both nodes share, or "
        "rejection sampling with the draft's whole rows (the paper's)",
    )
    temperature: float = Field(0.7, gt=0, description="of both models, but for `greedy`")
    seed: int = Field(0, ge=0, description="of all draws")

    @property
    def contract(self) -> Contract:
        """What both nodes agree on."""
        code = {"greedy": RuleCode.IDS, "gumbel": RuleCode.GUMBEL, "maxc": RuleCode.FULL}
        is_greedy = self.rule == "greedy"
        sampling = GREEDY if is_greedy else Sampling(self.temperature)
        return Contract(code[self.rule], sampling, 1, 1)

    def session_seed(self, task: int) -> int:
        """Give the seed of a task's draws."""
        return derive_seed(self.seed, "plan", task)
