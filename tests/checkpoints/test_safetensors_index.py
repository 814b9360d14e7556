"""Headers read without data. Oracle: the safetensors library, and the file's raw bytes."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mechforget.checkpoints import safetensors_index
from mechforget.errors import CheckpointError
from tests.tiny import tiny_model

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(sorted(DTYPES))),
        max_size=5,
    )
)
def test_header_says_what_was_written_and_where(tmp_path_factory, described):
    """Would catch a wrong shape, dtype or name, and a byte range that is off by the header."""
    file = tmp_path_factory.mktemp("any") / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    written = {
        name: torch.randint(0, 99, shape, generator=generator).to(DTYPES[dtype])
        for name, (shape, dtype) in described.items()
    }
    save_file(written, file, metadata={"format": "pt"})
    found = safetensors_index.header(file)
    assert {n: (list(i.shape), i.dtype) for n, i in found.items()} == described
    raw = file.read_bytes()
    for name, info in found.items():
        data = raw[info.begin : info.end]
        assert data == bytes(written[name].reshape(-1).view(torch.uint8).tolist())
        assert torch.equal(safetensors_index.read(name, info), written[name])


def test_every_truncation_is_refused(tmp_path):
    """Would catch a check that trusts the header: cut anywhere, one byte too many included."""
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(5.0), "b": torch.arange(3)}, file)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            safetensors_index.header(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match=r"is damaged: .* bytes where its header wants"):
        safetensors_index.header(file)


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    """Would catch a traceback, or gigabytes allocated for a length read from a foreign file."""
    file = tmp_path / "model.safetensors"
    for content in (b"PK\x03\x04" + bytes(100), (2).to_bytes(8, "little") + b"[]", b"\xff" * 64):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="no safetensors file"):
            safetensors_index.header(file)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        safetensors_index.header(file)


def test_shards_are_one_model(tmp_path):
    """Would catch shards that are skipped or counted twice. Oracle: the unsharded model."""
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    found = safetensors_index.index(tmp_path)
    assert {n: i.shape for n, i in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    for name, info in found.items():
        assert torch.equal(safetensors_index.read(name, info), model.state_dict()[name])
        assert name in load_file(info.file)


def test_lost_shards_and_tensors_are_named(tmp_path):
    """Would catch a half-downloaded model that opens."""
    tiny_model().save_pretrained(tmp_path, max_shard_size="60KB")
    index = tmp_path / safetensors_index.INDEX
    text = index.read_text()
    weight_map = json.loads(text)["weight_map"]
    index.write_text(
        json.dumps({"weight_map": weight_map | {"ghost": sorted(tmp_path.glob("model-*"))[0].name}})
    )
    with pytest.raises(CheckpointError, match=r"1 tensors that no shard holds, e\.g\. ghost"):
        safetensors_index.index(tmp_path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="want JSON with a weight_map"):
        safetensors_index.files(tmp_path)
    index.write_text(text)
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"1 of \\d+ shards are missing, e.g. {lost.name}"):
        safetensors_index.files(tmp_path)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/tmp/model.safetensors"])
def test_shards_elsewhere_are_refused(name, tmp_path):
    """Would catch an index of a stranger that has another model's files read as this one's."""
    folder, other = tmp_path / "m", tmp_path / "other"
    for made in (folder, other):
        made.mkdir()
    save_file({"a": torch.arange(3.0)}, other / "model.safetensors")
    text = json.dumps({"weight_map": {"a": name}})
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="outside the checkpoint's folder, which is not read"):
        safetensors_index.files(folder)


def test_the_single_file_wins_as_in_transformers(tmp_path):
    """Would catch a digest or diff over weights that loading never uses."""
    tiny_model().save_pretrained(tmp_path, max_shard_size="60KB")
    save_file({"only": torch.zeros(2)}, tmp_path / safetensors_index.SINGLE)
    assert list(safetensors_index.index(tmp_path)) == ["only"]
    assert safetensors_index.files(tmp_path / "nowhere") == []
