"""The queue before the engines, bounded and fair, and the one thread that runs them."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from time import perf_counter

from edge.server.errors import ApiError

_LOG = logging.getLogger(__name__)
_FOR_OTHERS = 4  # one place in so many is out of reach for a client who has all the rest
_LAST_SECONDS = 10.0
Work = Callable[[], None]


class Place:
    """What a request holds from when it is let in until it is answered, or its client is gone."""

    def __init__(self, queue: WorkQueue, client: str) -> None:
        self.client = client
        self.entered = perf_counter()
        self.gone = False  # read by the engine's thread after each token
        self._queue = queue
        self._begun = False

    def submit(self, work: Work) -> None:
        """Have it run when its turn comes, unless this place is left before."""
        self._queue._submit(self, work)

    def withdraw(self) -> bool:
        """Whether it could be left before its turn came."""
        return self._queue._withdraw(self)

    def leave(self) -> None:
        """Once more does nothing."""
        self.gone = True
        self._queue._leave(self)


class WorkQueue:
    """Clients take turns; the requests of one are run in their order."""

    def __init__(self, waiting: int) -> None:
        self._most = waiting + 1  # one of them is run
        self._changed = threading.Condition()
        self._places: set[Place] = set()
        self._lines: OrderedDict[str, deque[tuple[Place, Work]]] = OrderedDict()
        self._seconds = 1.0  # that a piece of work takes, about
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="edge-engines", daemon=True)
        self._thread.start()

    @property
    def held(self) -> int:
        return len(self._places)

    @property
    def waiting(self) -> int:
        with self._changed:
            return sum(map(len, self._lines.values()))

    def enter(self, client: str) -> Place:
        """Raises ApiError 429, which says when to come again."""
        with self._changed:
            if self._closed:
                raise ApiError(503, "the server is shutting down", headers={"Retry-After": "5"})
            own = Counter(place.client for place in self._places)[client]
            if len(self._places) >= self._most or own >= max(1, self._most - self._most // _FOR_OTHERS):
                seconds = str(max(1, math.ceil(self._seconds * len(self._places) / 2)))
                raise ApiError(
                    429,
                    f"{len(self._places)} requests are waiting, {own} of them yours; come again",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": seconds},
                )
            place = Place(self, client)
            self._places.add(place)
            return place

    def close(self) -> None:
        """What is being run ends by itself, or by its client; nothing else is begun."""
        with self._changed:
            self._closed = True
            self._lines.clear()
            for place in self._places:
                place.gone = True
            self._changed.notify_all()
        self._thread.join(_LAST_SECONDS)  # a benchmark may be far from its next row

    def _submit(self, place: Place, work: Work) -> None:
        with self._changed:
            if place.gone or self._closed:
                return
            self._lines.setdefault(place.client, deque()).append((place, work))
            self._changed.notify()

    def _withdraw(self, place: Place) -> bool:
        with self._changed:
            if place._begun:
                return False
            place.leave()
            return True

    def _leave(self, place: Place) -> None:
        with self._changed:
            self._places.discard(place)
            line = self._lines.get(place.client)
            if line is None:
                return
            left = deque(entry for entry in line if entry[0] is not place)
            if left:
                self._lines[place.client] = left
            else:
                del self._lines[place.client]

    def _run(self) -> None:
        while (work := self._next()) is not None:
            begun = perf_counter()
            try:
                work()
            except Exception:  # a request that was not answered must not end the server
                _LOG.exception("a request failed")
            self._seconds += 0.2 * (perf_counter() - begun - self._seconds)

    def _next(self) -> Work | None:
        with self._changed:
            while not self._lines and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            client, line = self._lines.popitem(last=False)
            place, work = line.popleft()
            place._begun = True
            if line:
                self._lines[client] = line  # behind the others
            return work
