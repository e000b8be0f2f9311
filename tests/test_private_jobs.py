"""Jobs of two users on one farm of root's: neither reaches the other's, the agent's, or root's. Each attack is a real one, and is seen
to work where what stops it is not there.

The agents have a user database of their own (alice, bob), in a mount namespace where the tests may also mount what they like.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq
from farm import DWRAP, Farm, eventually, ready_line
from runner_bench import compiled, namespaces_work

from dwrap.protocol import messages
from dwrap.protocol.messages import Fields, Value

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's agent runs jobs of several users")

SECONDS = 30.0
PATH = "/usr/bin:/bin"
MARKS = itertools.count(1)


@dataclass(frozen=True)
class User:
    """One of the agents' database."""

    name: str
    uid: int
    gid: int
    more: tuple[int, ...] = ()  # groups that the database gives


ALICE = User("alice", 21_001, 21_001, (21_044,))
BOB = User("bob", 21_002, 21_002)
FOREIGN = 21_055  # a group that nobody is in


class House:
    """A farm with one agent, a place that all may enter, and a home there for each user."""

    def __init__(self, folder: Path, tree: str) -> None:
        self.tree = tree
        folder.chmod(0o711)
        self.place = folder / "place"
        self.place.mkdir(mode=0o755)
        self.place.chmod(0o755)
        self.dwrap = self.place / "dwrap"
        shutil.copy(DWRAP, self.dwrap)
        self.attack = self.place / "attack"
        shutil.copy(compiled("attack"), self.attack)
        self.work = folder / "work"
        self.work.mkdir(mode=0o755)
        for user in (ALICE, BOB):
            (self.place / user.name).mkdir(mode=0o700)
            os.chown(self.place / user.name, user.uid, user.gid)
        self._database(folder)
        self._surroundings = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-ec",
             f"mount --bind {folder}/passwd /etc/passwd; mount --bind {folder}/group /etc/group; echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        ready_line(self._surroundings)
        self.inside = ("nsenter", f"--mount=/proc/{self._surroundings.pid}/ns/mnt")
        self.farm = Farm(folder, agents=0, roots=(str(self.place),), allow_root=False)

    def _database(self, folder: Path) -> None:
        users = [f"{user.name}:x:{user.uid}:{user.gid}::/:/bin/sh\n" for user in (ALICE, BOB)]
        groups = [f"{user.name}:x:{user.gid}:\n" for user in (ALICE, BOB)] + [f"more:x:{ALICE.more[0]}:alice\n", f"foreign:x:{FOREIGN}:\n"]
        (folder / "passwd").write_text(Path("/etc/passwd").read_text() + "".join(users))
        (folder / "group").write_text(Path("/etc/group").read_text() + "".join(groups))

    def agent(self, *more: str, slots: int = 2) -> None:
        self.farm.add_agent("agent-1", slots, "--tree", self.tree, "--work", str(self.work), *more, under=self.inside)

    def mount(self, *words: str) -> None:
        subprocess.run([*self.inside, "mount", *words], check=True)

    def start(self, user: User, script: str, *, groups: Sequence[int] | None = None, cwd: Path | None = None, **env: str) -> Job:
        """A wrapper of that user's, with a shell script for a command. Its variables are those given, and what the farm needs."""
        ours = {"PATH": PATH, "DWRAP_HOST": self.farm.over("tcp"), "DWRAP_FALLBACK": "fail", **env}
        process = subprocess.Popen(
            [self.dwrap, "/bin/sh", "-c", script], cwd=cwd or self.place / user.name, env=ours,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            user=user.uid, group=user.gid, extra_groups=user.more if groups is None else groups,
        )  # fmt: skip
        return Job(process)

    def run(self, user: User, script: str, **how: object) -> tuple[int, str, str]:
        return self.start(user, script, **how).end()  # type: ignore[arg-type]

    def out(self, user: User, script: str, **how: object) -> str:
        status, out, errors = self.run(user, script, **how)
        assert (status, errors) == (0, ""), (out, errors)
        return out

    def agents_own(self) -> list[int]:
        """The agent's processes: those that are root's of all that have come of it."""
        found, left = [], [self.farm.agents["agent-1"].pid]
        while left:
            pid = left.pop()
            try:
                left += [int(child) for task in os.listdir(f"/proc/{pid}/task") for child in read(pid, f"task/{task}/children").split()]
                if os.stat(f"/proc/{pid}").st_uid == 0:
                    found.append(pid)
            except OSError:  # it has ended
                continue
        return found

    def close(self) -> None:
        self.farm.close()
        self._surroundings.kill()
        self._surroundings.communicate()


