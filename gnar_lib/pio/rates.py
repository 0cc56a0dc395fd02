"""How fast the bytes of meters and connections move: samples their counts; knows nobody who reads.

What carries bytes does nothing for it, and nothing is sampled unless somebody has started a `Sampler`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import gevent

from gnar_lib.net import give_way
from gnar_lib.pio.meter import LiveConnection, Meter, Totals

STEP_S = 1.0  # between two samples
STEPS_OF_POINT = 5  # samples that make one point of a chart
POINTS = 60  # of a chart: five minutes
AT_ONCE = 500  # connections in one turn of the loop


@dataclass(frozen=True, slots=True)
class Point:
    """The bytes per second of both directions in `STEPS_OF_POINT` steps, and the users at their end."""

    up: int
    down: int
    users: int


class Movement:
    """What one connection has moved, as the last sample found it. Rates are in bytes per second."""

    __slots__ = ("down", "moved_s", "rate_down", "rate_up", "up")

    def __init__(self, began_s: float) -> None:
        self.up = self.down = 0  # bytes
        self.rate_up = self.rate_down = 0.0
        self.moved_s = began_s  # when bytes were last found to have moved, as time.monotonic() says

    def look(self, up: int, down: int, now_s: float, step_s: float) -> None:
        """Take note of the bytes that have been moved by now, a step after the last look."""
        if up != self.up or down != self.down:
            self.moved_s = now_s
        self.rate_up, self.rate_down = (up - self.up) / step_s, (down - self.down) / step_s
        self.up, self.down = up, down


class Course:
    """How the counts of one meter have gone in the last minutes."""

    __slots__ = ("_before", "points", "rate_down", "rate_up", "totals")

    def __init__(self, totals: Totals) -> None:
        self.totals = self._before = totals  # of the last sample, and of the last point
        self.rate_up = self.rate_down = 0.0
        self.points: deque[Point] = deque(maxlen=POINTS)

    def look(self, totals: Totals, step_s: float) -> None:
        """Take note of the counts of now, a step after the last look."""
        self.rate_up = (totals.up - self.totals.up) / step_s
        self.rate_down = (totals.down - self.totals.down) / step_s
        self.totals = totals

    def add_point(self, seconds: float) -> None:
        """Add the point of the last `seconds` to the chart."""
        up, down = self.totals.up - self._before.up, self.totals.down - self._before.down
        self.points.append(Point(round(up / seconds), round(down / seconds), self.totals.users))
        self._before = self.totals


class Sampler:
    """Looks once a second at a meter, and at the meters of proxies that `read` returns."""

    def __init__(self, total: Meter, read: Callable[[], Iterable[Meter]]) -> None:
        self.samples = 0  # how many there have been
        self.points = 0  # how many the charts have got so far
        self.until = time.time()  # when the last point of the charts ends, in Unix seconds
        self._total = total
        self._read = read
        self._courses: dict[Meter, Course] = {}
        self._movements: dict[LiveConnection, Movement] = {}
        self._sampled_s = self._point_s = time.monotonic()

    def run(self) -> None:
        """Sample for ever; for a greenlet of its own."""
        next_s = time.monotonic()
        while True:
            next_s = max(next_s + STEP_S, time.monotonic())
            gevent.sleep(next_s - time.monotonic())
            self.sample()

    def course(self, meter: Meter) -> Course:
        """Return how a meter's counts have gone."""
        course = self._courses.get(meter)
        if course is None:
            course = self._courses[meter] = Course(meter.totals())
        return course

    @property
    def total(self) -> Course:
        """How the counts of everything have gone."""
        return self.course(self._total)

    def movement(self, connection: LiveConnection) -> Movement:
        """Return what a connection has moved; nothing if it has come since the last sample."""
        return self._movements.get(connection) or Movement(connection.began_s)

    def sample(self) -> None:
        """Look at everything now. Others have their turn meanwhile."""
        now_s = time.monotonic()
        step_s, self._sampled_s = max(now_s - self._sampled_s, 1e-3), now_s
        meters = [*self._read()]
        self._courses = {meter: self.course(meter) for meter in [self._total, *meters]}
        for meter, course in [*self._courses.items()]:
            course.look(meter.totals(), step_s)
        self._look_at_connections(meters, now_s, step_s)
        self.samples += 1
        if self.samples % STEPS_OF_POINT == 0:
            seconds, self._point_s, self.until = max(now_s - self._point_s, 1e-3), now_s, time.time()
            self.points += 1
            for course in self._courses.values():
                course.add_point(seconds)

    def _look_at_connections(self, meters: list[Meter], now_s: float, step_s: float) -> None:
        before, found = self._movements, {}
        left = AT_ONCE
        for meter in meters:
            for connection in [*meter.connections]:
                movement = before.get(connection) or Movement(connection.began_s)
                movement.look(connection.up.bytes, connection.down.bytes, now_s, step_s)
                found[connection] = movement
                left -= 1
                if not left:
                    left = AT_ONCE
                    give_way()
        self._movements = found
