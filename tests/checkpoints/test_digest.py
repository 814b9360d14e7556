"""Oracle: hashlib on whole files, and the sha256sum of coreutils."""

import hashlib
import os
import subprocess

from mechforget.checkpoints import digest


def test_one_file_is_its_own_sha256(tmp_path):
    """Would catch a digest that users cannot check by hand, and one of the first block only."""
    file, content = tmp_path / "a.safetensors", bytes(range(251)) * 10_000
    assert len(content) > 2 * digest.BLOCK
    file.write_bytes(content)
    assert digest.digest([file]) == hashlib.sha256(content).hexdigest()


def test_several_files_as_the_shell_would(tmp_path):
    """Would catch shards that are left out, and a docstring that is not true."""
    names = ["model-1.safetensors", "model-2.safetensors"]
    for name in names:
        (tmp_path / name).write_text(name)
    shell = subprocess.run(
        f"sha256sum {' '.join(names)} | sha256sum", shell=True, cwd=tmp_path, capture_output=True
    )
    assert digest.digest([tmp_path / name for name in names]) == shell.stdout.decode().split()[0]


def test_remembered_until_size_or_time_changes(tmp_path, own_cache):
    """Would catch a digest that is stale after the file changed, or that is always recomputed."""
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = digest.of_file(file)
    [memo] = (own_cache / "digests").iterdir()
    memo.write_text("remembered")
    assert digest.of_file(file) == "remembered"
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))  # another time, the same size
    assert digest.of_file(file) == hashlib.sha256(b"two").hexdigest() != first
    file.write_bytes(b"longer")
    os.utime(file, ns=(1, 1))  # the same time, another size
    assert digest.of_file(file) == hashlib.sha256(b"longer").hexdigest()


def test_without_a_writable_cache(tmp_path, monkeypatch):
    """Would catch a run that dies because a cache cannot be written."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MECHFORGET_CACHE", str(tmp_path / "file"))
    assert digest.of_file(tmp_path / "file") == hashlib.sha256(b"in the way").hexdigest()
