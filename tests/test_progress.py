"""Progress is shown in a terminal and in a notebook, and nowhere else."""

import builtins
import io
import sys
import types

import pytest

from mechforget import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def notebook(monkeypatch):
    """What a kernel was given to display, in order: an IPython of a few lines stands for it."""
    shown = []
    shell = type("ZMQInteractiveShell", (), {"kernel": object()})()  # by this name rich knows it
    display = types.ModuleType("IPython.display")
    display.HTML = lambda text: text
    display.display = lambda text, display_id=None: (
        shown.append(text),
        types.SimpleNamespace(update=shown.append),
    )[1]
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    monkeypatch.setattr(builtins, "get_ipython", ipython.get_ipython, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "EVERY", 0)
    return shown


def advance():
    with progress.bar("patching z", 4) as step:
        for _ in range(4):
            step(1)


def test_a_notebook_shows_the_terminals_line_and_clears_it(notebook, monkeypatch, capsys):
    """Catches a notebook that is silent for minutes, bars that pile up under a cell, and rich
    displaying each a second time."""
    advance()
    first, *drawn, last = notebook
    assert first == last == "" and len(drawn) == 4
    assert "patching z" in drawn[1] and "2/4 prompts" in drawn[1] and "━" in drawn[1]
    assert drawn[1].startswith("<pre")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "EVERY", 3600)
    notebook.clear()
    advance()
    assert len(notebook) == 3  # the first step, and not each of thousands


def test_it_is_cleared_after_an_error_too(notebook):
    """Catches a bar that stands there for ever, as if something went on."""
    with pytest.raises(KeyboardInterrupt), progress.bar("patching", 4):
        raise KeyboardInterrupt
    assert notebook == ["", ""]


def test_a_terminal_shows_a_bar_and_a_pipe_nothing(monkeypatch):
    """Catches a log full of bars, and IPython in a terminal taken for a notebook."""
    pipe, terminal = io.StringIO(), Terminal()
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: object()  # in a terminal it has no kernel
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    for stream in (pipe, terminal):
        monkeypatch.setattr(sys, "stderr", stream)
        advance()
    assert pipe.getvalue() == "" and "patching z" in terminal.getvalue()
