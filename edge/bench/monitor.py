"""A monitor that samples the sensors while another process measures, and reports on any span of time."""

from __future__ import annotations

import bisect
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from edge.bench.card_sensors import CardSensors
from edge.bench.sensors import Sensors

INTERVAL = 0.1  # seconds
SLOWED = 0.85  # of the fastest clock: below this, something holds the processor back
OTHERS = 0.1  # of one core's time: above this, it is not ours alone
_ENOUGH = 5  # looks within a span before it is spoken of

Span = tuple[int, int]  # nanoseconds of a clock that processes share


@dataclass(frozen=True)
class CardReading:
    """Of an NVIDIA card; None of what it does not tell."""

    bytes: int | None  # that the process holds there
    watts: float | None
    celsius: float | None
    mhz: float | None


@dataclass(frozen=True)
class Reading:
    at: int
    joules: float | None  # since the first look
    celsius: float | None
    mhz: float | None
    card: CardReading


NO_CARD = CardReading(None, None, None, None)


class Monitor:
    """`with Monitor(sensors) as watch:` looks from a thread; `process` is whom the work belongs to."""

    def __init__(
        self,
        sensors: Sensors,
        process: int,
        clock: Callable[[], int] = time.perf_counter_ns,
        card: CardSensors | None = None,
    ) -> None:
        """`card`: of the one that it computes on; closed at the end."""
        self._sensors, self._process, self._clock, self._card = sensors, process, clock, card
        self.looks: list[Reading] = []
        self.swap = 0  # bytes of the process, at most
        self._joules: float | None = None
        self._power: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._before = (sensors.swapped(), sensors.throttled())
        self._card_before = card.throttled() if card else None
        self._card_slowed = False
        self._busy: tuple[int, float, float] | None = None  # when, all processes' seconds, ours
        self._others: tuple[float, float] = (0.0, 0.0)  # seconds of processor time, of seconds watched

    def __enter__(self) -> Monitor:
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        if self._card:
            self._card.close()

    def _go_on(self) -> None:
        while not self._end.wait(INTERVAL):
            self.look()

    def look(self) -> None:
        at = self._clock()
        self._add_energy(at)
        self._add_load(at)
        self.swap = max(self.swap, self._sensors.swap_of(self._process) or 0)
        celsius, mhz = self._sensors.temperature(), self._sensors.clock()
        self.looks.append(Reading(at, self._joules, celsius, mhz, self._look_at_card()))

    def _look_at_card(self) -> CardReading:
        card = self._card
        if card is None:
            return NO_CARD
        throttled = card.throttled()
        self._card_slowed = self._card_slowed or (throttled or 0) > (self._card_before or 0)
        return CardReading(card.memory(self._process), card.power(), card.temperature(), card.clock())

    def _add_energy(self, at: int) -> None:
        joules = self._sensors.energy()
        power = self._sensors.power() if joules is None else None
        if joules is None and power is not None:  # the mean of two looks, over the time between them
            since = (at - self.looks[-1].at) / 1e9 if self.looks else 0.0
            joules = (self._joules or 0.0) + since * (power + (power if self._power is None else self._power)) / 2
        self._joules, self._power = joules, power

    def _add_load(self, at: int) -> None:
        busy, ours = self._sensors.busy(), self._sensors.busy_of(self._process)
        if busy is None or ours is None:
            return
        ours += time.process_time()
        if self._busy is not None:
            others = max(0.0, busy - self._busy[1] - (ours - self._busy[2]))
            seconds, watched = self._others
            self._others = (seconds + others, watched + (at - self._busy[0]) / 1e9)
        self._busy = (at, busy, ours)

    def energy(self, spans: Sequence[Span]) -> float | None:
        """Joules of a span, on average; None where they are too short for the looks to tell."""
        if not spans or sum(end - start for start, end in spans) < 1e9 * INTERVAL * _ENOUGH:
            return None
        found = [(self._joules_at(start), self._joules_at(end)) for start, end in spans]
        known = [after - before for before, after in found if before is not None and after is not None]
        return statistics.fmean(known) if len(known) == len(spans) else None

    def _joules_at(self, at: int) -> float | None:
        """Between two looks, in a straight line."""
        i = bisect.bisect_left(self.looks, at, key=lambda look: look.at)
        if i == 0 or i == len(self.looks):
            near = self.looks[min(i, len(self.looks) - 1)]
            return near.joules if abs(near.at - at) < 2e9 * INTERVAL else None
        before, after = self.looks[i - 1], self.looks[i]
        if before.joules is None or after.joules is None:
            return None
        return before.joules + (after.joules - before.joules) * (at - before.at) / (after.at - before.at)

    def temperature(self, spans: Sequence[Span]) -> float | None:
        """The highest, in degrees Celsius."""
        return max((look.celsius for look in self._during(spans) if look.celsius is not None), default=None)

    def clock(self, spans: Sequence[Span]) -> float | None:
        """The median, in MHz."""
        found = [look.mhz for look in self._during(spans) if look.mhz is not None]
        return statistics.median(found) if found else None

    def card(self, spans: Sequence[Span]) -> dict[str, float]:
        """Of the card: bytes at most, joules, the highest temperature, the median clock; what is known of them."""
        found = [look.card for look in self._during(spans)]
        held = [one.bytes for one in found if one.bytes is not None]
        watts = [one.watts for one in found if one.watts is not None]
        heat = [one.celsius for one in found if one.celsius is not None]
        clocks = [one.mhz for one in found if one.mhz is not None]
        seconds = sum(end - start for start, end in spans) / 1e9 / max(1, len(spans))
        return {
            **({"card_bytes": max(held)} if held else {}),
            **({"card_energy_j": statistics.fmean(watts) * seconds} if len(watts) >= _ENOUGH else {}),
            **({"card_temp_c": max(heat)} if heat else {}),
            **({"card_clock_mhz": statistics.median(clocks)} if clocks else {}),
        }

    def _during(self, spans: Sequence[Span]) -> list[Reading]:
        return [look for look in self.looks if any(start <= look.at <= end for start, end in spans)]

    def warnings(self, busy: Sequence[Span]) -> list[str]:
        """What makes the figures of these spans, and of all that was watched, less than the machine's own."""
        return [
            *filter(None, [self._slowed(busy), self._throttled(), self._held_back(), self._swapping(), self._loaded()])
        ]

    def _slowed(self, spans: Sequence[Span]) -> str | None:
        looks = [look for look in self._during(spans) if look.mhz is not None]
        if len(looks) < 2 * _ENOUGH:
            return None
        clocks = [look.mhz or 0.0 for look in looks]
        fastest = max(statistics.median(clocks[i : i + _ENOUGH]) for i in range(len(clocks) - _ENOUGH + 1))
        last = statistics.median(clocks[-_ENOUGH:])
        if last >= SLOWED * fastest:
            return None
        heat = f" at {looks[-1].celsius:.0f} °C" if looks[-1].celsius is not None else ""
        return f"throttled: the clock fell from {fastest:.0f} to {last:.0f} MHz{heat}"

    def _throttled(self) -> str | None:
        before, now = self._before[1], self._sensors.throttled()
        if now is None or before is None or not now > before:
            return None
        return "throttled: the processor says that it was slowed down"

    def _held_back(self) -> str | None:
        return "card throttled: its driver says that power or heat holds it back" if self._card_slowed else None

    def _swapping(self) -> str | None:
        before, now = self._before[0], self._sensors.swapped()
        pages = now - before if now is not None and before is not None else 0
        if not self.swap or not pages:
            return None
        return f"swapping: {self.swap / 1e6:,.0f} MB of the process lay in swap, {pages:,} pages were moved"

    def _loaded(self) -> str | None:
        seconds, watched = self._others
        if watched < INTERVAL * _ENOUGH or seconds < OTHERS * watched:
            return None
        return f"other load: other processes took {seconds / watched:.1f} cores"
