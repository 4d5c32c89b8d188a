"""Attacks on the sandbox behind `PythonInterpreter`, and what it must still be able to do.

An attack says what its answer must show, so that one which never ran cannot pass; it prints ESCAPED where it succeeds.
Two checks show that the tests can fail: harmless attacks do escape from a plain Python, and from a jail that lacks one lock.
Signals are number 0 and forks few: on a machine with a broken sandbox the attacks must do no harm.
"""

import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("the sandbox is for Linux", allow_module_level=True)

from agentcpm_kit.world import jail, sandbox
from agentcpm_kit.world.faults import ToolFault
from agentcpm_kit.world.sandbox import SandboxLimits, run_python

pytestmark = pytest.mark.skipif(jail.LIBC.syscall(jail.LANDLOCK_CREATE, None, 0, 1) < 1, reason="this kernel has no landlock")

SECRET = "canary-5b1d"
REPO = Path(__file__).parents[1]
SMALL = {"cpu_s": 1, "wall_s": 10, "memory_mb": 128, "output_chars": 2000, "disk_mb": 2}
DENIED, REFUSED = "PermissionError", "REFUSED"
TIRED = "stopped after (1 s of CPU|10 s of wall) time"  # the latter on a busy machine
PRELUDE = """
import ctypes, os, platform, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
arch = {arch}
def report(result):
    print("REFUSED" if result in (-1, None) and ctypes.get_errno() == 1 else f"ESCAPED {result}", ctypes.get_errno())
"""


@dataclass(frozen=True)
class Attack:
    """`answer` is a pattern that the answer must contain. `harmless`: may be tried in a plain Python, where it must succeed."""

    id: str
    code: str
    answer: str
    harmless: bool = False
    wall_s: float = 10


