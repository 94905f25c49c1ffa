"""How the printed problem P1 of arXiv 2511.01695 is read, point by point.

Where a formula does not fit its units, contradicts the text or leaves something open, each way to
read it has a name here: `printed` is what the page says, `repaired` (or a telling name) what it
must mean. `PRINTED` is the whole problem as it stands on the page.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Payload = Literal["ids", "id_prob", "top_k", "full"]
Latency = Literal["printed", "overlap", "sequential"]
Sync = Literal["penalty_s", "penalty_ms", "overlap", "sequential", "none"]

VOCABULARY = 50_257  # of GPT2; ids fit 16 bits
ID_BITS = 16
SCALAR_BITS = 32  # one probability beside an id
ROW_VALUE_BITS = 16  # one value of a row of probabilities
NOISE_DBM_PER_HZ = -174.0  # printed


class P1Task(BaseModel):
    """What kind of answer a device wants; the paper names the kinds and none of the numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name of the kind")
    draft_length: int = Field(gt=0, description="drafted tokens per round")
    acceptance: float = Field(ge=0, lt=1, description="accepted / tested draft tokens")
    prompt_tokens: int = Field(ge=0, description="counted where the unit of work is an answer")
    output_tokens: int = Field(gt=0, description="counted where the unit of work is an answer")

    @property
    def rounds(self) -> float:
        """Count the rounds of an answer of parallel speculative decoding.

        A round brings 1 / ((1 - a) (1 + a / (1 - a^g))) tokens: between two rejections lie
        1 / (1 - a) tokens and 1 + a / (1 - a^g) rounds (the round machine of arXiv 2408.11850).
        """
        a = self.acceptance
        return self.output_tokens * (1 - a) * (1 + a / (1 - a**self.draft_length))


TASKS = (
    # Draft lengths: the best fixed ones of the paper's Fig. 2 on HumanEval and DailyMail.
    P1Task(name="code", draft_length=25, acceptance=0.85, prompt_tokens=150, output_tokens=128),
    P1Task(name="summary", draft_length=15, acceptance=0.75, prompt_tokens=700, output_tokens=96),
    P1Task(name="chat", draft_length=15, acceptance=0.65, prompt_tokens=100, output_tokens=128),
)


