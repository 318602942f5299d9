"""A batch file, what has been answered of it, and the drawing of the rest."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ..config import ServeConfig
from ..server import load_all
from .drawing import Drawer
from .ledger import Ledger
from .lines import Survey, read


class Batch:
    """The lines of a file and the answers in a folder."""

    def __init__(self, survey: Survey, ledger: Ledger) -> None:
        self.survey, self.ledger = survey, ledger
        self.left = survey.left(ledger.answered, ledger.failed)

    @property
    def total(self) -> int:
        """Number of lines."""
        return len(self.survey)

    @property
    def results(self) -> int:
        """How many answers there are."""
        return self.ledger.results

    @property
    def errors(self) -> int:
        """How many lines failed."""
        return self.ledger.errors

    def answers(self, config: ServeConfig, stopped: Callable[[], bool]) -> Generator[dict[str, Any]]:
        """Draw what is left on an engine of each model, until it ends or `stopped`, and yield each answer.

        It is on the disk by then.
        """
        if not len(self.left):
            return
        drawer = Drawer(load_all(config), config, self.ledger.folder)
        drawer.prepare()
        lines = read(self.survey.path, self.survey.places(self.left))
        with closing(drawer.answers(lines, stopped)) as answers:
            for answer in answers:
                yield self.ledger.write(answer)


@contextmanager
def opened(requests: Path, out: Path) -> Iterator[Batch]:
    """The batch of a file in a folder that nobody else writes to meanwhile.

    Raises ForeignFileError for a file that cannot be read, RecordError or OSError for a folder that is in use or not
    writable.
    """
    survey = Survey.of(requests)
    with Ledger.opened(out) as ledger:
        yield Batch(survey, ledger)
