"""The entry point of the command line: a group whose commands are known from manifests and imported when used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from omlab import __version__
from omlab.vocabulary import Kind

if TYPE_CHECKING:
    from omlab.plugins import Registry


def registry_of(context: click.Context) -> Registry:
    """The registry of this invocation, discovered once."""
    root = context.find_root()
    if root.obj is None:
        from omlab.plugins import Registry
        from omlab.settings import Settings

        settings = Settings.from_environment()
        root.obj = Registry.discover(failures_file=settings.failures_file, manifests_file=settings.manifests_file)
    return root.obj  # type: ignore[no-any-return]


class LazyGroup(click.Group):
    """Commands of all plugins; ``--help`` shows their summaries without importing them."""

    #: Order in which a newcomer meets them; others follow by name.
    ORDER = ("list", "info", "run", "score", "pull", "tune", "evaluate", "compare", "adapt", "export", "doctor")

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = registry_of(ctx).names(Kind.COMMAND)
        first = [name for name in self.ORDER if name in names]
        return first + sorted(set(names) - set(first))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        registry = registry_of(ctx)
        if cmd_name not in registry.names(Kind.COMMAND):
            return None
        return registry.load(Kind.COMMAND, cmd_name)  # type: ignore[no-any-return]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-"):
            registry_of(ctx).card(Kind.COMMAND, name)  # an unknown command is told with near names
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        summaries = {row["name"]: row["summary"] for row in registry_of(ctx).rows(Kind.COMMAND)}
        with formatter.section("Commands"):
            formatter.write_dl([(name, summaries[name]) for name in self.list_commands(ctx)])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="omlab")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Medical foundation models: find one, run it on a scan, score it, adapt it."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 all good, 1 something failed, 2 wrong usage)."""
    from omlab.errors import OmlabError

    arguments = sys.argv[1:] if arguments is None else arguments
    # --debug may stand anywhere before a lone "--", since people add it to the command they just typed.
    limit = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:limit]
    arguments = [a for i, a in enumerate(arguments) if a != "--debug" or i > limit]
    try:
        code: Any = cli.main(arguments, prog_name="omlab", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except OmlabError as error:
        if debug:
            raise
        _tell(str(error))
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        if debug:
            raise
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        if debug:
            raise
        click.echo("stopped", err=True)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`omlab list | head`); nothing is left to tell it.
        sys.stdout = None  # type: ignore[assignment]
        return 0
    except Exception as error:  # the last line of defence: a defect of ours or of a plugin, told in one line
        if debug:
            raise
        _tell(
            f"{type(error).__name__}: {error}".splitlines()[0]
            + ". This is a defect; run again with --debug to see where"
        )
        return 1


def _tell(message: str) -> None:
    click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)


def entry() -> None:
    """For ``[project.scripts]``."""
    raise SystemExit(main())
