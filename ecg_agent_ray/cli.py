"""The ``ecg-agent`` command: sub-commands, and how errors end it.

Exit codes: 0 done; 1 ran and failed; 2 bad input or configuration; 3 refused; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from ecg_agent_ray import __version__
from ecg_agent_ray._cli import (
    bench,
    chat,
    data,
    demo,
    evaluate,
    extract,
    kube,
    models,
    recordings,
    serve,
    train,
    weights,
)
from ecg_agent_ray.errors import EcgAgentError

__all__ = ["app", "main", "run"]

app = typer.Typer(
    name="ecg-agent",
    help="ECG agents on Ray and MLflow: measure, train, promote, serve and talk.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ecg-agent {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every step to stderr.")] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("ecg_agent_ray").setLevel(logging.INFO if verbose else logging.WARNING)


for group in (
    recordings,
    extract,
    data,
    train,
    evaluate,
    models,
    weights,
    serve,
    chat,
    bench,
    kube,
    demo,
):
    group.register(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; nothing raised on purpose becomes a traceback."""
    _library_defaults()
    try:
        code = app(list(arguments), standalone_mode=False)
    except EcgAgentError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        return error.exit_code
    except typer.TyperException as error:
        show = getattr(error, "show", None)  # usage errors know how to point at the option
        show() if show is not None else typer.echo(f"error: {error}", err=True)
        return 2
    except (KeyboardInterrupt, typer.Abort, SystemExit):
        # no command exits by itself: SystemExit is how Ray Train answers Ctrl-C
        typer.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        # the reader of our output has gone (`| head`); say nothing, and let no flush fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # a refusal of MLflow itself, such as a login; looked up, since most commands never load it
        refusal = getattr(sys.modules.get("mlflow.exceptions"), "MlflowException", None)
        if refusal is None or not isinstance(error, refusal):
            raise
        typer.echo(f"error: MLflow: {str(error).strip().splitlines()[0]}", err=True)
        return 1
    return code if isinstance(code, int) else 0


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def _library_defaults() -> None:
    """Less chatter, quicker reports; whoever sets one of these variables keeps the say."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray Train takes one report a poll, which would hold up steps shorter than its 2 s
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "DS_LOG_LEVEL": "error",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


if __name__ == "__main__":
    main()
