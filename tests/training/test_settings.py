"""Settings refuse what no training can use, in one line."""

import math

import pytest

from mechforget.errors import StudyError
from mechforget.training import Settings

WRONG = [
    ({"method": "lroa"}, "method = 'lroa': want one of full, lora"),
    ({"steps": 0}, "steps = 0: want at least 1"),
    ({"batch_size": 0}, "batch_size = 0: want at least 1"),
    ({"learning_rate": 0.0}, "learning_rate = 0.0: want more than 0"),
    ({"learning_rate": math.nan}, "learning_rate = nan"),
    ({"learning_rate": math.inf}, "learning_rate = inf"),
    ({"warmup_steps": 10}, "warmup_steps = 10: want 0 to 9"),
    ({"warmup_steps": -1}, "warmup_steps = -1"),
    ({"seed": -1}, "seed = -1"),
    ({"seed": 2**32}, "seed = 4294967296"),
    ({"rank": 8}, "rank is for method = 'lora'"),
    ({"targets": ("q_proj",)}, "targets is for method = 'lora'"),
    ({"method": "lora", "rank": 0}, "rank = 0: want at least 1"),
    ({"method": "lora", "targets": ()}, "targets is empty"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_refusals(change, words):
    """Catches each check that is gone, and a setting that its method would ignore."""
    with pytest.raises(StudyError) as error:
        Settings(**{"steps": 10, "learning_rate": 1e-4} | change)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_is_in_range():
    """Catches a check that refuses a border."""
    Settings(steps=1, learning_rate=1e-9, batch_size=1, seed=2**32 - 1)
    Settings(steps=2, learning_rate=1.0, warmup_steps=1, method="lora", rank=1, alpha=1)
