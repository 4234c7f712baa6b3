"""Discrete-event simulation of the service: dialogues, stations of replicas, Serve's autoscaler.

A turn visits stations one after the other (agent, then the tools it calls). A replica shares its
speed among the requests it holds; how fast it is with so many of them is an input (`Size.speed`):
1 whatever their number is an engine that does one thing at a time, more is work of one request in
the gaps of another, or batching. With one slot a station is a plain first-come queue. Requests go
to the emptier of two random replicas with room, as Serve routes them, and wait in one queue when
none has.

Not covered: HTTP and network time, the cache of one replica that another lacks, replicas that share
a CPU, failures.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "Dialogue",
    "Result",
    "Scaling",
    "Size",
    "Turn",
    "erlang_c",
    "simulate",
    "speeds",
    "visits",
]


@dataclass(frozen=True)
class Turn:
    """Visits (station, seconds of work) of one turn, and the user's pause before it in seconds."""

    visits: tuple[tuple[str, float], ...]
    pause_s: float = 0.0


@dataclass(frozen=True)
class Dialogue:
    start_s: float
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Scaling:
    """Ray Serve's autoscaler for one station. Delays are Serve's defaults; starts are inputs."""

    min_replicas: int
    max_replicas: int
    target_ongoing: float = 2.0
    interval_s: float = 10.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    cold_start_s: float = 30.0


@dataclass(frozen=True)
class Size:
    """``replicas`` at the start, requests a replica takes at once, and how they change.

    ``speed`` is of a replica that holds 1, 2, … requests, all together, relative to one that holds
    one; the last holds for any more.
    """

    replicas: int
    slots: int = 1
    scaling: Scaling | None = None
    speed: tuple[float, ...] = (1.0,)


@dataclass
class Result:
    """``turns`` are (time of the request, seconds until its answer)."""

    turns: list[tuple[float, float]] = field(default_factory=list)
    waits: dict[str, list[float]] = field(default_factory=dict)
    replica_seconds: dict[str, float] = field(default_factory=dict)
    most_replicas: dict[str, int] = field(default_factory=dict)
    end_s: float = 0.0

    def latency(self, quantile: float, since_s: float = 0.0) -> float:
        values = sorted(seconds for at, seconds in self.turns if at >= since_s)
        return values[min(len(values) - 1, int(quantile * len(values)))] if values else math.nan