ATTACKS = [
    # Processes and threads.
    Attack("fork", "if os.fork():\n    print('ESCAPED')", DENIED, harmless=True),
    Attack("fork-bomb", "for _ in range(20):\n    if os.fork() == 0:\n        time.sleep(5)\nprint('ESCAPED')", DENIED),
    Attack("forkpty", "os.forkpty(); print('ESCAPED')", "(PermissionError|OSError)"),
    Attack("vfork", "report(libc.vfork())", REFUSED),
    Attack("clone", "report(libc.syscall([220, 56][arch], 17, 0, 0, 0, 0))", REFUSED),
    Attack("clone3", "report(libc.syscall(435, ctypes.create_string_buffer(88), 88))", REFUSED),
    Attack("thread", "import threading\nthreading.Thread(target=print, args=('ESCAPED',)).start()", "can't start new thread",
           harmless=True),
    Attack("thread-bomb", "import _thread\nfor _ in range(1000):\n    _thread.start_new_thread(time.sleep, (9,))\n"
           "print('ESCAPED')", "can't start new thread"),
    Attack("multiprocessing", "import multiprocessing as m\nm.Process(target=print, args=('ESCAPED',)).start()", DENIED),
    Attack("subprocess", "import subprocess\nsubprocess.run(['/bin/echo', 'ESCAPED'])", DENIED, harmless=True),
    Attack("os.system", "print('status', os.system('echo ESCAPED'))", "status (-1|32512)", harmless=True),
    Attack("posix_spawn", "os.posix_spawn('/bin/echo', ['echo', 'ESCAPED'], {}); time.sleep(0.1)", DENIED, harmless=True),
    Attack("execve", "os.execve('/bin/echo', ['echo', 'ESCAPED'], {})", DENIED, harmless=True),
    Attack("memfd-exec", "fd = os.memfd_create('x'); os.write(fd, b'#!/bin/echo ESCAPED'); os.execve(fd, ['x'], {})", DENIED),
    Attack("setsid", "report(libc.setsid())", REFUSED),
    Attack("setpgid", "os.setpgid(0, 0); print('ESCAPED')", DENIED),
    Attack("daemon", "report(libc.daemon(0, 0))", REFUSED),
    # Other processes.
    Attack("kill-parent", "os.kill(os.getppid(), 0); print('ESCAPED')", DENIED, harmless=True),
    Attack("kill-init", "os.kill(1, 0); print('ESCAPED')", DENIED),
    Attack("kill-everyone", "os.kill(-1, 0); print('ESCAPED')", DENIED),
    Attack("kill-group", "os.kill(0, 0); print('ESCAPED')", DENIED),
    Attack("tgkill", "report(libc.syscall([131, 234][arch], os.getppid(), os.getppid(), 0))", REFUSED),
    Attack("pidfd", "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0); print('ESCAPED')", DENIED, harmless=True),
    Attack("signal-by-fcntl", "import fcntl\nfcntl.fcntl(1, 8, os.getppid()); print('ESCAPED')", DENIED, harmless=True),
    Attack("ptrace", "report(libc.ptrace(16, os.getppid(), 0, 0))", REFUSED),
    Attack("parent-memory", "b = ctypes.create_string_buffer(16)\n"
           "report(libc.process_vm_readv(os.getppid(), b, 1, b, 1, 0))", REFUSED),
    Attack("parent-memory-file", "print('ESCAPED', open(f'/proc/{os.getppid()}/mem', 'rb'))", DENIED, harmless=True),
    Attack("parent-limits", "import resource\nprint('ESCAPED', resource.prlimit(os.getppid(), resource.RLIMIT_CPU))", DENIED,
           harmless=True),
    Attack("parent-priority", "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19); print('ESCAPED')", DENIED),
    # Files outside.
    *(Attack(f"read-{name}", f"print('ESCAPED', open({path!r}, 'rb').read())", DENIED, harmless=True) for name, path in {
        "passwd": "/etc/passwd", "host": "/proc/sys/kernel/hostname", "environ": "/proc/self/environ",
        "maps": "/proc/self/maps", "repository": str(REPO / "pyproject.toml"), "module": sandbox.__file__,
        "package": psutil.__file__}.items()),
    Attack("read-hostname", "print('ESCAPED', open('/etc/hostname').read())", "(PermissionError|FileNotFoundError)"),
    Attack("read-init", "print('ESCAPED', open('/proc/1/cmdline', 'rb').read())", DENIED),
    Attack("read-sys", "print('ESCAPED', os.listdir('/sys'))", DENIED, harmless=True),
    Attack("read-outside", "print('ESCAPED', open('{outside}/secret').read())", DENIED, harmless=True),
    Attack("read-by-ctypes", "fd = libc.openat(-100, b'{outside}/secret', 0); print('ESCAPED' if fd > 0 else 'fd', fd)", "fd -1",
           harmless=True),
    Attack("read-dots", "print('ESCAPED', open('../' * 20 + '{outside}/secret').read())", DENIED, harmless=True),
    Attack("read-by-fd", "os.chdir('{outside}'); print('ESCAPED', open('secret').read())", DENIED, harmless=True),
    Attack("list-home", "print('ESCAPED', os.listdir('{home}'))", DENIED, harmless=True),
    Attack("list-root", "print('ESCAPED', os.listdir('/'))", DENIED, harmless=True),
    Attack("list-repository", f"print('ESCAPED', os.listdir({str(REPO)!r}))", DENIED, harmless=True),
    Attack("read-packages", "import glob\nfiles = glob.glob(os.path.dirname(os.__file__) + '/site-packages/*/*.py')\n"
           f"print('ESCAPED', open(files[0]).read()) if files else print('{REFUSED}')",
           f"({DENIED}|{REFUSED})"),
    Attack("read-libraries", "import glob\nprint('found', glob.glob('/usr/lib/*') + glob.glob('/lib/*'))", r"found \[\]"),
    Attack("symlink", "os.symlink('{outside}/secret', 'x'); print('ESCAPED', open('x').read())", DENIED, harmless=True),
    Attack("hardlink", "os.link('{outside}/secret', 'x'); print('ESCAPED', open('x').read())", DENIED),
    Attack("overwrite-outside", "open('{outside}/secret', 'w').write('ESCAPED')", DENIED),
    Attack("truncate-outside", "os.truncate('{outside}/secret', 0); print('ESCAPED')", DENIED),
    Attack("remove-outside", "os.unlink('{outside}/secret'); print('ESCAPED')", DENIED),
    Attack("rename-outside", "open('x', 'w'); os.rename('x', '{outside}/secret'); print('ESCAPED')", DENIED),
    Attack("chmod-outside", "os.chmod('{outside}/secret', 0o777); print('ESCAPED')", DENIED),
    Attack("utime-outside", "os.utime('{outside}/secret', (0, 0)); print('ESCAPED')", DENIED),
    *(Attack(f"write-{path[1:].replace('/', '-')}", f"open('{path}/sandbox-attack', 'w'); print('ESCAPED')", DENIED)
      for path in ("/tmp", "/dev/shm", "/var/tmp")),
    Attack("write-library", "print('ESCAPED', open(os.__file__, 'r+'))", DENIED),
    Attack("truncating-read", "open('x', 'w').write('x'); os.open('x', os.O_RDONLY | os.O_TRUNC); print('ESCAPED')", DENIED,
           harmless=True),
    Attack("terminal", "print('ESCAPED', open('/dev/tty', 'w'))", DENIED),
    Attack("null-device", "print('ESCAPED', open('/dev/null', 'w'))", DENIED, harmless=True),
    # Network.
    *(Attack(f"socket-{name}", f"import socket\nprint('ESCAPED', socket.socket({kind}))", DENIED, name in ("tcp", "udp", "unix"))
      for name, kind in {"tcp": "", "udp": "socket.AF_INET, socket.SOCK_DGRAM", "unix": "socket.AF_UNIX",
                         "ipv6": "socket.AF_INET6", "netlink": "socket.AF_NETLINK, socket.SOCK_RAW",
                         "raw": "socket.AF_INET, socket.SOCK_RAW, 1"}.items()),
    Attack("connect", "import socket\nsocket.create_connection(('127.0.0.1', {port})); print('ESCAPED')", DENIED, harmless=True),
    Attack("getaddrinfo", "import socket\nprint('ESCAPED', socket.getaddrinfo('localhost', 80))", "(gaierror|PermissionError)"),
    Attack("urllib", "import urllib.request\nprint('ESCAPED', urllib.request.urlopen('http://127.0.0.1:{port}'))",
           "Operation not permitted"),
    # Kernel interfaces.
    Attack("chroot", "os.chroot('.'); print('ESCAPED')", DENIED),
    Attack("mount", "report(libc.mount(b'none', b'.', b'tmpfs', 0, None))", REFUSED),
    Attack("unshare", "report(libc.unshare(0x10000000))", REFUSED),
    Attack("setuid", "os.setuid(12345); print('ESCAPED')", DENIED),
    Attack("io_uring", "report(libc.syscall(425, 8, ctypes.create_string_buffer(120)))", REFUSED),
    Attack("bpf", "report(libc.syscall([280, 321][arch], 0, ctypes.create_string_buffer(120), 120))", REFUSED),
    Attack("keyctl", "report(libc.syscall([219, 250][arch], 0, -3, 0))", REFUSED),
    Attack("perf", "report(libc.syscall([241, 298][arch], ctypes.create_string_buffer(120), 0, -1, -1, 0))", REFUSED),
    Attack("userfaultfd", "report(libc.syscall([282, 323][arch], 1))", REFUSED),
    Attack("inotify", "report(libc.inotify_init1(0))", REFUSED),
    Attack("pipe", "print('ESCAPED', os.pipe())", DENIED, harmless=True),
    Attack("shared-memory", "from multiprocessing import shared_memory\n"
           "print('ESCAPED', shared_memory.SharedMemory(create=True, size=4096))", "(PermissionError|ImportError)"),
    Attack("shm-sysv", "report(libc.shmget(0, 4096, 0o1600))", REFUSED),
    Attack("queue-sysv", "report(libc.msgget(0, 0o1600))", REFUSED),
    Attack("semaphore-sysv", "report(libc.semget(0, 1, 0o1600))", REFUSED),
    Attack("queue-posix", "report(libc.mq_open(b'/x', 0o102, 0o600, None))", REFUSED),
    Attack("host-name", "b = ctypes.create_string_buffer(400); report(libc.uname(b))", REFUSED, harmless=True),
    # Undoing the jail.
    Attack("prctl", "report(libc.prctl(22, 0, 0, 0, 0))", REFUSED),
    Attack("prctl-dumpable", "report(libc.prctl(4, 1, 0, 0, 0))", REFUSED),
    Attack("second-filter", "report(libc.syscall([277, 317][arch], 1, 0, None))", REFUSED),
    Attack("second-landlock", "report(libc.syscall(444, None, 0, 1))", REFUSED),
    Attack("setrlimit", "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1)); print('ESCAPED')",
           "not allowed to raise", harmless=True),
    Attack("frames", "g = sys._getframe(1).f_globals\ng['set_limits'](9, 9999, 9999); print('ESCAPED')", DENIED),
    Attack("gc", "import gc, types\n[f] = [o for o in gc.get_objects() if type(o) is types.FunctionType and "
           "o.__name__ == 'restrict_files']\nf(); print('ESCAPED')", DENIED),
    Attack("settrace", "sys.settrace(lambda *a: None); sys.setprofile(None); sys.addaudithook(lambda *a: None)\n"
           "os.fork(); print('ESCAPED')", DENIED),
    Attack("x32-numbers", "report(libc.syscall(0x40000000 | 57))", REFUSED),
    Attack("inherited-files", "held = []\nfor fd in range(3, 64):\n    try:\n        held.append((fd, os.fstat(fd)))\n"
           "    except OSError:\n        pass\nprint('held', held)", r"held \[\]"),
    Attack("own-source", "os.lseek(0, 0, 0); print('left', os.read(0, 99))", "left b''"),
    # Exhaustion.
    Attack("memory-bytes", "x = bytearray(1 << 28); print('ESCAPED')", "more than 128 MB", harmless=True),
    Attack("memory-list", "x = []\nwhile True:\n    x.append(bytearray(1 << 20))", "more than 128 MB"),
    Attack("memory-small", "x = []\nwhile True:\n    x = [x, [x]]", f"({TIRED}|more than 128 MB)"),
    Attack("memory-map", "import mmap\nx = mmap.mmap(-1, 1 << 28); print('ESCAPED')", "Cannot allocate memory", harmless=True),
    Attack("one-big-file", "with open('x', 'wb', buffering=0) as f:\n    while f.write(bytes(1 << 20)):\n        pass",
           "may hold 2 MB"),
    Attack("many-files", "for i in range(64):\n    open(f'{i}', 'wb').write(bytes(1 << 18))\ntime.sleep(5); print('ESCAPED')",
           "take more than 2 MB"),
    Attack("many-empty-files", "for i in range(10**4):\n    open(f'{i}', 'w').close()\ntime.sleep(5); print('ESCAPED')",
           "take more than 2 MB"),
    Attack("sparse-file", "open('x', 'wb').truncate(1 << 40); print('ESCAPED')", "may hold 2 MB"),
    Attack("nameless-file", "os.open('.', os.O_TMPFILE | os.O_RDWR); print('ESCAPED')", DENIED),
    Attack("hidden-file", "f = open('x', 'wb'); os.unlink('x'); print('ESCAPED')", DENIED, harmless=True),
    Attack("deep-folders", "for _ in range(5000):\n    os.mkdir('x'); os.chdir('x')", DENIED),
    Attack("fifo", "os.mkfifo('x'); print('ESCAPED')", DENIED, harmless=True),
    Attack("many-open-files", "open('x', 'w')\nkept = [open('x') for _ in range(200)]; print('ESCAPED')", "Too many open files",
           harmless=True),
    Attack("infinite-output", "while True:\n    print('x' * 1000)", "printed far more than 2000"),
    Attack("infinite-errors", "while True:\n    print('x' * 1000, file=sys.stderr)", "printed far more than 2000"),
    Attack("endless-sleep", "print('before')\nwhile True:\n    time.sleep(60)",
           "before\nError: stopped after 1 s of wall", wall_s=1),
    Attack("closed-output", "os.close(1); os.close(2)\nwhile True:\n    time.sleep(60)", "stopped after 1 s of wall", wall_s=1),
    Attack("deaf-spin", "for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n    signal.signal(s, signal.SIG_IGN)\n"
           "print('deaf')\nwhile True:\n    pass", f"deaf\nError: {TIRED}"),
    Attack("huge-power", "print(9 ** 9 ** 9 ** 9)", f"({TIRED}|more than 128 MB)"),
    Attack("regex", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')", TIRED),
    Attack("recursion", "def f():\n    f()\nf()", "RecursionError"),
    Attack("deep-recursion", "sys.setrecursionlimit(10**9)\nx = []\nfor _ in range(2 * 10**5):\n    x = [x]\nrepr(x)",
           f"(SIGSEGV|RecursionError|MemoryError|{TIRED})"),
    Attack("segfault", "ctypes.string_at(0)", "crashed the interpreter .SIGSEGV"),
    Attack("abort", "os.abort()", "crashed the interpreter"),
]
INT80 = Attack("int-80", "import mmap\ncode = mmap.mmap(-1, 4096, prot=7); code.write(bytes.fromhex('b814000000cd80c3'))\n"
               "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code))); print('ESCAPED', f())",
               "SIG(SYS|SEGV)")
ATTACKS += [INT80] if os.uname().machine == "x86_64" else []
by_id = pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.id)


