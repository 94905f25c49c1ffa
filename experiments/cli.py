"""The `uara` command line; each command mirrors one Python function."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.config import (
    ExperimentConfig,
    TaskConfig,
    kind_of,
    load_any,
    load_experiment,
    one_line,
)
from experiments.plan import PlanTask
from experiments.plan_command import plan
from experiments.report_command import report
from experiments.runs import provenance, write_json
from experiments.scores_command import scores
from experiments.serve_command import device, serve
from experiments.tasks_command import tasks
from experiments.tune_command import tune
from uara.errors import UserError

app = typer.Typer(
    help="User association and resource allocation for speculative decoding over radio.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
channels = typer.Typer(help="Channel banks.", no_args_is_help=True)
pair = typer.Typer(help="Draft/target pairs of language models.", no_args_is_help=True)
app.add_typer(channels, name="channels")
app.add_typer(pair, name="pair")
app.command()(plan)
app.command()(scores)
app.command()(tasks)
app.command()(tune)
app.command()(serve)
app.command()(device)
app.command()(report)
console = Console(width=None if sys.stdout.isatty() else 140)

Config = Annotated[Path, typer.Argument(help="config file (YAML)")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the config")
]
Json = Annotated[Path | None, typer.Option("--json", help="write the result to this file")]
DraftModel = Annotated[
    str | None, typer.Option(help="folder of a draft model, or hub:OWNER/NAME@COMMIT")
]
TargetModel = Annotated[
    str | None, typer.Option(help="folder of a target model, or hub:OWNER/NAME@COMMIT")
]


class Bar:
    """A progress bar that starts with its first report."""

    def __init__(self, label: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._label = label
        self._task = self._progress.add_task(label, total=None)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        self._progress.update(self._task, completed=done, total=total)

    def say(self, text: str) -> None:
        """Change the label."""
        self._progress.update(self._task, description=f"{self._label} {text}")


def report_of(bar: Bar, config: ExperimentConfig) -> Callable[[int, Mapping[str, float]], None]:
    """Make the callback that shows training on a bar."""

    def report(iteration: int, metrics: Mapping[str, float]) -> None:
        steps = int(metrics.get("time/env_steps", 0))
        bar(min(steps, config.training.env_steps), config.training.env_steps)
        if "eval/e2e_latency_s" in metrics:
            bar.say(f"(validation {metrics['eval/e2e_latency_s']:.2f} s)")

    return report


def save_json(path: Path | None, command: str, config: object, rows: list[object]) -> None:
    """Write the JSON that every command can leave."""
    if path is not None:
        content = {"command": command, "config": config, "rows": rows}
        write_json(path, content | {"provenance": provenance()})


@channels.command("build")
def channels_build(
    task: Config,
    overrides: Overrides = None,
    preview: Annotated[Path | None, typer.Option(help="draw the first evaluation world")] = None,
    force: Annotated[bool, typer.Option("--force", help="rebuild an existing bank")] = False,
    folder: Annotated[Path, typer.Option(help="folder of banks")] = Path("banks"),
    workers: Annotated[int, typer.Option(min=1, help="processes, or threads of --python")] = 2,
    backend: Annotated[
        str | None, typer.Option(help="sionna, rt or tensorflow; as bank.backend=...")
    ] = None,
    python: Annotated[
        Path | None, typer.Option(help="interpreter of the environment of rt or tensorflow")
    ] = None,
    radio_map: Annotated[
        Path | None, typer.Option(help="draw path gains over the city of backend rt")
    ] = None,
    json_file: Json = None,
) -> None:
    """Build or refresh the channel bank of a task with Sionna."""
    from uara.figures.city_map import draw_city_map
    from uara.figures.network_map import draw_bank_preview
    from uara.radio.backends import trace_radio_map
    from uara.radio.bank import bank_path, build_or_load

    asked = [f"bank.backend={backend}"] if backend is not None else []
    config = load_any(task, [*(overrides or []), *asked])
    city = trace_radio_map(config.bank, python, workers=workers) if radio_map is not None else None
    with Bar("waypoints" if config.bank.backend == "rt" else "worlds") as bar:
        bank = build_or_load(
            config.bank, folder, progress=bar, workers=workers, force=force, python=python
        )
    path = bank_path(config.bank, folder)
    console.print(
        f"{path}: {bank.gain_db.shape} (world, slot, device, server), built in {bank.build_s:.0f} s"
    )
    worlds = bank.worlds("evaluation")
    world = int(worlds[0]) if worlds.size else 0
    if preview is not None:
        draw_bank_preview(bank, world, preview)
        console.print(f"preview: {preview}")
    if city is not None and radio_map is not None:
        draw_city_map(city, bank, world, radio_map)
        console.print(f"radio map: {radio_map}")
    save_json(json_file, "channels build", config.bank.model_dump(mode="json"), [bank.metadata])


@app.command()
def diagnose(
    task: Config,
    overrides: Overrides = None,
    episodes: Annotated[int, typer.Option(min=8, help="episodes per figure")] = 128,
    figure: Annotated[Path | None, typer.Option(help="draw it all into this PNG")] = None,
    foresight: Annotated[
        bool, typer.Option("--foresight", help="also measure what look-ahead is worth (slow)")
    ] = False,
    json_file: Json = None,
) -> None:
    """Say whether a scenario is worth learning: modes, spreads, radio and compute, loads."""
    from experiments.diagnose import diagnose as run
    from experiments.evaluation import load_bank
    from experiments.foresight import measure_foresight
    from experiments.tables import diagnosis_table, mode_table, time_table
    from uara.figures.diagnosis import draw_diagnosis

    config = load_any(task, overrides)
    with Bar("worlds") as bar:
        bank = load_bank(config, progress=bar)
    with Bar("controllers") as bar:
        result = run(config, bank, episodes=episodes, progress=bar)
    console.print(diagnosis_table(result.findings), mode_table(result), time_table(result))
    console.print(result.verdict)
    if figure is not None:
        draw_diagnosis(
            {finding.name: finding.percent for finding in result.findings},
            {row.mode: (row.e2e_s, row.tpot_s) for row in result.modes},
            result.spread,
            result.time_use.share,
            figure,
        )
        console.print(f"figure: {figure}")
    rows: list[object] = [
        *({"kind": "finding", **finding.__dict__} for finding in result.findings),
        *({"kind": "mode", **row.__dict__} for row in result.modes),
        {"kind": "spread", **result.spread},
        {"kind": "share of time", **result.time_use.share},
        {"kind": "verdict", "text": result.verdict},
    ]
    if foresight:
        with Bar("look-ahead") as bar:
            worth = measure_foresight(config, bank, episodes=min(episodes, 32), progress=bar)
        console.print(worth.words())
        rows.append({"kind": "foresight", **worth.as_json()})
    save_json(json_file, "diagnose", config.model_dump(mode="json"), rows)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="run folder; default runs/NAME/seedK")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run")] = False,
) -> None:
    """Train the learner of an experiment."""
    from experiments.runs import load_run_config, run_folder, train_experiment

    experiment = load_experiment(config, overrides)
    folder = run or run_folder(experiment)
    if resume:
        experiment = load_run_config(folder)
    with Bar("training") as bar:
        policy = train_experiment(
            experiment, folder, resume=resume, report=report_of(bar, experiment)
        )
    console.print(f"policy: {policy}\nlearning curves: tensorboard --logdir {folder}")


@app.command()
def evaluate(
    config: Config,
    overrides: Overrides = None,
    policy: Annotated[list[Path] | None, typer.Option(help="trained policy; repeatable")] = None,
    controller: Annotated[
        list[str] | None, typer.Option(help="rule, or rules joined by +; repeatable")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="draw latency bars to this PNG")] = None,
    csv: Annotated[Path | None, typer.Option(help="write the table to this CSV")] = None,
    by_part: Annotated[
        bool, typer.Option("--by-part", help="change one part at a time: what is each worth?")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="processes, with --by-part")] = 1,
    json_file: Json = None,
) -> None:
    """Play controllers and policies on the frozen episodes of a task, or paper 1's problem."""
    from experiments.by_part import by_part_table, play_by_part
    from experiments.comparison import compare
    from experiments.evaluation import load_bank
    from experiments.tables import evaluation_table, write_csv
    from uara.figures.results import draw_latency_bars

    if kind_of(config) == "uara-p1":
        from experiments.p1_tables import evaluate_p1

        with Bar("settings and readings") as bar:
            p1 = evaluate_p1(
                config, overrides, policy, controller, csv=csv, figure=figure, progress=bar
            )
        console.print(*p1.tables())
        save_json(json_file, "evaluate", p1.config.model_dump(mode="json"), [*p1.rows()])
        return
    task = load_any(config, overrides)
    with Bar("worlds") as bar:
        bank = load_bank(task, progress=bar)
    with Bar("controllers") as bar:
        if by_part:
            if controller or policy or figure:
                raise UserError(
                    "--by-part has rules of its own and no figure; give it --jobs alone"
                )
            rows = play_by_part(task, jobs, progress=bar)
        else:
            rules = controller or list(task.evaluation.controllers)
            rows = compare(task, bank, rules, policy or [], progress=bar)
    console.print((by_part_table if by_part else evaluation_table)(rows, task.name))
    if csv is not None:
        write_csv(csv, rows)
    if figure is not None:
        draw_latency_bars(rows, figure)
    save_json(json_file, "evaluate", task.model_dump(mode="json"), list(rows))


