"""Mixtures: where an episode comes from, what a run of several sources records, and what is refused before any work."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, Here
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pictures import drawing, encoded, write
from scipy import stats
from test_few_shot_images import numbered, same

from innerloop.datasets.images import LabelledImages, resized
from innerloop.datasets.pictures import fitted
from innerloop.episodes import SPLITS, Episode, InputError, Split, episode_index, episode_rng, tasks_of
from innerloop.runs import schemas
from innerloop.runs.build import build
from innerloop.runs.compare import differences, read_run
from innerloop.tasks import Hyperplane, Mixture, Multimodal, RegressionMixture, Sinusoid
from innerloop.tasks.base import Tasks
from innerloop.tasks.images import FewShotImages

schemas.register()
ROOT = Path(__file__).resolve().parents[1]


def images(name: str, **settings: Any) -> FewShotImages:
    """Tasks on `numbered` images, whose third pixel in the second row tells the source."""
    data = numbered()
    marked = data.images.clone()  # type: ignore[union-attr]
    marked[:, 0, 1, 3] = ord(name)
    data = replace(data, images=marked, classes=tuple(f"{name} {c}" for c in data.classes))
    return FewShotImages(data, **{"ways": 5, "shots": 2, "queries": 3} | settings)


def abc(**settings: Any) -> dict[str, Tasks]:
    return {name: images(name, **settings) for name in "abc"}


def source(episode: Episode) -> str:
    (found,) = {*(episode.query.x[:, 0, 1, 3] * 255).round().int().tolist()}
    return chr(found)


def rngs(split: Split, count: int, seed: int = 0) -> list[np.random.Generator]:
    return [episode_rng(seed, split, i) for i in range(count)]


# Where episodes come from.


def test_training_draws_sources_by_weight_and_the_test_takes_turns() -> None:
    mixture = Mixture(abc(), weights={"a": 2, "c": 0.5})
    found = mixture.sources("train", rngs("train", 7000))
    counts = [found.count(name) for name in "abc"]
    assert stats.chisquare(counts, [4000, 2000, 1000]).pvalue > 1e-3
    for split in ("validation", "test"):
        assert mixture.sources(split, rngs(split, 7)) == ["a", "b", "c", "a", "b", "c", "a"]
    none = Mixture(abc(), weights={"a": 0})
    assert {*none.sources("train", rngs("train", 400))} == {"b", "c"}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("settings", [{}, {"sampler": "meta_dataset"}])
def test_an_episode_is_a_function_of_seed_split_and_index(split: Split, settings: dict) -> None:
    mixture = Mixture(abc(**settings))
    together = tasks_of(mixture.draw(split, rngs(split, 12)))
    assert [source(e) for e in together] == mixture.sources(split, rngs(split, 12))
    for i, episode in enumerate(together):
        (alone,) = tasks_of(mixture.draw(split, [episode_rng(0, split, i)]))
        assert same(alone, episode)
    other = tasks_of(mixture.draw(split, rngs(split, 12, seed=1)))
    assert not all(a.support.x.equal(b.support.x) for a, b in zip(together, other, strict=True))


def test_a_mixture_of_one_has_the_test_episodes_of_its_source() -> None:
    """So results on a source are paired with those of a run on that source alone, if they have the same index."""
    alone = images("a")
    for split in SPLITS[1:]:
        assert same(Mixture({"a": alone}).draw(split, rngs(split, 5)), alone.draw(split, rngs(split, 5)))  # type: ignore[arg-type]
    third = tasks_of(Mixture(abc()).draw("test", rngs("test", 6)))[3]
    assert same(third, tasks_of(alone.draw("test", [episode_rng(0, "test", 3)]))[0])


def test_meta_batches_are_stacked_only_if_all_sources_have_one_shape() -> None:
    assert isinstance(Mixture(abc()).draw("train", rngs("train", 6)), Episode)
    mixed = Mixture({"a": images("a"), "b": images("b", shots=1)})
    assert all(isinstance(mixed.draw(split, rngs(split, 2)), list) for split in SPLITS)
    assert not mixed.varied_ways
    ragged = Mixture({"a": images("a"), "b": images("b", min_shots=1)})
    assert isinstance(ragged.draw("test", rngs("test", 1)), list)
    ways = Mixture({"a": images("a"), "b": images("b", ways=3)})
    assert ways.varied_ways
    assert ways.output_size == 5


def test_the_episode_index_a_stream_is_known_after_draws_too() -> None:
    rng = episode_rng(3, "test", 12345)
    rng.random(100)
    assert episode_index(rng) == 12345


def test_a_source_that_is_left_out_is_the_whole_test() -> None:
    mixture = Mixture(abc(), leave_out="b")
    assert {*mixture.sources("train", rngs("train", 100))} == {"a", "c"}
    assert mixture.sources("validation", rngs("validation", 4)) == ["a", "c", "a", "c"]
    assert {source(e) for e in tasks_of(mixture.draw("test", rngs("test", 5)))} == {"b"}
    assert all(name.startswith("b") for name in mixture.class_names("test"))
    assert not any(name.startswith("b") for name in mixture.class_names("train"))


def test_pooled_labels_are_the_training_classes_of_all_sources() -> None:
    pooled, count = Mixture(abc()).pooled()
    assert count == 3 * 6
    seen: dict[str, set[int]] = {}
    for episode in tasks_of(pooled.draw("train", rngs("train", 60))):
        seen.setdefault(source(episode), set()).update(episode.query.y.tolist())
    for i, name in enumerate("abc"):
        assert seen[name] == {*range(6 * i, 6 * i + 6)}
    assert int(tasks_of(pooled.draw("test", rngs("test", 1)))[0].query.y.max()) == 4


def test_families_of_functions_mix_too() -> None:
    mixture = RegressionMixture({"waves": Sinusoid(5, 15), "families": Multimodal(5, 15)})
    support, query = mixture.draw("train", rngs("train", 4))
    assert support.x.shape == (4, 5, 1)
    assert mixture.metric == "mse"
    assert mixture.loss(torch.nn.Linear(1, 1), {}, query).ndim == 0
    assert mixture.pooled() == (mixture, None)


BAD: list[tuple[Any, str]] = [
    (lambda: Mixture({}), "sources is empty"),
    (lambda: Mixture(abc(), leave_out="d"), "leave_out=d: choose one of the sources, a, b, c"),
    (lambda: Mixture({"a": images("a")}, leave_out="a"), "leaves nothing to train on"),
    (lambda: Mixture(abc(), weights={"d": 1}), "weights.d: choose from the sources, a, b, c"),
    (lambda: Mixture(abc(), weights={"a": -1}), "weights.a=-1: a weight is a number from zero"),
    (lambda: Mixture(abc(), weights={"a": True}), "weights.a=True"),
    (lambda: Mixture(abc(), weights={"a": float("nan")}), "weights.a=nan"),
    (lambda: Mixture(abc(), weights=dict.fromkeys("abc", 0)), "the weights of all training sources are zero"),
    (lambda: Mixture(abc(), overlap="ignore"), "overlap=ignore: choose one of refuse, allow"),
    (lambda: Mixture({"a": images("a"), "b": Sinusoid()}), "source b is no classification: Mixture is for families of"),
    (lambda: RegressionMixture({"a": images("a")}), "source a is no regression"),
    (lambda: Mixture({"a": images("a"), "h": Hyperplane()}), "a mixture needs one shape; for pictures set data.size"),
    (
        lambda: Mixture({"a": images("a"), "b": FewShotImages(resized(numbered(), 6, 1, "b"), shots=2, queries=3)}),
        "x of source b has the shape (1, 6, 6), and that of a (1, 4, 4)",
    ),
    (lambda: Mixture({"a": images("a", splits=["validation", "test"])}), "no source has classes for train"),
    (
        lambda: Mixture({"a": FewShotImages(numbered(), shots=2, queries=3), "b": FewShotImages(moved(), 5, 2, 3)}),
        "6 classes are for training in source a and for test in source b (class 0, class 1, class 2, class 3, class 4 "
        "and 1 more): leave one of these sources out, or set data.overlap=allow",
    ),
]


def moved() -> LabelledImages:
    """The images of `numbered`, whose training classes are test classes here, and the other way round."""
    splits = {"train": range(11, 18), "validation": range(6, 11), "test": range(0, 6)}
    return numbered(splits=splits)


@pytest.mark.parametrize(("make", "said"), BAD)
def test_what_cannot_be(make: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_names_that_mean_different_classes_may_be_allowed() -> None:
    first, second = FewShotImages(numbered(), shots=2, queries=3), FewShotImages(moved(), shots=2, queries=3)
    assert Mixture({"a": first, "b": second}, overlap="allow").output_size == 5


# Sizes and modes.


def test_pictures_are_resized_and_change_their_mode(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    flat = torch.arange(4, dtype=torch.uint8).mul(60).reshape(4, 1, 1, 1).expand(4, 1, 28, 28)
    data = LabelledImages(flat.clone(), ("a", "b"), np.array([2, 2]), {s: np.arange(0) for s in SPLITS})
    colour = resized(data, 12, 3, "mine")
    assert colour.images.shape == (4, 3, 12, 12)
    assert (colour.images == flat[:, :, :12, :12]).all(), "a flat picture stays what it is"
    assert "mine: pictures of 28x28, grey, are resized to 12x12, colour" in caplog.text
    assert resized(data, 28, 1, "mine") is data
    assert (resized(colour, 12, 1, "mine").images == flat[:, :, :12, :12]).all()
    red = np.zeros((1, 3, 5, 5), np.uint8)
    red[:, 0] = 255
    assert (fitted(red, 5, 1) == 76).all(), "the luma of Rec. 601"


# Configurations.


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["algo=protonet", "data=mixture", *overrides])
        return cfg, build(cfg)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of coloured pictures, each with six classes for every split."""
    root = tmp_path_factory.mktemp("folders")
    for first, name in ((0, "mine"), (40, "yours")):
        files = {
            f"{split}/{name}{10 * s + c}/{i}.png": encoded(drawing(first + 10 * s + c, i))
            for s, split in enumerate(SPLITS)
            for c in range(6)
            for i in range(8)
        }
        write(root / name, files)
    return root


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "mixtures"))


