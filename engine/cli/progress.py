"""A progress bar for each stage of a run, fed by the engine's events."""

from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..api.event import Event, State
from ..api.request import GenerationRequest


class StageBars:
    """Bars for drafts and finals (in denoising steps) and for segmenting and judging (in pictures).

    Shown on a terminal only, and never in the way of what goes to stdout. A retry adds its steps to the total.
    """

    def __init__(self, requests: Sequence[GenerationRequest], console: Console) -> None:
        columns = TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._progress = Progress(
            *columns, console=console, disable=not console.is_terminal, redirect_stdout=False, redirect_stderr=False
        )
        images = sum(request.num_images for request in requests)
        finals = sum(request.final.steps * request.num_images for request in requests)
        drafts = sum(request.draft.steps for request in requests if request.source is None)
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
        if event.result is not None:
            self._progress.advance(self._bars[State.JUDGING])
        elif event.state is State.SEGMENTED or event.step > 0:
            if event.state is State.WITNESSING and event.step == 1:
                self._extend(State.WITNESSING, event.steps)
            self._progress.advance(self._bars[event.state])
        elif event.state is State.FINALISING and event.attempt > 0:
            self._extend(State.FINALISING, event.steps)

    def _extend(self, state: State, steps: int) -> None:
        total = self._progress.tasks[self._bars[state]].total
        self._progress.update(self._bars[state], total=(total or 0) + steps)
