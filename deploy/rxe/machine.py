"""One small virtual machine with Soft-RoCE, and the commands that run in it.

Debian's kernel under QEMU's software emulation: it needs neither a kernel module nor KVM nor root
on the host, and is about sixteen times slower than the host. The machine sees the host's files,
read-only, and writes to memory; `Machine.folder` is shared with it for what is to stay. What a
machine is made of is unpacked under build/debs.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from kvstore.bench import debs

CHECKOUT: Final = Path(__file__).resolve().parents[2]
_HERE: Final = Path(__file__).resolve().parent
_BUILD: Final = CHECKOUT / "build" / "rxe"
_PACKAGES: Final = [
    "qemu-system-x86",
    "busybox-static",
    "iproute2",
    "rdma-core",
    "ibverbs-providers",
    "ibverbs-utils",
    "libibverbs-dev",
    "perftest",
    "python3-pyverbs",
]
#: In the order in which they can be inserted. Without crc32_generic rxe cannot make a device.
_MODULES: Final = """
    crc32_generic virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci netfs
    fscache 9pnet 9pnet_virtio 9p udp_tunnel ip6_udp_tunnel ib_core ib_uverbs rdma_rxe ib_cm iw_cm
    configfs rdma_cm rdma_ucm overlay veth failover net_failover virtio_net
""".split()  # noqa: SIM905
_BOOT_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.05
#: A little work, and how long a current processor takes for it.
_MEASURE: Final = "import time; t = time.time(); sum(range(400000)); print(time.time() - t)"
_USUAL_S: Final = 0.005


class LabError(Exception):
    """The lab could not do what was asked; the text says why in one line."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a command in a machine ended."""

    exit_code: int
    output: str


def prepare() -> None:
    """Unpack the packages and build the initial file system, unless that was done before."""
    try:
        debs.unpack([*_PACKAGES, kernel_package()])
    except debs.DebError as error:
        raise LabError(str(error)) from error
    sources = [_HERE / "init", Path(__file__)]
    image = _BUILD / "initrd.gz"
    if image.exists() and all(image.stat().st_mtime > path.stat().st_mtime for path in sources):
        return
    _BUILD.mkdir(parents=True, exist_ok=True)
    fresh = image.with_suffix(".new")
    fresh.write_bytes(gzip.compress(cpio_archive(initial_files()), compresslevel=1))
    fresh.rename(image)


def kernel_package() -> str:
    """The package that `linux-image-amd64` stands for, or the one that is unpacked already.

    The `cloud` flavour of the kernel has no rxe.
    """
    unpacked = sorted((debs.default_folder() / "root" / "boot").glob("vmlinuz-*-amd64"))
    if unpacked:
        return unpacked[-1].name.replace("vmlinuz", "linux-image")
    output = debs.run(["apt-cache", "depends", "linux-image-amd64"], cwd=Path("/"))
    names = [line.split()[-1] for line in output.splitlines() if "Depends: linux-image-" in line]
    if not names:
        raise LabError("apt knows no linux-image-amd64: the lab needs Debian's package lists")
    return names[0]


def initial_files() -> Iterator[tuple[str, int, bytes]]:
    """Path, mode and content of what the kernel starts with."""
    root = debs.default_folder() / "root"
    for folder in ("bin", "modules", "dev", "proc", "sys"):
        yield folder, 0o040755, b""
    yield "bin/busybox", 0o100755, (root / "bin" / "busybox").read_bytes()
    yield "init", 0o100755, (_HERE / "init").read_bytes()
    modules = root / "lib" / "modules" / kernel_package().removeprefix("linux-image-")
    for name in _MODULES:
        (found,) = modules.glob(f"kernel/**/{name}.ko")
        yield f"modules/{name}.ko", 0o100644, found.read_bytes()
    yield "modules/order", 0o100644, ("\n".join(_MODULES) + "\n").encode()


