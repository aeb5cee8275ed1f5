"""What happens here, told once: a line of the log."""

import logging
from collections.abc import Sequence

log = logging.getLogger(__name__)


class Journal:
    """Never a word of an image or a question."""

    def ran(self, kind: str, cause: str, waited: float, seconds: float, records: Sequence[dict] = ()):
        """A piece of work on the model is over."""
        log.info("%s %s, waited %.2f s, worked %.2f s, answers %d", kind, cause, waited, seconds, len(records))
