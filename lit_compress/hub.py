"""Whether the Hugging Face hub can be reached, asked once and before anything is asked of it."""

import logging
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Thread

from lit_compress.errors import UserError, first_line

__all__ = ["check_hub", "is_reachable"]

SECONDS = 5.0


def check_hub(source: str, key: str) -> None:
    """Refuse a name on the hub that cannot be reached and is not in the cache.

    The hub's own client asks for each file several times and waits each time. Where the hub does not answer and the
    model is in the cache, the cache is used for the rest of the process, which is said.

    Args:
        source: hub name, or a path, for which there is nothing to ask.
        key: config key named in errors.

    Raises:
        UserError: it is neither reachable nor in the cache.

    """
    if Path(source).exists():
        return
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(source, "config.json"), str)
    except HFValidationError:
        cached = False
    if constants.HF_HUB_OFFLINE or (reason := _silence(constants.ENDPOINT)) is None:
        return
    if not cached:
        raise UserError(
            f"{key}: {source!r} does not exist here, and the hub ({constants.ENDPOINT}) cannot be reached: {reason}; "
            "give the path of a model folder"
        )
    logging.getLogger(__name__).warning("the hub cannot be reached (%s): %s is taken from the cache", reason, source)
    constants.HF_HUB_OFFLINE = True


def is_reachable() -> bool:
    """Whether the hub answers, and may be asked."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _silence(constants.ENDPOINT) is None


@cache
def _silence(endpoint: str) -> str | None:
    """Why an address gives no answer in time; None when it gives one, whatever it is."""
    failed: list[str] = []
    asking = Thread(target=_ask, args=(endpoint, failed), daemon=True)  # looking up a name has no time limit of its own
    asking.start()
    asking.join(2 * SECONDS - 1)
    return f"no answer in {2 * SECONDS - 1:.0f} seconds" if asking.is_alive() else next(iter(failed), None)


def _ask(endpoint: str, failed: list[str]) -> None:
    from huggingface_hub.utils import get_session

    session = get_session()
    http = import_module(type(session).__module__.partition(".")[0])  # whichever library the hub's client uses
    try:
        session.head(endpoint, timeout=SECONDS)
    except (http.HTTPError, http.InvalidURL, OSError) as error:
        failed.append(first_line(error))