def cpio_archive(files: Iterator[tuple[str, int, bytes]]) -> bytes:
    """The files as the kernel unpacks them (the "new ASCII" format of cpio)."""
    archive = bytearray()
    for number, (name, mode, content) in enumerate([*files, ("TRAILER!!!", 0, b"")], start=1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        archive += b"070701" + b"".join(b"%08x" % field for field in fields) + path
        archive += b"\0" * (-len(archive) % 4) + content
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)


class Job:
    """A command that runs in a machine."""

    def __init__(self, machine: Machine, folder: Path, command: str) -> None:
        self._machine = machine
        self._folder = folder
        self.command = command

    @property
    def output(self) -> str:
        """What it has written so far, errors included."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "output").read_text(errors="replace")
        return ""

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        with contextlib.suppress(FileNotFoundError):
            return int((self._folder / "exit_code").read_text())
        return None

    def wait(self, timeout_s: float, on_output: Callable[[str], None] | None = None) -> Result:
        """Wait for the end. `on_output` gets the output as it comes. LabError at the time-out."""
        told = 0
        deadline = time.monotonic() + timeout_s
        while True:
            code = self.exit_code
            text = self.output
            if on_output is not None and len(text) > told:
                on_output(text[told:])
                told = len(text)
            if code is not None:
                return Result(code, text)
            if time.monotonic() > deadline:
                raise LabError(f"no end after {timeout_s:g} s of: {self.command}\n{text[-2000:]}")
            self._machine.check_alive()
            time.sleep(_POLL_S)

    def wait_for_output(self, wanted: str, timeout_s: float, after: int = 0) -> None:
        """Wait until the output, from a place on, holds a text.

        LabError at the time-out or if the command ends.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self.exit_code is not None
            text = self.output
            if wanted in text[after:]:
                return
            if ended or time.monotonic() > deadline:
                raise LabError(f"no `{wanted}` from: {self.command}\n{text[-2000:]}")
            self._machine.check_alive()
            time.sleep(_POLL_S)