def visits(agent_s: float, tools: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """A turn's stations one after the other: the agent's work in equal parts around its tools."""
    part = ("agent", agent_s / (len(tools) + 1))
    return (part, *(visit for tool in tools.items() for visit in (tool, part)))


def speeds(measured: Mapping[int, float]) -> tuple[float, ...]:
    """`Size.speed` from measured ones, {requests at once: speed}, with straight lines between."""
    known = sorted(measured)
    values = []
    for held in range(1, known[-1] + 1):
        low = max(k for k in known if k <= held)
        high = min(k for k in known if k >= held)
        share = 0.0 if high == low else (held - low) / (high - low)
        values.append(measured[low] + share * (measured[high] - measured[low]))
    return tuple(values)


def erlang_c(servers: int, offered: float) -> float:
    """Probability that a request waits in M/M/c (Erlang 1917); ``offered`` is load in erlangs."""
    if offered >= servers:
        return 1.0
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


class _Replica:
    """Shares its speed among its jobs; ``served`` is what each job got since the start."""

    __slots__ = ("draining", "jobs", "last", "place", "served", "speed", "version")

    def __init__(self, speed: tuple[float, ...]) -> None:
        self.speed = speed
        self.jobs: list[tuple[float, int, _Job]] = []
        self.last = self.served = 0.0
        self.version = 0
        self.place = -1  # index among the replicas with room
        self.draining = False

    def _share(self) -> float:
        """Speed that each of its jobs gets."""
        held = len(self.jobs)
        return self.speed[min(held, len(self.speed)) - 1] / held

    def advance(self, now: float) -> None:
        if self.jobs:
            self.served += (now - self.last) * self._share()
        self.last = now

    def next_end(self) -> float:
        return self.last + max(0.0, self.jobs[0][0] - self.served) / self._share()


class _Job:
    __slots__ = ("arrived", "asked", "dialogue", "step", "turn")

    def __init__(self, dialogue: Dialogue, turn: int, asked: float) -> None:
        self.dialogue, self.turn, self.asked = dialogue, turn, asked
        self.step = 0
        self.arrived = asked

    @property
    def visit(self) -> tuple[str, float]:
        return self.dialogue.turns[self.turn].visits[self.step]


class _Station:
    def __init__(self, size: Size) -> None:
        self.size = size
        self.room: list[_Replica] = []
        self.replicas: set[_Replica] = set()
        self.queue: deque[_Job] = deque()
        self.ongoing = 0
        self.wanted = size.replicas  # with those that are starting
        self.high_since: float | None = None
        self.low_since: float | None = None

    def open(self, replica: _Replica) -> None:
        replica.place = len(self.room)
        self.room.append(replica)

    def close(self, replica: _Replica) -> None:
        last = self.room.pop()
        if last is not replica:
            self.room[replica.place] = last
            last.place = replica.place
        replica.place = -1

    def choose(self, rng: random.Random) -> _Replica:
        one = self.room[int(rng.random() * len(self.room))]
        other = self.room[int(rng.random() * len(self.room))]
        return one if len(one.jobs) <= len(other.jobs) else other


class _Run:
    def __init__(self, sizes: dict[str, Size], seed: int) -> None:
        self.rng = random.Random(seed)
        self.events: list[tuple[float, int, str, object]] = []
        self.count = 0
        self.now = 0.0
        self.active = 0
        self.stations = {name: _Station(size) for name, size in sizes.items()}
        self.result = Result(
            waits={n: [] for n in sizes}, replica_seconds=dict.fromkeys(sizes, 0.0)
        )
        for name, station in self.stations.items():
            for _ in range(station.size.replicas):
                self._add(station)
            self.result.most_replicas[name] = station.size.replicas
            if station.size.scaling:
                self._at(station.size.scaling.interval_s, "control", name)

    def _at(self, when: float, kind: str, what: object) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, kind, what))

    def _add(self, station: _Station) -> None:
        replica = _Replica(station.size.speed)
        replica.last = self.now
        station.replicas.add(replica)
        station.open(replica)
        while station.queue and replica.place >= 0:
            self._start(station, station.queue.popleft())

    def run(self, dialogues: Iterable[Dialogue]) -> Result:
        for dialogue in dialogues:
            self.active += 1
            first = dialogue.turns[0]
            self._at(dialogue.start_s + first.pause_s, "ask", (dialogue, 0))
        while self.events and self.active:
            when, _, kind, what = heapq.heappop(self.events)
            for name, station in self.stations.items():
                self.result.replica_seconds[name] += len(station.replicas) * (when - self.now)
            self.now = when
            getattr(self, f"_{kind}")(what)
        self.result.end_s = self.now
        return self.result

    def _ask(self, what: tuple[Dialogue, int]) -> None:
        self._arrive(_Job(*what, self.now))

    def _arrive(self, job: _Job) -> None:
        station = self.stations[job.visit[0]]
        station.ongoing += 1
        job.arrived = self.now
        if station.room:
            self._start(station, job)
        else:
            station.queue.append(job)

    def _start(self, station: _Station, job: _Job) -> None:
        name, work = job.visit
        self.result.waits[name].append(self.now - job.arrived)
        replica = station.choose(self.rng)
        replica.advance(self.now)
        self.count += 1
        heapq.heappush(replica.jobs, (replica.served + work, self.count, job))
        if len(replica.jobs) >= station.size.slots:
            station.close(replica)
        self._expect(replica)

    def _expect(self, replica: _Replica) -> None:
        replica.version += 1
        if replica.jobs:
            self._at(replica.next_end(), "done", (replica, replica.version))

    def _done(self, what: tuple[_Replica, int]) -> None:
        replica, version = what
        if version != replica.version:
            return
        replica.advance(self.now)
        _, _, job = heapq.heappop(replica.jobs)
        station = self.stations[job.visit[0]]
        station.ongoing -= 1
        if replica.draining:
            if not replica.jobs:
                station.replicas.discard(replica)
        elif replica.place < 0:
            station.open(replica)
        self._expect(replica)
        if station.queue and station.room:
            self._start(station, station.queue.popleft())
        self._next(job)

    def _next(self, job: _Job) -> None:
        turns = job.dialogue.turns
        if job.step + 1 < len(turns[job.turn].visits):
            job.step += 1
            self._arrive(job)
            return
        self.result.turns.append((job.asked, self.now - job.asked))
        if job.turn + 1 < len(turns):
            after = job.turn + 1
            self._at(self.now + turns[after].pause_s, "ask", (job.dialogue, after))
        else:
            self.active -= 1

    def _control(self, name: str) -> None:
        station = self.stations[name]
        rule = station.size.scaling
        assert rule is not None
        want = math.ceil(station.ongoing / rule.target_ongoing)
        want = max(rule.min_replicas, min(rule.max_replicas, want))
        if want > station.wanted:
            station.low_since = None
            station.high_since = self.now if station.high_since is None else station.high_since
            if self.now - station.high_since >= rule.upscale_delay_s:
                for _ in range(want - station.wanted):
                    self._at(self.now + rule.cold_start_s, "ready", name)
                station.wanted, station.high_since = want, None
        elif want < station.wanted:
            station.high_since = None
            station.low_since = self.now if station.low_since is None else station.low_since
            if self.now - station.low_since >= rule.downscale_delay_s:
                self._remove(station, station.wanted - want)
                station.low_since = None
        else:
            station.high_since = station.low_since = None
        self._at(self.now + rule.interval_s, "control", name)

    def _ready(self, name: str) -> None:
        station = self.stations[name]
        if len([r for r in station.replicas if not r.draining]) < station.wanted:
            self._add(station)
            most = self.result.most_replicas
            most[name] = max(most[name], len(station.replicas))

    def _remove(self, station: _Station, number: int) -> None:
        station.wanted -= number
        able = sorted((r for r in station.replicas if not r.draining), key=lambda r: len(r.jobs))
        for replica in able[: max(0, len(able) - station.wanted)]:
            replica.draining = True
            if replica.place >= 0:
                station.close(replica)
            if not replica.jobs:
                station.replicas.discard(replica)


def simulate(dialogues: Sequence[Dialogue], sizes: dict[str, Size], *, seed: int = 0) -> Result:
    """Run all dialogues to their end; stations not in ``sizes`` are an error (KeyError)."""
    return _Run(sizes, seed).run(dialogues)