@app.command()
def decode(
    config: Config,
    overrides: Overrides = None,
    policy: Annotated[Path | None, typer.Option(help="trained policy")] = None,
    controller: Annotated[
        list[str] | None, typer.Option(help="rule, or rules joined by +; repeatable")
    ] = None,
    draft: DraftModel = None,
    target: TargetModel = None,
    records: Annotated[Path, typer.Option(help="folder of records and timeline")] = Path(
        "runs/decode"
    ),
    kernel: Annotated[
        str, typer.Option(help="virtual, or wall: once more in real processes on loopback")
    ] = "virtual",
    json_file: Json = None,
) -> None:
    """Drive real draft/verify runs of language models with controllers or a policy."""
    from experiments.comparison import decode_with
    from experiments.tables import decode_table

    if kernel not in ("virtual", "wall"):
        raise UserError(f"kernel '{kernel}' is unknown; allowed: virtual, wall")
    task = load_any(config, overrides)
    told: list[str] = []
    with Bar("runs") as bar:
        rows, check = decode_with(
            task,
            policy,
            controller,
            draft=draft,
            target=target,
            folder=records,
            on_wall=(lambda row, wall: told.append(f"{row.controller}: {wall.sentence()}"))
            if kernel == "wall"
            else None,
            progress=bar,
        )
    console.print(decode_table(rows, task.name))
    console.print(check.sentence(), *told, sep="\n")
    console.print(f"records and timeline: {records}")
    rows_json: list[object] = [
        *(row.as_json() for row in rows),
        {"greedy_equal": check.equal, "greedy_near_ties": check.near_ties,
         "greedy_unexplained": list(check.unexplained)},
    ]  # fmt: skip
    save_json(json_file, "decode", task.model_dump(mode="json"), rows_json)


