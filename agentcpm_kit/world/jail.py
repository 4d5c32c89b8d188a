"""Child side of `sandbox.run_python`: lock this process down, then run the code that arrives on stdin.

Run by path (`python -s -S -P jail.py PARENT_PID CPU_S MEMORY_MB DISK_MB`, in the call's own folder), standard library only.
The code is read after the last lock is shut, which `READY` on stdout tells the parent; without it the run is a fault of the
sandbox (stderr says why). `sandbox.py` says what the locks are for.
"""

import builtins
import ctypes
import errno
import os
import resource
import struct
import sys

READY = b"jailed\n"
NAME = "<code>"  # the file name in tracebacks
LIBRARY = os.path.join(os.path.dirname(os.__file__), "")
MB = 1 << 20
OPEN_FILES = 32
BALLAST = bytearray(8 * MB)  # given back when memory runs out, so that the traceback can still be written
# Extension modules bring system libraries (libz, libcrypto, ...). They are loaded before the jail shuts, so that no folder
# of system libraries has to be readable inside it.
PRELOAD = ("zlib", "_bz2", "_lzma", "_decimal", "_uuid", "_hashlib", "_sqlite3")
LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER, SIGKILL = 2, 9
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on both machines
WRITE_FILE, READ_FILE, READ_DIR, MAKE_REG, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 8, 1 << 14
FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # landlock version: how many file system rights it can take away

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# All system calls that the code may make, as name: (x86_64 number, aarch64 number). Every other one answers EPERM: no
# process or thread is made, no socket, no signal sent, nothing removed, renamed, linked, chmod-ed, mounted or traced.
PLAIN_CALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "sendfile": (40, 71), "copy_file_range": (326, 285), "ftruncate": (77, 46),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "getdents64": (217, 61),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233), "futex": (202, 98), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "pause": (34, None), "alarm": (37, None), "getitimer": (36, 102),
    "setitimer": (38, 103), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    "getrusage": (98, 165), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getrandom": (318, 278),
    "exit": (60, 93), "exit_group": (231, 94),
}
# Calls that are allowed for some values of one argument: (numbers, position of the argument, values).
F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC = 0, 1, 2, 3, 1030  # not F_SETOWN: it can send a signal to any process
TCGETS, FIONCLEX, FIOCLEX = 0x5401, 0x5450, 0x5451
CALLS_BY_VALUE = (((72, 25), 1, (F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC)),  # fcntl
                  ((16, 29), 1, (TCGETS, FIONCLEX, FIOCLEX)))  # ioctl
# open and openat: refused are truncating a file that is opened for reading (old landlocks do not see it), access mode 3
# (neither reading nor writing: no landlock sees it) and O_TMPFILE (a file without a name, which the parent cannot count).
OPEN_CALLS = (((2, None), 1), ((257, 56), 2))
O_ACCMODE, O_TRUNC, O_TMPFILE = 0o3, 0o1000, 0o20000000
OPEN_REFUSED = ((O_ACCMODE | O_TRUNC, O_TRUNC), (O_ACCMODE, O_ACCMODE), (O_TMPFILE, O_TMPFILE))  # (mask, masked value)

LOAD, EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06  # BPF: load a word, jump if equal, and, return
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000


def check(result: int, what: str) -> int:
    """The result of a C call, or `OSError` that says which one failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def syscall(number: int, what: str, *arguments: int | bytes | None) -> int:
    """A raw system call; numbers are passed as C longs."""
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return check(LIBC.syscall(ctypes.c_long(number), *values), what)


def prctl(option: int, value: int, what: str, pointer: ctypes.Array | int = 0) -> None:
    """Set a property of this process."""
    third = pointer or ctypes.c_ulong(0)
    check(LIBC.prctl(option, ctypes.c_ulong(value), third, ctypes.c_ulong(0), ctypes.c_ulong(0)), what)


def die_with(parent: int) -> None:
    """Be killed when the parent dies, and be closed to debuggers and core dumps."""
    prctl(PR_SET_PDEATHSIG, SIGKILL, "PR_SET_PDEATHSIG")
    prctl(PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, "the parent has gone")


def hide_names() -> None:
    """Empty the environment; let `platform` and `uuid` find a machine without a name (the real call is refused later)."""
    os.environ.clear()
    system = os.uname_result(("Linux", "localhost", "", "", os.uname().machine))
    os.uname = lambda: system


def load_libraries() -> None:
    """Load what extension modules need from the system; a Python built without one of them does without."""
    for name in PRELOAD:
        try:
            __import__(name)
        except ImportError:
            continue


def set_limits(cpu_s: int, memory_mb: int, disk_mb: int) -> None:
    """Resource limits, soft and hard alike. Memory counts on top of what the interpreter has mapped by now."""
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    wanted = {resource.RLIMIT_CPU: cpu_s, resource.RLIMIT_AS: mapped + memory_mb * MB, resource.RLIMIT_FSIZE: disk_mb * MB,
              resource.RLIMIT_NOFILE: OPEN_FILES, resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 0}
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def readable() -> list[str]:
    """The standard library, entry by entry: third-party packages beside it (maybe this kit and its answers) stay shut."""
    entries = []
    for root in sys.path:
        if os.path.isdir(root):
            entries += [e.path for e in os.scandir(root) if not e.is_symlink() and not e.name.endswith("-packages")]
        elif os.path.exists(root):
            entries.append(root)
    return entries


def restrict_files() -> None:
    """Landlock: read the standard library, list its top folder, make and write plain files here, nothing else."""
    try:
        version = syscall(LANDLOCK_CREATE, "landlock", None, 0, 1)
    except OSError as error:
        raise OSError(error.errno, f"landlock is needed (Linux 5.13 or later, switched on): {error.strerror}") from error
    handled = (1 << FS_RIGHTS.get(version, 16)) - 1
    # From version 4 on also TCP, from 6 on abstract sockets and signals to others.
    attributes = struct.pack("=QQQ", handled, 3, 3)[:8 if version < 4 else 16 if version < 6 else 24]
    ruleset = syscall(LANDLOCK_CREATE, "landlock_create_ruleset", attributes, len(attributes), 0)
    for root in sys.path:
        allow(ruleset, root, READ_DIR)  # imports list it; only names show
    for path in readable():
        allow(ruleset, path, READ_FILE | READ_DIR)
    allow(ruleset, ".", (READ_FILE | READ_DIR | WRITE_FILE | MAKE_REG | TRUNCATE) & handled)
    syscall(LANDLOCK_RESTRICT, "landlock_restrict_self", ruleset, 0)
    os.close(ruleset)


def allow(ruleset: int, path: str, rights: int) -> None:
    """Add a rule for a path if it exists; to a file only the right to read applies."""
    if not os.path.exists(path):
        return
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rights = rights if os.path.isdir(path) else rights & READ_FILE
    if rights:
        syscall(LANDLOCK_ADD, "landlock_add_rule", ruleset, 1, struct.pack("=Qi", rights, handle), 0)
    os.close(handle)


def drop_capabilities() -> None:
    """Give up root's privileges, for the case that the caller has them."""
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    check(LIBC.capset(header, nothing), "capset")


