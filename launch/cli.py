"""The `hvdkeras` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from hvdkeras.launch import doctor, environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with the given arguments, by default the command line's. Returns the exit status."""
    options = _parser().parse_args(arguments)
    return options.command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hvdkeras", description="Distributed training of Keras models over MPI."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    look = commands.add_parser(
        "doctor", help="look at what training needs, and tell how to mend what is wrong"
    )
    look.set_defaults(command=_doctor)

    run = commands.add_parser("run", help="start a script under horovodrun with the right flags")
    run.add_argument("-np", "--num-proc", type=_positive, required=True, metavar="N", help="number of ranks")
    run.add_argument(
        "-H", "--hosts", metavar="HOST:SLOTS,...", help="where to start them (default: this machine)"
    )
    run.add_argument(
        "--start-timeout", type=_positive, metavar="SECONDS", help="for horovodrun's checks of hosts"
    )
    run.add_argument("--mpi-args", metavar="ARGS", help="further arguments of mpirun, as one string")
    run.add_argument("--verbose", action="store_true", help="show the command line of mpirun")
    run.add_argument("script", type=_file, help="a Python script")
    run.add_argument("args", nargs=argparse.REMAINDER, help="its arguments")
    run.set_defaults(command=_run)

    # The simulator's room is above this one: its own parser reads the options, and shows the help.
    measure = commands.add_parser(
        "measure",
        help="time a model's step and exchange on this machine, for simulations",
        add_help=False,
        prefix_chars="\0",
    )
    measure.add_argument("args", nargs=argparse.REMAINDER)
    measure.set_defaults(command=_measure)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer. Received: {text}")
    return number


def _file(text: str) -> str:
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"must be a file. Received: {text}")
    return text


def _doctor(_: argparse.Namespace) -> int:
    return 0 if doctor.report() else 1


def _measure(options: argparse.Namespace) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", "hvdkeras.simulation.command", *options.args])


def _run(options: argparse.Namespace) -> NoReturn:
    # With hosts from the command line, a scheduler's own way to reach them is the better one.
    alone = {} if options.hosts else environment.UNSCHEDULED
    os.execve(sys.executable, horovodrun(options), {**os.environ, **alone, **environment.variables()})


def horovodrun(options: argparse.Namespace) -> list[str]:
    """Puts together the command that `hvdkeras run` becomes."""
    command = [sys.executable, "-m", "hvdkeras.launch.horovodrun", "--mpi", "-np", str(options.num_proc)]
    if options.hosts:
        command += ["-H", options.hosts]
    if options.start_timeout:
        command += ["--start-timeout", str(options.start_timeout)]
    if options.mpi_args:
        command += [f"--mpi-args={options.mpi_args}"]
    if options.verbose:
        command += ["--verbose"]
    return [*command, sys.executable, "-m", "hvdkeras.launch.script", options.script, *options.args]


if __name__ == "__main__":
    sys.exit(main())