def remains() -> list[psutil.Process]:
    """Processes of this test's sandboxes: children, and any that runs the jail with this process's number."""
    found = psutil.Process().children(recursive=True)
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith("jail.py") for word in words) and str(os.getpid()) in words:
            found.append(process)
    return found


@pytest.fixture(autouse=True)
def boxes(tmp_path, monkeypatch):
    """Folders of the calls go to one place; after each test it must be empty and no process be left."""
    folder = tmp_path / "boxes"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert remains() == []
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def port():
    """A listening port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def outside(tmp_path):
    """A folder with a secret, beside those of the calls."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text(SECRET)
    return folder


def write(attack: Attack, outside: Path, port: int) -> str:
    """The attack's code, aimed."""
    code = attack.code.replace("{outside}", str(outside)).replace("{port}", str(port))
    return PRELUDE.replace("{arch}", str(int(os.uname().machine == "x86_64"))) + code.replace("{home}", str(Path.home()))


def shown(answer: str) -> str:
    """The answer without the code's own lines in a traceback."""
    return "\n".join(line for line in answer.splitlines() if not line.startswith("    "))


@by_id
def test_attack_fails(attack, outside, port):
    before = [(f.stat().st_mode, f.stat().st_mtime_ns) for f in (outside, outside / "secret")]
    answer = run_python(write(attack, outside, port), SandboxLimits(**SMALL | {"wall_s": attack.wall_s}))
    assert "ESCAPED" not in shown(answer) and SECRET not in answer and str(outside.parent / "boxes") not in answer
    assert re.search(attack.answer, answer), answer
    assert len(answer) < 3000
    assert [(f.stat().st_mode, f.stat().st_mtime_ns) for f in (outside, outside / "secret")] == before
    assert (outside / "secret").read_text() == SECRET and [f.name for f in outside.iterdir()] == ["secret"]


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.harmless], ids=lambda a: a.id)
def test_attack_works_without_a_sandbox(attack, outside, port, tmp_path):
    """An attack with a slip of the pen would be held by any sandbox."""
    folder = tmp_path / "plain"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", write(attack, outside, port)], cwd=folder, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=20)
    assert "ESCAPED" in done.stdout, done.stderr


