"""Errors for a device whose memory is too small, which name the settings that need less."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import jax
from ml_collections import ConfigDict

from experiments.runs import runs


class OutOfMemory(runs.RunError):
    """The device's memory is too small for a program; the message names what makes less do."""


def enough_to_train(config: ConfigDict) -> AbstractContextManager[None]:
    """Raises OutOfMemory where the block ends for want of memory."""
    t = config.train
    advice = (
        f"a larger train.accumulate ({t.accumulate}), train.remat=True ({t.remat}) or "
        f"model.dtype=bfloat16 ({config.model.get('dtype', 'float32')}) makes less do"
    )
    return _enough(f"to train with train.batch_size={t.batch_size}", advice)


def enough_to_test(batch: int) -> AbstractContextManager[None]:
    """Raises OutOfMemory where the block ends for want of memory. batch: images at once."""
    advice = "a smaller test.batch_size or model.dtype=bfloat16 makes less do"
    return _enough(f"to test {batch} images at once", advice)


@contextmanager
def _enough(purpose: str, advice: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        message = str(error)
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in message:
            raise
        first = (message.strip().splitlines() or ["MemoryError"])[0][:200]
        raise OutOfMemory(f"there is not enough memory {purpose}; {advice} ({first})") from error
