"""What tests share: this machine's backends, an oracle in NumPy, the tolerance, data."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor

# Without a GPU the Triton kernels run in Triton's interpreter; asked for before it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from fake_graph import FakeRecorder

import stanley_fast as sf
from stanley_fast import cuda_graph

# The fixtures below do not change between the examples of one test, so sharing them is harmless.
hypothesis.settings.register_profile(
    "stanley-fast",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("stanley-fast")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    # NumPy warns where Triton's interpreter computes a NaN or infinity that the kernel discards.
    what = "(divide by zero|invalid value|overflow) encountered"
    where = r"triton\.runtime\.interpreter"
    config.addinivalue_line("filterwarnings", f"ignore:{what}:RuntimeWarning:{where}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip("slow: run with --slow"))


@pytest.fixture(autouse=True, scope="session")
def away(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Not in the repository, where a subprocess would import the source, not what is installed;
    and with a cache of the tests' own.
    """
    os.chdir(tmp_path_factory.mktemp("away"))
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On arrays this small a second thread only costs time, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Backend(NamedTuple):
    name: str
    device: str


INTERPRETER = Backend("triton", "cpu")  # some 10 ms for each program, so it gets fewer of them
GPU = "cuda" if torch.cuda.is_available() else "cpu"
AVAILABLE = [
    Backend(name, GPU if name in ("cuda", "triton") else "cpu")
    for name, why_not in sf.backends().items()
    if why_not is None
]
FAST = [b for b in AVAILABLE if b.name != "reference"]
NONE = pytest.param(None, marks=pytest.mark.skip("only the reference backend can run here"), id="-")


@pytest.fixture(params=FAST or [NONE], ids=lambda b: b.name if b else "-")
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend that can run here and is not the reference, chosen for the test."""
    with sf.use_backend(request.param.name):
        yield request.param


@pytest.fixture(params=AVAILABLE, ids=lambda b: b.name)
def each_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend that can run here, the reference too."""
    with sf.use_backend(request.param.name):
        yield request.param


@pytest.fixture
def compiled() -> None:
    """Skips a test of torch.ops.stanley_fast.* on the CPU where the library was not built."""
    why_not = sf.backends()["cpp"]
    if why_not is not None:
        pytest.skip(why_not)


# The noise again, in NumPy and float64, from docs/architecture.md and Salmon et al. 2011 alone ---

MASK = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox(counter: np.ndarray, k0: int, k1: int) -> np.ndarray:
    """Philox4x32-10 of counters (n, 4), 32-bit words held in uint64."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    for _ in range(10):
        high = [(np.uint64(m) * x) >> HALF for m, x in ((0xD2511F53, c[0]), (0xCD9E8D57, c[2]))]
        low = [(np.uint64(m) * x) & MASK for m, x in ((0xD2511F53, c[0]), (0xCD9E8D57, c[2]))]
        c = [high[1] ^ c[1] ^ np.uint64(k0), low[1], high[0] ^ c[3] ^ np.uint64(k1), low[0]]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1)


def words(
    n: int,
    seed: int,
    offset: int = 0,
    step: int = 0,
    stream: int = 0,
    first: int = 0,
    total: int | None = None,
) -> np.ndarray:
    """The words (w0, w1) of the pair that each element [first, first + n) belongs to: (n, 2)."""
    start = (offset + step * -(-(n if total is None else total) // 4)) % 2**64
    i = np.uint64(first) + np.arange(n, dtype=np.uint64)
    block = np.uint64(start) + i // np.uint64(4)  # wraps modulo 2^64
    zero = np.zeros_like(block)
    counter = np.stack([block & MASK, block >> HALF, zero + np.uint64(stream), zero], axis=1)
    w = philox(counter, seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF).reshape(n, 2, 2)
    return w[np.arange(n), (i // np.uint64(2) % np.uint64(2)).astype(np.intp)]


def radius_and_normal(
    w: np.ndarray, first: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[np.ndarray, np.ndarray]:
    """Box-Muller of `words`: each element's r and n, exact for the uniforms as `dtype` has them."""
    u = w.astype(np.float64 if dtype == torch.float64 else np.float32)
    u = (u * u.dtype.type(2.0**-32) + u.dtype.type(2.0**-33)).astype(np.float64)
    r = np.sqrt(-2.0 * np.log(u[:, 0]))
    angle = 2.0 * np.pi * np.where(u[:, 1] > 0.5, u[:, 1] - 1.0, u[:, 1])
    second = (first + np.arange(len(w))) % 2 == 1
    return r, r * np.where(second, np.sin(angle), np.cos(angle))