def mutate(monkeypatch, tmp_path, old: str, new: str) -> None:
    """Let the sandbox use a jail with one change."""
    source = sandbox.JAIL.read_text()
    assert source.count(old) == 1
    (tmp_path / "jail.py").write_text(source.replace(old, new))
    monkeypatch.setattr(sandbox, "JAIL", tmp_path / "jail.py")


@pytest.mark.parametrize(("lock", "name"), [
    ("restrict_files()", "read-outside"), ("restrict_files()", "list-home"), ("restrict_calls()", "socket-udp"),
    ("restrict_calls()", "signal-by-fcntl"), ("restrict_calls()", "pipe"), ("restrict_calls()", "host-name"),
    ("set_limits(cpu_s, memory_mb, disk_mb)", "memory-bytes"), ("set_limits(cpu_s, memory_mb, disk_mb)", "sparse-file"),
])
def test_attack_works_without_a_lock(lock, name, outside, port, monkeypatch, tmp_path):
    """Each lock holds something that the others let through: none of these tests would pass without it."""
    mutate(monkeypatch, tmp_path, f"    {lock}\n", "")
    [attack] = [a for a in ATTACKS if a.id == name]
    assert "ESCAPED" in shown(run_python(write(attack, outside, port), SandboxLimits(**SMALL)))