class Job:
    """A wrapper that runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def line(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().rstrip("\n")

    def end(self) -> tuple[int, str, str]:
        out, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out.decode(), errors.decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=SECONDS)


def read(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def of_uid(user: User) -> list[int]:
    """That user's processes, wrappers aside."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == user.uid and (entry / "comm").read_text() != "dwrap\n":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def mark() -> str:
    """A number of seconds for `sleep` that tells it from every other."""
    return f"6000.{os.getpid()}{next(MARKS):03}"


def sleeper(seconds: str) -> int:
    """The process id, as this namespace counts, of that sleep."""
    wanted = f"sleep\0{seconds}\0".encode()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes() == wanted:
                return int(entry.name)
        except OSError:
            continue
    return 0


@pytest.fixture(params=["pidns", "subreaper"])
def house(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[House]:
    if request.param == "pidns" and not namespaces_work():
        pytest.skip("this kernel or container refuses PID namespaces")
    made = House(short_dir, request.param)
    try:
        yield made
    finally:
        made.close()
        print((short_dir / "farm.log").read_text("utf-8", "replace")[-10_000:])


@pytest.fixture
def served(house: House) -> House:
    """With an agent as it is by default."""
    house.agent()
    return house


# ---- each other's processes and files ----

ALL = "signal ptrace environ mem fd tmpdir end\n"


def test_another_users_job_is_out_of_reach(served: House) -> None:
    seconds = mark()
    victim = served.start(BOB, f'echo "$TMPDIR"; exec sleep {seconds}')
    folder = victim.line()
    pid = eventually(lambda: sleeper(seconds))
    reach = f"{served.attack} reach {pid} {folder}"
    assert served.out(ALICE, reach) == "end\n"
    assert served.out(BOB, f"sleep {mark()} & {served.attack} reach $! $TMPDIR; kill $!") == ALL, "it is an attack"
    own = served.out(BOB, reach)
    assert own == ("tmpdir end\n" if served.tree == "pidns" else ALL), "and would do, were it the same user"
    assert served.run(ALICE, f"kill -9 {pid} || kill -9 -1")[1] == ""
    assert sleeper(seconds) == pid
    victim.kill()


def test_the_agent_is_out_of_reach(served: House) -> None:
    job = served.start(ALICE, "echo up; read wait")
    job.line()
    victims = served.agents_own()
    assert len(victims) >= 4, "agent, starter, runner, holder"
    for victim in victims:
        assert served.out(ALICE, f"{served.attack} reach {victim} /nowhere") == "end\n"
        by_root = subprocess.run([served.attack, "reach", str(victim), "/nowhere"], capture_output=True, check=True).stdout
        assert by_root == b"signal ptrace environ mem fd end\n"
    assert job.process.communicate(b"\n", timeout=SECONDS)[1] == b""


def test_a_temporary_directory_is_its_jobs_own(served: House) -> None:
    job = served.start(BOB, 'stat -c "%a %u %g" "$TMPDIR"; echo "$TMPDIR"; echo x >"$TMPDIR/file"; read wait')
    assert job.line() == f"700 {BOB.uid} {BOB.gid}"
    folder = Path(job.line())
    peeks = f"cat {folder}/file; ls {folder.parent}; echo x >{folder}/file; mv {folder} {folder}.old; rm -r {folder}"
    status, out, _ = served.run(ALICE, peeks)
    assert (status, out) == (1, "")
    job.process.communicate(b"\n", timeout=SECONDS)
    assert not folder.exists()


def test_a_link_leads_nowhere_when_a_temporary_directory_is_removed(served: House) -> None:
    """Not even the user who let everybody in loses what another's link there leads to."""
    precious = served.place / "bob" / "precious"
    precious.mkdir()
    for name in ("first", "second"):
        (precious / name).write_text("kept")
        os.chown(precious / name, BOB.uid, BOB.gid)
    os.chown(precious, BOB.uid, BOB.gid)
    job = served.start(BOB, 'chmod 777 "$TMPDIR"; echo "$TMPDIR"; read wait; rm "$TMPDIR/link/first"')
    folder = Path(job.line())
    assert served.out(ALICE, f"cd {folder} && ln -s {precious} link && mkdir deep && ln -s {precious} deep/link; echo $?") == "0\n"
    for name in ("planted", f"{folder.name}x"):
        assert served.run(ALICE, f"ln -s {precious} {folder.parent}/{name}")[0] == 1, "beside it nobody may make anything"
    assert job.process.communicate(b"\n", timeout=SECONDS)[1] == b""
    assert sorted(path.name for path in precious.iterdir()) == ["second"], "the link did lead there, and was not followed"
    eventually(lambda: not (folder / "link").is_symlink())


# ---- what a job's environment may make of others ----

CANARY = """
#include <stdio.h>
#include <stdlib.h>
#include <errno.h>
#include <unistd.h>
__attribute__((constructor)) static void sing(void)
{
    FILE *log = fopen(LOG, "a");
    const char *job = getenv("DWRAP_JOB");
    if (log) {
        fprintf(log, "%d %d %s %s %s\\n", (int)getuid(), (int)geteuid(), program_invocation_short_name, NAME, job ? job : "-");
        fclose(log);
    }
}
int sing_out(void) { return 0; }
"""


@dataclass(frozen=True)
class Canaries:
    """What records who runs it, and the environment that has it run."""

    log: Path
    env: Mapping[str, str]
    program: Path

    def heard(self) -> list[list[str]]:
        """uid, euid, program, canary, job."""
        return [line.split() for line in self.log.read_text().splitlines()]


def canaries(place: Path) -> Canaries:
    nest = place / "nest"
    nest.mkdir()
    log = nest / "log"
    log.touch()
    log.chmod(0o666)
    (nest / "canary.c").write_text(CANARY)
    for name in ("preload", "library", "convert"):
        (nest / name).mkdir()
        target = nest / name / {"preload": "canary.so", "library": "libcanary.so", "convert": "CANARY.so"}[name]
        defines = [f'-DLOG="{log}"', f'-DNAME="{name}"', "-D_GNU_SOURCE"]
        subprocess.run(["cc", "-shared", "-fPIC", *defines, nest / "canary.c", "-o", target], check=True)
    (nest / "convert" / "gconv-modules").write_text("module CANARY// INTERNAL CANARY 1\n")
    (nest / "main.c").write_text("int sing_out(void); int main(void) { return sing_out(); }\n")
    subprocess.run(["cc", nest / "main.c", "-L", nest / "library", "-lcanary", "-o", nest / "main"], check=True)
    (nest / "bash").write_text(f"echo $UID $EUID bash bash ${{DWRAP_JOB:--}} >>{log}\n")
    song = "import os; print(os.getuid(), os.geteuid(), 'python', 'python', os.environ.get('DWRAP_JOB', '-'), file=open(%r, 'a'))\n"
    (nest / "python").write_text(song % str(log))
    env = {
        "LD_PRELOAD": str(nest / "preload" / "canary.so"),
        "LD_LIBRARY_PATH": str(nest / "library"),
        "BASH_ENV": str(nest / "bash"),
        "PYTHONSTARTUP": str(nest / "python"),
        "GCONV_PATH": str(nest / "convert"),
        "MALLOC_CHECK_": "3",
        "CANARY": "sings",
    }
    return Canaries(log, env, nest / "main")


def test_only_the_job_meets_its_environment(served: House) -> None:
    """What loads libraries or runs scripts by a variable's word does so as the user, inside of the job, in no process of the agent's."""
    birds = canaries(served.place)
    seconds = mark()
    python = "echo | python3 -i 2>/dev/null;" if shutil.which("python3", path=PATH) else ""
    script = f"{birds.program}; bash -c :; iconv -f CANARY -t UTF-8 /dev/null 2>/dev/null; {python} echo $DWRAP_JOB; exec sleep {seconds}"
    job = served.start(ALICE, script, **birds.env)
    name = job.line()
    command = eventually(lambda: sleeper(seconds))
    for pid in served.agents_own():
        assert b"CANARY" not in read(pid, "environ"), read(pid, "cmdline")
        assert b"/nest/" not in read(pid, "maps"), read(pid, "cmdline")
    assert b"CANARY=sings" in read(command, "environ"), "it would have been seen"
    assert b"/nest/preload/canary.so" in read(command, "maps")
    job.kill()
    eventually(lambda: not of_uid(ALICE))
    heard = birds.heard()
    assert {line[3] for line in heard} >= {"preload", "library", "convert", "bash", *(["python"] if python else [])}, "each of them sings"
    assert {(line[0], line[1]) for line in heard} == {(str(ALICE.uid), str(ALICE.uid))}
    assert {line[4] for line in heard if line[2] != "dwrap"} == {name}, heard
    assert not {line[2] for line in heard} & {"dwrap-runner", "dwrap-holder", "dwrap-agent", "dwrap-starter"}


def test_programs_gain_no_rights_inside_of_jobs(served: House) -> None:
    """Neither set-user-id nor set-group-id, nor what a preloaded library might do to such a program."""
    birds = canaries(served.place)
    program = served.place / "id"
    shutil.copy(shutil.which("id", path=PATH) or "/usr/bin/id", program)
    os.chown(program, 0, 0)
    program.chmod(0o6755)
    outside = subprocess.run([program, "-u"], user=ALICE.uid, group=ALICE.gid, extra_groups=[], capture_output=True, check=True)
    if outside.stdout != b"0\n":
        pytest.skip("set-user-id programs gain nothing here outside of a job either")
    assert served.out(ALICE, f"{program} -u; {program} -g", **birds.env) == f"{ALICE.uid}\n{ALICE.gid}\n"
    assert {(line[0], line[1]) for line in birds.heard()} == {(str(ALICE.uid), str(ALICE.uid))}


# ---- who a job is ----


def as_user(user: User, what: Callable[[], bytes]) -> bytes:
    """What it returns when a process of that user's calls it."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            os.write(theirs, what())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


class Submitter:
    """Says SUBMIT and GO by hand, with whatever fields."""

    def __init__(self, address: str) -> None:
        context = zmq.Context()
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(address)

    def say(self, verb: str, pairs: Sequence[tuple[str, Value]], *bodies: bytes) -> None:
        self.socket.send_multipart(messages.encode(verb, pairs, *bodies))

    def hear(self, milliseconds: int) -> tuple[str, Fields, Sequence[bytes]] | None:
        return messages.parse(self.socket.recv_multipart()) if self.socket.poll(milliseconds) else None

    def submit(self, script: str, cwd: str, asks: Sequence[tuple[str, Value]] = (), goes: Sequence[tuple[str, Value]] = ()) -> bytes:
        """The output, and how it ended: the status, or the error, or the last verb and why. A job that is offered again is given up."""
        job, out, offers = uuid.uuid4().hex, b"", 0
        self.say("SUBMIT", [("version", 1), ("job", job), ("cwd", cwd), ("command", "sh"), ("build", "b"), *asks])
        while (heard := self.hear(15_000)) is not None:
            verb, fields, bodies = heard
            if verb == "OUTPUT":
                out += bodies[0]
            if verb == "RESULT":
                dropped = fields.text("groups_dropped")
                return out + f"{fields.text('status')}{fields.text('error')} {dropped}".rstrip().encode()
            offers += verb == "OFFER"
            if verb in ("HERE", "UNAVAILABLE", "REFUSED", "FAILED") or offers > 1:
                return out + f"{verb} {fields.text('reason')}".encode()
            if verb == "OFFER":
                argv = messages.encode_strings([b"/bin/sh", b"-c", script.encode()])
                streams = [("stdin", "null"), ("stdout", "stream"), ("stderr", "stream")]
                self.say("GO", [("job", job), ("stamp", fields.name("stamp")), *streams, *goes], argv, b"PATH=/usr/bin:/bin\0")
        return out + b"silence"


IDS = "id -u; id -g; id -G"
PLAIN = f"{ALICE.uid}\n{ALICE.gid}\n{ALICE.gid}\n0"
FORGED: list[tuple[list[tuple[str, Value]], str]] = [
    ([], PLAIN),
    ([("uid", 0)], PLAIN),
    ([("uid", BOB.uid), ("become", 0), ("gid", ALICE.gid)], PLAIN),
    ([("group", group) for group in (0, 27, ALICE.more[0], FOREIGN, BOB.gid)],
     f"{ALICE.uid}\n{ALICE.gid}\n{ALICE.gid} {ALICE.more[0]}\n0 0,27,{BOB.gid},{FOREIGN}"),
    ([("gid", ALICE.more[0])], f"{ALICE.uid}\n{ALICE.more[0]}\n{ALICE.more[0]}\n0"),
    *[([("gid", gid)], f"uid {ALICE.uid} does not belong to group {gid} on this agent") for gid in (0, FOREIGN, BOB.gid, 2**32 - 1, 2**32)],
    ([("gid", "-1")], "field gid is not a number"),
]  # fmt: skip


def test_what_a_submitter_says_of_itself_gives_it_nothing(served: House) -> None:
    home = str(served.place / "alice")
    for claims, expected in FORGED:
        asks = [(key, value) for key, value in claims if key != "gid"]  # also in SUBMIT
        said = as_user(ALICE, lambda asks=asks, claims=claims: Submitter(served.farm.over("tcp")).submit(IDS, home, asks, claims))  # type: ignore[misc]
        ended = said.decode()
        assert ended == expected or (ended.startswith("FAILED ") and expected in ended), claims
    said = as_user(User("root", 0, 0), lambda: Submitter(served.farm.over("tcp")).submit(IDS, str(served.place), [("uid", ALICE.uid)]))
    assert said.startswith(b"UNAVAILABLE "), "root's own jobs do not run here"


def test_groups_that_were_dropped_are_told(served: House) -> None:
    assert served.out(ALICE, "id -G", groups=[*ALICE.more, FOREIGN, 0]) == f"{ALICE.gid} {ALICE.more[0]}\n"
    assert served.farm.jobs()[-1]["groups_dropped"] == f"0,{FOREIGN}"
    told = served.farm.query("why", job="last")
    assert f"groups 0 {FOREIGN} were dropped: neither the agent's database nor the key gives them" in str(told)
    served.out(ALICE, "true")
    assert served.farm.jobs()[-1]["groups_dropped"] == ""


def test_a_directory_is_entered_as_the_user(served: House) -> None:
    """However it is written, and whatever link leads there."""
    locked, opened = served.place / "locked", served.place / "opened"
    for folder in (locked, opened):
        (folder / "in").mkdir(parents=True)
        folder.chmod(0o755)
        (served.place / "alice" / folder.name).symlink_to(folder)
        (served.place / f"{folder.name}-in").symlink_to(folder / "in")
    locked.chmod(0o700)
    forms = ["{}", "{}/in", "alice/../{}/in", "alice/{}", "alice/{}/in", "{}-in", "opened/../{}/in"]
    for form in forms:
        for folder in (locked, opened):
            cwd = f"{served.place}/{form.format(folder.name)}"
            expected = str(opened) if folder == opened else f"FAILED agent agent-1: cannot enter {cwd} on this agent"
            said = as_user(ALICE, lambda cwd=cwd: Submitter(served.farm.over("tcp")).submit("pwd -P", cwd))  # type: ignore[misc]
            assert said.decode().startswith(expected), (cwd, said)
    assert served.out(ALICE, "pwd", cwd=opened / "in") == f"{opened}/in\n"


# ---- what a job may use up ----

MOST = 200


def test_one_user_has_no_more_processes_than_the_operator_says(house: House) -> None:
    house.agent("--processes", str(MOST))
    assert int(house.out(ALICE, f"{house.attack} fork {2 * MOST}")) < MOST
    assert int(house.out(ALICE, f"ulimit -u unlimited 2>/dev/null; {house.attack} fork {2 * MOST}")) < MOST


def test_without_a_small_limit_there_may_be_more(house: House) -> None:
    house.agent("--processes", str(100 * MOST))
    assert int(house.out(ALICE, f"{house.attack} fork {2 * MOST}")) == 2 * MOST


def test_a_job_that_forks_without_end_is_its_users_own_trouble(house: House) -> None:
    house.agent("--processes", str(MOST))
    bomb = house.start(ALICE, f"exec {house.attack} bomb")
    assert bomb.line() == "lit"
    eventually(lambda: len(of_uid(ALICE)) > MOST // 2, saying="it does fork")
    for _ in range(3):
        before = time.monotonic()
        assert house.out(BOB, "/bin/sh -c 'echo fine'") == "fine\n"
        assert time.monotonic() - before < 20
        assert len(of_uid(ALICE)) <= MOST
    bomb.kill()
    eventually(lambda: not of_uid(ALICE), SECONDS, "nothing of it is left")
    assert house.out(ALICE, "/bin/sh -c 'echo fine'") == "fine\n"


FILL = 'cat /dev/zero >"$TMPDIR/fill"; echo full; while :; do cat /dev/zero >>"$TMPDIR/fill"; sleep 0.01; done 2>/dev/null'
NAMES = 'cd "$TMPDIR"; i=0; while true >"$i"; do i=$((i+1)); done 2>/dev/null; echo full; read wait'


@pytest.mark.parametrize("script", [FILL, NAMES], ids=["bytes", "names"])
def test_a_full_disk_is_the_trouble_of_whoever_fills_it(house: House, script: str) -> None:
    house.mount("-t", "tmpfs", "-o", "size=16m,nr_inodes=2000", "scratch", str(house.work))
    house.agent()
    filler = house.start(ALICE, script)
    assert filler.line() == "full"
    for number in range(6):
        assert house.run(BOB, f"echo {number}; exit {number}") == (number, f"{number}\n", "")
    ended = [job for job in house.farm.jobs() if job["uid"] == BOB.uid]
    assert [(job["outcome"], job["attempt"] and job["losses"]) for job in ended] == [("done", 0)] * 6
    filler.kill()
    eventually(lambda: not of_uid(ALICE))
    size = 10 * 1024 * 1024
    eventually(lambda: house.out(BOB, f'head -c {size} /dev/zero 2>/dev/null >"$TMPDIR/x"; stat -c %s "$TMPDIR/x"') == f"{size}\n")


def test_the_result_outlives_the_agent_on_a_full_disk(house: House) -> None:
    house.mount("-t", "tmpfs", "-o", "size=16m", "scratch", str(house.work))
    house.agent()
    filler = house.start(ALICE, FILL)
    assert filler.line() == "full"
    old = house.place / "bob" / "old"
    old.write_text("old\n")
    os.chown(old, BOB.uid, BOB.gid)
    job = house.start(BOB, "echo more >>old; echo up; sleep 1; exit 3")
    assert job.line() == "up"
    house.farm.restart_agent("agent-1", signal.SIGKILL)
    assert job.end() == (3, "", "")
    assert old.read_text() == "old\nmore\n"
    filler.kill()


def test_where_nothing_is_set_aside_a_job_waits_and_does_not_fail(house: House) -> None:
    """This is what happens without: nobody's job is started, and none is told to have failed."""
    house.mount("-t", "tmpfs", "-o", "size=16m", "scratch", str(house.work))
    house.agent()
    filler = house.start(ALICE, FILL)
    assert filler.line() == "full"
    subprocess.run([*house.inside, "sh", "-c", f"rm -r {house.work}/*/spare"], check=True)
    free = [*house.inside, "stat", "-f", "-c", "%a", str(house.work)]
    eventually(lambda: subprocess.run(free, capture_output=True, check=True).stdout == b"0\n")
    job = house.start(BOB, "echo fine")
    log = house.farm.directory / "farm.log"
    eventually(lambda: f": {os.strerror(errno.ENOSPC)}" in log.read_text())
    assert job.process.poll() is None
    job.kill()
    filler.kill()
