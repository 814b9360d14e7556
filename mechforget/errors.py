"""Errors that a user can cause: one line with what was given, what is wanted and what to do."""


class MechforgetError(Exception):
    """The base class. The command line prints the error as one line and exits with code 2."""


class TaskError(MechforgetError):
    """A task cannot be read, or its prompts cannot be scored."""


class CheckpointError(MechforgetError):
    """A checkpoint cannot be opened, or two checkpoints do not belong together."""


class ModelError(MechforgetError):
    """A backend cannot run this architecture, or failed its self-test on it."""


class SweepError(MechforgetError):
    """A sweep was asked for a site or a variant that this model does not have."""


class MeasureError(MechforgetError):
    """A measure is not defined for what it was given."""


class StudyError(MechforgetError):
    """A study file, a run folder or an option is wrong."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The error's type and its text in one line, the text cut off after `limit` characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:limit]}"


def out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory", "DefaultCPUAllocator")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
