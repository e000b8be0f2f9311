"""The command line of dwrapctl: options in, one call of a neighbour, text out. Knows no protocol and no processes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from dwrap.control import address, alike, client, doctor, doctor_fleet, letting_in, records, show, up
from dwrap.control.errors import ControlError
from dwrap.control.farm import Farm, Plan, processors
from dwrap.control.findings import Surroundings
from dwrap.protocol.messages import DEFAULT_HTTP_PORT, DEFAULT_PORT, FieldsIn

STAY_LISTEN = f"tcp://127.0.0.1:{DEFAULT_PORT}"
STAY_HTTP = f"127.0.0.1:{DEFAULT_HTTP_PORT}"


def main() -> None:
    """The program: errors become one line on standard error and status 1 (`up` has its own, see there)."""
    try:
        status = commands.main(standalone_mode=False)
    except up.CommandError as error:
        status = _complain(error, error.status)
    except ControlError as error:
        status = _complain(error, 125 if "up" in sys.argv[1:2] else 1)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = 130
    except BrokenPipeError:  # `dwrapctl jobs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 0
    raise SystemExit(status)


def _complain(error: Exception, status: int) -> int:
    print(f"dwrap: {show.safe(error)}", file=sys.stderr)
    return status


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dwrap", prog_name="dwrapctl", message="%(prog)s %(version)s")
@click.option("-H", "--host", metavar="DISTRIBUTOR", help="Ask this one. Else $DWRAP_HOST, then `distributor =` in client.conf.")
@click.pass_context
def commands(context: click.Context, host: str | None) -> None:
    """Starts an embedded farm, and asks a distributor what it does and why.

    `dwrapctl up -- ninja -j8` builds on a farm of this machine; `dwrapctl why last` tells where the last command ran and why.
    """
    context.obj = host


def _ask(context: click.Context, what: str, fields: FieldsIn = ()) -> Any:
    return client.ask(address.addresses(context.obj, os.environ), what, fields, client.ANSWER_SECONDS)


def _listed(answer: Any, key: str) -> list[dict[str, Any]]:
    """The list in an answer that is the list itself or holds it under `key`."""
    found = answer.get(key, []) if isinstance(answer, Mapping) else answer
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


@commands.command(name="up", context_settings={"allow_interspersed_args": False})
@click.option("--agents", default=2, show_default=True, type=click.IntRange(1, 200), help="How many agents.")
@click.option(
    "--slots", default=0, type=click.IntRange(0, 4096), help="Slots of each agent.  [default: the processors, spread over the agents]"
)
@click.option("--root", "roots", multiple=True, metavar="DIR", help="What the agents share with the desktop; repeatable.  [default: /]")
@click.option(
    "--listen", multiple=True, metavar="ADDRESS", help=f"Where the distributor listens; repeatable.  [default: {STAY_LISTEN}, or private]"
)
@click.option("--http", metavar="HOST:PORT", help=f"Where metrics and status are served.  [default: {STAY_HTTP}, or any port with COMMAND]")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write what ran where to this file, as JSON, at the end.")
@click.option("--summary", is_flag=True, help="Say on standard error what ran where and how long, at the end.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def up_command(
    agents: int, slots: int, roots: tuple[str, ...], listen: tuple[str, ...], http: str | None, report: Path | None, summary: bool,
    command: tuple[str, ...],
) -> None:  # fmt: skip
    """Starts a distributor and agents on this machine.

    With COMMAND: runs it with DWRAP_HOST set, takes the farm down, and exits with its status (125: the farm could not be
    started; 126, 127: COMMAND could not). Without: stays until Ctrl-C.
    """
    with up.signals_held() as cancelled, up.runtime_directory() as directory:
        plan = Plan(
            listen=listen or ((f"ipc://{directory}/distributor.sock",) if command else (STAY_LISTEN,)),
            http=http or ("127.0.0.1:0" if command else STAY_HTTP),
            agents=agents,
            slots=slots,
            roots=tuple(os.path.abspath(root) for root in roots) or ("/",),
            allow_root=os.getuid() == 0,
        )
        farm = Farm(plan, directory, log=bool(command))
        started = time.time()
        farm.start(cancelled)
        try:
            status = _use(farm, command)
            if report or summary:
                _report(farm, started, report, summary)
        finally:
            farm.stop()
    up.leave_as(status)


def _use(farm: Farm, command: tuple[str, ...]) -> int:
    if command:
        return up.run_command(farm, command)
    print(f"ready {farm.address} {farm.http} agents={len(farm.agents)} slots={len(farm.agents) * farm.plan.slots_each()}", flush=True)
    print(f"dwrap: export DWRAP_HOST={farm.address} to use it; Ctrl-C ends it", file=sys.stderr)
    up.stay(farm)
    return 0


def _report(farm: Farm, started: float, file: Path | None, summary: bool) -> None:
    """The records of all that ran since `started`; a distributor that has died leaves only the desktop's own."""
    try:
        jobs = _listed(client.ask([farm.address], "jobs"), "jobs")
    except ControlError as error:
        _complain(error, 0)
        jobs = []
    everything = records.merge(jobs, records.read_here_log(records.here_log_files(os.environ), since=started))
    ended = time.time()
    if file is not None:
        agents = [agent.name for agent in farm.agents]
        file.write_text(json.dumps({"started_at": started, "ended_at": ended, "agents": agents, "jobs": everything}, indent=1) + "\n")
    if summary:
        print(show.summary(everything, ended - started), file=sys.stderr)


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="The distributor's own answer.")
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Shows the distributor, its agents and its queue."""
    answer = _ask(context, "status")
    if as_json:
        click.echo(json.dumps(answer, indent=1))
        return
    click.echo(show.status_lines(answer))


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="The distributor's own answer.")
@click.pass_context
def agents(context: click.Context, as_json: bool) -> None:
    """Lists the agents: slots in use, load that is not ours, roots, labels."""
    answer = _ask(context, "agents")
    click.echo(json.dumps(answer, indent=1) if as_json else show.agents_table(_listed(answer, "agents")))


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="The records as they are.")
@click.option("--build", metavar="BUILD", help="Only this build's.")
@click.option("--last", default=0, metavar="N", type=click.IntRange(0), help="Only the last N.")
@click.pass_context
def jobs(context: click.Context, as_json: bool, build: str | None, last: int) -> None:
    """Lists jobs, those that ran and those that run, oldest first; also yours that ran here unasked."""
    chosen = [record for record in _all_records(context) if build is None or record.get("build") == build][-last:]
    click.echo(json.dumps(chosen, indent=1) if as_json else show.jobs_table(chosen))


def _all_records(context: click.Context) -> list[records.Record]:
    """The distributor's records and our own log; the log alone when there is no answer, which is said on standard error."""
    here = records.read_here_log(records.here_log_files(os.environ))
    try:
        return records.merge(_listed(_ask(context, "jobs"), "jobs"), here)
    except ControlError as error:
        _complain(error, 0)
        return records.merge([], here)


