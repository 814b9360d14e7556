from tests.remote.server import server

__all__ = ["server"]
