"""The README.md of a network that is given to others: what it is, and what was measured of it.

Every figure is read from the run's folder; what was not measured stays blank.
"""

import json

from cnn_arch import registry
from experiments import papers
from experiments.config import flatten
from experiments.papers.table import Error
from experiments.runs.results import WILSON
from experiments.runs.runs import AVERAGED, Run
from experiments.statistics import error_rate
from experiments.testing.classifier import Classifier
from experiments.text import visible

# Of a run's config, how it was trained; paths and names of this machine are left out.
RECIPE = ("optimizer", "schedule", "train", "seeding")
DATA = ("data.view", "data.S", "data.crop", "data.mirror", "data.colour", "data.normalise")


def text(run: Run, model: Classifier, note: str = "") -> str:
    """The card of a run's network. note: how its images are seen otherwise elsewhere, or ''."""
    description, result = run.read("run") or {}, run.read("result") or {}
    imported = description.get("imported") or {}
    trained = f"{result['epochs']:g} epochs, {result['steps']:,} steps" if result else ""
    origin = f"{imported.get('file')} (SHA-256 {imported.get('sha256')}), not trained here"
    view, preparation = model.view, model.preprocessing
    scaled = f"{view.Q}x{view.Q}" if view.warp else f"short side {view.Q}"
    facts = {
        "network": f"{model.network.name}, {_options(model)}",
        "paper": registry.find(model.network.name)[0].paper,
        "classes": f"{len(preparation.class_names):,}"
        + (", several an image" if preparation.several else ""),
        "images": f"{scaled} ({preparation.resize}), central crop {view.crop}, RGB",
        "study and row": " ".join(
            str(description[key]) for key in ("study", "row") if description.get(key)
        ),
        "weights of": origin if imported else "",
        "data": result.get("data", ""),
        "trained on": f"{result['train_images']:,} images" if "train_images" in result else "",
        "training": trained,
        **(_averaged(result) or {f"top-{k} error": _measured(result, k) for k in (1, 5)}),
        **_printed(description),
    }
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items()]
    settings = flatten(run.config())
    recipe = {k: v for k, v in settings.items() if k.partition(".")[0] in RECIPE or k in DATA}
    recipe_text = json.dumps(recipe, indent=1) if result else ""
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: image-classification\n---",
        f"# {model.network.name}",
        "\n".join(["| what | this network |", "|---|---|", *lines]),
        *([f"Images: {note}."] if note else []),
        *(["How it was trained:", f"```json\n{recipe_text}\n```"] if recipe_text else []),
        "Made by cnn-depth.",
    ]
    return "\n\n".join(parts) + "\n"


def _options(model: Classifier) -> str:
    idle = registry.idle(model.network.name, dict(model.network.options))
    options = [f"{key}={value}" for key, value in model.network.options if key not in idle]
    return ", ".join(options)


def _measured(result: dict, k: int) -> str:
    """A test error with its interval, where it was measured."""
    count, n = result.get(f"top{k}_errors_count"), result.get("n")
    if count is None or not n:
        return ""
    rate = error_rate(int(count), int(n))
    interval = f"{rate.low:.2f} to {rate.high:.2f}"
    return f"{rate.percent:.2f}% ({interval}, {WILSON}; {n:,} images, {result['protocol']})"


def _averaged(result: dict) -> dict[str, str]:
    """The mean average precision, where that was measured."""
    if AVERAGED not in result:
        return {}
    figure = f"{result[AVERAGED]:.2f}% ({result['n']:,} images, {result['protocol']})"
    return {"mean average precision": figure}


def _printed(description: dict) -> dict[str, str]:
    """What papers print of the run's row, each with its table, data and test protocol."""
    printed = {}
    for table in papers.tables().values():
        for row in table.rows:
            nets = row.nets if isinstance(row.measured, Error) else ()
            if len(nets) != 1 or description.get("row") != nets[0].row:
                continue
            if description.get("study") == (nets[0].study or table.study):
                cells = [
                    f"{column.header} {row.printed[column.key].text}{column.unit}"
                    for column in table.columns
                    if column.what and column.key in row.printed
                ]
                context = f"{table.dataset}, {nets[0].protocol}"
                printed[f"the paper's {table.name}, {row.name}"] = f"{', '.join(cells)} ({context})"
    return printed


def _cell(text: str) -> str:
    """Text that breaks no table, and is nothing but text."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|#!" else c for c in visible(text))
