"""What all tests share: the real data where it lies, one thread, and a small synthetic river made once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.commands import Commands

ROOT = Path(__file__).resolve().parent.parent

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRITON_INTERPRET"] = "1"  # settled when triton is imported, by whatever comes first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of openly licensed scans beside the repository."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real scans (../shared/data) are not on this machine")
    return path


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Starts ``neuroprior ARGS`` in processes of their own, one at a time."""
    found = Commands()
    yield found
    found.close()


@pytest.fixture(scope="session")
def run_cli(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``neuroprior ARGS`` in a process of its own, with one thread."""
    return partial(commands.run, folder=tmp_path_factory.mktemp("said"))


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten synthetic subjects at 4 mm as a BIDS dataset."""
    from neuroprior.stages.synthesise import synthesise

    folder = tmp_path_factory.mktemp("heads") / "heads"
    synthesise(folder, subjects=10, spacing=4.0, contrasts="T1w,T2w,FLAIR", workers=1)
    return folder


@pytest.fixture(scope="session")
def index_file(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their index, split 6 / 2 / 2."""
    from neuroprior.stages.index import index

    out = tmp_path_factory.mktemp("index") / "index.parquet"
    index([heads], out, split="train=0.6,val=0.2,test=0.2", workers=1)
    return out


@pytest.fixture(scope="session")
def store_path(index_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their store at 4 mm."""
    from neuroprior.stages.prepare import prepare

    out = tmp_path_factory.mktemp("store") / "store"
    prepare(index_file, out, spacing="4", workers=1)
    return out


@pytest.fixture(scope="session")
def pretrained(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained U-Net, saved as a pretrained model of that store."""
    import torch

    from neuroprior.data.store import Store
    from neuroprior.inference import model as models
    from neuroprior.nets import unet

    store = Store.open(store_path)
    torch.manual_seed(3)
    net = unet.build(unet.Config(features=(4, 8, 8), latent=4))
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    models.save(
        folder, net=net, net_name="unet", net_config=net.config.model_dump(mode="json"), spec=store.spec,
        contrasts=["T1w", "T2w", "FLAIR"], kind="pretrained", method={"patch": 16}, data=store.data_summary(),
    )  # fmt: skip
    return folder


SBATCH = """#!{python}
import pathlib, subprocess, sys
script = sys.argv[-1]
folder = pathlib.Path("{folder}")
number = len(list(folder.glob("script-*"))) + 1
(folder / f"script-{{number}}").write_text(open(script).read())
subprocess.Popen(["bash", str(folder / f"script-{{number}}")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
print(f"Submitted batch job {{number}}")
"""


@pytest.fixture
def stub_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A stub ``sbatch`` that keeps the script and runs it, so that real workers come; gives settings with a lifetime of workers."""
    for name, text in (("sbatch", SBATCH.format(python=sys.executable, folder=tmp_path)), ("scancel", "#!/bin/sh\nexit 0\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    path = os.pathsep.join([str(ROOT / "src"), *sys.path[1:]])

    def settings(lifetime: str) -> Path:
        (tmp_path / "slurm.yml").write_text(
            "jobs: 1\nqueue: long\naccount: brains\ncores: 1\nmemory: 2 GB\nwalltime: '00:20:00'\njob_extra_directives: ['--gres=none']\n"
            f"log_directory: {tmp_path}\nlocal_directory: {tmp_path}\nworker_extra_args: ['--no-dashboard', '--lifetime', '{lifetime}']\n"
            f"interface: lo\njob_script_prologue: ['export PYTHONPATH={path}']\n"
        )
        return tmp_path / "slurm.yml"

    return settings
