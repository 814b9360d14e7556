"""Python runs this first in every process of the server; it is on the server's path only."""

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys

# nnsight mounts `.save` on `object`, which anyio takes for an attribute of its own: imported after
# nnsight, every request body over 1 MB is "an error parsing the body".
with contextlib.suppress(ImportError):  # a process of another Python that inherited the path
    for name in ("anyio", "anyio.abc", "anyio.to_thread", "anyio._core._sockets"):
        importlib.import_module(name)


class _Loopback(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Ray swaps 127.0.0.1 for the machine's outward address and then listens on all of them.
    This leaves the address alone, and with it every port of a one-machine server on loopback."""

    name = "ray._private.services"

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        self.real = found.loader
        found.loader = self
        return found

    def create_module(self, spec):
        return self.real.create_module(spec)

    def exec_module(self, module):
        self.real.exec_module(module)
        module.resolve_ip_for_localhost = lambda host: host


if os.environ.get("MECHFORGET_LOOPBACK") == "1":
    sys.meta_path.insert(0, _Loopback())