def test_disk_is_watched_from_outside(outside, port, monkeypatch):
    monkeypatch.setattr(sandbox, "_disk_use", lambda folder: 0)
    [attack] = [a for a in ATTACKS if a.id == "many-files"]
    answer = run_python(write(attack, outside, port).replace("time.sleep(5)", "0"), SandboxLimits(**SMALL))
    assert answer == "ESCAPED"


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, ", "LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 9999, ",
     "landlock is needed .Linux 5.13"),
    ("SECCOMP_MODE_FILTER, SIGKILL = 2", "SECCOMP_MODE_FILTER, SIGKILL = 7", "seccomp is needed"),
    ('{"x86_64": 0xC000003E, "aarch64": 0xC00000B7}', '{"mips": 1}', "knows 64-bit mips, not"),
    ("    limits = [int(", "    1 / 0; limits = [int(", "ZeroDivisionError"),
])
def test_a_jail_that_cannot_be_shut_is_a_fault(old, new, reason, monkeypatch, tmp_path):
    """Never an unprotected run."""
    mutate(monkeypatch, tmp_path, old, new)
    with pytest.raises(ToolFault, match=reason):
        run_python("print('ESCAPED')")


def test_other_faults_of_the_sandbox(monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ToolFault, match="No such file"):
        patch.setattr(sys, "executable", "/nowhere/python")
        run_python("1")
    with monkeypatch.context() as patch, pytest.raises(ToolFault, match="needs Linux"):
        patch.setattr(sys, "platform", "darwin")
        run_python("1")
    with pytest.raises(ValueError, match="positive"):
        SandboxLimits(wall_s=0)


