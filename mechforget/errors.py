"""Every error a user can cause: one line that says what came, what was wanted, and the way out."""


class MechforgetError(Exception):
    """Root of all. The command line prints it as one line and exits with 2."""


class TaskError(MechforgetError):
    """A task cannot be read, or its prompts cannot be scored."""


class CheckpointError(MechforgetError):
    """A checkpoint cannot be opened, or two checkpoints do not belong together."""


class ModelError(MechforgetError):
    """A backend cannot serve this architecture, or failed to prove itself on it."""


class SweepError(MechforgetError):
    """A sweep was asked for a site or variant that the model does not have."""


class MeasureError(MechforgetError):
    """A measure was given something that it is not defined for."""


class StudyError(MechforgetError):
    """A study file, a run folder or an option is wrong."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Its kind and its text without line breaks, cut off after `limit` characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:limit]}"


def out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory", "DefaultCPUAllocator")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