class P1Config(BaseModel):
    """The readings of P1 and the constants of its instances."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Literal["printed", "repaired"] = Field(
        "repaired",
        description="eq 4. printed: the shares of a device over servers add up to at most 1, which "
        "lets everybody have a whole band; repaired: those of a server over its devices",
    )
    swap_test: Literal["printed", "repaired"] = Field(
        "repaired",
        description="Algorithm 1. printed: swap if I rises, though I is minimised; repaired: if it "
        "falls",
    )
    noise: Literal["printed", "band", "share"] = Field(
        "share",
        description="SNR = h^2 P / N0 with N0 in dBm/Hz. printed: N0 of one hertz; band: of the "
        "server's band, power spread over all of it; share: of the device's own share",
    )
    interference: Literal["orthogonal", "reuse1"] = Field(
        "orthogonal",
        description="orthogonal: servers have bands of W / E (printed); reuse1: all use W and "
        "disturb each other, which the baseline's name Max SINR suggests",
    )
    sync: Sync = Field(
        "overlap",
        description="cost of uplink time U beside drafting time D in eq 8. penalty_s: lambda "
        "(D - U)^2 in seconds (printed); penalty_ms: the same in milliseconds; overlap: what U "
        "exceeds D by; sequential: U; none: nothing",
    )
    sync_weight: float = Field(1e-2, ge=0, description="lambda of the penalty (printed 1e-2)")
    radio_energy: Literal["printed", "repaired", "predecessor"] = Field(
        "repaired",
        description="E^CM. printed: delta y W P, which has no duration; repaired: delta P U; "
        "predecessor: y P tau as in arXiv 2404.03154",
    )
    radio_energy_factor: float = Field(2.6, ge=0, description="delta^CM (printed 2.6)")
    compute_energy: Literal["printed", "repaired", "predecessor"] = Field(
        "repaired",
        description="delta^CP in J/FLOP. printed: 1e9; repaired: 1e-9, its sign put back; "
        "predecessor: 1e-10",
    )
    battery: Literal["printed", "repaired"] = Field(
        "repaired",
        description="B_i under the energy. printed: a level between 0 and 1; repaired: the joules "
        "left, so that w is seconds per share of what is left",
    )
    energy_weight: float = Field(20.0, ge=0, description="w (printed 20 to 100)")
    battery_min: float = Field(0.1, gt=0, le=1, description="lowest level of a battery (open)")
    queue: Literal["none", "slots"] = Field(
        "none",
        description="k kappa, of which neither is given. none: 0; slots: k whole slots tau, k "
        "uniform up to `queue_slots_max` on each server",
    )
    queue_slots_max: int = Field(2, ge=0, description="largest k (open)")
    slot_s: float = Field(0.1, gt=0, description="tau (open; 0.1 s in arXiv 2404.03154)")
    work: Literal["round", "answer"] = Field(
        "round",
        description="what a task of a slot is (open): one round of drafting and verifying, or all "
        "rounds of an answer and its prompt",
    )
    payload: Payload = Field(
        "id_prob",
        description="uplink bits per draft token (open): ids 16; id_prob 48, since eq 1 needs "
        "q(x); top_k: id and value of `top_k` entries; full: the row of 50,257 values",
    )
    top_k: int = Field(64, gt=0, le=VOCABULARY, description="entries sent by top_k")
    times: Literal["flops", "roofline"] = Field(
        "flops",
        description="flops: work over FLOP/s (printed); roofline: decoding reads all weights from "
        "memory at each pass",
    )
    latency: Latency = Field(
        "overlap",
        description="the metric `average latency`, which has no formula, beside server time. "
        "printed: D, as eq 8 adds up; overlap: max(D, U); sequential: D + U",
    )
    max_compute: Literal["argmax", "spread", "softmax", "share"] = Field(
        "argmax",
        description="the baseline Max Compute. argmax: all to the fastest server; spread: at "
        "random among equally fast ones; softmax: one after the other by what is left of a slot's "
        "capacity (arXiv 2404.03154); share: one after the other to the most per device",
    )
    bandwidth_hz: float = Field(10e6, gt=0, description="W, all servers together (printed)")
    power_min_dbm: float = Field(16.0, description="lowest transmit power (printed)")
    power_max_dbm: float = Field(24.0, description="highest transmit power (printed)")
    noise_figure_db: float = Field(
        5.0, ge=0, description="of a site (TR 38.901 Table 7.8-1); none where noise is printed"
    )
    area_side_m: float = Field(
        400.0, gt=0, description="side of the square of devices (open; arXiv 2404.03154)"
    )
    carrier_hz: float = Field(3.5e9, ge=0.5e9, le=100e9, description="carrier (open)")
    tasks: tuple[P1Task, ...] = Field(TASKS, min_length=1, description="kinds, equally likely")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.power_min_dbm > self.power_max_dbm:
            raise ValueError(
                f"power_min_dbm is {self.power_min_dbm} but power_max_dbm is "
                f"{self.power_max_dbm}: raise the one or lower the other"
            )
        return self

    @property
    def bits_per_token(self) -> float:
        """Uplink bits of one draft token."""
        return {
            "ids": ID_BITS,
            "id_prob": ID_BITS + SCALAR_BITS,
            "top_k": ID_BITS + self.top_k * (ID_BITS + ROW_VALUE_BITS),
            "full": ID_BITS + VOCABULARY * ROW_VALUE_BITS,
        }[self.payload]

    @property
    def joules_per_flop(self) -> float:
        """delta^CP as read."""
        return {"printed": 1e9, "repaired": 1e-9, "predecessor": 1e-10}[self.compute_energy]

    @property
    def noise_w_per_hz(self) -> float:
        """N0, with the noise figure where the noise is not the printed one."""
        figure_db = 0.0 if self.noise == "printed" else self.noise_figure_db
        return float(10 ** ((NOISE_DBM_PER_HZ + figure_db - 30) / 10))

    def num_bands(self, num_servers: int) -> int:
        """Count the bands that W is split into."""
        return num_servers if self.interference == "orthogonal" else 1

    def for_latency(self) -> P1Config:
        """Read the problem so that I is the sum of latencies: no energy, uplink as measured."""
        sync: Sync = "none" if self.latency == "printed" else self.latency
        return self.model_copy(update={"sync": sync, "energy_weight": 0.0})


# Every reading that stands on the page, as far as something stands there.
PRINTED: dict[str, Any] = {
    "budget": "printed",
    "swap_test": "printed",
    "noise": "printed",
    "sync": "penalty_s",
    "radio_energy": "printed",
    "compute_energy": "printed",
    "battery": "printed",
    "latency": "printed",
}
