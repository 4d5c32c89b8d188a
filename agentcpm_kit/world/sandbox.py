"""A jail for the Python that a model writes (the agent tool `PythonInterpreter`): one fresh process per call, Linux only.

What the code can do: compute, import the standard library, keep plain files in one folder of its own, print. Files can be
made, written and truncated. They cannot be removed, renamed or linked, and there are no subfolders: so one listing shows the
parent every byte on the disk. There are no threads, no sockets (thus no asyncio), no other processes; the clock is in UTC.
`jail.py` is the child's side; it shuts itself in before it reads the code.

What holds it, all without privileges, so that it works as a user, as root and in a container:
- landlock: reads the interpreter's standard library (not the packages installed beside it), writes in its folder.
- seccomp: a list of the system calls that computing needs; the rest answer "Operation not permitted".
- resource limits on CPU, memory, file size, open files; no new privileges, no capabilities, no core dump, no debugger.
- an empty environment, no input, no inherited files, a session of its own; killed if the parent dies.
- the parent, from outside: wall time, size of the output, disk; afterwards it kills, reaps and removes the folder.
Namespaces would hide more, but are closed to ordinary users on many systems and in Docker. If the kernel lacks landlock
(Linux 5.13 or later) or seccomp, a call raises `ToolFault`: there is no weaker way to run.

What it does not protect from:
- bugs of the kernel, side channels, a reader who trusts the answer.
- CPU, memory and disk within the limits: 16 calls at once take 16 times as much. The parent looks at the disk every 20 ms,
  so a burst can pass that limit by some files of `disk_mb` each. Memory counts on top of the interpreter's own.
- the code sees the standard library, the names of the packages beside it, whether any path exists and its size and times
  (landlock cannot hide that), the clock, its user and process numbers, the name of its folder.
- a parent killed with SIGKILL takes the child along, but leaves the folder.

Same code, same answer, except where it asks for the clock, fresh randomness, an address (`id`) or its folder's name, or
is stopped by a clock: what it had printed by then may differ.
"""

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .faults import ToolFault

JAIL = Path(__file__).with_name("jail.py")
READY = b"jailed\n"  # as in jail.py, which is not imported: it needs Linux
# As `-I`, which would also ignore the fixed hash seed: no user packages, no site, no path of the script. Then: write no
# bytecode, hold no output back.
PYTHON_OPTIONS = ("-s", "-S", "-P", "-B", "-u", "-X", "utf8")
ENVIRONMENT = {"PYTHONHASHSEED": "0", "TZ": "UTC"}  # read by the interpreter as it starts; the child clears it, too
START_S = 30  # a machine may be busy; the code's own time counts from when the jail is shut
LOOK_S = 0.02
MB, FILE_BYTES = 1 << 20, 4096  # an empty file counts as one block
NOTHING = "The code ran and printed nothing. Use print() to see a value."


@dataclass(frozen=True)
class SandboxLimits:
    """Limits of one call: CPU and wall time in seconds, memory and disk in MB, length of the answer in characters."""

    cpu_s: int = 5
    wall_s: float = 10
    memory_mb: int = 512
    output_chars: int = 10_000
    disk_mb: int = 16

    def __post_init__(self):
        whole = (self.cpu_s, self.memory_mb, self.output_chars, self.disk_mb)
        if not all(isinstance(value, int) and value > 0 for value in whole) or not self.wall_s > 0:
            raise ValueError(f"limits must be positive, all but wall_s whole numbers: {self}")


DEFAULT_LIMITS = SandboxLimits()


def run_python(code: str, limits: SandboxLimits = DEFAULT_LIMITS) -> str:
    """What the code prints: stdout, then stderr with the traceback, then one line if a limit stopped it.

    Safe to call from many threads. The code's own mistakes are answers.

    Raises:
        ToolFault: the sandbox failed: it could not start, or the system killed it.
    """
    if not sys.platform.startswith("linux"):
        raise ToolFault(f"the sandbox needs Linux 5.13 or later with landlock and seccomp, this is {sys.platform}")
    try:
        with tempfile.TemporaryDirectory(prefix="sandbox-") as folder, tempfile.TemporaryFile() as source:
            source.write(code.encode(errors="backslashreplace"))
            source.seek(0)
            return _Run(folder, source, limits).answer()
    except OSError as error:
        raise ToolFault(f"the sandbox failed: {error}") from error


