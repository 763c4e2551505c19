"""`console`: serve the web console."""

import os
import socket
from typing import Final

import click

from fleet_fn.cli.failures import WRONG_USAGE, fail
from fleet_fn.console.serve import serve_console
from fleet_fn.console.settings import ConsoleSettings
from fleet_fn.setting_table import SettingsError

_PORT: Final = 8090


@click.command("console")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=_PORT, show_default=True, help="0 takes a free port.")
def command(host: str, port: int) -> None:
    """Show fleets and steer their rollouts in a browser.

    Reads and changes applications through DROGUE_API_URL. On this machine it acts with your own credentials
    (DROGUE_USER and DROGUE_TOKEN, or an OpenID client), and answers this machine only. For several users, let them sign
    in (CONSOLE_OIDC_ISSUER and its kin): then each acts with their own rights.

    With FIRMWARE_REGISTRY as the function has it, it also shows firmware, checks what is to be rolled out, and tells
    each device's next command.
    """
    try:
        settings = ConsoleSettings.from_environment(os.environ, host, port)
    except SettingsError as error:
        fail("console", str(error), WRONG_USAGE)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        problem = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        fail("console", f"cannot listen on {host}, port {port}: {problem}. Name others with --host and --port")
    shown = f"[{host}]" if ":" in host else host
    url = settings.sign_in.url if settings.sign_in else f"http://{shown}:{listener.getsockname()[1]}"
    serve_console(settings, listener.detach(), lambda: click.echo(f"console: {url}/ (Ctrl-C ends it)"))
