"""`cnn-depth config`: a study's config, or a row's, as a file that can be edited and run."""

from __future__ import annotations

import argparse
import json
import shlex

from launch.verbs.options import add_options

HELP = """\
Print the resolved config of a study, or of one row of its sweep, as a study file: what differs from
the defaults, each key with what it means. The file trains the same run as the row does, until it is
edited. The rows that seed a row come with it."""
EXAMPLE = """
cnn-depth config vgg_depth --row E
cnn-depth config residual_depth --row resnet-20 --set train.epochs=3 --out my.py
cnn-depth config resnet:50,profile=cifar --all --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help="a study of `cnn-depth list`, or a file; NAME:ARGUMENT")
    options = {
        "--row ROW": "a row of its sweep (default: the config without a sweep)",
        "--set KEY=VALUE...": "override a key (`cnn-depth list keys`), such as train.epochs=3",
        "--all": "every key, also those at their default",
        "--out FILE": "a new file, instead of printing",
        "--json": "print the keys as JSON",
    }
    add_options(parser, options)


def main(args: argparse.Namespace) -> int:
    """Prints or writes the config. Raises ConfigError for a study, row, key or FILE of no use."""
    from experiments import config as configs
    from experiments.config import writing

    if args.out is not None and args.json:
        raise configs.ConfigError("--out writes a study file: without --json")
    if args.out is not None and args.out.suffix != ".py":
        raise configs.ConfigError(f"--out {args.out}: a study file's name ends in .py")
    if args.out is not None and args.out.exists():
        raise configs.ConfigError(f"--out {args.out} is there already; choose another name")
    study = configs.read(args.study)
    chain = writing.resolved(study, args.row, configs.parse_set(args.set))
    if args.json:
        name, config = chain[-1]
        content = {
            "study": study.name,
            "row": name,
            "seed_from": chain[-2][0] if len(chain) > 1 else None,
            "config": writing.settings(config, args.all),
        }
        print(json.dumps(content, indent=1))
        return 0
    row = ["--row", args.row] if args.row else []
    command = ["cnn-depth", "config", args.study, *row, *(f"--set={text}" for text in args.set)]
    file = str(args.out or "FILE.py")
    text = writing.study_file(study, chain, shlex.join(command), file, args.all)
    if args.out is None:
        print(text, end="")
    else:
        args.out.write_text(text, encoding="utf-8")
    return 0
