"""The command `build`: create, list, follow and cancel builds."""

import io
import os
import signal
import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from fleet_fn.builds.pipeline_run import make_pipeline_run
from fleet_fn.builds.run import Run, State
from fleet_fn.builds.trigger import FORGES, Event, make_trigger
from fleet_fn.cli.build.display import describe_progress, describe_time, print_end, print_runs
from fleet_fn.cli.build.options import (
    CREATED,
    KubernetesName,
    Options,
    PipelineParam,
    Quantity,
    Version,
)
from fleet_fn.cli.build.order import make_order
from fleet_fn.cli.failures import FAILED, WRONG_USAGE, describe_os_error, fail
from fleet_fn.cli.signals import end_on_sigterm
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.fleet.cures import cure_of_drogue
from fleet_fn.oci.reference import Reference
from fleet_fn.settings import Settings, SettingsError

if TYPE_CHECKING:
    from fleet_fn.builds.cluster import Cluster

#: A shell's code for a process that SIGINT ended.
_INTERRUPTED: Final = 128 + signal.SIGINT
_NAME: Final = KubernetesName()
_DEFAULT_HOOK: Final = "firmware-webhook"


@click.command("build")
@click.option("--application", metavar="NAME", help="Build the firmware of this application.")
@click.option("--device", metavar="NAME", help="Build the firmware of this device of it.")
@click.option("--version", type=Version(), metavar="V", help="The firmware's version, instead of the git tag.")
@click.option("--dry-run", is_flag=True, help="Print the PipelineRun as YAML; needs no cluster.")
@click.option(
    "--watch",
    type=_NAME,
    is_flag=False,
    flag_value=CREATED,
    metavar="[RUN]",
    help="Follow a run until it ends; without RUN, the one that is created.",
)
@click.option("--list", "list_runs", is_flag=True, help="List runs, the newest first.")
@click.option("--cancel", type=_NAME, metavar="RUN", help="Cancel a run.")
@click.option(
    "--trigger",
    type=click.Choice(FORGES),
    help="Print a Trigger and its template as YAML, which build on a push there; needs no cluster.",
)
@click.option(
    "--on",
    "events",
    type=click.Choice([event.value for event in Event]),
    multiple=True,
    help="What the trigger builds: pushes to the branch of source.git.rev, or tags.  [default: both]",
)
@click.option(
    "--webhook-secret",
    type=_NAME,
    metavar="NAME",
    help="Secret with the webhook's own secret, key token.  [default: firmware-webhook]",
)
@click.option("--namespace", "-n", type=_NAME, metavar="NS", help="Namespace of the Pipeline.  [default: kubectl's]")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.  [default: the current one]")
@click.option("--registry-secret", type=_NAME, metavar="NAME", help="Secret with the OCI registry's credentials.")
@click.option("--git-secret", type=_NAME, metavar="NAME", help="Secret with the repository's user and password.")
@click.option("--ssh-secret", type=_NAME, metavar="NAME", help="Secret with the repository's ssh key.")
@click.option("--signing-secret", type=_NAME, metavar="NAME", help="Secret with the key that signs the firmware.")
@click.option("--service-account", type=_NAME, metavar="NAME", help="Account that the pods of the run have.")
@click.option(
    "--storage", type=Quantity(), default="2Gi", show_default=True, metavar="SIZE", help="Volume for the build."
)
@click.option(
    "--param",
    "params",
    type=PipelineParam(),
    multiple=True,
    metavar="NAME=VALUE",
    help="Further parameter of the Pipeline, such as HARDWARE=rev-b or LATEST=false; may be repeated.",
)
def command(**given: Any) -> None:
    """Build firmware in a cluster, with Tekton.

    It reads spec.firmware.container.build of the application or the device from the device registry, through
    DROGUE_API_URL and your credentials, and creates a PipelineRun of the Pipeline oci-firmware (knative/tekton). The
    firmware is published below FIRMWARE_REGISTRY, under the name in container.image.

    The cluster is kubectl's: KUBECONFIG, the account of a pod, or ~/.kube/config.

    --trigger prints what builds on each push, to be applied beside the listener of knative/tekton/triggers.

    --list shows each run's state, age and time, for whom and from what it is built, and the firmware or the reason that
    there is none. Runs go on when --watch ends.

    \b
    Exits with 0 if it is done,
      1 if it failed, or the run that it watched did,
      2 if an option or a setting is wrong,
      130 after Ctrl-C.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    options = Options(**given)
    options.check()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal's encoding may lack characters of a name
    try:
        sys.exit(_create(options) if options.creates else _look_after(options))
    except UpstreamError as error:
        fail("build", error.reason)
    except BrokenPipeError:  # click ends quietly then
        raise
    except OSError as error:
        fail("build", describe_os_error(error))
    except KeyboardInterrupt:
        fail("build", "interrupted", _INTERRUPTED)


def _create(options: Options) -> int:
    """Create a run, or print it; follow it if that is wanted. Return the exit code."""
    try:
        settings = Settings.for_operator(os.environ)
        order, current = make_order(settings, options)
    except SettingsError as error:
        fail("build", str(error), WRONG_USAGE)
    except UpstreamError as error:
        fail("build", f"{error.reason}{cure_of_drogue(error.reason, settings)}")
    if options.trigger:
        secret = options.webhook_secret or _DEFAULT_HOOK
        _print_yaml(make_trigger(order, options.trigger, secret, options.trigger_events))
        return 0
    pipeline_run = make_pipeline_run(order)
    if options.dry_run:
        _print_yaml([pipeline_run])
        return 0
    with closing(_open(options)) as cluster:
        _check_pipeline(cluster, pipeline_run)
        run = cluster.create(pipeline_run)
        click.echo(f"created {run.name} in the namespace {cluster.namespace}")
        _warn_of_tag(current, options)
        if options.watch is not None:
            return _follow(cluster, run.name)
        click.echo(f"follow it with: {_follow_command(cluster, run.name)}")
        return 0


def _print_yaml(objects: list[dict[str, Any]]) -> None:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes what stands twice twice, and not as a reference."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the library's signature
            return True

    text = yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    click.echo(text, nl=False)


def _look_after(options: Options) -> int:
    """List, cancel or follow runs that are there; return the exit code."""
    with closing(_open(options)) as cluster:
        if options.list_runs:
            runs = cluster.runs(options.application, options.device)
            if runs:
                print_runs(runs, datetime.now(UTC))
            else:
                click.echo(f"no builds in the namespace {cluster.namespace}")
            return 0
        if options.cancel is not None:
            run = cluster.read(options.cancel)
            if run.state.is_over:
                raise PermanentError(f"{run.name} is over already: {run.state}")
            cluster.cancel(run.name)
            click.echo(f"{run.name} is being cancelled")
            return 0
        return _follow(cluster, options.watch or "")


def _open(options: Options) -> "Cluster":
    from fleet_fn.builds.cluster import Cluster  # slow to import, and --dry-run needs no cluster

    return Cluster.open(options.namespace, options.context)


def _check_pipeline(cluster: "Cluster", pipeline_run: dict[str, Any]) -> None:
    """Refuse a run that the Pipeline in the cluster would not understand."""
    taken = cluster.pipeline_params()
    unknown = [param["name"] for param in pipeline_run["spec"]["params"] if param["name"] not in taken]
    if unknown:
        raise PermanentError(
            f"the Pipeline in the namespace {cluster.namespace} is older than this command: it takes no "
            f"{', '.join(unknown)}. Apply it again: kubectl apply -n {cluster.namespace}{cluster.context_option} -k "
            "knative/tekton"
        )


def _warn_of_tag(current: Reference, options: Options) -> None:
    """Say that devices stay at the version that `container.image` names."""
    named = current.digest or (current.tag if current.tag != "latest" else None)
    if named and named != options.version:
        click.echo(f"devices keep {current} until container.image names the version that is built", err=True)


def _follow(cluster: "Cluster", name: str) -> int:
    """Show a run's progress until it is over; return the exit code.

    Ctrl-C leaves the run alone.
    """
    end_on_sigterm()
    shown = ""
    try:
        for run in cluster.follow(name, _tell_of_silence):
            now = datetime.now(UTC)
            if run.state.is_over:
                print_end(run, f"-n {cluster.namespace}{cluster.context_option}", now)
                return 0 if run.state is State.SUCCEEDED else FAILED
            shown = _show_progress(run, shown, now)
    except KeyboardInterrupt:
        click.echo(f"build: {name} goes on; follow it with: {_follow_command(cluster, name)}", err=True)
        return _INTERRUPTED
    return FAILED


def _tell_of_silence(error: TransientError) -> None:
    click.echo(f"build: {error.reason}; asking again", err=True)


def _show_progress(run: Run, shown: str, now: datetime) -> str:
    """Print how far a run is, if that is news; return what is shown now."""
    progress = describe_progress(run)
    if progress != shown:
        click.echo(f"{describe_time(run.duration(now)):>6}  {progress}")
    return progress


def _follow_command(cluster: "Cluster", name: str) -> str:
    return f"fleet-fn build --watch {name} --namespace {cluster.namespace}{cluster.context_option}"
