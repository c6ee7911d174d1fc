"""`stoke`: the command line. Every command is a few lines; the rooms do the work."""

import sys
from collections.abc import Sequence

import typer

from stokehold import __version__
from stokehold.cli import demo, inspect, places, queue, tasks, versions, work
from stokehold.cli.output import fail
from stokehold.core.errors import StokeholdError

app = typer.Typer(
    name="stoke",
    help="Keeps a language model learning on the machine you own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for module in (demo, places, queue, work, versions, tasks, inspect):
    module.add_to(app)


@app.command()
def version() -> None:
    """Prints the version of Stokehold."""
    print(__version__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; an error is one line with its fix, and its exit code."""
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=True)
    except StokeholdError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