def two(folders: Path, *more: str) -> list[str]:
    entries = ",".join(f"{{{n}:{{data:folder,root:'{folders / n}',split:classes}}}}" for n in ("mine", "yours"))
    return [f"data.sources=[{entries}]", "data.queries=4", "data.train_queries=2", "data.size=24", *more]


def test_settings_are_the_sources_own_or_the_mixtures_or_those_of_the_file(folders: Path) -> None:
    own = f"{{mine:{{data:folder,root:'{folders / 'mine'}',queries:2,shots:3,rotations:true}}}}"
    other = f"{{yours:{{data:folder,root:'{folders / 'yours'}'}}}}"
    cfg, parts = composed(f"data.sources=[{own},{other}]", "data.shots=1", "data.queries=4", "data.size=24")
    mine, yours = (parts.tasks.families[name] for name in ("mine", "yours"))
    assert (mine.shots, mine.queries["test"], mine.rotations) == (3, 2, True)
    assert (yours.shots, yours.queries["test"], yours.rotations) == (1, 4, False)
    assert parts.tasks.input_shape == (1, 24, 24)
    # The composed sources are in the configuration, which needs no files from then on.
    assert build(OmegaConf.create(OmegaConf.to_container(cfg))).tasks.input_shape == (1, 24, 24)
    assert cfg.data.sources.mine.dataset == "innerloop.datasets.folder.load"


