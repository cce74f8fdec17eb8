"""Whether the Hugging Face hub can be reached, and how to do without it."""

import contextlib
from collections.abc import Iterator

SECONDS_TO_REACH_THE_HUB = 5.0


def hub_answers() -> bool:
    """Whether the hub can be reached within seconds; its own client would try for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_REACH_THE_HUB)
    except Exception:  # without a network: a different one with every version of its client
        return False
    return True


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let the hub's client look into its cache only."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