@app.command()
def sweep(
    configs: Annotated[list[Path], typer.Argument(help="experiment files")],
    seeds: Annotated[int, typer.Option(min=1, help="seeds 0 .. N-1 of each")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="processes, one thread each")] = 2,
    override: Annotated[list[str] | None, typer.Option(help="k=v for every run")] = None,
) -> None:
    """Train and evaluate experiments over seeds; resumable."""
    from experiments.sweep import sweep as run

    finished: list[Path] = []
    with Bar("runs") as bar:
        total = len(configs) * seeds
        bar(0, total)

        def done(path: Path) -> None:
            finished.append(path)
            bar(len(finished), total)

        run(configs, range(seeds), overrides=override or [], workers=workers, done=done)
    for path in sorted(finished):
        console.print(f"{path}")


@app.command()
def results(
    seeds: Annotated[int, typer.Option(min=1, help="training seeds")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="processes, one thread each")] = 2,
) -> None:
    """Make the tables of the README: train over seeds, evaluate, write docs/results/."""
    from experiments.results import make_results

    with Bar("runs") as bar:
        for table in make_results(seeds=seeds, workers=workers, progress=bar):
            console.print(table)


@app.command()
def quickstart(
    json_file: Json = None,
    folder: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="seed of training")] = 0,
) -> None:
    """Walk the whole road: Sionna bank, training, evaluation, real draft/verify runs, figures."""
    from experiments.quickstart import CONFIG, run_quickstart

    rows = run_quickstart(folder, seed, console)
    config = load_experiment(CONFIG, [f"seed={seed}"])
    save_json(json_file, "quickstart", config.model_dump(mode="json"), rows)


