"""A progress bar with rate and time left. It appears on a terminal only, not in logs or pipes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(label: str, total: float, unit: str = "prompts") -> Iterator[Callable[[float], None]]:
    """Yields `advance(n)`. It shows nothing, and costs almost nothing, unless stderr is a
    terminal."""
    if not getattr(sys.stderr, "isatty", bool)():  # a server's stderr has no isatty
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:g}/{task.total:g} " + unit),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, rate="")

        def advance(n: float) -> None:
            progress.advance(task, n)
            speed = progress.tasks[0].speed
            progress.update(task, rate=f"{speed:.2g} {unit}/s" if speed else "")

        yield advance
