"""The command line: `fleet-fn COMMAND`, or `python -m fleet_fn COMMAND`."""

import sys


def main(program: str = "fleet-fn") -> None:
    """Run the command line under the name of `program`.

    Raises:
        SystemExit: always; with one line that says what to do if a dependency is not installed.

    """
    try:
        from fleet_fn.cli.main import main as run

        run(prog_name=program)
    except ModuleNotFoundError as error:
        module, _, _ = (error.name or "fleet_fn").partition(".")
        if module == "fleet_fn":
            raise
        sys.exit(
            f"{program}: {sys.executable} has no module {module}. Run `make demo` once and use .venv/bin/fleet-fn, "
            "or install requirements.txt"
        )


if __name__ == "__main__":
    main("python -m fleet_fn")
