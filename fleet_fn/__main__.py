"""The command line: `fleet-fn COMMAND`, or `python -m fleet_fn COMMAND`."""

import gc
import sys
from typing import Final

_WRONG_USAGE: Final = 2


def main(program: str = "fleet-fn") -> None:
    """Run the command line under the name of `program`.

    The function's image has no command line: only `serve` runs there. So does `serve` everywhere, without options:
    the command line would delay its start.

    Raises:
        SystemExit: always; with one line that says what to do if the command or a dependency is not installed.

    """
    try:
        if sys.argv[1:] == ["serve"]:
            _serve()
        else:
            _run(program)
    except ModuleNotFoundError as error:
        module, _, _ = (error.name or "fleet_fn").partition(".")
        if module == "fleet_fn":
            raise
        sys.exit(
            f"{program}: {sys.executable} has no module {module}. Run `make demo` once and use .venv/bin/fleet-fn, "
            "or install .[tools,build]"
        )


def _serve() -> None:
    gc.disable()  # modules are no garbage; the server's hooks enable it again
    from fleet_fn.web.serve import serve

    serve()


def _run(program: str) -> None:
    try:
        from fleet_fn.cli.main import main as run
    except ModuleNotFoundError as error:
        if error.name != "fleet_fn.cli":
            raise
        sys.stderr.write(f"{program}: this image has only `serve`; the other commands are in the publisher image\n")
        sys.exit(_WRONG_USAGE)
    run(prog_name=program)


if __name__ == "__main__":
    main("python -m fleet_fn")
