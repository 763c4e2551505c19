"""`python -m fleet_fn COMMAND`."""

from fleet_fn.cli.main import main

main(prog_name="python -m fleet_fn")
