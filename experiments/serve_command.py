"""`uara serve` and `uara device`: the two ends of real draft/verify runs as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from experiments.config import from_overrides
from uara.decoding.contract import Contract
from uara.decoding.control import MAX_DRAFT_LENGTH, MAX_WINDOW, WIRE_MODES, Plan
from uara.decoding.kv import TransformerModel
from uara.decoding.model_verifier import ModelVerifier
from uara.decoding.models import (
    SHIPPED_PAIR_FOLDER,
    Prompt,
    load_model,
    load_prompts,
    load_tokenizer,
    tokenizer_hash,
)
from uara.decoding.nodes import KernelSettings
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.record_files import write_parquet
from uara.decoding.records import RequestRecord
from uara.decoding.rules import GREEDY, Sampling
from uara.decoding.scenario import DeviceProfile, Request
from uara.decoding.server_front import ServerFront, ServerLimits
from uara.decoding.server_log import log_to
from uara.decoding.transport import (
    device_context,
    is_loopback,
    parse_address,
    read_token,
    server_context,
)
from uara.decoding.verifier import Verifier
from uara.decoding.wall_device import Dial, Uplink, WallDevice
from uara.decoding.wall_server import WallServer
from uara.errors import UserError
from uara.serving.hardware import get_phone, get_rack
from uara.serving.payload import DEFAULT_TAIL_DRAWS

TOKEN_VARIABLE = "UARA_TOKEN"
PAYLOADS = {"ids": RuleCode.IDS, "id_prob": RuleCode.ID_PROB, "topk": RuleCode.TOPK,
            "full": RuleCode.FULL, "gumbel": RuleCode.GUMBEL}  # fmt: skip

PairFolder = Annotated[Path, typer.Option(help="folder of a pair, with draft/ and target/")]
TokenFile = Annotated[
    Path | None,
    typer.Option(help=f"file of the secret token; else the environment's {TOKEN_VARIABLE}"),
]
Pace = Annotated[
    str | None, typer.Option(help="machine whose times are kept (FILE.json:NAME); else this one's")
]


def serve(
    limits: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="limits, see docs/serving.md"),
    ] = None,
    pair: PairFolder = SHIPPED_PAIR_FOLDER,
    target: Annotated[
        str | None, typer.Option(help="target alone: folder, or hub:OWNER/NAME@COMMIT")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="URL of a completion endpoint that holds the target")
    ] = None,
    endpoint_model: Annotated[str, typer.Option(help="its name there")] = "target",
    context_tokens: Annotated[
        int | None, typer.Option(min=1, help="longest context that the endpoint reads")
    ] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one")] = (
        "127.0.0.1:7070"
    ),
    token_file: TokenFile = None,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate (PEM)")] = None,
    key: Annotated[Path | None, typer.Option(help="its key (PEM)")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="listen beyond loopback without token and TLS")
    ] = False,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="serve /metrics on this loopback port")
    ] = None,
    pace: Pace = None,
    frame_overhead_bytes: Annotated[
        int, typer.Option(min=0, help="priced with every frame on a shaped link")
    ] = 40,
) -> None:
    """Verify the drafts of many devices with one target model, until SIGTERM."""
    host, port = parse_address(listen)
    token = read_token(token_file, os.environ.get(TOKEN_VARIABLE))
    if (certificate is None) != (key is None):
        raise UserError("give both --certificate and --key, or neither")
    if not is_loopback(host) and not insecure and (not token or certificate is None):
        raise UserError(
            f"{host} is no loopback address: give a token (--token-file or {TOKEN_VARIABLE}) and "
            "TLS (--certificate, --key), or --insecure"
        )
    context = server_context(certificate, key) if certificate and key else None
    rack = get_rack(pace) if pace is not None else None
    log_to(sys.stderr)
    bounds = from_overrides(ServerLimits, limits or [])
    tokenizer = load_tokenizer(target or pair / "target")
    size = len(tokenizer)
    verifier: Verifier
    if endpoint is None:
        verifier = ModelVerifier(TransformerModel(load_model(target or pair / "target"), size))
    else:
        from uara.decoding.endpoint_verifier import EndpointVerifier

        verifier = EndpointVerifier(endpoint, endpoint_model, context_tokens)
    front = ServerFront(verifier, size, tokenizer_hash(tokenizer), bounds, token or None)
    metrics = None
    if metrics_port is not None:
        from uara.decoding.server_metrics import ServerMetrics

        metrics = ServerMetrics(front)
        typer.echo(f"metrics: http://127.0.0.1:{metrics.listen(metrics_port)}/metrics", err=True)
    server = WallServer(
        front,
        verifier,
        max_frame_bytes=bounds.max_frame_bytes,
        max_backlog_bytes=bounds.max_backlog_bytes,
        drain_s=bounds.drain_s,
        pace=rack.forward if rack is not None else None,
        overhead_bytes=frame_overhead_bytes,
        observe=metrics.observe if metrics is not None else lambda name, seconds: None,
    )

    async def run() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await server.listen(host, port, context)
        await stopping.wait()
        await server.drain()

    asyncio.run(run())


def device(
    server: Annotated[str, typer.Option(help="HOST:PORT of the server")] = "127.0.0.1:7070",
    pair: PairFolder = SHIPPED_PAIR_FOLDER,
    draft: Annotated[
        str | None, typer.Option(help="draft alone: folder, or hub:OWNER/NAME@COMMIT")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="decode set (JSONL)")] = None,
    count: Annotated[int, typer.Option(min=1, help="requests, one after the other")] = 4,
    tokens: Annotated[int, typer.Option(min=1, help="answer tokens of each")] = 64,
    mode: Annotated[str, typer.Option(help="sd, psd or async")] = "sd",
    draft_length: Annotated[
        int, typer.Option(min=0, max=MAX_DRAFT_LENGTH, help="0: the server decodes alone")
    ] = 4,
    window: Annotated[int, typer.Option(min=0, max=MAX_WINDOW, help="of mode async")] = 1,
    payload: Annotated[str, typer.Option(help="what goes up with a draft")] = "ids",
    temperature: Annotated[float, typer.Option(min=0, help="of both models; 0 is greedy")] = 0.7,
    seed: Annotated[int, typer.Option(help="of all draws")] = 0,
    uplink_bps: Annotated[float, typer.Option(min=1, help="shape what goes up")] = float("inf"),
    downlink_bps: Annotated[float, typer.Option(min=1, help="and what comes down")] = float("inf"),
    rtt_s: Annotated[float, typer.Option(min=0, help="added, half each way")] = 0.0,
    token_file: TokenFile = None,
    tls: Annotated[bool, typer.Option("--tls", help="connect by TLS")] = False,
    authority: Annotated[
        Path | None, typer.Option(help="certificate that is trusted, with --tls")
    ] = None,
    patience_s: Annotated[
        float, typer.Option(min=0, help="how long a server may be out of reach")
    ] = 60.0,
    pace: Pace = None,
    read_token_s: Annotated[float, typer.Option(min=0, help="per prompt token, with --pace")] = 0.0,
    records: Annotated[Path | None, typer.Option(help="write records here (Parquet)")] = None,
) -> None:
    """Draft tokens as a phone does, and have a server verify them."""
    if mode not in WIRE_MODES or payload not in PAYLOADS:
        raise UserError(
            f"mode '{mode}', payload '{payload}'; allowed: {', '.join(WIRE_MODES)} and "
            f"{', '.join(PAYLOADS)}"
        )
    host, port = parse_address(server)
    token = read_token(token_file, os.environ.get(TOKEN_VARIABLE))
    tokenizer = load_tokenizer(draft or pair / "draft")
    model = load_model(draft or pair / "draft")
    chosen = load_prompts(prompts or SHIPPED_PAIR_FOLDER / "prompts.jsonl")[:count]
    size = len(tokenizer)
    sampling = Sampling(temperature) if temperature else GREEDY
    contract = Contract(PAYLOADS[payload], sampling, min(32, size), DEFAULT_TAIL_DRAWS)
    settings = KernelSettings(
        slot_s=1.0,
        contract=contract,
        session_seed=lambda sid: derive_seed(seed, "session", sid),
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    plan = Plan(draft_length, WIRE_MODES.index(mode), window, downlink_bps, rtt_s / 2)
    phone = get_phone(pace) if pace is not None else None
    end = WallDevice(
        TransformerModel(model, size),
        Dial(
            host,
            port,
            token,
            device_context(authority) if tls else None,
            patience_s=patience_s,
        ),
        pace=DeviceProfile(phone.draft_time_s, read_token_s) if phone is not None else None,
        uplink=Uplink(uplink_bps, rtt_s / 2, settings.frame_overhead_bytes),
    )

    async def run() -> list[RequestRecord]:
        found = []
        async with end:
            for sid, prompt in enumerate(chosen):
                text = tuple(tokenizer.encode(prompt.text, add_special_tokens=False))
                request = Request(sid, 0, 0.0, text, len(text), tokens)
                record = RequestRecord(
                    sid=sid,
                    device=0,
                    task=0,
                    arrival_s=time.monotonic(),
                    prompt_tokens=len(text),
                    text_tokens=len(text),
                )
                await end.request(settings.opening(request, size), plan, contract, record)
                found.append(record)
        return found

    done = asyncio.run(run())
    Console().print(_table(done, chosen))
    if records is not None:
        write_parquet(records, done)
    refused = [record for record in done if record.refusal]
    if refused:
        raise UserError(f"{len(refused)} of {len(done)} requests failed: {refused[0].refusal}")


def _table(records: Sequence[RequestRecord], prompts: Sequence[Prompt]) -> Table:
    table = Table(title="requests")
    for name in ("prompt", "tokens", "TTFT (ms)", "TPOT (ms)", "accepted/tested", "verifications"):
        table.add_column(name, justify="left" if name == "prompt" else "right")
    for record, prompt in zip(records, prompts, strict=True):
        table.add_row(
            prompt.id,
            f"{len(record.tokens)}",
            f"{1e3 * record.ttft_s:.1f}",
            f"{1e3 * record.tpot_s:.2f}",
            f"{record.accepted}/{record.tested}",
            f"{record.verifications}",
        )
    return table
