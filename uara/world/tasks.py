"""Task types: what kinds of requests there are, and how long their prompts and answers.

A length is a minimum plus a random part, cut at a maximum.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from uara.young_fields import dump_without_defaults

LengthLaw = Literal["exponential", "lognormal", "fixed"]


class TaskType(BaseModel):
    """One kind of request; lengths are a minimum plus a random part, cut at a maximum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="key of the acceptance table")
    weight: float = Field(gt=0, description="relative frequency")
    prompt_tokens_min: int = Field(gt=0, description="shortest prompt")
    prompt_tokens_mean: float = Field(gt=0, description="mean prompt before the cut")
    prompt_tokens_max: int = Field(gt=0, description="longest prompt")
    output_tokens_min: int = Field(gt=0, description="shortest answer")
    output_tokens_mean: float = Field(gt=0, description="mean answer before the cut")
    output_tokens_max: int = Field(gt=0, description="longest answer")
    attachment_bits: float = Field(0.0, ge=0, description="photo sent with the prompt")
    length_law: LengthLaw = Field(
        "exponential", description="law of what is above the minimum; fixed: always the mean"
    )
    length_sigma: float = Field(
        1.0, gt=0, le=3, description="standard deviation of the logarithm, where lognormal"
    )

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return dump_without_defaults(self, dump, ("length_law", "length_sigma"))

    @model_validator(mode="after")
    def _check_order(self) -> TaskType:
        for what in ("prompt_tokens", "output_tokens"):
            low, mean, high = (getattr(self, f"{what}_{end}") for end in ("min", "mean", "max"))
            if not low <= mean <= high:
                raise ValueError(
                    f"{what} of task '{self.name}': min {low}, mean {mean}, max {high}; "
                    "they must rise in this order"
                )
        return self


DEFAULT_TASKS = (
    TaskType(
        name="chat", weight=0.25,
        prompt_tokens_min=200, prompt_tokens_mean=1000, prompt_tokens_max=4000,
        output_tokens_min=32, output_tokens_mean=96, output_tokens_max=256,
    ),
    TaskType(
        name="summarise", weight=0.2,
        prompt_tokens_min=1000, prompt_tokens_mean=2500, prompt_tokens_max=6000,
        output_tokens_min=32, output_tokens_mean=64, output_tokens_max=160,
    ),
    TaskType(
        name="code", weight=0.25,
        prompt_tokens_min=300, prompt_tokens_mean=1500, prompt_tokens_max=5000,
        output_tokens_min=32, output_tokens_mean=96, output_tokens_max=256,
    ),
    TaskType(
        name="photo", weight=0.3,
        prompt_tokens_min=1200, prompt_tokens_mean=2000, prompt_tokens_max=4000,
        output_tokens_min=24, output_tokens_mean=64, output_tokens_max=160,
        attachment_bits=8e6,
    ),
)  # fmt: skip
