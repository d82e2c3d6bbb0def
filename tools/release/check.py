"""Checks the wheels of a folder: names, contents, and the extension of each target.

check.sh runs this in an environment of its own, together with auditwheel, abi3audit and twine.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

import lief
from installer.sources import WheelFile
from installer.utils import parse_metadata_file
from packaging.metadata import Metadata
from packaging.utils import parse_wheel_filename
from packaging.version import Version
from targets import GLIBC, MACOS, TARGETS, WINDOWS, Target

SMALLEST, LARGEST = 5_000_000, 20_000_000  # bytes of a wheel: with and without the embedded model
MODULE = "gpt2c/engine/"

# The functions of the C library and of the system that the extension may import, apart from
# Python's. Add a name here if the code needs it and the oldest supported system has it.
C_LIBRARY = [
    "bcmp",
    "calloc",
    "clock_gettime",
    "free",
    "malloc",
    "memcpy",
    "memmove",
    "memset",
    "posix_memalign",
    "realloc",
    "strcmp",
    "strlen",
    "strrchr",
    "vsnprintf",
]
SYSTEM = [
    "madvise",
    "mmap",
    "munmap",
    "pthread_atfork",
    "pthread_create",
    "pthread_detach",
    "pthread_mutex_lock",
    "pthread_mutex_trylock",
    "pthread_mutex_unlock",
    "pthread_sigmask",
    "sigfillset",
    "sysconf",
]
LINUX = [*C_LIBRARY, *SYSTEM, "getauxval", "syscall", "__register_atfork", "__tls_get_addr"]
MAC = [
    *C_LIBRARY, *SYSTEM, "__bzero", "__memcpy_chk", "bzero", "dyld_stub_binder", "memcmp",
    "memset_pattern16", "pthread_cond_broadcast", "pthread_cond_timedwait", "pthread_cond_wait",
    "pthread_set_qos_class_self_np", "sysctlbyname", "_tlv_bootstrap",
]  # fmt: skip
LIBRARIES = {
    "manylinux": ["libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-*"],
    "musllinux": ["libc.so"],
    "macos": ["/usr/lib/libSystem.B.dylib"],
    "windows": [
        "python3.dll", "KERNEL32.dll", "api-ms-win-core-synch-l1-2-*.dll", "api-ms-win-crt-*.dll",
    ],
}  # fmt: skip
MACHINES = {
    lief.ELF.ARCH.X86_64: "x86_64",
    lief.ELF.ARCH.AARCH64: "aarch64",
    lief.MachO.Header.CPU_TYPE.X86_64: "x86_64",
    lief.MachO.Header.CPU_TYPE.ARM64: "aarch64",
    lief.PE.Header.MACHINE_TYPES.AMD64: "x86_64",
    lief.PE.Header.MACHINE_TYPES.ARM64: "aarch64",
}
INIT = "PyInit__engine"
MAC_LINKER = ["_mh_dylib_header", "__dso_handle"]  # the linker itself adds these


class Findings:
    """The failed checks of one wheel."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def equal(self, what: str, found: object, expected: object) -> None:
        """Note that two values differ."""
        if found != expected:
            self.texts.append(f"{what} is {found!r}, not {expected!r}")

    def only(self, what: str, found: Iterable[str], allowed: Iterable[str]) -> None:
        """Note each name that matches none of the allowed patterns."""
        patterns = list(allowed)
        for name in sorted(set(found)):
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                self.texts.append(f"{what} {name} is not allowed")


def is_python(name: str) -> bool:
    """Whether a symbol is Python's; abi3audit checks those."""
    return name.startswith(("Py", "_Py"))


def check_elf(binary: lief.ELF.Binary, target: Target, findings: Findings) -> None:
    """Check a Linux extension: libraries, symbols and versions of glibc."""
    libc = target.name.split("-")[0]
    findings.only("library", [str(name) for name in binary.libraries], LIBRARIES[libc])
    imported = [symbol for symbol in binary.imported_symbols if symbol.name]
    findings.only("symbol", (s.name for s in imported if not is_python(str(s.name))), LINUX)
    findings.equal("the exports", [str(s.name) for s in binary.exported_symbols], [INIT])
    newest = Version("0")
    for requirement in binary.symbols_version_requirement:
        for auxiliary in requirement.get_auxiliary_symbols():
            prefix, _, version = str(auxiliary.name).partition("_")
            if libc == "musllinux" or prefix != "GLIBC":
                findings.texts.append(f"it needs the symbol version {auxiliary.name}")
            else:
                newest = max(newest, Version(version))
    if newest > Version(GLIBC):
        findings.texts.append(f"it needs glibc {newest}; the tag promises {GLIBC}")
    if any(entry.tag in (lief.ELF.DynamicEntry.TAG.RPATH, lief.ELF.DynamicEntry.TAG.RUNPATH)
           for entry in binary.dynamic_entries):  # fmt: skip
        findings.texts.append("it has an rpath")


def check_mach(binary: lief.MachO.Binary, target: Target, findings: Findings) -> None:
    """Check a macOS extension: libraries, symbols, oldest system and signature."""
    own = {lief.MachO.LoadCommand.TYPE.ID_DYLIB}
    libraries = [str(lib.name) for lib in binary.libraries if lib.command not in own]
    findings.only("library", libraries, LIBRARIES["macos"])
    names = [str(s.name).removeprefix("_") for s in binary.imported_symbols]
    findings.only("symbol", (name for name in names if not is_python(name)), MAC)
    exports = {str(s.name).removeprefix("_") for s in binary.exported_symbols}
    findings.equal("the exports", exports - set(MAC_LINKER), {INIT})
    if binary.build_version is None:
        findings.texts.append("it has no LC_BUILD_VERSION")
    else:
        findings.equal("the oldest macOS", binary.build_version.minos[:2], _numbers(MACOS))
    # Macs with ARM CPUs run only signed code; an ad hoc signature is enough.
    if target.machine == "aarch64" and not binary.has_code_signature:
        findings.texts.append("it is not signed")


