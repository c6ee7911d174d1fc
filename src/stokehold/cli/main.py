"""`stoke`: the command line. Every command is a few lines; the rooms do the work."""

import os
import sys
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from stokehold import __version__
from stokehold.cli import (
    backup,
    demo,
    drill,
    evolution,
    gc,
    init,
    inspect,
    node,
    places,
    preflight,
    queue,
    rank,
    readings,
    reports,
    suites,
    tasks,
    versions,
    work,
)
from stokehold.cli.output import fail, fail_on_fault
from stokehold.core.errors import StokeholdError, UsageError

NAME = "stoke"
INTERRUPTED = 130

app = typer.Typer(
    name=NAME,
    help="Keeps a language model learning on the machine you own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for module in (
    demo,
    init,
    preflight,
    places,
    queue,
    work,
    versions,
    drill,
    backup,
    gc,
    node,
    evolution,
    readings,
    rank,
    reports,
    suites,
    tasks,
    inspect,
):
    module.add_to(app)


@app.command()
def version() -> None:
    """Prints the version of Stokehold."""
    print(__version__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; an error is one line with its fix, and its exit code: 1 it failed, 2 it was called wrongly."""
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name=NAME, standalone_mode=False)
        sys.stdout.flush()
    except StokeholdError as error:
        fail(error)
    except TyperException as error:
        _refuse(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has seen enough (`| head`): nothing to complain of
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - stored with its traceback, and told where
        fail_on_fault(error)
    if code:
        sys.exit(code)


def _refuse(error: TyperException) -> None:
    """Wrong use in our form; asking for nothing at all has printed the help already."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else NAME
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.exit(error.exit_code)
    what = error.format_message().removesuffix(".")
    fail(UsageError(what[:1].lower() + what[1:], path, f"`{path} --help` tells more"))


if __name__ == "__main__":
    main()
