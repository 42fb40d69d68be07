"""Compiles C for this very machine, keeps the object in a folder of the user's, and loads it.

Nothing is compiled when regard is installed: a wheel serves every processor, and the compiler's best instructions are
known only where the code runs. The object is named by a hash of all that it depends on (sources, flags, compiler,
processor) and by a hash of itself, so that one found damaged is made anew, a home shared by unlike machines holds one
for each, and two processes that build at once write the same name, each all at once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")  # tried in turn, after $CC
COMPILE_SECONDS = 300  # a compiler that takes longer is taken for broken
# Nothing that lets the compiler reorder sums or forget infinity: rounding by adding and subtracting a large number and
# the score of a disallowed pair need both. -O3 unrolls tiles into registers.
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-pthread",
)
RUNTIME = re.compile(r"/lib(gomp|iomp5|omp)[^/]*\.so[^/]*$")  # OpenMP's, GNU's and LLVM's
# The processor at hand by x86's name for it, by Arm's, and not at all.
PROCESSOR_FLAGS = (("-march=native",), ("-mcpu=native",), ())


class BuildError(Exception):
    """No object could be made or loaded; says why in a few words. Never reaches a user as an exception."""


def load(source: str, *, extra_flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The object of a C file of this folder, compiled unless it is there already.

    Raises: BuildError where there is no compiler, or none that can compile it.
    """
    if os.name != "posix":
        raise BuildError(f"native code is not built on {platform.system()}")
    reasons: list[str] = []
    for compiler in _compilers():
        for processor_flags in PROCESSOR_FLAGS:
            flags = (*FLAGS, *processor_flags, *extra_flags)
            try:
                return _with_pool(_kept_or_made(source, compiler, flags))
            except BuildError as error:
                reasons.append(str(error))
    raise BuildError(reasons[0] if reasons else "no C compiler was found")


def _with_pool(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tells an object that shares out work (workers.h) where torch's pool of threads is, if there is one."""
    pool = pool_of_torch()
    if pool is not None and hasattr(library, "regard_use_pool"):
        library.regard_use_pool(ctypes.cast(pool, ctypes.c_void_p))
    return library


@functools.cache
def pool_of_torch() -> Any:
    """The function that runs another on threads of the OpenMP runtime that torch has loaded; None where it has none."""
    try:
        mapped = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[5] for line in mapped if RUNTIME.search(line)}
    of_torch = sorted(path for path in paths if Path(path).is_relative_to(Path(torch.__file__).parent))
    for path in of_torch or sorted(paths):
        try:
            return ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
    return None


def cache_folder() -> Path:
    """Where objects are kept: $REGARD_CACHE, $XDG_CACHE_HOME/regard or ~/.cache/regard."""
    chosen = os.environ.get("REGARD_CACHE")
    if chosen:
        return Path(chosen)
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "regard"


def _compilers() -> Iterator[list[str]]:
    """Commands, without arguments but those that $CC itself holds."""
    seen = set()
    for command in (shlex.split(os.environ.get("CC", "")), *([name] for name in COMPILERS)):
        path = shutil.which(command[0]) if command else None
        if path is not None and (real := (os.path.realpath(path), *command[1:])) not in seen:
            seen.add(real)
            yield [path, *command[1:]]


def _kept_or_made(source: str, compiler: list[str], flags: tuple[str, ...]) -> ctypes.CDLL:
    name = f"{Path(source).stem}-{_key(compiler, flags)}"
    folder = _trusted_folder()
    if folder is not None:
        for kept in sorted(folder.glob(f"{name}-*.so")):
            if kept.stem == _name_of(name, kept):
                try:
                    return ctypes.CDLL(str(kept))
                except OSError:
                    continue  # made by a machine alike in name alone: make our own
        try:
            with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as building:
                made = _compile(source, compiler, flags, Path(building))
                kept = folder / f"{_name_of(name, made)}.so"
                os.replace(made, kept)
            return _opened(kept)
        except OSError:
            pass  # a full or read-only disk: the system's temporary folder may still take it
    try:
        with tempfile.TemporaryDirectory(prefix="regard-") as building:
            return _opened(_compile(source, compiler, flags, Path(building)))  # stays loaded when the file is gone
    except OSError as error:
        raise BuildError(f"no folder can be written ({error.strerror})") from error


def _trusted_folder() -> Path | None:
    """The cache folder, unless it cannot be made or another user could put an object there for us to run."""
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder if found.st_uid in (os.geteuid(), 0) and not found.st_mode & 0o002 else None


def _opened(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"the compiled object does not load ({error})") from error


def _compile(source: str, compiler: list[str], flags: tuple[str, ...], folder: Path) -> Path:
    made = folder / "made.so"
    command = [*compiler, *flags, str(SOURCES / source), "-o", str(made), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler[0]} does not run ({error})") from error
    if done.returncode or not made.exists():
        said = next((line for line in done.stderr.splitlines() if "error" in line), f"exit status {done.returncode}")
        raise BuildError(f"{compiler[0]} failed ({said.strip()})")
    return made


def _name_of(name: str, made: Path) -> str:
    try:
        content = made.read_bytes()
    except OSError:
        return ""
    return f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"


def _key(compiler: list[str], flags: tuple[str, ...]) -> str:
    """Of all that decides what the compiler makes."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler[0]} does not run ({error})") from error
    for part in (" ".join(flags), " ".join(compiler), _processor()):
        digest.update(part.encode() + b"\0")
    digest.update(version)
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What tells processors apart that take different instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    telling = ("vendor_id", "cpu family", "model", "flags", "features", "cpu implementer", "cpu part")
    return "\n".join(line for line in lines if line.split(":")[0].strip().lower() in telling)
