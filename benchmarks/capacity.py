"""How many replicas for so many dialogues a day, by simulation from measured service times.

    python benchmarks/capacity.py measure --output times.json     # a real local service, minutes
    python benchmarks/capacity.py estimate times.json --dialogues-per-day 10000000 --p95 20

`measure` talks to a real Ray Serve run on this machine, one dialogue at a time and then as they
arrive at random, which the simulator has to foretell: the difference is printed and kept. Its times
are CPU seconds of the agent's replica on one thread, so that other work on the machine counts for
little. `estimate` takes that file, or one of your own with one inner list a dialogue:

    {"source": "where from", "dialogues": [[{"agent_s": 1.9, "tools": {"measurement": 0.04}}]],
     "replica_start_s": 40, "speed_together": {"1": 1, "2": 1.9, "8": 6}}

`speed_together` is how much faster an agent replica is with so many requests at once, all together
(1 where left out): the gain of batching. For GPUs write such a file from your own timing; none is
made up here.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capacity_simulator import (
    Dialogue,
    Result,
    Scaling,
    Size,
    Turn,
    simulate,
    speeds,
    visits,
)

DAY_S = 86_400
STATIONS = ("agent", "measurement", "classification")


class CapacityError(Exception):
    """The inputs allow no answer; said in one line, exit code 2."""


@dataclass(frozen=True)
class Times:
    """Measured dialogues: turns of (agent seconds, {tool: seconds}).

    ``start_s`` is of a replica; ``speed`` is the agent's with 1, 2, … requests (`Size.speed`).
    """

    source: str
    dialogues: list[list[dict[str, Any]]]
    start_s: float | None
    speed: tuple[float, ...] = (1.0,)

    def size(self, name: str, replicas: int, slots: int, scaling: Scaling | None = None) -> Size:
        speed = self.speed if name == "agent" else (1.0,)
        return Size(replicas, slots=slots, scaling=scaling, speed=speed)

    @classmethod
    def read(cls, path: Path) -> Times:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            dialogues = [
                [{"agent_s": float(turn["agent_s"]), "tools": dict(turn["tools"])} for turn in one]
                for one in values["dialogues"]
            ]
            source = str(values["source"])
            given = {int(k): float(v) for k, v in values.get("speed_together", {"1": 1}).items()}
            if given.get(1) != 1 or min(given.values()) <= 0:
                raise ValueError("speed_together has to be 1 for one request and positive for all")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CapacityError(f"{path} holds no service times: {error}") from error
        if not dialogues or not all(dialogues):
            raise CapacityError(f"{path} holds no dialogue, or one without turns")
        return cls(source, dialogues, values.get("replica_start_s"), speeds(given))

    def load(self) -> dict[str, float]:
        """Seconds of work a dialogue, by station."""
        load = dict.fromkeys(STATIONS, 0.0)
        for turn in (turn for one in self.dialogues for turn in one):
            for station, seconds in visits(**turn):
                load[station] = load.get(station, 0.0) + seconds
        return {name: seconds / len(self.dialogues) for name, seconds in load.items()}

    def fastest_p95(self) -> float:
        """p95 of turns that wait for nothing."""
        alone = sorted(sum(s for _, s in visits(**t)) for one in self.dialogues for t in one)
        return alone[min(len(alone) - 1, int(0.95 * len(alone)))]


def arrivals(times: Times, options: argparse.Namespace, rng: random.Random) -> list[Dialogue]:
    """Poisson dialogues: a third of the window at the day's mean, then the peak with bursts."""
    mean = options.dialogues_per_day / DAY_S

    def rate(t: float) -> float:
        if t < options.window / 3:
            return mean
        in_burst = (t - options.window / 3) % options.burst_every < options.burst
        return mean * options.peak_factor * (options.burst_factor if in_burst else 1.0)

    highest = mean * max(1.0, options.peak_factor * max(1.0, options.burst_factor))
    now, dialogues = 0.0, []
    while (now := now + rng.expovariate(highest)) < options.window:
        if rng.random() * highest > rate(now):
            continue
        turns = tuple(
            Turn(visits(**turn), rng.expovariate(1 / options.pause) if number else 0.0)
            for number, turn in enumerate(rng.choice(times.dialogues))
        )
        dialogues.append(Dialogue(now, turns))
    if not dialogues:
        raise CapacityError("no dialogue falls into the window: give a longer --window")
    return dialogues


def fixed_size(
    times: Times, dialogues: Sequence[Dialogue], options: argparse.Namespace
) -> tuple[dict[str, int], Result]:
    """Fewest replicas that keep the p95, by bisection over the square-root staffing rule."""
    if options.p95 < times.fastest_p95():
        raise CapacityError(
            f"no number of replicas gives a p95 of {options.p95:g} s: turns that wait for nothing "
            f"have {times.fastest_p95():.2f} s"
        )
    peak = options.dialogues_per_day / DAY_S * options.peak_factor
    load = {name: seconds * peak for name, seconds in times.load().items() if seconds}
    load["agent"] /= max(times.speed)

    def size(spare: float) -> dict[str, int]:
        return {n: max(1, math.ceil(a + spare * math.sqrt(a))) for n, a in load.items()}

    def run(replicas: dict[str, int]) -> Result:
        return simulate(
            dialogues,
            {n: times.size(n, r, options.slots) for n, r in replicas.items()},
            seed=options.seed,
        )

    low, high = -0.5 * math.sqrt(max(load.values())), 1.0
    while (best := run(size(high))).latency(0.95, options.window / 3) > options.p95:
        low, high = high, high * 2
        if high > 1e4:
            raise CapacityError(f"no number of replicas gives a p95 of {options.p95:g} s")
    replicas = size(high)
    while True:
        middle = (low + high) / 2
        if size(middle) == replicas or high - low < 1e-2:
            return replicas, best
        result = run(size(middle))
        if result.latency(0.95, options.window / 3) <= options.p95:
            high, replicas, best = middle, size(middle), result
        else:
            low = middle
            if size(low) == replicas:
                return replicas, best


