"""Executes a plan of two edge nodes with a real pair: planned beside executed completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from experiments.execution_config import ExecutionConfig
from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.planner import Plan
from uara.control.plan.tasks import Tasks
from uara.decoding.exactness import ExactCheck, check_coupled_exact, check_greedy_exact
from uara.decoding.kv import TransformerModel
from uara.decoding.models import ModelPair, Prompt
from uara.decoding.plan_run import Excess, PlanRun, Progress, excess, run_planned
from uara.decoding.records import RequestRecord
from uara.decoding.scenario import Request
from uara.errors import UserError


@dataclass(frozen=True)
class Execution:
    """What a plan's execution gave.

    Attributes:
        run: rounds, times and tokens.
        batches: planned to executed completion, per batch.
        whole: the same of the last answer.
        equal: tasks whose tokens are those of single-request decoding.
        check: judgement of all tokens by the target alone; None for `maxc`, whose tokens hang on
            the draft's.
    """

    run: PlanRun
    batches: list[Excess]
    whole: Excess
    equal: int
    check: ExactCheck | None

    def sentence(self) -> str:
        """Say how exact the tokens are."""
        told = f"{self.equal} of {len(self.run.answers)} answers equal single-request decoding"
        return told if self.check is None else f"{told}; {self.check.sentence()}"


def execute_plan(
    plan: Plan,
    config: HetEdgeConfig,
    tasks: Tasks,
    options: ExecutionConfig,
    pair: ModelPair,
    prompts: Sequence[Prompt],
    progress: Progress | None = None,
) -> Execution:
    """Run a plan with a pair, and every task alone beside it.

    Args:
        plan: of the first drop.
        config: which it was made for.
        tasks: of which the first drop was planned.
        options: rule and seed.
        pair: draft and target.
        prompts: given to tasks in turn, cut to the task's prompt length.
        progress: called with (answer tokens so far, answer tokens in all).

    Raises:
        UserError: if the answers do not fit the pair's context.
    """
    requests = _requests(config, tasks, pair, prompts)
    draft, target = (
        TransformerModel(model, pair.vocab_size) for model in (pair.draft, pair.target)
    )

    def play(which: Plan, shown: Progress | None) -> PlanRun:
        return run_planned(
            which, config, requests, draft, target, options.contract, options.session_seed, shown
        )

    run, alone = play(plan, progress), play(_alone(plan), None)
    batches, whole = excess(plan, config, run)
    equal = sum(run.answers[k] == alone.answers[k] for k in run.answers)
    return Execution(run, batches, whole, equal, _check(options, target, requests, run))


def execution_table(plan: Plan, execution: Execution) -> Table:
    """Show planned beside executed completion, and where the difference comes from."""
    run = execution.run
    table = Table(
        title=f"executed with real tokens: {run.completion_s:.2f} s for {plan.completion_s:.2f} s "
        f"planned; acceptance {run.acceptance:.3f}"
    )
    for name in ("batch", "tasks", "drafts", "rounds planned", "on average", "of the slowest",
                 "planned (s)", "acceptance", "slowest member", "members leave",
                 "executed (s)"):  # fmt: skip
        table.add_column(name, justify="right")
    for m, (batch, seen, moved) in enumerate(
        zip(plan.batches, run.batches, execution.batches, strict=True)
    ):
        average = sum(seen.member_rounds) / len(seen.member_rounds)
        figures = (str(len(batch.tasks)), str(batch.draft_length), str(batch.rounds))
        table.add_row(
            str(m + 1), *figures, f"{average:.1f}", str(seen.rounds), *_parts(moved),
            end_section=m + 1 == len(plan.batches),
        )  # fmt: skip
    table.add_row("all", str(len(run.answers)), "", "", "", "", *_parts(execution.whole))
    return table


def execution_rows(execution: Execution) -> dict[str, object]:
    """Write an execution out for JSON."""
    return {
        "acceptance": execution.run.acceptance,
        "equal_to_single_requests": execution.equal,
        "whole": vars(execution.whole),
        "batches": [
            vars(moved) | {"member_rounds": list(seen.member_rounds)}
            for moved, seen in zip(execution.batches, execution.run.batches, strict=True)
        ],
    }


def _parts(moved: Excess) -> tuple[str, ...]:
    return (
        f"{moved.planned_s:.2f}",
        *(f"{part:+.2f}" for part in (moved.acceptance_s, moved.slowest_s, moved.leaving_s)),
        f"{moved.executed_s:.2f}",
    )


def _alone(plan: Plan) -> Plan:
    """Give each task a batch of its own: single-request decoding with the same draft lengths."""
    return replace(
        plan,
        batches=tuple(
            replace(batch, tasks=(task,)) for batch in plan.batches for task in batch.tasks
        ),
    )


def _requests(
    config: HetEdgeConfig, tasks: Tasks, pair: ModelPair, prompts: Sequence[Prompt]
) -> list[Request]:
    """Give prompts to the tasks of the first drop, spread over the set; priced are the plan's."""
    answer = config.output_tokens_max
    # A block may be drafted behind the last token of an answer.
    room = pair.context_tokens - answer - config.draft_length_max
    if room < 1:
        raise UserError(
            f"answers of {answer} tokens do not fit the {pair.context_tokens} tokens of context of "
            f"pair '{pair.name}'; give hetedge.output_tokens_max below "
            f"{pair.context_tokens - config.draft_length_max}"
        )
    requests, step = [], max(1, len(prompts) // tasks.input_tokens.shape[1])
    for k, priced in enumerate(tasks.input_tokens[0].astype(int).tolist()):
        text = pair.encode(prompts[k * step % len(prompts)].text)[-min(room, priced) :]
        requests.append(Request(k, k, 0.0, tuple(text), max(priced, len(text)), answer))
    return requests


def _check(
    options: ExecutionConfig, target: TransformerModel, requests: Sequence[Request], run: PlanRun
) -> ExactCheck | None:
    if options.rule == "maxc":
        return None
    records = [
        RequestRecord(
            sid=request.sid, device=request.device, task=0, arrival_s=0.0,
            prompt_tokens=request.prompt_tokens, text_tokens=len(request.text),
            tokens=list(run.answers[request.sid]),
        )
        for request in requests
    ]  # fmt: skip
    if options.rule == "greedy":
        return check_greedy_exact(target, requests, records)
    sampling = options.contract.sampling
    return check_coupled_exact(target, requests, records, sampling, options.session_seed)
