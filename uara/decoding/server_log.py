"""Logs of a server: one JSON object per line, with counts and reasons, never prompts or tokens."""

from __future__ import annotations

import json
import logging
import time
from typing import TextIO


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # A traceback's text may quote values; its type and place do not.
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


def log_to(stream: TextIO, name: str = "uara.serve") -> None:
    """Send a logger's lines to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger(name)
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def event(logger: logging.Logger, name: str, **fields: object) -> None:
    """Log what has happened."""
    logger.info(name, extra={"fields": fields})
