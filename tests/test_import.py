"""The package's shape: imports go one way, importing is light, the public names are there."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import types
from pathlib import Path

import pytest

import stanley_fast as sf

PACKAGE = Path(sf.__file__).parent
KERNELS = Path(importlib.import_module("stanley_fast.kernels").__file__ or "").parent
MODULES = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
COMMANDS = {path.stem: path for path in PACKAGE.glob("commands/*.py") if path.stem != "__init__"}
DATA = {path.stem: path for path in PACKAGE.glob("data/*.py")}
BENCH = {path.stem: path for path in PACKAGE.glob("bench/*.py")}

# A module may import from the layers above it here, never from its own or a later one.
LAYERS = [
    {"_direct", "_host", "backends", "checkpoint", "checks", "cuda_graph", "extras"}
    | {"metrics_log", "networks", "plain", "settings", "terminal", "weights"}
    | {"parallel", "threads"},
    {"fingerprint", "kernels", "reference", "saves", "schedules", "updates"},
    {"direct", "keys", "library"},
    {"conv", "ops"},
    {"density"},
    {"metropolis_ops", "transition"},
    {"diary"},
    {"data", "distances", "doctor", "energies", "metropolis"},
    {"classifier", "hmc", "samplers"},
    {"fid", "fusion", "metrics", "targets"},
    {"graphs", "mlp"},
    {"chain"},
    {"diagnostics", "divergence", "feed", "plots", "starts", "warmup"},
    {"algorithm", "inpainting"},
    {"training_graph"},
    {"recipes", "trainer"},
    {"methods", "pictures"},
    {"ergodicity", "experiments", "image_experiments", "image_quality"},
    {"image_presets", "run_folder"},
    {"image_models"},
    {"bench", "image_runs", "runs"},
    {"comparison", "image_comparison"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LAYER = {module: i for i, layer in enumerate(LAYERS) for module in layer}
HEAVY = [
    "PIL",
    "arviz_stats",
    "matplotlib",
    "tensorboard",
    "tqdm",
    "tyro",
    "triton",
    "pandas",
    "pytorch_fid",
    "scipy",
    "sklearn",
    "torchvision",
    "xarray",
]


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def from_the_package(nodes: list[ast.Import | ast.ImportFrom]) -> set[str]:
    """The modules of the package that they import, under any spelling."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = "stanley_fast" if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "stanley_fast":
                found.add(rest[0] if rest else "__init__")
    return found


ARROWS = {name: from_the_package(imports(path)) for name, path in MODULES.items()}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows_go_one_way(module: str) -> None:
    """cli -> experiments -> trainer -> {checkpoint, starts} -> chain -> samplers -> ops."""
    assert module in LAYER, "a new module: say in LAYERS where it belongs"
    # Unknown: a public name, taken from the package instead of its module.
    above = [name for name in ARROWS[module] if LAYER.get(name, 99) >= LAYER[module]]
    assert above == []


def test_kernels_import_checks_alone() -> None:
    """And each other."""
    for path in KERNELS.glob("*.py"):
        assert from_the_package(imports(path)) <= {"checks", "kernels"}, path


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_import_what_is_below_them_and_share_common(command: str) -> None:
    nodes = imports(COMMANDS[command])
    assert all(LAYER[name] <= LAYER["commands"] for name in from_the_package(nodes))
    ours = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    ours = {name for name in ours if name.startswith("stanley_fast.commands")}
    shared = ["common"] if command == "image_options" else ["common", "image_options"]
    assert command == "common" or ours <= {f"stanley_fast.commands.{name}" for name in shared}
    assert command != "common" or ours == set()


@pytest.mark.parametrize("module", sorted(DATA))
def test_data_imports_what_is_below_it(module: str) -> None:
    names = from_the_package(imports(DATA[module])) - {"data"}
    assert all(LAYER[name] < LAYER["data"] for name in names)


@pytest.mark.parametrize("module", sorted(BENCH))
def test_bench_imports_what_is_below_it(module: str) -> None:
    names = from_the_package(imports(BENCH[module])) - {"bench"}
    assert all(LAYER[name] < LAYER["bench"] for name in names)