def test_a_jail_that_hangs_is_a_fault(monkeypatch, tmp_path):
    mutate(monkeypatch, tmp_path, "    limits = [int(", "    import time; time.sleep(60); limits = [int(")
    monkeypatch.setattr(sandbox, "START_S", 0.1)
    with pytest.raises(ToolFault, match="did not start.*wall time"):
        run_python("1")


@pytest.fixture
def sleeper(boxes):
    """The process of a call that sleeps in its jail, and the call's future answer."""
    with ThreadPoolExecutor() as pool:
        call = pool.submit(run_python, "open('started', 'w')\nimport time\ntime.sleep(30)", SandboxLimits(wall_s=2))
        while not list(boxes.glob("*/started")):
            time.sleep(0.01)
        yield psutil.Process().children()[0], call


def test_killed_from_outside_is_a_fault(sleeper):
    process, call = sleeper
    process.send_signal(signal.SIGKILL)
    with pytest.raises(ToolFault, match="killed from outside"):
        call.result()


def test_locks_seen_from_outside(sleeper):
    """The kernel's own account of the process, which the code cannot colour."""
    pid = sleeper[0].pid
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
    assert os.getsid(pid) == os.getpgid(pid) == pid
    limits = Path(f"/proc/{pid}/limits").read_text()
    for name, value in {"cpu time": 5, "file size": 16 << 20, "core file size": 0, "processes": 0, "open files": 32}.items():
        assert re.search(rf"Max {name} +{value} +{value} ", limits), limits


