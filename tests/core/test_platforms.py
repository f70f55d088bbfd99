"""Importing changes nothing in a process, and a machine or a terminal that lacks something is answered with a line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lookalike.cli.main import wait_asleep
from lookalike.core.errors import PLATFORMS
from tests.support.forks import Forks
from tests.support.runs import command, done, noise

pytestmark = pytest.mark.any_precision

STATE = """
import ctypes, locale, multiprocessing, os, random, signal, socket, sys, threading, warnings

def libc_maps_blocks():
    'Whether glibc maps a large block: it does unless mallopt was told not to. None where that cannot be asked.'
    try:
        class Info(ctypes.Structure):
            _fields_ = [(name, ctypes.c_size_t) for name in 'arena ordblks smblks hblks hblkhd a b c d e'.split()]
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Info, ctypes.c_void_p, [ctypes.c_void_p]
        before = libc.mallinfo2().hblks
        block = libc.malloc(ctypes.c_size_t(1 << 28))
        mapped = libc.mallinfo2().hblks - before
        libc.free(block)
        return mapped
    except AttributeError:
        return None

def state():
    found = {
        'signals': [signal.getsignal(number) for number in signal.valid_signals()],
        'warnings': list(warnings.filters),
        'environment': dict(os.environ),
        'hooks': (sys.excepthook, sys.displayhook, threading.excepthook, sys.getrecursionlimit()),
        'start method': multiprocessing.get_start_method(allow_none=True),
        'locale': locale.setlocale(locale.LC_ALL),
        'streams': (sys.stdin, sys.stdout, sys.stderr, sys.stdout.errors),
        'timeout': socket.getdefaulttimeout(),
        'random': random.getstate(),
        'blocks': libc_maps_blocks(),
        'threads': threading.active_count(),
    }
    if 'torch' in sys.modules:
        import PIL.Image, PIL.ImageFile, numpy, torch
        found |= {
            'dtype': torch.get_default_dtype(), 'grad': torch.is_grad_enabled(), 'device': torch.empty(0).device,
            'torch threads': (torch.get_num_threads(), torch.get_num_interop_threads()),
            'generator': torch.get_rng_state().tolist(), 'numpy': numpy.random.get_state()[1].tolist(),
            'products': (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32),
            'deterministic': torch.are_deterministic_algorithms_enabled(), 'numpy errors': numpy.geterr(),
            'sharing': torch.multiprocessing.get_sharing_strategy(), 'benchmark': torch.backends.cudnn.benchmark,
            'pillow': (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES, PIL.ImageFile.MAXBLOCK),
        }
    return found

hooks = []  # what is run in a child: there is no other way to ask than to note the calls
register = os.register_at_fork
os.register_at_fork = lambda **named: (hooks.append(named), register(**named))
"""
ALONE = """
before = state()
import lookalike, lookalike.cli.main
assert 'torch' not in sys.modules
after = state()
assert after == before, [name for name in after if after[name] != before[name]]
assert not hooks
"""
EVERYTHING = """
import importlib, pkgutil
import PIL.Image, pyarrow.parquet, sklearn.datasets, sklearn.linear_model, timm, torch, torch.distributed, torchvision
import torch._dynamo, torchvision.models.detection
from rich.progress import Progress
from torch.nn.parallel import DistributedDataParallel
import lookalike
for name in ('av', 'fsspec', 'simplejpeg', 'tensorboard', 'tokenizers', 'faster_coco_eval'):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
hooks.clear()
before = state()
for name in lookalike.__all__:
    getattr(lookalike, name)
for module in pkgutil.walk_packages(lookalike.__path__, 'lookalike.'):
    if not module.name.endswith('__main__'):
        importlib.import_module(module.name)
after = state()
assert after == before, [name for name in after if after[name] != before[name]]
assert not hooks
"""
TIFF = """
import io, os, sys, threading
import numpy
from PIL import Image
bits, pixels = io.BytesIO(), numpy.arange(4096).reshape(64, 64).astype(numpy.uint8)
Image.fromarray(pixels).convert('1').save(bits, 'TIFF', compression='group4')
data = bytearray(bits.getvalue())
data[9] ^= 255
data = bytes(data)

def callers():
    try:
        Image.open(io.BytesIO(data)).load()
    except Exception:
        pass

def ours():
    from lookalike.data.decode import Unreadable, decode
    try:
        decode(data, 8)
    except Unreadable:
        pass