def autoscaled(
    times: Times,
    replicas: dict[str, int],
    dialogues: Sequence[Dialogue],
    options: argparse.Namespace,
) -> Result:
    """The same traffic from ``min_share`` of the fixed size, with room to half as many again."""
    sizes = {}
    for name, fixed in replicas.items():
        least = max(1, math.ceil(fixed * options.min_share))
        rule = Scaling(
            min_replicas=least,
            max_replicas=math.ceil(1.5 * fixed),
            target_ongoing=options.target_ongoing,
            cold_start_s=options.replica_start + options.node_start,
        )
        sizes[name] = times.size(name, least, options.slots, rule)
    return simulate(dialogues, sizes, seed=options.seed)


def estimate(options: argparse.Namespace) -> dict[str, Any]:
    times = Times.read(options.times)
    if options.replica_start is None:
        options.replica_start = times.start_s or 30.0
    turns = statistics.fmean(len(one) for one in times.dialogues)
    expected = options.dialogues_per_day / DAY_S * turns * options.peak_factor * options.window
    if expected > options.max_turns:
        options.window *= options.max_turns / expected
        options.burst_every = min(options.burst_every, options.window / 3)
        options.burst = min(options.burst, options.burst_every / 3)
    dialogues = arrivals(times, options, random.Random(options.seed))
    replicas, fixed = fixed_size(times, dialogues, options)
    scaled = autoscaled(times, replicas, dialogues, options)

    def told(result: Result) -> dict[str, Any]:
        peak = options.window / 3
        return {
            "p50_s": round(result.latency(0.5, peak), 3),
            "p95_s": round(result.latency(0.95, peak), 3),
            "p99_s": round(result.latency(0.99, peak), 3),
            "mean_replicas": {
                n: round(s / result.end_s, 1) for n, s in result.replica_seconds.items()
            },
        }

    given = {k: v for k, v in vars(options).items() if k not in ("run", "json", "times")}
    return {
        "inputs": given
        | {
            "service_times": str(options.times),
            "source_of_service_times": times.source,
            "speed_of_an_agent_replica_with_1_2_3_requests": [round(v, 2) for v in times.speed],
            "work_s_per_dialogue": {k: round(v, 3) for k, v in times.load().items()},
            "turns_per_dialogue": round(turns, 2),
        },
        "simulated": {"dialogues": len(dialogues), "turns": len(fixed.turns)},
        "fixed": told(fixed) | {"replicas": replicas},
        "autoscaled": told(scaled) | {"most_replicas": scaled.most_replicas},
    }


def show(answer: dict[str, Any]) -> str:
    lines = ["inputs"]
    lines += [f"  {key}: {value}" for key, value in answer["inputs"].items()]
    for name in ("fixed", "autoscaled"):
        part = answer[name]
        replicas = part.get("replicas") or part["most_replicas"]
        lines.append(
            f"{name}: {replicas} replicas, p50 {part['p50_s']} s, p95 {part['p95_s']} s, "
            f"p99 {part['p99_s']} s, on average {part['mean_replicas']}"
        )
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from capacity_measure import measure as run

    answer = run(options.dialogues, options.together, options.utilisation, options.seed)
    options.output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    return answer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("measure", help="time a real local service")
    one.add_argument("--output", type=Path, required=True)
    one.add_argument("--dialogues", type=int, default=6, help="one after the other")
    one.add_argument("--together", type=int, default=12, help="at once, for the comparison")
    one.add_argument("--utilisation", type=float, default=0.5, help="of the agent in that part")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=measure, json=True)
    two = verbs.add_parser("estimate", help="replicas for a number of dialogues a day")
    two.add_argument("times", type=Path)
    two.add_argument("--dialogues-per-day", type=float, default=1000)
    two.add_argument("--p95", type=float, default=20, help="seconds of a turn")
    two.add_argument("--peak-factor", type=float, default=3.0, help="busiest hour over the mean")
    two.add_argument("--burst-factor", type=float, default=2.0, help="bursts over the peak")
    two.add_argument("--burst", type=float, default=30, help="seconds of a burst")
    two.add_argument("--burst-every", type=float, default=300, help="seconds between bursts")
    two.add_argument("--pause", type=float, default=20, help="mean seconds until the next turn")
    two.add_argument("--slots", type=int, default=16, help="requests a replica holds at once")
    two.add_argument("--target-ongoing", type=float, default=2.0, help="of the autoscaler")
    two.add_argument("--min-share", type=float, default=0.5, help="of fixed replicas, kept always")
    two.add_argument("--replica-start", type=float, default=None, help="seconds; null: as measured")
    two.add_argument("--node-start", type=float, default=120, help="seconds until a node is there")
    two.add_argument("--window", type=float, default=900, help="seconds that are simulated")
    two.add_argument("--max-turns", type=int, default=300_000, help="the window is cut to these")
    two.add_argument("--seed", type=int, default=0)
    two.add_argument("--json", action="store_true")
    two.set_defaults(run=estimate)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        answer = options.run(options)
    except CapacityError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write((json.dumps(answer) if options.json else show(answer)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