def test_roots_and_settings_reach_recorded_sources(folders: Path) -> None:
    cfg, parts = composed(*two(folders))
    cfg.data.shots = 2
    OmegaConf.set_struct(cfg, False)
    cfg.data.roots.mine = str(folders / "yours")
    cfg.data.overlap = "allow"
    again = build(cfg).tasks
    assert isinstance(again, Mixture)
    assert {family.shots for family in again.families.values()} == {2}  # type: ignore[attr-defined]
    assert all("yours" in name for name in again.class_names("test"))
    assert not all("yours" in name for name in parts.tasks.class_names("test"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.sources=[omniglo]"], "there is no source data.sources.omniglo. Did you mean data.sources.omniglot?"),
        (["data.sources=[glyphs,glyphs]"], "data.sources: glyphs is there twice"),
        (["data.sources=[]"], "name at least one source"),
        (["data.sources=[3]"], "data.sources: 3 is no name and no name with its settings"),
        (["data.sources=['../x']"], "data.sources: ../x is no name: it has letters"),
        (["data.sources=[{a:{},b:{}}]"], "is no name and no name with its settings"),
        (["data.sources=[mixture]"], "mixture is a mixture itself"),
        (["data.sources=[{glyphs:{shot:1}}]"], "data.sources.glyphs.shot"),
        (["data.sources=[leaves]"], "source leaves: data=folder needs data.root"),
        (
            ["data.sources=[leaves]", "data.roots.leaves=/no/such"],
            "source leaves: data.root=/no/such: there is no such",
        ),
        (["data.sources=[glyphs]", "data.roots.leaves=/no/such"], "data.roots.leaves: there is no such source"),
        (["data.sources=[glyphs]", "data.size=0"], "data.size=0 and data.channels=1: sizes are 1 to 4096"),
        (["data.sources=[glyphs]", "data.channels=2"], "data.channels=2: sizes are 1 to 4096, channels 1 or 3"),
        (["data.sources=[glyphs]", "+data.shot=1"], "unknown key data.shot. Did you mean data.shots?"),
        (["data.sources=[glyphs]", "data.standardize=true"], "a mixture has several"),
        (["data.sources=[{a:{MINE}},sinusoid]", "data.queries=4"], "source sinusoid is no classification"),
        (["data.sources=[{a:{MINE,queries:4}},ratings_synthetic]"], "source ratings_synthetic is no classification"),
        (
            ["data.sources=[{a:{MINE,shots:9}}]"],
            "source a: ways=5, but the train split has 0 classes without 6 rare",
        ),
        (["data.sources=[{a:{MINE,queries:4}}]", "data.leave_out=b"], "leave_out=b: choose one of the sources, a"),
    ],
)
def test_a_wrong_configuration_ends_in_one_line(overrides: list[str], said: str, folders: Path) -> None:
    mine = f"data:folder,root:'{folders / 'mine'}'"
    with pytest.raises(InputError) as error:
        composed(*(o.replace("MINE", mine) for o in overrides))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_source_ends_a_command_before_any_work(here: Here, tmp_path: Path) -> None:
    command = ["algo=protonet", "data=mixture", "data.sources=[leaves]", "logger=csv", "hydra.run.dir=r", *TINY]
    status, err = here("train.py", *command)
    assert status == 1
    assert err.splitlines()[-1].startswith("train.py: source leaves: data=folder needs data.root: a folder or a zip")
    assert not (tmp_path / "r").exists()


