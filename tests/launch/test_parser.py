"""What the command line says of options that it does not know."""

import pytest

from launch import cli

ERRORS = {
    "sweep vgg_depth --row A": "there is no option '--row'; did you mean '--rows'?",
    "sweep vgg_depth --zzz=3": "there is no option '--zzz'; see `cnn-depth sweep --help`",
    "train vgg_depth A": "unexpected argument 'A'; see `cnn-depth train --help`",
    "sweep": "the following arguments are required: study; see `cnn-depth sweep --help`",
    "sweep vgg_depth --seeds x": (
        "argument --seeds: invalid int value: 'x'; see `cnn-depth sweep --help`"
    ),
    "sweep vgg_depth --backend slrm": (
        "argument --backend: invalid choice: 'slrm'; did you mean 'slurm'? known: local, slurm"
    ),
    "data chek": "invalid choice: 'chek'; did you mean 'check'? known: check, preview, prepare",
    "data zzz": "invalid choice: 'zzz'; known: check, preview, prepare",
}


@pytest.mark.parametrize("line", ERRORS)
def test_a_bad_option_is_one_line_with_the_nearest_valid_one(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(line.split())
    assert ended.value.code == 2
    expected = f"cnn-depth {line.split()[0]}: error: {ERRORS[line]}\n"
    assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "--versoin",
            "cnn-depth: error: there is no option '--versoin'; did you mean '--version'?",
        ),
        (
            "data check --thrads 2",
            "cnn-depth data check: error: there is no option '--thrads'; did you mean '--threads'?",
        ),
        (
            "bench step --repeat 3",  # its options are known only once they are asked for
            "cnn-depth bench step: error: there is no option '--repeat'; did you mean '--repeats'?",
        ),
    ],
)
def test_the_error_is_of_the_parser_that_has_the_options(
    line: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(line.split())
    assert capsys.readouterr().err == expected + "\n"