@commands.command()
@click.argument("job", default="last")
@click.option("--json", "as_json", is_flag=True, help="The record as it is.")
@click.pass_context
def why(context: click.Context, job: str, as_json: bool) -> None:
    """Tells where JOB ran and why, how long it queued, ran and was flushed.

    JOB is an id, the beginning of one, or `last` (the default): the newest of your commands, also one that ran here while no
    distributor answered.
    """
    record = find(_all_records(context), job, os.getuid())
    if as_json:
        click.echo(json.dumps(record, indent=1))
    elif record.get("job"):
        click.echo(show.safe_lines(map(str, _ask(context, "why", [("job", str(record["job"]))]).get("lines", []))))
    else:
        click.echo(show.here_lines(record))


def find(known: list[records.Record], job: str, uid: int) -> records.Record:
    """The record that `job` names. Raises ControlError when none does, or more than one."""
    if job == "last":
        mine = [record for record in known if record.get("uid") in (uid, None)]
        if not mine:
            raise ControlError("no command of yours is known: none has run; run one through dwrap first")
        return mine[-1]
    matching = [record for record in known if str(record.get("job") or "").startswith(job)]
    if len(matching) != 1:
        found = "no job has" if not matching else f"{len(matching)} jobs have"
        raise ControlError(f"cannot tell which job is meant: {found} an id that begins with {job}; dwrapctl jobs lists them")
    return matching[0]


@commands.command()
@click.pass_context
def slots(context: click.Context) -> None:
    """Prints a number for -j: the slots of all agents that would take your jobs.

    `ninja -j$(dwrapctl slots)`. When no distributor answers: the number of processors here (status 0, a note on stderr).
    """
    try:
        answer = _ask(context, "agents")
        mine = alike.Own() if isinstance(answer, Mapping) and answer.get("environment") == "warn" else alike.own(Surroundings())
        taking = [agent for agent in _listed(answer, "agents") if doctor.serves(agent, os.getuid()) and mine.is_like(agent)]
        number = sum(int(agent.get("slots", 0)) for agent in taking)
        if not number:
            _complain(ControlError("no agent takes your jobs now: dwrapctl doctor says why; this is the number of processors here"), 0)
    except ControlError as error:
        _complain(error, 0)
        number = 0
    click.echo(number or processors())


@commands.command()
@click.argument("agent")
@click.pass_context
def drain(context: click.Context, agent: str) -> None:
    """Lets AGENT finish its jobs, gives it no new ones; it leaves when it is done. For operators."""
    answer = _ask(context, "drain", [("agent", agent)])
    if isinstance(answer, Mapping) and answer.get("error"):
        raise ControlError(f"cannot drain {agent}: {answer['error']}; dwrapctl agents lists them")
    click.echo(f"{show.safe(agent)} drains")


@commands.command(name="doctor")
@click.pass_context
def doctor_command(context: click.Context) -> None:
    """Checks that builds here can use the farm; says what to do where they cannot. Exits with 1 when something fails.

    Each agent that takes your jobs runs two small ones in this directory, in files of their own that are removed again.
    """
    with up.endings_raised():
        fleet = doctor_fleet.Fleet(context.obj)
        findings = doctor.examine(Surroundings(), partial(_ask, context), context.obj, fleet.examine)
    for finding in findings:
        click.echo(show.safe(finding))
    context.exit(1 if any(finding.level == "fail" for finding in findings) else 0)


for command in (letting_in.key_group, letting_in.invite, letting_in.join):
    commands.add_command(command)


if __name__ == "__main__":
    main()
