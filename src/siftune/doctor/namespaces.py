"""Whether Apptainer may make user namespaces: to run an image, and to build one."""

import getpass
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from siftune.doctor import place
from siftune.doctor.finding import OK, PROBLEM, WARNING, Finding, ask

PROC, ETC = Path("/proc/sys"), Path("/etc")
PROGRAMS = ("apptainer", "singularity")
# What forbids them, by the kernel's or a distribution's own switch.
SWITCHES = {
    "user/max_user_namespaces": "0",
    "kernel/unprivileged_userns_clone": "0",
    "kernel/apparmor_restrict_unprivileged_userns": "1",
}


def check() -> Iterator[Finding]:
    """Apptainer itself, then what it needs of the kernel; nothing to ask where no image runs."""
    if place.in_image() or not place.on_cluster():
        return
    program = next(filter(shutil.which, PROGRAMS), None)
    if program is None and not os.environ.get("SIFTUNE_MODULES"):
        yield Finding(
            PROBLEM, "Apptainer", "neither apptainer nor singularity is on the path",
            "Name its module in SIFTUNE_MODULES of the site file (`module avail apptainer`).",
        )  # fmt: skip
    elif program is None:
        yield Finding(OK, "Apptainer", f"comes with module {os.environ['SIFTUNE_MODULES']}")
    else:
        said = (ask(program, "--version") or "does not say its version").strip()
        yield Finding(OK, "Apptainer", f"{said} ({shutil.which(program)})")
    yield from _namespaces(program)


def _namespaces(program: str | None) -> Iterator[Finding]:
    tried = ask("unshare", "--user", "--map-root-user", "true")
    switched_off = [f"{name} = {value}" for name, value in SWITCHES.items() if _is(name, value)]
    if tried is None and (switched_off or shutil.which("unshare")):
        reason = ", ".join(switched_off) or "the kernel refuses them"
        # Root's helper program makes up for it when an image runs, not when it is built. That of
        # a module is not known here.
        runs = program is None or _has_setuid_helper(program)
        yield Finding(
            WARNING if runs else PROBLEM, "namespaces", f"no user namespaces here: {reason}",
            "Build the image on another machine and copy it with containers/image.lock."
            if runs else "Ask who runs this machine to allow them, or to install apptainer-suid.",
        )  # fmt: skip
    elif not _has_subordinate_ids():
        yield Finding(
            WARNING, "namespaces", f"{getpass.getuser()} has no line in {ETC}/subuid",
            "Images run, but may not build here: build on another machine, or ask for the line.",
        )  # fmt: skip
    else:
        yield Finding(OK, "namespaces", "user namespaces, with ids of one's own")


def _is(name: str, value: str) -> bool:
    try:
        return (PROC / name).read_text().strip() == value
    except OSError:
        return False


def _has_setuid_helper(program: str) -> bool:
    prefix = Path(str(shutil.which(program))).resolve().parents[1]
    helpers = [*prefix.glob("libexec/*/bin/starter-suid"), *prefix.glob("lib/*/*/starter-suid")]
    return any(helper.stat().st_mode & 0o4000 for helper in helpers)


def _has_subordinate_ids() -> bool:
    told = ask("getsubids", getpass.getuser())  # also those of a directory server
    if told:
        return True
    try:
        lines = (ETC / "subuid").read_text().splitlines()
    except OSError:
        return False
    return any(line.split(":")[0] in (getpass.getuser(), str(os.getuid())) for line in lines)