def test_a_fixed_head_is_refused_with_the_sampler(folders: Path) -> None:
    with pytest.raises(InputError, match=r"algo=maml has a fixed head of 50 ways: .* sampler=meta_dataset, need"):
        composed(*two(folders, "algo=maml", "data.sampler=meta_dataset"))


# Runs.


@pytest.fixture(scope="module")
def run_dir(train: Any, folders: Path) -> Path:
    train("algo=protonet", "data=mixture", *two(folders), *TINY, "logger=csv", "hydra.run.dir=mixed")
    return Path("mixed").absolute()


def test_results_have_a_row_for_each_source(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    for split, episodes in (("validation", 2), ("test", 3)):
        assert {n: e["episodes"] for n, e in results[split]["sources"].items()} == {"mine": episodes, "yours": episodes}
    with (run_dir / "test_episodes.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["step"] == str(results["test"]["step"])]
    assert [r["source"] for r in rows] == ["mine", "yours"] * 3
    for name, entry in results["test"]["sources"].items():
        values = [float(r["accuracy"]) for r in rows if r["source"] == name]
        assert entry["accuracy"]["mean"] == pytest.approx(np.mean(values))
        assert entry["accuracy"]["ci95"] == pytest.approx(1.96 * np.std(values, ddof=1) / 3**0.5)
    log = (run_dir / "train.log").read_text()
    assert "all pictures have 24x24 pixels, grey" in log
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert Path(config["data"]["sources"]["mine"]["own"]["root"]).is_absolute()


def test_a_run_is_evaluated_with_one_left_out_and_resumed(run_dir: Path, here: Here, folders: Path) -> None:
    status, err = here("evaluate.py", f"run={run_dir}", "data.leave_out=yours")
    assert status == 0, err
    (path,) = run_dir.glob("evaluations/*/results.json")
    assert list(json.loads(path.read_text())["test"]["sources"]) == ["yours"]
    assert differences(read_run(run_dir), read_run(run_dir)) == []
    status, err = here("train.py", f"resume={run_dir}", "trainer.max_steps=12")
    assert status == 0, err
    assert json.loads((run_dir / "results.json").read_text())["steps"] == 12
    status, err = here("train.py", f"resume={run_dir}", "data.leave_out=mine")
    assert status == 1
    assert "data.leave_out=mine cannot be set in a run that has begun" in err


@pytest.mark.parametrize(
    ("algo", "more"),
    [("maml", []), ("finetune", []), ("proto_maml", ["data.sampler=meta_dataset", "data.limits.max_support=20"])],
)
def test_any_learner_trains_on_a_mixture(algo: str, more: list[str], train: Any, folders: Path) -> None:
    limits = [
        "data.limits.max_ways=6",
        "net.width=4",
        "algo.eval_inner_steps=1",
        "trainer.max_steps=2",
        "test.episodes=2",
    ]
    train(f"algo={algo}", "data=mixture", *two(folders, *more), *TINY, *limits, "logger=csv", f"hydra.run.dir={algo}")
    results = json.loads(Path(algo, "results.json").read_text())
    assert list(results["test"]["sources"]) == ["mine", "yours"]
    assert results["queries"] == (None if more else 4)
