"""What the log says of a client's mistake: one line, on every route of vLLM's."""

import logging
from http import HTTPStatus

from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from patches.terminal import one_line

#: What of vLLM answers requests.
_ROUTES = "vllm.entrypoints."
#: Characters of an error that are logged: it may quote what a client sent.
_MAX_TEXT = 200


class _WithoutTracesOfMistakes(logging.Filter):
    """Leaves one line of what vLLM answers with a 4xx: a traceback is for faults of the server.

    Attached to handlers: a filter of a logger does not see what loggers below it say.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return true: every record passes, some of them shorter and at INFO."""
        error = record.exc_info[1] if record.exc_info else None
        if record.name.startswith(_ROUTES) and isinstance(error, Exception) and _is_mistake(error):
            record.msg, record.args = "a request is refused: %s", (one_line(str(error))[:_MAX_TEXT],)
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


def _is_mistake(error: Exception) -> bool:
    # As the answer says it is. What is not implemented is 501 there, and for the caller to leave out.
    return create_error_response(error).error.code < HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(
        error, NotImplementedError
    )


def hush_mistakes() -> None:
    """Have vLLM's routes log no traceback of a client's mistake; to be called once its handlers are there."""
    for handler in logging.getLogger("vllm").handlers:
        if not any(isinstance(one, _WithoutTracesOfMistakes) for one in handler.filters):
            handler.addFilter(_WithoutTracesOfMistakes())
