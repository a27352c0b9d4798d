"""A script as a rank of `hvdkeras run`: `python -m hvdkeras.launch.script FILE ARGUMENTS...`."""

from __future__ import annotations

from hvdkeras.launch import environment


def main() -> None:
    """Runs the script that the command line names, and ends the whole job if it fails."""
    environment.prepare()
    # An uncaught exception or sys.exit on one rank ends the job, under mpi4py's own runner.
    from mpi4py import run

    run.main()


if __name__ == "__main__":
    main()
