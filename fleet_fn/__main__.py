"""The command line: `fleet-fn COMMAND`, or `python -m fleet_fn COMMAND`."""

import sys
from typing import Final

_WRONG_USAGE: Final = 2


def main(program: str = "fleet-fn") -> None:
    """Run the command line under the name of `program`.

    The function's image has no command line: only `serve` runs there.

    Raises:
        SystemExit: always; with one line that says what to do if the command or a dependency is not installed.

    """
    try:
        try:
            from fleet_fn.cli.main import main as run
        except ModuleNotFoundError as error:
            if error.name != "fleet_fn.cli":
                raise
            _serve(program)
        else:
            run(prog_name=program)
    except ModuleNotFoundError as error:
        module, _, _ = (error.name or "fleet_fn").partition(".")
        if module == "fleet_fn":
            raise
        sys.exit(
            f"{program}: {sys.executable} has no module {module}. Run `make demo` once and use .venv/bin/fleet-fn, "
            "or install .[tools,build]"
        )


def _serve(program: str) -> None:
    if sys.argv[1:] != ["serve"]:
        sys.stderr.write(f"{program}: this image has only `serve`; the other commands are in the publisher image\n")
        sys.exit(_WRONG_USAGE)
    from fleet_fn.web.serve import serve

    serve()


if __name__ == "__main__":
    main("python -m fleet_fn")