def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One BPF instruction; jumps skip that many instructions."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def on_call(number: int | None, body: list[bytes]) -> list[bytes]:
    """Instructions that run `body`, which must end in a return, when the call has this number."""
    return [] if number is None else [step(EQUAL, number, 0, len(body)), *body]


def build_filter(machine: str) -> list[bytes]:
    """The allow-list as a BPF program. A call in another architecture's numbering (32-bit on x86_64) kills the process."""
    at, argument = list(AUDIT_ARCH).index(machine), 16  # the low halves of arguments; the kernel reads no more of these
    program = [step(LOAD, 4), step(EQUAL, AUDIT_ARCH[machine], 1, 0), step(RETURN, KILL), step(LOAD, 0)]
    for numbers in PLAIN_CALLS.values():
        program += on_call(numbers[at], [step(RETURN, ALLOW)])
    for numbers, position, values in CALLS_BY_VALUE:
        tests = [part for value in values for part in (step(EQUAL, value, 0, 1), step(RETURN, ALLOW))]
        program += on_call(numbers[at], [step(LOAD, argument + 8 * position), *tests, step(RETURN, REFUSE)])
    for numbers, position in OPEN_CALLS:
        tests = [part for mask, value in OPEN_REFUSED for part in
                 (step(LOAD, argument + 8 * position), step(AND, mask), step(EQUAL, value, 0, 1), step(RETURN, REFUSE))]
        program += on_call(numbers[at], [*tests, step(RETURN, ALLOW)])
    return [*program, step(RETURN, REFUSE)]


def restrict_calls() -> None:
    """Seccomp: refuse every system call that is not on the list. It cannot be taken back."""
    machine = os.uname().machine
    if machine not in AUDIT_ARCH or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"the sandbox knows 64-bit {' and '.join(AUDIT_ARCH)}, not {machine}")
    program = build_filter(machine)
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, "seccomp is needed", header)


def lock_down(parent: int, cpu_s: int, memory_mb: int, disk_mb: int) -> None:
    """Shut every lock, in this order: each one still needs what the next takes away."""
    die_with(parent)
    hide_names()
    load_libraries()
    set_limits(cpu_s, memory_mb, disk_mb)
    prctl(PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")
    restrict_files()
    drop_capabilities()
    restrict_calls()


def explain(error: BaseException, code: str, memory_mb: int, disk_mb: int) -> None:
    """Print the traceback with the code's own lines and no paths of this machine; add which limit was hit."""
    import linecache  # here, because most runs do without
    import traceback

    linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)
    trace = error.__traceback__ and error.__traceback__.tb_next  # without the frame of this file
    lines = traceback.format_exception(type(error), error, trace)
    print("".join(lines).replace(LIBRARY, ""), end="", file=sys.stderr)
    if isinstance(error, MemoryError):
        print(f"Error: the code needs more than {memory_mb} MB of memory.", file=sys.stderr)
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        print(f"Error: a file may hold {disk_mb} MB.", file=sys.stderr)


def run(code: str, memory_mb: int, disk_mb: int) -> None:
    """Run the code as the main module. A mistake of the code is printed and ends with status 1."""
    builtins.exit = builtins.quit = sys.exit
    main = sys.modules["__main__"] = type(sys)("__main__")
    sys.argv = [NAME]
    try:
        exec(compile(code, NAME, "exec", dont_inherit=True), main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        BALLAST.clear()
        explain(error, code, memory_mb, disk_mb)
        sys.exit(1)


if __name__ == "__main__":
    limits = [int(argument) for argument in sys.argv[1:]]
    nothing = os.open(os.devnull, os.O_RDONLY)
    this = sys.modules["__main__"]  # kept: a module that nobody holds loses its globals
    try:
        lock_down(*limits)
    except OSError as error:
        sys.exit(str(error))
    os.write(1, READY)
    source = sys.stdin.buffer.read().decode()
    os.dup2(nothing, 0)  # input() meets the end of the file
    os.close(nothing)
    run(source, *limits[2:])
