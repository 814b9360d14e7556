"""A server of your own: NDIF on Ray, started and stopped from a checkout. See remote/README.md."""

from pathlib import Path

from mechforget.errors import MechforgetError

CHECKOUT = Path(__file__).resolve().parent.parent
ENVIRONMENT = CHECKOUT / ".venv-remote"  # its pins differ from the client's


class ServerError(MechforgetError):
    """A server can't be started, asked or stopped."""
