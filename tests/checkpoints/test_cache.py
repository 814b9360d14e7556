"""Made once, whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mechforget.checkpoints import cache

BUILD = "from pathlib import Path; import os, time; from mechforget.checkpoints import cache; "


def test_where_it_is(monkeypatch):
    """Would catch an ignored override, or a literal ~ folder."""
    assert str(cache.root()) == os.environ["MECHFORGET_CACHE"]
    monkeypatch.setenv("MECHFORGET_CACHE", "~/own")
    assert cache.root() == Path.home() / "own"
    monkeypatch.delenv("MECHFORGET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.root() == Path.home() / ".cache" / "mechforget"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.root() == Path("/x/mechforget")


def test_made_once(own_cache):
    """Would catch a conversion that is done again on every run."""
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder.stat().st_ino)
        (folder / "done").write_text("yes")

    for _ in range(2):
        assert cache.build("deep/thing", make) == own_cache / "deep" / "thing"
    assert calls == [(own_cache / "deep/thing").stat().st_ino]  # renamed, not copied
    assert (own_cache / "deep/thing/done").read_text() == "yes"


def test_a_failed_make_leaves_nothing(own_cache):
    """Would catch a half-made folder that the next run takes for whole, or that fills the disk."""

    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        cache.build("thing", fail)
    assert [f.name for f in own_cache.iterdir()] == ["thing.lock"]


def test_a_killed_make_leaves_nothing_and_the_next_starts_clean(own_cache):
    """Would catch the same after a SIGKILL in the middle, which runs no cleanup; and leftovers of
    the killed one inside the next one's folder."""
    code = "cache.build('thing', lambda f: ((f / 'half').write_text(''), os.kill(os.getpid(), 9)))"
    killed = subprocess.run([sys.executable, "-c", BUILD + code])
    assert killed.returncode == -9 and not (own_cache / "thing").exists()
    made = cache.build("thing", lambda folder: (folder / "whole").touch())
    assert [entry.name for entry in made.iterdir()] == ["whole"]


def test_two_processes_make_it_once(own_cache):
    """Would catch test workers, or two runs, that convert into the same folder at once."""
    code = (
        "cache.build('thing', lambda f: (time.sleep(0.5), (f / str(os.getpid())).touch())); "
        "print(sorted(p.name for p in (cache.root() / 'thing').iterdir()))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", BUILD + code], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] and said[0].count(b",") == 0