class _Run:
    """One child process and what has come out of it so far."""

    def __init__(self, folder: str, source: IO[bytes], limits: SandboxLimits):
        self.folder, self.limits = folder, limits
        self.ready, self.deadline, self.next_look = False, time.monotonic() + START_S, 0.0
        self.stopped, self.cpu_s, self.most_bytes = "", 0.0, 4 * limits.output_chars + (1 << 16)
        sizes = (os.getpid(), limits.cpu_s, limits.memory_mb, limits.disk_mb)
        self.process = subprocess.Popen(
            [sys.executable, *PYTHON_OPTIONS, str(JAIL), *map(str, sizes)], stdin=source, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=folder, env=ENVIRONMENT, start_new_session=True)
        self.text = {self.process.stdout: bytearray(), self.process.stderr: bytearray()}

    def answer(self) -> str:
        """Watch the child to its end, clean up whatever happens, and put the answer together."""
        try:
            self._watch()
        finally:
            self._end()
        output, errors = (bytes(text[:self.most_bytes]).decode(errors="replace").rstrip() for text in self.text.values())
        if not self.ready:
            raise ToolFault(f"the sandbox did not start: {self.stopped or errors or self.process.returncode}")
        verdict = self._verdict(bool(errors))
        errors = _cut(errors, self.limits.output_chars // 2, keep_end=True)  # a traceback says the most at its end
        output = _cut(output, self.limits.output_chars - min(len(errors), self.limits.output_chars // 2))
        return "\n".join(filter(None, (output, errors, verdict))) or NOTHING

    def _watch(self) -> None:
        """Read until the child has exited and its pipes are empty, or a limit is hit.

        The pipes' ends alone do not tell: the code may close them and go on.
        """
        exit_file = os.pidfd_open(self.process.pid)
        with open(exit_file, "rb", buffering=0), selectors.DefaultSelector() as selector:
            for source in (*self.text, exit_file):
                selector.register(source, selectors.EVENT_READ)
            exited = False
            while not self.stopped:
                events = selector.select(0 if exited else LOOK_S)
                if exited and not events:
                    break
                for source in (key.fileobj for key, _ in events):
                    if source == exit_file:
                        exited, self.next_look = True, 0.0  # a last look at the disk
                    if source == exit_file or not self._read(source):
                        selector.unregister(source)
                self.stopped = self._broken_limit()

    def _read(self, pipe: IO[bytes]) -> int:
        """Take what the pipe holds; the code's time starts when the jail reports that it is shut."""
        chunk, text = os.read(pipe.fileno(), 1 << 16), self.text[pipe]
        text += chunk
        if not self.ready and pipe is self.process.stdout and text.startswith(READY):
            del text[:len(READY)]
            self.ready, self.deadline = True, time.monotonic() + self.limits.wall_s
        return len(chunk)

    def _broken_limit(self) -> str:
        """The limit that the child has passed, as a line for the agent, or an empty string."""
        now, limits = time.monotonic(), self.limits
        if now > self.deadline:
            return f"Error: stopped after {limits.wall_s if self.ready else START_S:g} s of wall time."
        if max(map(len, self.text.values())) > self.most_bytes:
            return f"Error: stopped because it printed far more than {limits.output_chars} characters."
        if now > self.next_look:
            self.next_look = now + LOOK_S
            if _disk_use(self.folder) > limits.disk_mb * MB:
                return f"Error: stopped because its files take more than {limits.disk_mb} MB."
        return ""

    def _end(self) -> None:
        """Kill what is left of the child's group and reap it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_s = usage.ru_utime + usage.ru_stime
        for pipe in self.text:
            pipe.close()

    def _verdict(self, told: bool) -> str:
        """How the run ended, as a line for the agent; empty after an ordinary end. `told`: stderr says something."""
        code = self.process.returncode
        if self.stopped:
            return self.stopped
        if code == -signal.SIGKILL:  # the code cannot kill itself
            if self.cpu_s < self.limits.cpu_s - 0.2:
                raise ToolFault("the sandbox was killed from outside; perhaps the machine is out of memory")
            return f"Error: stopped after {self.limits.cpu_s} s of CPU time."
        if code < 0:
            return f"Error: the code crashed the interpreter ({signal.Signals(-code).name})."
        return f"Error: the code ended with status {code}." if code and not told else ""


def _disk_use(folder: str) -> int:
    """Bytes that the folder's files take on the disk; holes in files are free. The jail allows no subfolders."""
    with os.scandir(folder) as entries:
        return sum(max(FILE_BYTES, entry.stat(follow_symlinks=False).st_blocks * 512) for entry in entries)


def _cut(text: str, length: int, keep_end: bool = False) -> str:
    """At most `length` characters of the text, with a note where something is missing."""
    if len(text) <= length:
        return text
    note = f"[cut: {length} of {len(text)} characters]"
    return f"{note}\n{text[len(text) - length:]}" if keep_end else f"{text[:length]}\n{note}"
