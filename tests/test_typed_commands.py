"""The commands of the README and the pages, run as they are typed, but short."""

import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from pictures import classes, tiny, write
from test_readme import PAGES, ROOT

from innerloop.practice.output import FILES

SKIPPED = {
    r"trainer=ddp\b(?!_)": "needs several GPUs",
    "trainer=gpu": "needs a GPU",
    "mlflow": "needs mlflow",
    "tensorboard": "needs tensorboard",
    "data=omniglot": "downloads; tests/test_omniglot.py runs it on a small archive",
    "launcher=joblib": "tests/test_sweep.py runs every launcher",
    "net=mine": "names a net of the reader's own",
    "reproduce.py --set": "takes hours",
    "search=maml_optuna|sweeper=search": "tests/test_search.py runs searches, whose trials may diverge",
    "wandb_dashboard": "tests/test_wandb.py runs it in a process of its own",
    "data.root=NEW": "tests/test_resume.py moves the pictures",
    r"leaves\.zip": "reads an archive of the reader's; tests/test_mixture.py and test_elsewhere.py have their own",
    r"sources=\[omniglot": "downloads; tests/test_mixture.py runs mixtures of other sources",
    "RECORDS": "tests/test_meta_dataset.py writes records of its own",
    "ml-100k": "MovieLens is not passed on; tests/test_ratings.py reads small files of its forms",
    "ratings.csv": "tests/test_ratings.py and test_recommend.py have files of their own",
    r"FILE\.csv|tasks\.npz": "tests/test_arrays.py has files of its own",
    r"labelled\.csv|rows\.csv": "tests/test_tables.py has tables of its own",
    r"\$FEW|\$W|transfer\.py": "tests/test_transfer.py makes the table of small runs",
    r"data=gym": "needs an extra; tests/test_gym.py runs it",
    "practice.ship": "writes the file that ships",
    "dir=RUN": "trains what the page's next command reads",
}


def commands() -> list[str]:
    """The lines of the shell blocks that start with python, without their comments, each once."""
    found: dict[str, None] = {}
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.partition("  #")[0].partition(" # ")[0].strip()
                if command.startswith("python "):
                    found[command] = None
    return list(found)


@pytest.fixture(scope="module")
def places(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What RUN, SWEEP and FOLDER stand for."""
    from PIL import Image

    root = tmp_path_factory.mktemp("typed")
    for c in range(40):
        (root / "pictures" / f"class{c}").mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (8, 8), (6 * c, i, 0)).save(root / "pictures" / f"class{c}" / f"{i}.png")
    train("algo=maml", *TINY, "logger=csv", f"hydra.run.dir={root / 'run'}")
    train("-m", "algo=maml", "seed=0,1", *TINY, "logger=csv", f"sweep={root / 'sweep'}")
    for name, first in (("labelled", 0), ("new", 4), ("more", 6)):  # in the working directory of `train`
        write(Path(name), classes(each=4, first=first))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setattr("innerloop.runs.build.named", tiny)  # the real one is an extra
        yield {"RUN": str(root / "run"), "SWEEP": str(root / "sweep"), "FOLDER": str(root / "pictures")}
    shutil.rmtree(root)


def test_the_blocks_are_found() -> None:
    assert len(commands()) > 30
    assert "python train.py algo=hybrid data=multimodal" in commands()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_writes_no_folder_that_the_repository_has(page: Path) -> None:
    """It is typed in a copy of the repository, and an adaptation never writes into somebody's folder."""
    written = set(re.findall(r"\bout=(\w+)", page.read_text()))
    assert not [name for name in written if (ROOT / name).exists()]


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_command_runs(command: str, places: dict[str, str], train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for pattern, reason in SKIPPED.items():
        if re.search(pattern, command):
            pytest.skip(reason)
    _, script, *typed = shlex.split(command.replace("max_steps=9000", "max_steps=90"))
    typed = [re.sub(r"\b(RUN|SWEEP|FOLDER)\b", lambda m: places[m[0]], a) for a in typed]
    if script == "train.py" and not any(a.startswith(("resume=", "sweep=")) for a in typed):
        keys = {a.partition("=")[0] for a in typed}
        typed = [*typed, *(a for a in TINY if a.partition("=")[0] not in keys)]
    monkeypatch.setattr(sys, "argv", [script, *typed])
    status: Any = 0
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        status = end.code
    assert not status


@pytest.mark.slow
def test_an_adaptation_left_what_the_page_lists(places: dict[str, str]) -> None:
    """After the commands of docs/your-own-pictures.md."""
    assert all(Path("predictions", name).is_file() for name in FILES)
    assert Path("predictions2", "predictions.csv").is_file()
