"""Options of the two-node edge of arXiv 2510.11331, and the readings of what it leaves open."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from uara.control.plan.model_cost import MODELS, PassTime, ServingCost

# Of one layer: ten kernels of about five microseconds each.
LAUNCH_S_PER_LAYER = 50e-6

Draft = Literal["68m", "1.1b"]
Verify = Literal["7b", "13b"]


class GpuConfig(BaseModel):
    """A GPU and how well it is used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    peak_flop_per_s: float = Field(gt=0, description="peak of the data sheet")
    memory_bytes_per_s: float = Field(gt=0, description="memory bandwidth of the data sheet")
    efficiency: float = Field(0.4, gt=0, le=1, description="share of the peak that is reached")
    s_per_flop: float | None = Field(
        None, gt=0, description="c1, seconds per FLOP and task; null: 1 / (efficiency x peak)"
    )
    fixed_s: float | None = Field(
        None,
        ge=0,
        description="c2, seconds of a pass whatever it carries; null: the weights read once and "
        "50 microseconds of kernel launches per layer",
    )
    fixed_scale: float = Field(1.0, ge=0, description="multiplies c2, to see what it decides")

    def pass_time(self, model: str) -> PassTime:
        """Time passes of a model on it."""
        shape = MODELS[model]
        fixed_s = self.fixed_s
        if fixed_s is None:
            reading_s = shape.weight_bytes / self.memory_bytes_per_s
            fixed_s = reading_s + shape.layers * LAUNCH_S_PER_LAYER
        s_per_flop = self.s_per_flop or 1 / (self.efficiency * self.peak_flop_per_s)
        return PassTime(s_per_flop, self.fixed_scale * fixed_s)


# Data sheets: GeForce RTX 3080 and RTX 4500 Ada; which RTX 4500 the paper means is a reading.
RTX3080 = GpuConfig(peak_flop_per_s=29.77e12, memory_bytes_per_s=760e9)
RTX4500 = GpuConfig(peak_flop_per_s=39.63e12, memory_bytes_per_s=432e9)


class HetEdgeConfig(BaseModel):
    """Users of a cell, the uplink that they share, a node that drafts and a node that verifies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = Field(100, gt=0, description="tasks, all there at time 0; K")
    cell_radius_m: float = Field(400.0, gt=0, description="users are spread evenly over the disc")
    distance_min_m: float = Field(
        10.0, ge=0, description="least distance to the site (a reading: not in the paper)"
    )
    bandwidth_hz: float = Field(20e6, gt=0, description="uplink band")
    power_w: float = Field(0.2, gt=0, description="transmit power of a user")
    noise_power_dbm: float = Field(-106.0, description="noise as the paper quotes it")
    noise: Literal["power", "density"] = Field(
        "power",
        description="a reading: noise of that power whatever a user's bandwidth, or of a density "
        "that adds up to it over the whole band",
    )
    path_loss: Literal["macro", "umi_nlos", "free_space"] = Field(
        "macro",
        description="a reading: 128.1 + 37.6 log10(km) (3GPP TR 36.942), TR 38.901 UMi without "
        "line of sight, or free space",
    )
    carrier_hz: float = Field(2e9, gt=0, description="of umi_nlos and free_space")
    fading: Literal["none", "rayleigh"] = Field(
        "rayleigh", description="a reading: none, or one Rayleigh draw per user"
    )
    bits_per_token: float = Field(
        16.0, gt=0, description="payload of a prompt token (a reading: 16-bit identifiers)"
    )
    input_tokens_min: int = Field(1, gt=0, description="shortest prompt")
    input_tokens_max: int = Field(512, gt=0, description="longest prompt; lengths are uniform")
    output_tokens_max: int = Field(
        2048, gt=0, description="to which every answer is reckoned; O_max"
    )
    draft: Draft = Field("1.1b", description="draft model, at the small site")
    verify: Verify = Field("7b", description="verify model, at the macro site")
    draft_gpu: GpuConfig = Field(RTX3080, description="GPU that drafts")
    verify_gpu: GpuConfig = Field(RTX4500, description="GPU that verifies")
    memory_bytes: float = Field(16e9, gt=0, description="of the draft node")
    memory_rule: Literal["per_batch", "in_flight"] = Field(
        "per_batch",
        description="what must fit beside the draft weights: the cache of each batch (as the "
        "paper checks), or of all unfinished batches together; then tasks go in waves",
    )
    acceptance: float = Field(0.8, gt=0, le=1, description="alpha")
    draft_length_max: int = Field(10, gt=0, description="l_max")
    draft_length_per_batch: bool = Field(
        False, description="let each batch have a length of its own (not in the paper)"
    )
    upload: Literal["equal_finish", "batch_by_batch"] = Field(
        "equal_finish",
        description="wait for all prompts (as the paper), or upload batch by batch and start with "
        "the first; the planner falls back where that would end later",
    )
    search: Literal["prefix", "front", "both"] = Field(
        "both",
        description="batches by the dynamic programme over prefixes, by the exact front of the "
        "periodic objective, or the better of both",
    )
    round_samples: int = Field(
        16, ge=2, description="rounds at which the dynamic programme looks; stage times are linear"
    )
    static_batch_tasks: int = Field(8, gt=0, description="of the baseline `static`")
    bucket_tokens: int = Field(
        128, gt=0, description="of the baseline `heuristic`: prompts of one bucket are a batch"
    )
    fixed_draft_length: int = Field(7, gt=0, description="of the baseline `fixed_length`")
    seed: int = Field(2026, ge=0, description="key of the drops")

    @model_validator(mode="after")
    def _check_agreement(self) -> HetEdgeConfig:
        if self.input_tokens_min > self.input_tokens_max:
            raise ValueError(
                f"input_tokens_min is {self.input_tokens_min} but input_tokens_max is "
                f"{self.input_tokens_max}; raise the latter"
            )
        if self.distance_min_m >= self.cell_radius_m:
            raise ValueError(
                f"distance_min_m is {self.distance_min_m:g} but cell_radius_m is "
                f"{self.cell_radius_m:g}; widen the cell"
            )
        cost = self.cost
        alone = cost.draft.weight_bytes + float(cost.batch_bytes(1, self.input_tokens_max))
        if alone > self.memory_bytes:
            raise ValueError(
                f"memory_bytes is {self.memory_bytes:.3g} but the {self.draft} draft model with "
                f"one task of {self.input_tokens_max} + {self.output_tokens_max} tokens needs "
                f"{alone:.3g}; give it that much or shorten the lengths"
            )
        return self

    @property
    def cost(self) -> ServingCost:
        """Both models on their GPUs."""
        return ServingCost(
            draft=MODELS[self.draft],
            verify=MODELS[self.verify],
            draft_pass=self.draft_gpu.pass_time(self.draft),
            verify_pass=self.verify_gpu.pass_time(self.verify),
            acceptance=self.acceptance,
            output_tokens=self.output_tokens_max,
        )

    @property
    def cache_bytes(self) -> float:
        """Memory of the draft node beside the weights."""
        return self.memory_bytes - MODELS[self.draft].weight_bytes

    @property
    def noise_w(self) -> float:
        """Noise power in watt."""
        return float(10 ** (self.noise_power_dbm / 10 - 3))
