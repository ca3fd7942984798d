"""Whose convolutions a run is trained with on a CPU: XLA's or oneDNN's."""

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cnn_arch.kernels import onednn
from experiments import data as data_lib
from experiments import network
from experiments.runs import runs

# A training of at least so many multiply-adds takes oneDNN's, by whether the processor has AVX-512.
# They are compiled at every start, which a step that takes 0.7 of the time with AVX-512, and 0.9
# without it, must outweigh.
ONEDNN_FROM_MACS = {True: 1e12, False: 1e13}
# A step of fewer multiply-adds is slower with them: LeNet-5's on one image takes 1.6 times as long.
STEP_FROM_MACS = 3e7


def choose(
    run: runs.Run, config: ConfigDict, data: data_lib.Data, mesh: Mesh, resumed: bool
) -> onednn.Convolutions:
    """Whose convolutions the run is trained with: those it was begun with, where they work.

    oneDNN's and XLA's differ by rounding, so a change would be seen in the last digits of a run
    that goes on; only $CNN_DEPTH_CONVOLUTIONS makes one. A short training takes XLA's, whose
    compiled program is kept for the next start, and so does one of small steps.

    Raises RunError where the run was begun with oneDNN's, which do not work here, and
    ArchitectureError as `onednn.chosen` does.
    """
    wished, dtype = onednn.wished(), config.model.get("dtype", "float32")
    if mesh.size > 1 or jax.default_backend() != "cpu":
        return "xla"
    execution = run.read("execution") or {}
    previous = execution.get("convolutions", "xla" if resumed else None)
    if wished != "auto":
        library = onednn.chosen(dtype)
    elif previous == "xla" or (previous is None and not _gains(config, data)):
        library = "xla"
    else:
        library = onednn.chosen(dtype)
        if previous == "onednn" and library == "xla":
            raise runs.RunError(
                f"{run.id} was begun with oneDNN's convolutions, which failed their trial with "
                f"this jaxlib on this processor, or did not end it in {onednn.TRIAL_SECONDS} s; "
                f"{onednn.VARIABLE}=xla goes on with XLA's, which differ by rounding"
            )
    if execution.get("convolutions") != library:
        runs.write_json(run.folder / "execution.json", {"convolutions": library})
    return library


def _gains(config: ConfigDict, data: data_lib.Data) -> bool:
    """Whether the training, forward and backward, has enough multiply-adds, and each step too."""
    macs = network.cost(config, data.classes, data.channels).macs
    step_macs = 3.0 * macs * config.train.batch_size
    total = step_macs * data_lib.total_steps(config, data.counts["train"])
    return step_macs >= STEP_FROM_MACS and total >= ONEDNN_FROM_MACS[onednn.has_avx512()]
