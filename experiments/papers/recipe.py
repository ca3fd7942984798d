"""Whether a run was trained as its paper says."""

from functools import cache
from typing import Any

from experiments import config as configs
from experiments.config import ConfigError
from experiments.runs.results import RunResult

# What may differ: the seed, and where the images come from.
FREE = ("seed", "data.name", "data.path", "data.split")


def is_papers(run: RunResult) -> bool:
    """Whether a run's config is that of its row in the profile `paper`, but for `FREE`.

    It never is where another run seeds it.
    """
    expected = _of_row(str(run.run.get("study")), str(run.run.get("row")))
    return expected is not None and _counted(configs.from_json(run.run["config"])) == expected


@cache
def _of_row(study: str, row: str) -> dict[str, Any] | None:
    """What counts of a row in the profile `paper`; None where there is no such row."""
    try:
        definition = configs.read(f"{study}:profile=paper")
    except ConfigError:
        return None
    configs_of_rows = (definition.config_of(r) for r in definition.rows if r.name == row)
    return next(map(_counted, configs_of_rows), None)


def _counted(config: Any) -> dict[str, Any]:
    """The keys of a config that can change a result, but for `FREE`."""
    part = configs.identity_part(config)
    return {key: value for key, value in part.items() if key not in FREE}