{work}
"""


def python(
    code: str, *options: str, arguments: Sequence[object] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.parametrize("imports", [ALONE, EVERYTHING], ids=["the package", "every module of it"])
def test_importing_changes_nothing_in_the_process(imports: str) -> None:
    done = python(STATE + imports)
    assert (done.returncode, done.stderr) == (0, "")


SLOW = ("torchvision", "timm", "sklearn", "scipy", "sympy", "torch._dynamo", "huggingface_hub")
EMBED = f"""
import sys
from lookalike.cli.main import main
sys.argv = ["lookalike", "embed", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    assert not ended.code
print(*[name for name in {SLOW} if name in sys.modules])
"""


def test_a_command_waits_for_no_package_that_it_does_not_need(forks: Forks, tmp_path: Path) -> None:
    """They took half of the time that a command took to begin. Training still waits for torch's compiler."""
    data, out = noise(tmp_path / "data", 8), tmp_path / "run"
    done(forks.run(command(data, out, "--checkups", 0, steps=2)))
    embedded = python(EMBED, arguments=[out, data, "--out", tmp_path / "table.parquet"])
    assert (embedded.returncode, embedded.stdout.split("\n")[-2]) == (0, ""), embedded.stderr


DOCTOR = """
import sys
from lookalike.cli.main import main
sys.argv = ["lookalike", "doctor", *sys.argv[1:]]
main()
"""


def test_threads_of_a_command_soon_sleep_while_they_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenMP itself tells of what it goes by, as soon as torch is there."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    looked = [noise(tmp_path / "data", 8), "--quick", "--out", tmp_path / "doctor"]
    told = re.search("GOMP_SPINCOUNT = '(.*)'", python(DOCTOR, arguments=looked, OMP_DISPLAY_ENV="verbose").stderr)
    if told is None:
        pytest.skip("this OpenMP does not tell")
    assert told[1] == "2000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    wait_asleep()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_libtiff_speaks_to_the_caller_as_before_and_is_silent_for_us() -> None:
    """Its handlers belong to the process: they are set while we decode, by however many threads, and put back."""
    loud = python(TIFF.format(work="callers()")).stderr
    if not loud:
        pytest.skip("this libtiff says nothing, or hides its handlers")
    threads = "ts = [threading.Thread(target=ours) for _ in range(8)]; [t.start() for t in ts]; [t.join() for t in ts]"
    assert python(TIFF.format(work=f"ours(); {threads}")).stderr == ""
    assert python(TIFF.format(work=f"ours(); {threads}; callers()")).stderr == loud


LACKS = {"fork": "import os; del os.fork", "locks": "import sys; sys.modules['fcntl'] = None"}


@pytest.mark.parametrize("what", LACKS)
def test_where_processes_cannot_fork_or_lock_the_command_says_what_is_supported(what: str, tmp_path: Path) -> None:
    main = f"{LACKS[what]}; from lookalike.cli.main import main; main({{}})"
    for verb in (["pretrain", "digits", "--out", str(tmp_path / "run")], ["doctor"]):
        done = python(main.format(verb))
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"lookalike: {PLATFORMS}\n")
    assert python(main.format(["pretrain", "--help"])).returncode == 0
    done = python(f"{LACKS[what]}; import lookalike\ntry: lookalike.load\nexcept lookalike.UserError as t: print(t)")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{PLATFORMS}\n", "")


ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
PRETRAIN = (
    sys.executable,
    "-m",
    "lookalike",
    "pretrain",
    "digits",
    "--recipe",
    "tiny",
    "--steps",
    "2",
    "--workers",
    "0",
)


def test_an_ascii_locale_and_a_name_that_is_not(tmp_path: Path) -> None:
    environment = {**os.environ, **ASCII, "OMP_NUM_THREADS": "1"}
    command = [*PRETRAIN, "--precision", "fp32", "--out", os.fsencode(tmp_path / "größer")]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert rb"gr\xc3\xb6\xc3\x9fer" in done.stdout or rb"gr\udcc3\udcb6" in done.stdout
    again = subprocess.run([*command[:-1], tmp_path / "größer"], capture_output=True, timeout=120)
    assert (again.returncode, again.stderr) == (0, b"")
    shown = subprocess.run([*PRETRAIN[:4], "--help"], capture_output=True, env=environment, timeout=60)
    assert (shown.returncode, shown.stderr, shown.stdout.isascii()) == (0, b"", True)


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "| head -c 0"])
def test_closed_streams_do_no_harm(closed: str, tmp_path: Path) -> None:
    """Files that a run writes would take the numbers of closed streams, and what is printed would be in them."""
    command = " ".join(map(str, [*PRETRAIN, "--precision", "fp32", "--out", tmp_path / "run"]))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} {closed}"], stderr=subprocess.PIPE, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "metrics.jsonl").read_text().startswith('{"step": 1')
    assert (tmp_path / "run" / "checkpoints" / "step-000000002").is_dir()