def test_child_dies_with_its_parent(boxes):
    """A killed run leaves its folder behind, but no process."""
    code = f"import tempfile; tempfile.tempdir = {str(boxes)!r}\nfrom agentcpm_kit.world.sandbox import run_python\n"
    parent = subprocess.Popen([sys.executable, "-c", code + "run_python('import time; time.sleep(60)')"], cwd=REPO)
    while not (children := psutil.Process(parent.pid).children()):
        time.sleep(0.01)
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(children, timeout=5)[1] == []
    [folder] = boxes.iterdir()
    folder.rmdir()


def test_secrets_of_the_parent_stay_there(monkeypatch):
    """The environment, and files and sockets that the parent would hand on to a child."""
    monkeypatch.setenv("API_KEY", SECRET)
    code = "import os, ctypes\nprint(dict(os.environ))\nprint(ctypes.c_void_p.in_dll(ctypes.CDLL(None), 'environ').value)\n"
    with socket.socket() as held, tempfile.TemporaryFile() as file:
        held.set_inheritable(True), os.set_inheritable(file.fileno(), True)
        [attack] = [a for a in ATTACKS if a.id == "inherited-files"]
        answer = run_python(code + attack.code)
    assert answer.startswith("{}\n") and "held []" in answer and SECRET not in answer


def test_the_parents_memory_is_bounded():
    """Infinite output is read until it is far over the limit, and no further."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run_python("import os\nwhile True: os.write(1, b'x' * 10**6)", SandboxLimits(output_chars=100, wall_s=20))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def run_filter(program: list[bytes], arch: int, number: int, *arguments: int) -> int:
    """What the BPF program answers to a system call."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    at = value = 0
    while True:
        code, if_true, if_false, k = struct.unpack("=HBBI", program[at])
        at += 1
        if code == jail.RETURN:
            return k
        if code == jail.LOAD:
            value = struct.unpack_from("=I", data, k)[0]
        elif code == jail.AND:
            value &= k
        else:
            at += if_true if value == k else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_of_both_machines(machine):
    """The other machine's table is tried here only; these numbers are from the kernel's lists."""
    arch, (openat, read, clone, socket_, kill, fcntl) = {
        "x86_64": (0xC000003E, (257, 0, 56, 41, 62, 72)), "aarch64": (0xC00000B7, (56, 63, 220, 198, 129, 25))}[machine]
    program = jail.build_filter(machine)
    answers = [run_filter(program, arch, *call) for call in [
        (read,), (openat, 0, 0, os.O_WRONLY | os.O_TRUNC), (openat, 0, 0, 0), (fcntl, 1, 1030)]]
    assert answers == [jail.ALLOW] * 4
    refused = [(clone,), (socket_,), (kill,), (435,), (425,), (fcntl, 1, 8), (openat, 0, 0, os.O_TRUNC), (openat, 0, 0, 3),
               (openat, 0, 0, os.O_RDWR | 0o20000000), (0x40000000 | read,)]
    assert [run_filter(program, arch, *call) for call in refused] == [jail.REFUSE] * len(refused)
    assert run_filter(program, 0x40000003, read) == jail.KILL  # the 32-bit numbering


# What must work.

MODULES = """math json statistics datetime re itertools fractions decimal random csv collections functools string hashlib heapq
bisect dataclasses typing zlib bz2 lzma sqlite3 uuid difflib textwrap calendar operator cmath copy pprint enum io contextlib"""


def test_computes_and_prints():
    assert run_python("print(2**100 % 97, sum(range(10)))") == f"{2**100 % 97} 45"
    assert run_python("print('grüße 你好 🦜')") == "grüße 你好 🦜"
    assert run_python("x = 1") == sandbox.NOTHING


@pytest.mark.parametrize("module", MODULES.split())
def test_imports(module):
    assert run_python(f"import {module}\nprint({module}.__name__)") == module