class Machine:
    """A machine from its start to `close`. It never outlives the process that started it."""

    def __init__(
        self, number: int = 1, count: int = 1, *, net: Path | None = None, memory_mib: int = 2048
    ) -> None:
        """Boots machine `number` of `count`; two talk through Unix sockets in the folder `net`.

        Machine N has the address 10.77.0.N and the RDMA device rxe0.
        """
        prepare()
        self.address = f"10.77.0.{number}"
        self.folder = Path(tempfile.mkdtemp(prefix="kvstore-rxe-"))
        #: How much slower than a usual machine this one is; commands see it as KVSTORE_TIME_SCALE.
        self.time_scale = 1
        self._jobs = 0
        shutil.copy(_HERE / "agent", self.folder / "agent")
        self._log = (self.folder / "console.log").open("wb")
        self._process = subprocess.Popen(
            self._command(number, count, net, memory_mib),
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is ours to handle: a machine is killed, not interrupted.
            start_new_session=True,
        )

    def _command(self, number: int, count: int, net: Path | None, memory_mib: int) -> list[str]:
        root = debs.default_folder() / "root"
        version = kernel_package().removeprefix("linux-image-")
        settings = {
            "lab_number": number,
            "lab_count": count,
            "lab_debs": root,
            "lab_folder": CHECKOUT,
        }
        # A timer that is emulated on a busy host may fail the kernel's check of it.
        kernel_arguments = ["console=ttyS0", "quiet", "panic=-1", "mitigations=off"]
        kernel_arguments += ["no_timer_check"]
        kernel_arguments += [f"{name}={value}" for name, value in settings.items()]
        qemu = debs.provide_program("qemu-system-x86_64", "qemu-system-x86")
        share = "local,security_model=none,multidevs=remap"
        command: list[object] = [
            *("setpriv", "--pdeathsig", "KILL", qemu),
            *("-L", root / "usr/share/qemu", "-L", root / "usr/share/seabios"),
            *("-M", "q35", "-cpu", "max,-erms,-fsrm", "-accel", "tcg,thread=multi", "-smp", 2),
            *("-m", memory_mib, "-display", "none", "-no-reboot", "-nodefaults"),
            *("-serial", "stdio", "-qmp", f"unix:{self.folder / 'qmp'},server=on,wait=off"),
            *("-kernel", root / "boot" / f"vmlinuz-{version}", "-initrd", _BUILD / "initrd.gz"),
            *("-append", " ".join(kernel_arguments)),
            *("-virtfs", f"{share},path=/,mount_tag=host,readonly=on"),
            *("-virtfs", f"{share},path={self.folder},mount_tag=lab"),
        ]
        if net is not None:
            peer = count + 1 - number
            ends = f"local.path={net / str(number)},remote.path={net / str(peer)}"
            types = "local.type=unix,remote.type=unix"
            mac = f"52:54:00:77:00:{number:02x}"
            command += ["-netdev", f"dgram,id=net,{types},{ends}"]
            command += ["-device", f"virtio-net-pci,id=card,netdev=net,mac={mac},host_mtu=4200"]
        return [str(part) for part in command]

    def wait_until_ready(self, timeout_s: float = _BOOT_TIMEOUT_S) -> None:
        """Wait until commands can run."""
        deadline = time.monotonic() + timeout_s
        while not (self.folder / "ready").exists():
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the machine did not boot within {timeout_s:g} s: {self.console()}")
            time.sleep(_POLL_S)
        measured = self.run(f"{shlex.quote(sys.executable)} -c {_MEASURE!r}", timeout_s=timeout_s)
        self.time_scale = min(max(round(float(measured.output) / _USUAL_S), 4), 40)

    def begin(self, command: str, environment: Mapping[str, str] | None = None) -> Job:
        """Start a shell command in the checkout's folder."""
        self._jobs += 1
        folder = self.folder / f"job{self._jobs}"
        folder.mkdir()
        given = {"KVSTORE_TIME_SCALE": str(self.time_scale), **(environment or {})}
        exports = [f"export {k}={shlex.quote(v)}\n" for k, v in given.items()]
        (folder / "command").write_text("".join(exports) + command + "\n")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{folder.name}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            self.check_alive()
        return Job(self, folder, command)

    def run(
        self,
        command: str,
        *,
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a shell command to its end."""
        return self.begin(command, environment).wait(timeout_s)

    def set_link(self, *, up: bool) -> None:
        """Cut the machine off the network, or connect it again."""
        self._monitor("set_link", {"name": "card", "up": up})

    def _monitor(self, command: str, arguments: Mapping[str, Any]) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.folder / "qmp"))
            stream = connection.makefile("rw")
            stream.readline()
            for name, given in (("qmp_capabilities", {}), (command, arguments)):
                stream.write(json.dumps({"execute": name, "arguments": given}) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
                while "event" in answer:
                    answer = json.loads(stream.readline())
                if "error" in answer:
                    raise LabError(f"qemu: {answer['error'].get('desc')}")

    def check_alive(self) -> None:
        """LabError if the machine has ended."""
        if self._process.poll() is not None:
            raise LabError(f"the machine ended: {self.console()}")

    def console(self) -> str:
        """The end of what the machine wrote to its console."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "console.log").read_text(errors="replace")[-2000:]
        return ""

    def kill(self) -> None:
        """As a power failure would."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill the machine and remove what it shared."""
        self.kill()
        self._log.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """Boots one machine, or two that reach each other, and ends them."""
    if count not in (1, 2):
        raise LabError("the lab has one machine or two")
    with contextlib.ExitStack() as stack:
        net = None
        if count == 2:
            net = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-rxe-")))
        booted = [
            stack.enter_context(Machine(number, count, net=net)) for number in range(1, count + 1)
        ]
        for machine in booted:
            machine.wait_until_ready()
        yield booted
