"""The service under load, under kill -9, under fuzzing, in one local run on loopback.

    python benchmarks/serving.py                                # all parts, some ten minutes
    python benchmarks/serving.py overhead crowd --crowd-s 120   # some parts
    python benchmarks/serving.py fuzz --requests 10000 --output fuzz.json

Parts: `overhead` of HTTP over the plain function, a `crowd` of clients against a few, `kill` of
each kind of replica and of the proxy (`kill-chat` while dialogues go on), `owners` of many ECGs,
`alias`: the champion changes while measurements come at a steady rate and dialogues go on, `fuzz`
over the OpenAPI document and over damaged files. HAProxy stands in front unless `--no-haproxy`.
Every part is bounded in requests and time; nothing but 127.0.0.1 is asked. The exit code is 1 where
a part saw what must not be: a 500, a wrong answer, a cross-owner read. Times are reported, not
judged: they are this machine's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from serving_alias import alias, registry
from serving_fuzz import fuzz
from serving_load import KINDS, Bench, crowd, kill, kill_chat, overhead, owners

PARTS: dict[str, Callable[[Bench, argparse.Namespace], dict[str, Any]]] = {
    "overhead": overhead,
    "crowd": crowd,
    "kill": kill,
    "kill-chat": kill_chat,
    "owners": owners,
    "alias": alias,
    "fuzz": fuzz,
}


def main() -> int:
    args = _arguments()
    parts = args.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        _say(
            sys.stderr, f"error: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}"
        )
        return 2
    results: dict[str, Any] = {
        "haproxy": args.haproxy,
        "cpus": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "load_average_before": os.getloadavg()[0],
    }
    with _service(args, followed="alias" in parts) as bench:
        for part in parts:
            _say(sys.stderr, f"{part} …")
            try:
                results[part] = PARTS[part](bench, args)
            except Exception as error:  # one part's trouble must not cost the others' results
                results[part] = {"faults": [f"{type(error).__name__}: {error}"]}
            _say(sys.stdout, json.dumps({part: results[part]}))
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    faults = [fault for part in parts for fault in results[part].get("faults", [])]
    for fault in faults:
        _say(sys.stderr, f"fault: {fault}")
    return 1 if faults else 0


def _say(where: TextIO, line: str) -> None:
    where.write(line + "\n")
    where.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--haproxy", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--agent", default="builtin:", help="URI of the agent")
    parser.add_argument("--rounds", type=int, default=200, help="overhead: measurements")
    parser.add_argument("--crowd-s", type=float, default=120, help="crowd: seconds of the many")
    parser.add_argument("--clients", type=int, default=200, help="crowd: how many are many")
    parser.add_argument(
        "--kinds", nargs="*", choices=[*KINDS, "proxy"], help="kill: which (default: each)"
    )
    parser.add_argument("--ecgs", type=int, default=1000, help="owners: ECGs")
    parser.add_argument("--rate", type=float, default=20, help="alias: measurements a second")
    parser.add_argument("--dialogues", type=int, default=2, help="alias: running at once")
    parser.add_argument("--moves", type=int, default=4, help="alias: changes of the champion")
    parser.add_argument("--requests", type=int, default=10_000, help="fuzz: requests")
    parser.add_argument("--output", type=Path, help="JSON of all results")
    return parser.parse_args()


@contextlib.contextmanager
def _service(args: argparse.Namespace, *, followed: bool) -> Iterator[Bench]:
    """Two replicas of every kind, tokens on, a store of its own.

    ``followed``: with a registry whose champion classifier is looked up every two seconds.
    """
    with tempfile.TemporaryDirectory(prefix="ecg-bench-") as name:
        folder = Path(name)
        os.environ |= {
            "ECG_AGENT_HOME": str(folder / "home"),
            "RAY_SERVE_ENABLE_HA_PROXY": str(int(args.haproxy)),
            # a machine under this load must not lose its proxy for being slow
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "20",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        }
        # only now, since Ray reads these where it is imported
        from ecg_agent_ray.errors import ServiceError
        from ecg_agent_ray.serving import ServiceConfig, TokenFile, running_service
        from ecg_agent_ray.serving.config import (
            DeploymentConfig,
            DeploymentsConfig,
            ModelsConfig,
        )

        store_uri = registry(folder) if followed else None
        names = [f"owner-{i}" for i in range(10)]
        tokens_file = folder / "tokens"
        tokens = {n: TokenFile(tokens_file).create(n, ["read", "chat"]) for n in names}
        pair = DeploymentConfig(num_replicas=2, num_cpus=0.1, graceful_shutdown_s=2)
        config = ServiceConfig(
            port=0,
            agent=args.agent,
            classifier="auto" if followed else "builtin:",
            tracking_uri=store_uri,
            models=ModelsConfig(follow_s=2 if followed else None),
            store=str(folder / "ecgs"),
            tokens_file=tokens_file,
            deployments=DeploymentsConfig(
                ingress=pair.model_copy(update={"max_ongoing_requests": 256}),
                measurement=pair.model_copy(update={"max_ongoing_requests": 3}),
                classification=pair.model_copy(update={"max_ongoing_requests": 3}),
                agent=pair.model_copy(update={"max_queued_requests": 16}),
            ),
        )
        with contextlib.ExitStack() as stack:
            for attempt in range(4):
                try:
                    url = stack.enter_context(running_service(config, start_timeout_s=400))
                    break
                except ServiceError as error:
                    # Ray gives its own parts 30 s to come up, which a busy machine may not have
                    _say(sys.stderr, f"{error}")
                    if attempt == 3:
                        raise
            yield Bench(url, tokens, str(folder / "ecgs"), store_uri)


if __name__ == "__main__":
    sys.exit(main())
