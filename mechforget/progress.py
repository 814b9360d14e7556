"""A progress bar with rate and time left. It appears in a terminal or a notebook, not in logs."""

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EVERY = 0.2  # seconds between two drawings of a bar in a notebook


@contextmanager
def bar(label: str, total: float, unit: str = "prompts") -> Iterator[Callable[[float], None]]:
    """Yields `advance(n)`. It shows nothing, and costs almost nothing, unless stderr is a terminal
    or this is a notebook."""
    terminal = getattr(sys.stderr, "isatty", bool)()  # a server's stderr has no isatty
    if not (terminal or _notebook()):
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
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    drawn: Any = progress if terminal else _displayed(progress)
    with drawn as draw:
        task = progress.add_task(label, total=total, rate="")

        def advance(n: float) -> None:
            progress.advance(task, n)
            speed = progress.tasks[0].speed
            progress.update(task, rate=f"{speed:.2g} {unit}/s" if speed else "")
            if not terminal:
                draw()

        yield advance


def _notebook() -> bool:
    """Whether a kernel (Jupyter, Colab) shows what this process displays."""
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def _displayed(progress: Any) -> Iterator[Callable[[], None]]:
    """Yields `draw()`, which shows the bars as a line under the notebook's cell. rich's own way
    needs ipywidgets, and warns where they are missing."""
    from IPython.display import HTML, display  # type: ignore[import-not-found]
    from rich.console import Console

    shown: Any = display(HTML(""), display_id=True)
    last = -EVERY

    def draw() -> None:
        nonlocal last
        if time.monotonic() - last < EVERY:
            return
        last = time.monotonic()
        console = Console(
            file=io.StringIO(), width=110, record=True, force_terminal=True, force_jupyter=False
        )
        console.print(progress.get_renderable())
        line = '<pre style="line-height:normal">{code}</pre>'
        shown.update(HTML(console.export_html(inline_styles=True, code_format=line)))

    try:
        yield draw
    finally:
        shown.update(HTML(""))