def check_pe(binary: lief.PE.Binary, findings: Findings) -> None:
    """Check a Windows extension: libraries, oldest system, and that it may be moved in memory."""
    findings.only(
        "library", (str(library.name) for library in binary.imports), LIBRARIES["windows"]
    )
    exports = binary.get_export()
    findings.equal("the exports", [str(e.name) for e in exports.entries] if exports else [], [INIT])
    header = binary.optional_header
    oldest = (header.major_subsystem_version, header.minor_subsystem_version)
    if oldest > WINDOWS:
        findings.texts.append(f"it needs Windows {oldest}; the oldest supported is {WINDOWS}")
    wanted = lief.PE.OptionalHeader.DLL_CHARACTERISTICS
    for flag in (wanted.DYNAMIC_BASE, wanted.NX_COMPAT):
        if not header.has(flag):
            findings.texts.append(f"it lacks {flag}")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def check_extension(data: bytes, target: Target, findings: Findings) -> None:
    """Check the extension of one wheel."""
    binary = lief.parse(list(data))
    kinds = {"linux": lief.ELF.Binary, "macos": lief.MachO.Binary, "windows": lief.PE.Binary}
    if not isinstance(binary, kinds[target.system]):
        findings.texts.append(f"the extension is {type(binary).__name__}")
        return
    header = binary.header
    machine = {lief.ELF.Binary: "machine_type", lief.MachO.Binary: "cpu_type",
               lief.PE.Binary: "machine"}[type(binary)]  # fmt: skip
    findings.equal("the machine", MACHINES.get(getattr(header, machine)), target.machine)
    if isinstance(binary, lief.ELF.Binary):
        check_elf(binary, target, findings)
    elif isinstance(binary, lief.MachO.Binary):
        check_mach(binary, target, findings)
    else:
        check_pe(binary, findings)
    # A path of the machine that built it would make builds differ.
    for place in (b"/tmp/", b"/home/", b"/root/", b"site-packages"):
        if place in data:
            findings.texts.append(f"it names a folder of the build: {place.decode()}")


def check_names(path: Path, target: Target, findings: Findings) -> dict[str, bytes]:
    """Check the tags, RECORD and METADATA; return the content of all common files."""
    name, version, _, tags = parse_wheel_filename(path.name)
    findings.equal("the project", name, "gpt2c")
    findings.equal("the tags", {str(tag) for tag in tags}, {f"cp311-abi3-{target.tag}"})
    with WheelFile.open(path) as wheel:
        wheel.validate_record()
        folder = wheel.dist_info_dir
        about = parse_metadata_file(wheel.read_dist_info("WHEEL"))
        findings.equal("WHEEL's tag", about["Tag"], f"cp311-abi3-{target.tag}")
        findings.equal("Root-Is-Purelib", about["Root-Is-Purelib"], "false")
        metadata = Metadata.from_email(wheel.read_dist_info("METADATA"), validate=True)
    findings.equal("the version", metadata.version, version)
    findings.equal("Requires-Python", str(metadata.requires_python), ">=3.11")
    findings.equal("the license", metadata.license_expression, "MIT")
    findings.equal("the license files", metadata.license_files, ["LICENSE", "NOTICE"])
    with ZipFile(path) as archive:
        for license_file in ("LICENSE", "NOTICE"):
            if f"{folder}/licenses/{license_file}" not in archive.namelist():
                findings.texts.append(f"{license_file} is missing")
        different = {MODULE + target.extension, f"{folder}/WHEEL", f"{folder}/RECORD"}
        return {n: archive.read(n) for n in archive.namelist() if n not in different}


def check_wheel(path: Path, findings: Findings) -> dict[str, bytes]:
    """Check one wheel; return the content of the files that all wheels share."""
    tag = path.stem.split("-")[-1]
    target = next((t for t in TARGETS.values() if t.tag == tag), None)
    if target is None:
        findings.texts.append(f"no target has the platform tag {tag}")
        return {}
    common = check_names(path, target, findings)
    with ZipFile(path) as archive:
        check_extension(archive.read(MODULE + target.extension), target, findings)
    size = path.stat().st_size
    if not SMALLEST < size < LARGEST:
        findings.texts.append(f"it has {size:,} bytes")
    return common


def compare(contents: dict[str, dict[str, bytes]]) -> list[str]:
    """Return how the wheels' common files differ from those of the first wheel."""
    if not contents:
        return []
    (first, expected), *others = contents.items()
    differences = []
    for name, files in others:
        for file in sorted(files.keys() | expected.keys()):
            if files.get(file) != expected.get(file):
                differences.append(f"{file} differs between {first} and {name}")
    return differences


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    lief.logging.disable()
    failed = False
    contents = {}
    for path in sorted(parser.parse_args().wheels):
        findings = Findings()
        contents[path.name] = check_wheel(path, findings)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path.name}: {path.stat().st_size:,} bytes, SHA-256 {digest}")
        for text in findings.texts:
            failed = True
            print(f"  WRONG: {text}")
    for text in compare(contents):
        failed = True
        print(f"WRONG: {text}")
    sys.exit("check: failed" if failed else 0)


if __name__ == "__main__":
    main()