@app.command()
def schema() -> None:
    """Print the JSON schema of task, experiment and paper files: every option is described."""
    from experiments.p1 import P1Experiment

    schemas = {
        "task": TaskConfig.model_json_schema(),
        "experiment": ExperimentConfig.model_json_schema(),
        "plan": PlanTask.model_json_schema(),
        "uara-p1": P1Experiment.model_json_schema(),
    }
    typer.echo(json.dumps(schemas, indent=1))


@pair.command("train")
def pair_train(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="folder of the pair")] = Path("checkpoints/pair"),
) -> None:
    """Train the shipped draft/target pair on this Python's standard library; resumable."""
    from experiments.config import from_overrides
    from experiments.pair.training import PairTrainingConfig, train_pair

    train_pair(from_overrides(PairTrainingConfig, overrides or []), out)
    console.print(f"pair: {out}")


@pair.command("calibrate")
def pair_calibrate(
    overrides: Overrides = None,
    draft: DraftModel = None,
    target: TargetModel = None,
    prompts: Annotated[Path | None, typer.Option(help="decode set (JSONL)")] = None,
    temperature: Annotated[float, typer.Option(min=0.01, help="served temperature")] = 0.7,
    machine: Annotated[Path, typer.Option(help="file of this machine's times")] = Path(
        "machine.json"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace that file if it exists")
    ] = False,
    times_only: Annotated[
        bool, typer.Option("--times-only", help="leave the acceptance out")
    ] = False,
    traces: Annotated[
        Path | None, typer.Option(help="measure acceptance along texts; file of traces for worlds")
    ] = None,
    json_file: Json = None,
) -> None:
    """Measure a pair: its acceptance on held-out prompts, and how long it takes on this machine."""
    from experiments.comparison import calibrate, open_pair
    from experiments.config import from_overrides
    from experiments.pair.machine import (
        MachineTimesConfig,
        calibrate_machine,
        check_free,
        pass_sizes,
    )
    from experiments.pair.trace_tables import trace_prompts
    from experiments.tables import fit_table

    config = from_overrides(MachineTimesConfig, overrides or [])
    check_free(machine, overwrite=overwrite)
    if times_only and json_file is not None:
        raise UserError("--json takes the acceptance, which --times-only leaves out; drop one")
    models = open_pair(draft, target)
    pass_sizes(config, models.context_tokens)  # said before the long measurement, not behind it
    if traces is not None:
        check_free(traces, overwrite=overwrite)
        for rows in trace_prompts(models, prompts, temperature, traces):
            console.print(rows)
        console.print(f"traces: {traces}")
    if not times_only:
        table = calibrate(draft, target, prompts, temperature)
        console.print_json(data=table)
        if json_file is not None:
            write_json(json_file, table)
    profile = calibrate_machine(models, config)
    write_json(machine, profile)
    console.print(fit_table(profile["fits"]))
    console.print(f"machine: {machine}")


@pair.command("branches")
def pair_branches(
    draft: DraftModel = None,
    target: TargetModel = None,
    prompts: Annotated[Path | None, typer.Option(help="decode set (JSONL)")] = None,
    temperature: Annotated[float, typer.Option(min=0.01, help="served temperature")] = 0.7,
    tokens: Annotated[int, typer.Option(min=1, help="longest text per prompt")] = 96,
    json_file: Json = None,
) -> None:
    """Measure how often corrections are guessed, and what a branch adds to a draft step."""
    from experiments import comparison, tables

    found = comparison.branches_of(draft, target, prompts, temperature, tokens)
    console.print(tables.branch_table(found))
    if json_file is not None:
        write_json(json_file, found)


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit status 2."""
    torch.set_num_threads(1)
    try:
        app(standalone_mode=True)
    except UserError as error:
        message = " ".join(str(error).split())
    except ValidationError as error:
        message = one_line(error)
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