@pytest.mark.parametrize("module", ["energies", "metrics", "targets"])
def test_energies_and_metrics_know_no_sampler(module: str) -> None:
    assert ARROWS[module] <= {"ops", "keys", "reference", "energies"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imported_modules_are_modules(module: str) -> None:
    """`from stanley_fast import backends` would give the public function of that name."""
    for node in imports(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and node.module == "stanley_fast":
            for alias in node.names:
                importlib.import_module(f"stanley_fast.{alias.name}")  # the package has it
                assert isinstance(getattr(sf, alias.name), types.ModuleType), alias.name


def test_init_has_the_public_names_and_nothing_else() -> None:
    """Imports, __all__ and perhaps __version__: no functions, no classes, no work."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        assert isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)), ast.dump(node)
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant)  # the docstring


# What importing costs ----------------------------------------------------------------------------


def python(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules that `import stanley_fast` adds to those of `import torch`."""
    code = "import sys, torch\nbefore = set(sys.modules)\nimport stanley_fast\n"
    return set(python(code + "print('\\n'.join(set(sys.modules) - before))").split())


@pytest.mark.parametrize("name", HEAVY)
def test_import_leaves_heavy_packages_alone(loaded: set[str], name: str) -> None:
    assert not any(module.split(".")[0] == name for module in loaded)


def test_import_adds_little(loaded: set[str]) -> None:
    ours = {m for m in loaded if m.split(".")[0] == "stanley_fast"}
    assert ours  # the measurement works
    torchs = {m for m in loaded if m.split(".")[0] == "torch"}
    assert not any(m.startswith(("torch._dynamo", "torch._inductor")) for m in torchs)
    others = sorted(loaded - ours - torchs)
    assert len(others) <= 40, others  # a few of the standard library; tqdm alone brings 60


def test_import_does_not_start_cuda_or_draw() -> None:
    """No CUDA context, no change of threads, of random state, of default dtype or of warnings."""
    code = """
import torch, warnings
state, threads, filters = torch.get_rng_state(), torch.get_num_threads(), list(warnings.filters)
import stanley_fast as sf
z = torch.ones(4)
sf.stanley_step_(z, z.clone(), sf.key(0), threshold=0.3)
assert not torch.cuda.is_initialized()
assert torch.equal(state, torch.get_rng_state())
assert threads == torch.get_num_threads()
assert torch.get_default_dtype() == torch.float32
assert filters == list(warnings.filters)
print("as before")
"""
    assert python(code).strip() == "as before"


# The public interface ----------------------------------------------------------------------------

STEP = "noise_scale=1.0, clamp=None, update='paper', rounding='nearest', first=0, total=None"
SIGNATURES = {
    "key": "seed=None, device=None",
    "split": "key, n",
    "advance_": "key, blocks",
    "stanley_step": f"z, grad, key, step=0, *, threshold, step_size=1.0, {STEP}",
    "langevin_step": f"z, grad, gamma, key, step=0, *, {STEP}",
    "normal": "shape, key, step=0, *, stream=0, dtype=torch.float32, first=0, total=None",
    "stepsize": "grad, *, threshold, step_size=1.0",
    "use_backend": "name",
    "backends": "",
    "sample": "f, z0, sampler, steps, *, key=None, record=(), keep_every=None, callback=None, "
    "backprop_steps=0, compile=False, autocast=None, graph='auto', fused='auto', first=0, "
    "total=None",
    "warm_up": "f, z0, sampler, steps, *, key=None, target=None",
    "Stanley": "threshold, step_size=1.0, noise_scale=1.0, *, stepsize='adaptive', norm='element', "
    "update='paper', clamp=None, rounding='nearest', adjusted=False",
    "Langevin": "step_size, noise_scale=1.0, *, grad_clamp=None, clamp=None, rounding='nearest'",
    "GradientAscent": "step_size, *, grad_clamp=None, clamp=None, rounding='nearest'",
    "MALA": "step_size",
    "MetropolisHastings": "scale",
    "HMC": "step_size, leapfrog_steps, *, mass=None",
}
SIGNATURES |= {f"{name}_": SIGNATURES[name] for name in ("stanley_step", "langevin_step")}
CLASSES = ["MLPEnergy", "ConvEnergy", "GaussianMixture", "ReplayBuffer", "Trainer"]


def signature(function: object) -> str:
    """Names, kinds and defaults, without annotations."""
    bare = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [p.replace(annotation=p.empty) for p in bare.parameters.values()]
    return str(bare.replace(parameters=parameters, return_annotation=bare.empty))[1:-1]


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    assert signature(getattr(sf, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", ["stanley_step", "langevin_step", "normal", "stepsize"])
def test_the_reference_takes_the_same_arguments(name: str) -> None:
    assert signature(getattr(sf.reference, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", [*SIGNATURES, *CLASSES, "from_energy", "reference"])
def test_public_names(name: str) -> None:
    assert name in sf.__all__


def test_all_is_true_and_documented() -> None:
    assert len(sf.__all__) == len(set(sf.__all__))  # ruff sorts it
    for name in sf.__all__:
        thing = getattr(sf, name)
        if not name.startswith("__"):
            assert inspect.getdoc(thing), name
    public = {
        name
        for name, thing in vars(sf).items()
        if not name.startswith("_") and not isinstance(thing, types.ModuleType)
    }
    assert public <= set(sf.__all__)


def test_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