def test_modules_compute():
    code = """
import csv, io, json, statistics, datetime, decimal, fractions, random
from dataclasses import dataclass
@dataclass
class P:
    x: int
random.seed(1)
print(json.dumps({"a": [1, 2]}), statistics.mean([1, 2, 6]), datetime.date(2024, 2, 28) + datetime.timedelta(2))
print(decimal.Decimal("0.1") + decimal.Decimal("0.2"), fractions.Fraction(1, 3) + 1, next(csv.reader(["a,b"])), P(3))
if __name__ == "__main__":
    print(random.randint(1, 10**6))
"""
    assert run_python(code) == '{"a": [1, 2]} 3 2024-03-01\n0.3 4/3 [\'a\', \'b\'] P(x=3)\n140892'


def test_files_in_its_own_folder():
    code = "import os\nwith open('a.txt', 'w') as f: f.write('hi')\nwith open('a.txt', 'a') as f: f.write('!')\n"
    assert run_python(code + "print(open('a.txt').read(), os.listdir('.'), os.path.getsize('a.txt'))") == "hi! ['a.txt'] 3"


def test_traceback_reads_well():
    answer = run_python("def f(x):\n    return 1 / x\n\nprint('before')\nf(0)")
    lines = answer.splitlines()
    assert lines[:3] == ["before", "Traceback (most recent call last):", '  File "<code>", line 5, in <module>']
    assert '  File "<code>", line 2, in f' in lines and "    return 1 / x" in lines
    assert lines[-1] == "ZeroDivisionError: division by zero" and "jail" not in answer
    assert run_python("x = (").splitlines()[-1].startswith("SyntaxError") and "line 1" in run_python("x = (")
    assert '  File "json/decoder.py", line' in run_python("import json\njson.loads('[')")
    assert run_python("import numpy").endswith("ModuleNotFoundError: No module named 'numpy'")
    assert "null bytes" in run_python("print(1)\0") and "SyntaxError" in run_python("\udce9")


def test_ends_of_a_run():
    assert run_python("exit()") == sandbox.NOTHING
    assert run_python("import sys\nsys.exit('no data')") == "no data"
    assert run_python("print(1)\nexit(3)") == "1\nError: the code ended with status 3."
    assert run_python("input()").endswith("EOFError: EOF when reading a line")
    assert run_python("import atexit\natexit.register(print, 'late')\nprint('soon')") == "soon\nlate"
    assert run_python("import sys\nprint('b', file=sys.stderr)\nprint('a')") == "a\nb"


def test_long_output_is_cut():
    answer = run_python("print('x' * 300)\n1/0", SandboxLimits(output_chars=200))
    assert answer.count("x") <= 200 and "[cut: 100 of 300 characters]" in answer
    assert answer.endswith("ZeroDivisionError: division by zero") and len(answer) < 300


def test_same_code_same_answer():
    code = "print({'a', 'b', 'c', 'd', 'e'}, hash('x'), dir())\nimport sys\nprint(sys.argv, sys.flags)\nopen('missing')"
    flood = "import sys\nn = 0\nwhile True:\n    n += 1\n    print(n, file=sys.stderr)"
    full = "for i in range(20):\n    open(str(i), 'wb').write(bytes(1 << 20))"
    for text in (code, flood, full):
        assert len({run_python(text) for _ in range(3)}) == 1


def test_machine_does_not_show():
    code = ("import platform, datetime, time\n"
            "print(platform.node(), datetime.datetime.now().astimezone().utcoffset(), time.tzname)")
    assert run_python(code) == "localhost 0:00:00 ('UTC', 'UTC')"


def test_calls_share_nothing():
    assert run_python("x = 5; import math; math.pi = 3; open('kept', 'w').write('x'); print(x)") == "5"
    assert run_python("import os, math\nprint(os.listdir('.'), math.pi > 3.1, 'x' in globals())") == "[] True False"


def test_many_calls_at_once():
    code = "import time\nopen('n', 'w').write('{0}')\ntime.sleep(0.2)\nprint(open('n').read(), {0} ** 2)"
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(run_python, [code.format(n) for n in range(20)])) == [f"{n} {n * n}" for n in range(20)]


def test_a_call_is_cheap():
    """Around 30 ms on an idle machine; the bound leaves room for a busy one."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run_python("print(1)")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3
