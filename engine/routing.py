"""Who steps, and who hears of it: one thread at a time steps an engine, and events go to whoever asked for them."""

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

from .api.errors import TwigError
from .api.event import Event

Listener = Callable[[Event], None]


class Turns:
    """Lets one thread at a time step; the others wait until it is their turn, or until there is no need of it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stepping: int | None = None

    def take(self, needless: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the turn and take it; False, without it, as soon as it is `needless`.

        Raises TwigError in a thread that has the turn already: it would wait for itself.
        """
        with self._changed:
            if self._stepping == threading.get_ident():
                raise TwigError(
                    "the engine is being stepped by this thread: what it calls while it steps, a metric or a listener, "
                    "cannot step it again"
                )
            self._changed.wait_for(lambda: self._stepping is None or needless())
            if needless():
                return False
            self._stepping = threading.get_ident()
            return True

    def leave(self) -> None:
        """Give the turn back and wake who waits."""
        with self._changed:
            self._stepping = None
            self._changed.notify_all()

    def __enter__(self) -> None:
        """Take the turn."""
        self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self.leave()


class Outbox:
    """Events on their way: by request to its listener, and those of requests without one to whoever collects them."""

    def __init__(self) -> None:
        self._listeners: dict[int, Listener] = {}
        self._rest: deque[Event] = deque()

    def listen(self, id: int, listener: Listener) -> None:
        """Give the events of request `id` to `listener` from now on, in the thread that steps."""
        self._listeners[id] = listener

    def put(self, event: Event) -> None:
        """Hand an event out. Raises what its listener raises, which hears no more."""
        listener = self._listeners.get(event.id)
        if listener is None:
            self._rest.append(event)
            return
        try:
            listener(event)
        except BaseException:
            self._listeners[event.id] = _deaf
            raise

    def close(self, id: int) -> None:
        """Forget the listener of a request that has ended."""
        self._listeners.pop(id, None)

    def collect(self) -> list[Event]:
        """Return the events that had no listener, once."""
        return [self._rest.popleft() for _ in range(len(self._rest))]


def _deaf(event: Event) -> None:
    """Hear nothing."""
