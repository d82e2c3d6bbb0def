"""The targets of the released wheels, and the tags that their wheels carry."""

from __future__ import annotations

from dataclasses import dataclass

# The oldest systems that the wheels support. check.py compares the built files with these.
GLIBC = "2.17"
MUSL = "1.2"
MACOS = "11.0"
WINDOWS = (10, 0)  # Windows 10; Windows Server 2016


@dataclass(frozen=True)
class Target:
    """One machine and operating system that a wheel is built for."""

    name: str
    zig: str  # the value of -target
    host_platform: str  # what sysconfig.get_platform() returns there; setup.py reads it
    tag: str  # the wheel's platform tag

    @property
    def system(self) -> str:
        """The target's operating system: linux, macos or windows."""
        return self.name.split("-")[0].replace("manylinux", "linux").replace("musllinux", "linux")

    @property
    def machine(self) -> str:
        """The target's instruction set: x86_64 or aarch64."""
        return self.zig.split("-")[0]

    @property
    def extension(self) -> str:
        """The file name of the extension in the wheel."""
        return "_engine.pyd" if self.system == "windows" else "_engine.abi3.so"


def _linux(libc: str, zig: str, tag: str) -> list[Target]:
    return [
        Target(
            f"{libc}-{machine}", f"{machine}-linux-{zig}", f"linux-{machine}", f"{tag}_{machine}"
        )
        for machine in ("x86_64", "aarch64")
    ]


def _macos(machine: str, name: str) -> Target:
    version = MACOS.replace(".", "_")
    return Target(
        f"macos-{name}", f"{machine}-macos.{MACOS}", f"macosx-{MACOS}-{name}",
        f"macosx_{version}_{name}",
    )  # fmt: skip


TARGETS = {
    target.name: target
    for target in [
        *_linux("manylinux", f"gnu.{GLIBC}", "manylinux_" + GLIBC.replace(".", "_")),
        *_linux("musllinux", "musl", "musllinux_" + MUSL.replace(".", "_")),
        _macos("aarch64", "arm64"),
        _macos("x86_64", "x86_64"),
        Target("windows-amd64", "x86_64-windows-gnu", "win-amd64", "win_amd64"),
        Target("windows-arm64", "aarch64-windows-gnu", "win-arm64", "win_arm64"),
    ]
}
