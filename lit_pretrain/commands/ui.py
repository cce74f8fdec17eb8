"""Open MLflow's page on the runs of this machine."""

import argparse
import os
import socket
import sys
from pathlib import Path

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.paths import ARTIFACTS_NAME, DATABASE_NAME, resolve_runs_directory, shown_path
from lit_pretrain.tracking.runs_table import latest_experiment, table_address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--runs", metavar="DIR", help="runs directory (default: $LIT_PRETRAIN_RUNS, else ./runs)")


def run(arguments: argparse.Namespace) -> int:
    """Become the MLflow server; returns only by an error."""
    runs_directory = resolve_runs_directory(arguments.runs)
    database = runs_directory / DATABASE_NAME
    if not database.is_file():
        raise UserError(
            f"There is no {DATABASE_NAME} in {shown_path(runs_directory)}: train a run first, or name its directory "
            "with --runs."
        )
    check_port(arguments.host, arguments.port)
    from lit_pretrain.tracking.schema import bring_up_to_date
    from lit_pretrain.tracking.store import end_all_dead_runs, prepare_mlflow

    prepare_mlflow()
    # The server would only say so in its log.
    bring_up_to_date(database, runs_directory)
    # The server's queue of jobs is for evaluations of language models, which are none of ours.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    # A run killed outright is shown as running until somebody looks at its process.
    end_all_dead_runs(database, runs_directory)
    # Without the ending MLflow's page opens on its part for chat bots.
    base = f"http://{arguments.host}:{arguments.port}"
    address = f"{base}/#/experiments?workflowType=machine_learning"
    print(f"The runs of {shown_path(runs_directory)} are at {address} (Ctrl-C ends it)", flush=True)
    latest = latest_experiment(database)
    if latest is not None:
        print(f"Those of {latest[1]}, with their figures: {table_address(base, latest[0])}", flush=True)
    os.execv(sys.executable, server_command(database, runs_directory, arguments.host, arguments.port))
    return 0


def server_command(database: Path, runs_directory: Path, host: str, port: int) -> list[str]:
    """The command line of the server."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{database}"),
        *("--artifacts-destination", (runs_directory / ARTIFACTS_NAME).as_uri()),
        *("--host", host, "--port", str(port), "--workers", "1"),
        # A line for each picture and click would bury the address.
        *("--uvicorn-opts", "--log-level warning"),
    ]


def check_port(host: str, port: int) -> None:
    """Raise `UserError` if the port cannot be listened on."""
    if not 0 < port < 65536:
        raise UserError(f"Port {port} does not exist: give one from 1 to 65535 with --port.")
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(*address[:3]) as probe:
            # As the server will do: a port whose last connection is still fading away is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
    except OSError as error:
        raise UserError(
            f"Port {port} of {host} cannot be used ({error.strerror}): give another one, such as --port {port + 1}."
        ) from error
