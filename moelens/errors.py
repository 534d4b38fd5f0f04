"""Every exception that moelens raises on purpose.

    MoelensError
    ├── ConfigError            (also ValueError)   an argument, a combination of arguments or a config file is wrong
    │   └── ValidationError                        a sampling parameter or a prompt is wrong (.parameter, .value)
    ├── UnsupportedModelError  (also ValueError)   the checkpoint is fine, but moelens can't run it
    ├── CheckpointError        (also ValueError)   the checkpoint's files are damaged, incomplete or contradictory
    ├── UnsupportedCallError   (also NotImplementedError) a method of vLLM's LLM that moelens does not have
    ├── CapacityError          (also MemoryError)  it does not fit in the memory that was given
    ├── KernelError            (also RuntimeError) a compiled kernel is missing or refuses this machine
    ├── TaskError              (also RuntimeError) a pipeline task failed; the cause is chained
    └── JobError               (also RuntimeError) a batch job can't start or go on; nothing that was done is lost

A message says what was wrong, the value found, and what to do about it.
"""

from __future__ import annotations


class MoelensError(Exception):
    """Root of the tree: catch it to catch everything that moelens raises on purpose."""


class ConfigError(MoelensError, ValueError):
    """An argument, a combination of arguments or a configuration file is wrong."""


class ValidationError(ConfigError):
    """A sampling parameter or a prompt is wrong.

    `parameter` names what was wrong and `value` is what was found there.
    """

    def __init__(self, message: str, *, parameter: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.value = value


class UnsupportedModelError(MoelensError, ValueError):
    """The checkpoint is sound, but moelens can't run this kind of model."""


class CheckpointError(MoelensError, ValueError):
    """A checkpoint's files are damaged, incomplete or contradict each other."""


class UnsupportedCallError(MoelensError, NotImplementedError):
    """A method of vLLM's LLM that moelens does not have; the message names the alternative."""


class CapacityError(MoelensError, MemoryError):
    """What was asked for does not fit in the memory that was given."""


class KernelError(MoelensError, RuntimeError):
    """A compiled kernel is missing, or this machine can't run it."""


class TaskError(MoelensError, RuntimeError):
    """A pipeline task failed; `__cause__` is the original exception."""


class JobError(MoelensError, RuntimeError):
    """A batch job can't start or go on; what is done stays, and the message says how to continue."""
