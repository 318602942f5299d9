"""How far a run is, fed by the engine's events: a bar for each stage on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..api.event import Event, State
from ..api.request import GenerationRequest

PERIOD = 30.0
"""Seconds between two lines of a heartbeat."""


class Heartbeat:
    """Says how far a run is where nobody watches bars: a line on `console` every `PERIOD` seconds.

    drafts, images: how many there will be. rate: rows of the UNet a second.
    """

    def __init__(
        self,
        console: Console,
        drafts: int,
        images: int,
        rate: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._rate, self._clock = console, rate, clock
        self._totals, self._drafts, self._images = (drafts, images), 0, 0
        self._began = self._said = clock()

    def hear(self, event: Event) -> None:
        """Count `event`, and say how far it all is if it is time to."""
        self._drafts += event.state is State.SEGMENTED and event.step == 0
        self._images += event.result is not None
        if (now := self._clock()) - self._said >= PERIOD:
            self._said = now
            drafts, images = self._totals
            print(
                f"twig: drafts {self._drafts} of {drafts}, finals {self._images} of {images}, "
                f"{self._rate():.1f} rows/s, {now - self._began:.0f} s",
                file=self._console.file,
                flush=True,
            )


class StageBars:
    """Bars for drafts and finals (in denoising steps) and for segmenting and judging (in pictures).

    Shown on a terminal only, and never in the way of what goes to stdout; elsewhere a `Heartbeat`, given the engine's
    `rate`. quiet: neither. A retry adds its steps to the total.
    """

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        console: Console,
        rate: Callable[[], float] | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        columns = TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._progress = Progress(
            *columns,
            console=console,
            disable=quiet or not console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        images = sum(request.num_images for request in requests)
        unwatched = not (quiet or console.is_terminal)
        self._heartbeat = Heartbeat(console, len(requests), images, rate) if unwatched and rate is not None else None
        finals = sum(request.final.evaluations * request.num_images for request in requests)
        drafts = sum(request.draft.evaluations for request in requests if request.source is None)
        self._bars: dict[State, TaskID] = {
            State.DRAFTING: self._progress.add_task("draft", total=drafts),
            State.SEGMENTED: self._progress.add_task("segment", total=len(requests)),
            State.WITNESSING: self._progress.add_task("gate", total=0),
            State.FINALISING: self._progress.add_task("final", total=finals),
            State.JUDGING: self._progress.add_task("judge", total=images),
        }

    def __enter__(self) -> Self:
        """Show the bars."""
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Leave the bars as they stand."""
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Move the bar that `event` belongs to."""
        if self._heartbeat is not None:
            self._heartbeat.hear(event)
        if event.result is not None:
            self._progress.advance(self._bars[State.JUDGING])
        elif event.state is State.SEGMENTED or event.step > 0:
            if event.state is State.WITNESSING and event.step == 1:
                self._extend(State.WITNESSING, event.steps)
            self._progress.advance(self._bars[event.state])
        elif event.state in (State.FINALISING, State.DRAFTING) and event.attempt > 0:
            self._extend(event.state, event.steps)
            self._extend(State.SEGMENTED, int(event.state is State.DRAFTING))

    def _extend(self, state: State, steps: int) -> None:
        total = self._progress.tasks[self._bars[state]].total
        self._progress.update(self._bars[state], total=(total or 0) + steps)


class LineBar:
    """A bar of `total` lines, of which `done` are answered, on a terminal; elsewhere a line every `PERIOD` seconds."""

    def __init__(
        self,
        total: int,
        done: int,
        console: Console,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        shown = console.is_terminal and not quiet
        self._progress = Progress(*columns, console=console, disable=not shown, redirect_stdout=False)
        self._bar = self._progress.add_task("lines", total=total, completed=done)
        self._total, self._done, self._console, self._clock = total, done, console, clock
        self._unwatched = not (quiet or shown)
        self._began = self._said = clock()

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()

    def advance(self) -> None:
        """Count a line that was answered, and say how far it all is if it is time to."""
        self._done += 1
        self._progress.advance(self._bar)
        if self._unwatched and (now := self._clock()) - self._said >= PERIOD:
            self._said = now
            text = f"twig: lines {self._done} of {self._total}, {now - self._began:.0f} s"
            print(text, file=self._console.file, flush=True)
