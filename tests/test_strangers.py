"""Run directories, checkpoints, configurations and pictures of somebody else run no code and lead nowhere else."""

import io
import os
import shlex
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import SHORT, Here
from PIL import Image

import innerloop
from innerloop.datasets import files, folder
from innerloop.datasets.pictures import decode
from innerloop.errors import InputError
from innerloop.runs.build import loader_of
from innerloop.runs.record import read_checkpoint, write_checkpoint
from innerloop.runs.signatures import locate, target_of
from innerloop.sweeps import summary
from innerloop.tasks.base import Tasks


@pytest.fixture(scope="module")
def trained(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("strangers") / "run"
    train(*SHORT, "trainer.max_steps=4", "trainer.val_every=2", "logger=csv", f"hydra.run.dir={run_dir}")
    return run_dir


@pytest.fixture
def strange(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be made malicious."""
    return Path(shutil.copytree(trained, tmp_path / "strange"))


class Evil:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def refused(here: Here, script: str, *arguments: str) -> str:
    """The one line that refuses a command."""
    status, err = here(script, *arguments)
    assert status == 1
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize("digest", [True, False])
def test_a_checkpoint_runs_no_code(strange: Path, tmp_path: Path, here: Here, digest: bool) -> None:
    mark = tmp_path / "mark"
    for name in ("best", "last"):
        path = strange / "checkpoints" / f"{name}.ckpt"
        content = read_checkpoint(path) | {"evil": Evil(mark)}
        if digest:  # the digest is the stranger's too
            write_checkpoint(path, content)
        else:
            path.with_name(f"{name}.ckpt.sha256").unlink()
            torch.save(content, path)
    (strange / "results.json").unlink()
    assert "best.ckpt is no whole checkpoint" in refused(here, "evaluate.py", f"run={strange}")
    assert "last.ckpt is no whole checkpoint" in refused(here, "train.py", f"resume={strange}")
    with pytest.raises(InputError, match=r"best\.ckpt is no whole checkpoint"):
        innerloop.load(strange)
    assert not mark.exists()
    torch.load(strange / "checkpoints" / "best.ckpt", weights_only=False)
    assert mark.exists(), "the checkpoint was harmless, so the test shows nothing"


TARGETS = {
    "data": {"_target_": "os.system", "command": "touch MARK"},
    "data.dataset": {"dataset": "os.system", "_target_": "innerloop.tasks.FewShotImages", "command": "touch MARK"},
    "net": {"_target_": "subprocess.Popen", "args": ["touch", "MARK"]},
    "algo": {"_target_": "shutil.rmtree", "path": "VICTIM"},
    "callbacks.mine": {"_target_": "pathlib.Path.touch", "self": "MARK"},
}


@pytest.mark.parametrize("key", TARGETS)
@pytest.mark.parametrize("command", [("evaluate.py", "run"), ("train.py", "resume")])
def test_a_configuration_calls_no_function_of_the_system(
    key: str, command: tuple[str, str], strange: Path, tmp_path: Path, here: Here
) -> None:
    mark, victim = tmp_path / "mark", tmp_path / "victim"
    victim.mkdir()
    path = strange / "config.yaml"
    cfg = yaml.safe_load(path.read_text())
    node = {"name": "x", "test_episodes": 2, **TARGETS[key]}
    text = yaml.safe_dump(node).replace("MARK", str(mark)).replace("VICTIM", str(victim))
    group, _, inner = key.partition(".")
    if inner == "mine":
        cfg["callbacks"]["mine"] = yaml.safe_load(text)
    else:
        cfg[group] = yaml.safe_load(text)
    cfg["allow"] = ["os", "subprocess", "shutil", "pathlib"]  # the stranger's, which does not count
    path.write_text(yaml.safe_dump(cfg))
    script, argument = command
    if group == "callbacks" and script == "evaluate.py":
        pytest.skip("an evaluation has no callbacks")
    assert "not allowed in a configuration" in refused(here, script, f"{argument}={strange}")
    if group != "callbacks":
        with pytest.raises(InputError, match="not allowed in a configuration"):
            innerloop.load(strange)
    assert not mark.exists()
    assert victim.exists()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("innerloop.runs.record.write_json", Tasks),  # a function of ours that writes files
        ("innerloop.runs.command.remove_empty", Tasks),
        ("innerloop.runs.record.os", Tasks),
        ("innerloop.datasets.files.os.system", Tasks),
        ("innerloop.runs.record.subprocess.run", Tasks),
        ("innerloop.learners.MAML", Tasks),
        ("innerloop", Tasks),
        ("innerloopx.Tasks", Tasks),
        ("os.system", Tasks),
    ],
)
def test_only_classes_of_the_right_kind_below_innerloop(path: str, kind: type) -> None:
    with pytest.raises(InputError, match=r"data"):
        target_of({"_target_": path}, "data", kind)
    with pytest.raises(InputError, match=r"data\.dataset"):
        loader_of({"dataset": path})


def test_nothing_is_imported_that_is_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "strangers_package.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"add allow=\[strangers_package\]"):
        locate("strangers_package.Thing", "net")
    assert not mark.exists()
    assert locate("strangers_package.Thing", "net", ["strangers_package"]).__name__ == "Thing"
    assert mark.exists()


@pytest.mark.parametrize("name", ["../../escape", "a/b", ".hidden", "", "a b", "/tmp/x"])
@pytest.mark.parametrize("group", ["algo", "data"])
def test_a_name_leads_nowhere_else(group: str, name: str, here: Here, tmp_path: Path) -> None:
    assert f"{group}.name" in refused(here, "train.py", *SHORT, "logger=csv", f"{group}.name='{name}'")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_one_flipped_bit_is_found(strange: Path, here: Here) -> None:
    path = strange / "checkpoints" / "best.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "best.ckpt was damaged or changed" in refused(here, "evaluate.py", f"run={strange}")


# Pictures.


def png(colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "pictures"
    for c in range(8):
        (root / f"c{c}").mkdir(parents=True)
        for i in range(3):
            (root / f"c{c}" / f"{i}.png").write_bytes(png(10 * c + i))
    return root


def zipped(path: Path, **entries: bytes | zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for c in range(8):
            for i in range(3):
                archive.writestr(f"c{c}/{i}.png", png(10 * c + i))
        for name, content in entries.items():
            archive.writestr(content if isinstance(content, zipfile.ZipInfo) else name, png())
    return path


def test_links_pipes_and_devices_are_refused(pictures: Path, tmp_path: Path) -> None:
    assert len(folder.load(str(pictures), size=8).classes) == 8
    private = tmp_path / "private.png"
    private.write_bytes(png())
    cases = {
        "c0/again": pictures,
        "c0/self": Path("."),
        "c1/private.png": private,
        "all": pictures / "c0",
        "broken.png": tmp_path / "nothing",
    }
    for name, target in cases.items():
        (pictures / name).symlink_to(target)
        with pytest.raises(InputError, match=f"{name} is a link"):
            folder.load(str(pictures), size=8)
        (pictures / name).unlink()
    os.mkfifo(pictures / "c0" / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png is no file but a pipe, a socket or a device"):
        folder.load(str(pictures), size=8)
    (pictures / "c0" / "pipe.png").unlink()
    (tmp_path / "by_link").symlink_to(pictures)
    assert len(folder.load(str(tmp_path / "by_link"), size=8).classes) == 8, "data.root itself may be a link"


def test_a_zip_file_leads_nowhere_else(pictures: Path, tmp_path: Path) -> None:
    assert len(folder.load(str(zipped(tmp_path / "good.zip")), size=8).classes) == 8
    link = zipfile.ZipInfo("c0/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(InputError, match=r"c0/link\.png is a link"):
        folder.load(str(zipped(tmp_path / "link.zip", link=link)), size=8)
    for name in ("../out.png", "c0/../../out.png", "/etc/out.png", "C:/out.png", "c0\\..\\..\\out.png"):
        entry = zipfile.ZipInfo("x")
        entry.filename = name
        with pytest.raises(InputError, match="leads out of the zip file"):
            folder.load(str(zipped(tmp_path / "out.zip", out=entry)), size=8)


def test_bombs_are_refused(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_FILE", 2**20)
    with zipfile.ZipFile(zipped(tmp_path / "bomb.zip"), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c0/bomb.png", bytes(2**20 + 1))
    assert (tmp_path / "bomb.zip").stat().st_size < 10_000
    with pytest.raises(InputError, match=r"c0/bomb\.png is larger than 1 MB"):
        folder.load(str(tmp_path / "bomb.zip"), size=8)
    (pictures / "c0" / "bomb.png").write_bytes(bytes(2**20 + 1))
    with pytest.raises(InputError, match=r"bomb\.png is larger than 1 MB"):
        folder.load(str(pictures), size=8)
    (pictures / "c0" / "bomb.png").unlink()
    monkeypatch.setattr(files, "MOST_FILES", 10)
    with pytest.raises(InputError, match="more than the 10 that are read"):
        folder.load(str(pictures), size=8)
    monkeypatch.undo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with pytest.raises(InputError, match="more than 60 pixels; make it smaller"):
        decode(png(), "a.png")


def test_a_strangers_sweep_allows_nothing(here: Here, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    assert here("train.py", "-m", "seed=0", *SHORT, "trainer.max_steps=2", "logger=csv", f"sweep={sweep}")[0] == 0
    mark = tmp_path / "mark"
    (run_dir,) = sweep.glob("0_*")
    shutil.rmtree(run_dir)
    record = yaml.safe_load((sweep / "sweep.yaml").read_text())
    evil = ["net._target_=os.system", f"+net.command='touch {mark}'"]
    record["overrides"] += ["allow=[os]", *evil]
    record["jobs"] = [[*words, "allow=[os]", *evil] for words in record["jobs"]]
    (sweep / "sweep.yaml").write_text(yaml.safe_dump(record))
    (sweep / "conf" / "allow.yaml").write_text("# @package _global_\nallow: [os]\n")
    status, _ = here("train.py", "-m", f"sweep={sweep}")
    assert status == 1
    assert "not allowed in a configuration" in (sweep / run_dir.name / "error.json").read_text()
    assert not mark.exists()


def test_the_command_of_a_row_allows_what_the_sweep_allowed(here: Here, tmp_path: Path) -> None:
    words = (*SHORT, "trainer.max_steps=2", "logger=csv", "algo=maml", "net._target_=test_resume.Dropping")
    assert here("train.py", "-m", "seed=0", *words, "allow=[test_resume]", f"sweep={tmp_path / 'sweep'}")[0] == 0
    (row,) = summary(tmp_path / "sweep")
    assert "allow=[test_resume]" in shlex.split(row["command"])
