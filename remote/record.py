"""What a running server writes into its folder, so that another command can ask or stop it."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from remote import ServerError, processes
from remote.processes import Process


@dataclass
class Record:
    folder: Path
    url: str
    models: list[str]
    ray_folder: Path
    processes: list[Process] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "server.json"

    def log(self, service: str) -> Path:
        return self.folder / "logs" / f"{service}.log"

    def save(self) -> None:
        """Write the record in one step: a server whose record is cut off couldn't be stopped."""
        data = asdict(self) | {"folder": str(self.folder), "ray_folder": str(self.ray_folder)}
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(data, indent=1), "utf-8")
        part.replace(self.file)

    @property
    def running(self) -> bool:
        return any(process.members() for process in self.processes)

    def stop(self) -> None:
        """End every process and keep the logs. Raises: ServerError: a process didn't end."""
        left = processes.stop(self.processes)
        kept = self.folder / "logs" / "ray"
        for session in sorted(self.ray_folder.glob("session_2*/logs")):
            shutil.copytree(session, kept, dirs_exist_ok=True, symlinks=True)
        if left:
            raise ServerError(f"processes {left} wouldn't end; they are recorded in {self.file}")
        shutil.rmtree(self.ray_folder, ignore_errors=True)
        (self.folder / "redis.conf").unlink(missing_ok=True)  # it holds a password
        self.file.unlink(missing_ok=True)


def load(folder: Path) -> Record | None:
    file = folder / "server.json"
    try:
        data = json.loads(file.read_text("utf-8"))
        found = [Process(**p) for p in data.pop("processes")]
        ray_folder = Path(data["ray_folder"])
        return Record(folder, data["url"], data["models"], ray_folder, found)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ServerError(f"{file} isn't a server's record: {error}") from None
