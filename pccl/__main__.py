"""`python -m pccl`, and the `pccl` command."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; the entry point `pccl`."""
    if sys.argv[1:2] == ["coordinator"]:
        # Members wait for one that starts again, and the rest of the command line takes longer to
        # load than all that it has to do.
        from pccl.coordinator_command import main as run_coordinator

        sys.exit(run_coordinator(sys.argv[2:]))
    from pccl.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
