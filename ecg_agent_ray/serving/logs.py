"""Structured logs of the replicas: one JSON object a line on stderr, which Ray collects.

What is logged: request ids, routes, statuses, times, who accessed which ECG, which model was
loaded. What never is: message text, names inside recordings, tokens.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

__all__ = ["configure_replica_logs"]


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_replica_logs() -> None:
    """Send this package's log, from INFO on, to stderr. For replicas, which own their process."""
    logger = logging.getLogger("ecg_agent_ray")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