def oracle_normal(n: int, seed: int, first: int = 0, **where: int | None) -> Tensor:
    """float64 normals that no code of the package had a part in."""
    w = words(n, seed, first=first, **where)  # type: ignore[arg-type]
    return torch.from_numpy(radius_and_normal(w, first)[1])


# The equations in float64 ------------------------------------------------------------------------


def eq4(grad: Tensor, threshold: float, step_size: float) -> Tensor:
    return step_size * threshold / torch.clamp(grad.double().abs(), min=threshold)


def eq5(z: Tensor, grad: Tensor, gamma: Tensor, noise: Tensor, update: str = "paper") -> Tensor:
    """`noise` is noise_scale * xi."""
    if update == "script":
        return z.double() + gamma * grad + gamma * noise
    return z.double() + gamma / 2 * grad + gamma.sqrt() * noise


# Agreement ---------------------------------------------------------------------------------------


def ulp(x: Tensor) -> Tensor:
    """Distance from |x| to the next larger number of its dtype."""
    return torch.nextafter(x.abs(), torch.full_like(x, torch.inf)) - x.abs()


def assert_step_close(
    got: Tensor,
    want: Tensor,
    z: Tensor,
    grad: Tensor,
    gamma: Tensor,
    noise_scale: float,
    update: str = "paper",
) -> None:
    """|got - want| <= tol * (drift + noise) + 2 ulp(z), tol 1e-5 in float32 and 1e-12 in float64.

    float16 and bfloat16 are float32's result rounded: the ulp is want's, and one. The same
    non-finite values must be in the same places.
    """
    assert got.shape == want.shape == z.shape
    assert got.dtype == z.dtype
    assert got.device == z.device
    finite = want.isfinite()
    others = got[~finite].double(), want[~finite].double()
    torch.testing.assert_close(*others, rtol=0, atol=0, equal_nan=True)
    tol = 1e-12 if z.dtype == torch.float64 else 1e-5
    rounding = ulp(want.to(z.dtype)) if z.dtype in HALVES else 2 * ulp(z)
    drift, noise = (gamma / 2, gamma.sqrt()) if update == "paper" else (gamma, gamma)
    bound = tol * (drift * grad.abs() + noise * noise_scale).double() + rounding.double()
    excess = ((got.double() - want.double()).abs() - bound)[finite]
    assert (excess <= 0).all(), f"off by {excess.max()} beyond the bound in {(excess > 0).sum()}"


# Test data, not from the noise under test ---------------------------------------------------------

HYPER = {"threshold": 0.3, "step_size": 0.7, "noise_scale": 0.5}
UPDATES = ["paper", "script"]
DTYPES = [torch.float32, torch.float64]
HALVES = [torch.float16, torch.bfloat16]


def random(shape: tuple[int, ...], seed: int, on: Backend, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(on.device, dtype)


def state(
    shape: tuple[int, ...], on: Backend, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """z, a gradient on both sides of HYPER's threshold but 1e-3 away from it, and a key."""
    z, grad = random(shape, 1, on, dtype), random(shape, 2, on, dtype) * 0.45
    grad = torch.where((grad.abs() - 0.3).abs() < 1e-3, 0.31 * grad.sign(), grad)
    return z, grad, sf.key(77, on.device)


def parts(on: Backend) -> Iterator[tuple[int, int]]:
    """(length, first): all up to some vectors, on the interpreter those at a thread's limits."""
    if on == INTERPRETER:
        return itertools.product([1, 3, 4, 5, 8, 9, 17, 65], [0, 1, 3, 6])
    return itertools.product(range(1, 100), range(11))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "permuted": lambda x: x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
    "sliced": lambda x: torch.stack([x, x + 1], dim=-1)[..., 0],
    "offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "rows": lambda x: torch.cat([x, x + 1], dim=3)[..., : x.shape[3]],
    # torch's lazy negation: the memory holds -x.
    "negative": lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
}


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> FakeRecorder:
    """What captures and replays in place of a GPU."""
    fake = FakeRecorder()
    monkeypatch.setattr(cuda_graph, "recorder", lambda device: fake)
    return fake
