"""Opening the data set of a run: what is accepted, and one clear line for what is not."""

import contextlib
import gc
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, registered
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.sequential_writer import SequentialWriter

from train.config import Config
from train.data import verification
from train.data.dataset import OTHER_FILES, open_dataset
from train.data.stored import files_digest, open_builder
from train.errors import RunError, UsageError
from train.prepare import main as prepare_main
from train.recipes import digits, fashion_mnist
from train.recipes import tfds as photographs

REPOSITORY = Path(__file__).parents[3]
OPEN_FILES = Path("/proc/self/fd")


def config_of(**changes: Any) -> Config:
    return digits().replace(**changes)


IMAGE = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")
COLOR = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
LABEL = tfds.features.ClassLabel(num_classes=10)


def prepare(
    data_dir: Path,
    name: str,
    features: dict[str, Any],
    splits: Sequence[str] = ("train", "test"),
    unlabeled: Sequence[str] = (),
) -> None:
    """Prepare a data set of three black images with tensorflow-datasets."""
    png = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()

    def examples(split: str) -> Any:
        for index in range(3):
            label = -1 if split in unlabeled else index
            yield index, {f: io.BytesIO(png) if f == "image" else label for f in features}

    def info(self: Any) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    members = {
        "__module__": "",
        "name": name,
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, _: {s: self._generate_examples(s) for s in splits},
        "_generate_examples": lambda self, split: examples(split),
    }
    with registered.skip_registration():
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), members)
    builder(data_dir=data_dir, file_format="array_record").download_and_prepare()


def test_any_prepared_data_set_of_labeled_images_can_be_opened(tmp_path: Path):
    prepare(tmp_path, "squares", {"image": IMAGE, "label": LABEL, "id": np.int64})
    dataset = open_dataset(config_of(data_dir=tmp_path, dataset="squares"))
    assert (len(dataset.train), len(dataset.evaluation), dataset.num_classes) == (3, 3, 10)
    assert [record["file_name"] for record in dataset.train.__getitems__(range(3))] == [
        "0",
        "1",
        "2",
    ]


def test_validation_is_preferred_to_test(tmp_path: Path):
    prepare(tmp_path, "squares", {"image": IMAGE, "label": LABEL}, ("train", "test", "validation"))
    dataset = open_dataset(config_of(data_dir=tmp_path, dataset="squares"))
    assert dataset.evaluation_split == "validation"


def usage_error(**changes: Any) -> str:
    with pytest.raises(UsageError) as error:
        open_dataset(config_of(**changes))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_unprepared_data_set_is_reported_with_the_command(tmp_path: Path):
    message = usage_error(data_dir=tmp_path, dataset="cifar10")
    assert message.startswith(
        f"--dataset cifar10 is not prepared in {tmp_path} (nothing is prepared there); prepare a "
    )
    assert f"'python -m train.prepare cifar10 --data-dir {tmp_path}'" in message


def test_missing_data_set_name_is_reported(tmp_path: Path):
    assert usage_error(data_dir=tmp_path, dataset="").startswith("--dataset is missing; name a")


@pytest.mark.parametrize("name", ["two words", "digits/", "../digits", "/etc"])
def test_invalid_data_set_name_is_refused(tmp_path: Path, name: str):
    message = usage_error(data_dir=tmp_path, dataset=name)
    assert message.startswith(f"--dataset {name} cannot be opened; a name is NAME, NAME/CONFIG")


def test_a_data_dir_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    message = usage_error(data_dir=tmp_path / "file")
    assert message.startswith(f"--data-dir {tmp_path / 'file'} cannot be used: ")


@pytest.mark.parametrize(
    ("features", "found"),
    [
        ({"image": IMAGE}, "image (Image)"),
        ({"image": IMAGE, "label": np.int64}, "image (Image), label (Tensor)"),
        ({"label": LABEL}, "label (ClassLabel)"),
    ],
    ids=["no label", "no class", "no image"],
)
def test_unsuitable_features_are_reported_with_the_required_ones(
    tmp_path: Path, features: dict[str, Any], found: str
):
    prepare(tmp_path, "others", features)
    assert usage_error(data_dir=tmp_path, dataset="others") == (
        f"--dataset others has the features {found}; it must have image (Image) and label "
        "(ClassLabel)"
    )


@pytest.mark.parametrize("splits", [("train",), ("test",), ("training", "validation")])
def test_missing_splits_are_reported(tmp_path: Path, splits: tuple[str, ...]):
    prepare(tmp_path, "halves", {"image": IMAGE, "label": LABEL}, splits)
    assert usage_error(data_dir=tmp_path, dataset="halves") == (
        f"--dataset halves has the splits {sorted(splits)}; it must have 'train' and "
        "'validation' or 'test'"
    )


def test_a_test_split_without_labels_is_refused(tmp_path: Path):
    prepare(tmp_path, "contest", {"image": IMAGE, "label": LABEL}, unlabeled=["test"])
    assert usage_error(data_dir=tmp_path, dataset="contest").startswith(
        "--dataset contest has no labels in its split 'test'"
    )


@pytest.mark.parametrize("field", ["pythonClassName", "python_class_name", "python\\u0043lassName"])
def test_a_data_set_cannot_cause_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
):
    prepare(tmp_path, "trojan", {"image": IMAGE, "label": LABEL})
    (path,) = tmp_path.rglob("features.json")
    text = path.read_text().replace("pythonClassName", field)
    path.write_text(text.replace("tensorflow_datasets.core.features.image_feature", "payload"))
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'has_run')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    message = usage_error(data_dir=tmp_path, dataset="trojan")
    assert "features.json asks to import payload.Image" in message
    assert not (tmp_path / "has_run").exists()


def test_format_without_random_access_is_refused(tmp_path: Path):
    prepare(tmp_path, "sequential", {"image": IMAGE, "label": LABEL})
    # Only TensorFlow can write tfrecord, but the format in the metadata is what is checked.
    path = tmp_path / "sequential" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    message = usage_error(data_dir=tmp_path, dataset="sequential")
    assert "is prepared as tfrecord, which has no random access" in message
    assert f"'python -m train.prepare tfrecord {path.parent} --name my_" in message


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_images_that_are_not_8_bit_are_refused(tmp_path: Path, dtype: str):
    prepare(tmp_path, "depths", {"image": IMAGE, "label": LABEL})
    # Only TensorFlow can write float images, but the dtype in the metadata is what is checked.
    path = tmp_path / "depths" / "1.0.0" / "features.json"
    text = path.read_text()
    assert text.count('"uint8"') == 1
    path.write_text(text.replace('"uint8"', f'"{dtype}"'))
    assert usage_error(data_dir=tmp_path, dataset="depths") == (
        f"--dataset depths has images of {dtype}; they must be uint8, so prepare the data set "
        "again from 8-bit images"
    )


@pytest.mark.parametrize("recipe", [digits, fashion_mnist])
def test_color_images_with_a_gray_recipe_are_refused_with_the_recipe_to_use(
    tmp_path: Path, recipe: Callable[[], Config]
):
    """The mistake is `python -m train --dataset flowers`, without the recipe `tfds`."""
    prepare(tmp_path, "flowers", {"image": COLOR, "label": LABEL})
    with pytest.raises(UsageError) as error:
        open_dataset(recipe().replace(dataset="flowers", data_dir=tmp_path))
    name, side = recipe().experiment.recipe, recipe().experiment.image_size
    assert str(error.value) == (
        f"--dataset flowers has color images, and the recipe {name} trains on gray ones of {side} "
        f"x {side} pixels; use the recipe tfds: python -m train tfds --dataset flowers"
    )
    open_dataset(photographs().replace(dataset="flowers", data_dir=tmp_path))


def test_gray_images_that_are_stored_as_color_may_have_a_gray_recipe(tmp_path: Path):
    """A folder of images is always prepared with three channels; verification knows the files."""
    for name in "ab":
        for index in range(4):
            path = tmp_path / "images" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), np.full((8, 8), 10 * index, np.uint8))
    flags = ["--name", "gray", "--data-dir", str(tmp_path)]
    assert prepare_main(["image-folder", str(tmp_path / "images"), *flags]) == 0
    assert open_dataset(config_of(data_dir=tmp_path, dataset="gray")).num_classes == 2


def test_an_unknown_name_lists_what_is_prepared_and_the_closest_match(tmp_path: Path):
    prepare(tmp_path, "flowers", {"image": COLOR, "label": LABEL})
    shutil.copytree(tmp_path / "flowers", tmp_path / "noisy" / "blur_1")
    shutil.copytree(tmp_path / "flowers", tmp_path / "incomplete.birds" / "birds")
    assert usage_error(data_dir=tmp_path, dataset="flower") == (
        f"--dataset flower is not prepared in {tmp_path} (prepared are flowers, noisy/blur_1); did "
        "you mean flowers?; prepare a published data set with 'python -m train.prepare flower "
        f"--data-dir {tmp_path}', your own images with 'python -m train.prepare image-folder PATH "
        f"--name flower --data-dir {tmp_path}', or pass --data-dir"
    )
    for name in ("noisy", "noisy/blur_2", "noisy/blur_1:9.0.0"):
        message = usage_error(data_dir=tmp_path, dataset=name)
        assert "; did you mean noisy/blur_1?; prepare" in message
        assert "--name noisy --data-dir" in message
    assert "did you mean" not in usage_error(data_dir=tmp_path, dataset="cifar10")


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Drop the privileges of root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unusable_data_dir_is_reported_in_one_line(tmp_path: Path):
    usage_error(data_dir=tmp_path, dataset="birds")  # tensorflow-datasets imports modules late
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f" {path} " in usage_error(data_dir=path, dataset="birds")
        expected = f"--data-dir {path} cannot be used: {tmp_path / 'file'} is a file"
        assert usage_error(data_dir=path) == expected
    message = usage_error(data_dir=tmp_path / "nowhere", dataset="birds")
    assert (
        f"birds is not prepared in {tmp_path / 'nowhere'} (the folder does not exist); prepare"
        in (message)
    )
    with tempfile.TemporaryDirectory() as parent:  # only root may enter tmp_path
        Path(parent).chmod(0o755)
        secret = Path(parent, "secret")
        secret.mkdir()
        config = config_of(data_dir=secret, dataset="birds")
        for mode in (0, 0o111):  # neither may be listed, but the second may be entered
            secret.chmod(mode)
            with without_privileges(), pytest.raises(RunError) as error:
                open_dataset(config)
            assert str(error.value) == f"--data-dir {secret} cannot be used: Permission denied"


@pytest.mark.parametrize("folder", ["/proc/tensorflow_datasets", "~/tensorflow_datasets"])
def test_without_a_writable_home_the_digits_are_in_a_temporary_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
):
    """A path that still starts with ~ is that of a user without a home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "DATA_DIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = digits().replace(workdir=tmp_path / "run")
    temporary = tmp_path / f"optax-warmup-{os.getuid()}"
    for _ in range(2):
        dataset = open_dataset(config)
        assert dataset.folder == temporary / "digits" / "1.0.0"
        err = capsys.readouterr().err
        assert err.startswith(f"{folder} cannot be used: ")
        assert err.endswith(f"the digits are in {temporary} (--data-dir chooses another folder)\n")
    assert [path.name for path in tmp_path.iterdir()] == [temporary.name]
    assert temporary.stat().st_mode & 0o777 == 0o700


def test_a_temporary_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "optax-warmup-12345").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(constants, "DATA_DIR", "/proc/tensorflow_datasets")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RunError, match="--data-dir /proc/tensorflow_datasets cannot be used: No"):
        open_dataset(digits())


def test_prepared_digits_in_a_folder_that_is_not_writable_are_read(
    digits_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(constants, "DATA_DIR", str(digits_dir))
    assert open_dataset(digits()).folder == digits_dir / "digits" / "1.0.0"
    assert capsys.readouterr() == ("", "")


def test_a_bucket_as_default_folder_is_rejected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DATA_DIR", "gs://bucket/data")
    with pytest.raises(UsageError, match="TFDS_DATA_DIR is gs://bucket/data; it must be a path"):
        open_dataset(digits())


def test_a_data_set_that_changed_after_it_was_verified_is_refused(tmp_path: Path):
    label = tfds.features.ClassLabel(names=["a", "b", "c"])
    prepare(tmp_path, "squares", {"image": IMAGE, "label": label})
    verify = ["verify", "squares", "--data-dir", str(tmp_path)]
    folder = tmp_path / "squares" / "1.0.0"
    assert prepare_main(verify) == 0
    verified = verification.load(folder)
    assert verified is not None
    open_dataset(config_of(data_dir=tmp_path, dataset="squares"))
    for path in (*folder.glob("*array_record*"), folder / "label.labels.txt"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert usage_error(data_dir=tmp_path, dataset="squares") == (
            f"--dataset squares has changed on disk since it was verified on {verified.date}; "
            f"verify it again: python -m train.prepare verify squares --data-dir {tmp_path}"
        )
        path.write_bytes(data)
    (folder / "dataset_info.json").write_text((folder / "dataset_info.json").read_text() + "\n")
    assert "has changed on disk" in usage_error(data_dir=tmp_path, dataset="squares")
    assert prepare_main(verify) == 0
    open_dataset(config_of(data_dir=tmp_path, dataset="squares"))


NUM_FILES = 1024 + 2


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with a data set of 1024 training and 2 test images, each in its own file."""
    data_dir = tmp_path_factory.mktemp("many")
    identity = DatasetIdentity(
        name="many",
        version=tfds.core.Version("1.0.0"),
        data_dir=str(data_dir / "many" / "1.0.0"),
        module_name=__name__,
    )
    features = tfds.features.FeaturesDict(
        {"image": COLOR, "label": tfds.features.ClassLabel(names=["even", "odd"])}
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features, disable_shuffling=True)
    Path(identity.data_dir).mkdir(parents=True)
    writer = SequentialWriter(info, 1, file_format="array_record")
    writer.initialize_splits(["train", "test"])
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(1024, 8, 8, 3), dtype=np.uint8)
    examples = [
        {"image": cv2.imencode(".png", image)[1].tobytes(), "label": index % 2}
        for index, image in enumerate(pixels)
    ]
    writer.add_examples({"train": examples, "test": examples[:2]})
    writer.close_all()
    assert len(list(Path(identity.data_dir).glob("*array_record*"))) == NUM_FILES
    return data_dir


def train_with_limits(
    soft: int, hard: int, many_files: Path, workdir: Path, *flags: str
) -> subprocess.CompletedProcess[str]:
    """Train for an epoch, which reads every file, with limits of open files."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    clean |= {
        "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": os.environ["XLA_FLAGS"],
    }
    return subprocess.run(
        [
            *("bash", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "bash"),
            *(sys.executable, "-m", "train", "tfds", "--dataset", "many", "--model", "resnet8"),
            *("--image-size", "8", "--augmentation", "shift", "--num-workers", "8"),
            *("--batch-size-per-worker", "16", "--num-steps", "8", "--log-every-steps", "1"),
            *("--workdir", str(workdir), "--data-dir", str(many_files), *flags),
        ],
        cwd=REPOSITORY,
        env=clean,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("num_reader_processes", [0, 1])
def test_a_thousand_files_may_stay_open_under_the_usual_limit(
    many_files: Path, tmp_path: Path, num_reader_processes: int
):
    """Shells allow 1024 open files by default, and ImageNet has 1024 training files."""
    flags = ["--num-reader-processes", str(num_reader_processes)]
    workdir = tmp_path / "run"
    ended = train_with_limits(1024, NUM_FILES + OTHER_FILES, many_files, workdir, *flags)
    assert ended.returncode == 0, ended.stderr
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 9))
    assert records[-1]["epoch"] == 1


def test_too_low_a_hard_limit_of_open_files_is_reported_in_one_line(
    many_files: Path, tmp_path: Path
):
    limit = NUM_FILES + OTHER_FILES - 1
    ended = train_with_limits(1024, limit, many_files, tmp_path / "run")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"python -m train: --dataset many consists of {NUM_FILES} files, which stay open, but this "
        f"process may open only {limit}; raise the hard limit to {limit + 1} or more (ulimit -Hn)\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="needs /proc to count open files")
def test_opening_a_data_set_keeps_few_files_open(many_files: Path):
    """The readers open the others when they need them: one descriptor for each file."""

    def num_open() -> int:
        """Number of open files of this data set: files of other tests close at any time."""
        paths = [Path(os.path.realpath(path)) for path in OPEN_FILES.iterdir()]
        return sum(path.is_relative_to(many_files) for path in paths)

    config = photographs().replace(dataset="many", data_dir=many_files)
    gc.collect()
    assert num_open() == 0
    dataset = open_dataset(config)
    assert num_open() == 2  # the first of each split
    dataset.train.__getitems__(range(1024))
    assert num_open() == 1025


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="needs /proc to count open files")
def test_the_fingerprint_of_many_files_needs_few_at_a_time(many_files: Path):
    builder = open_builder("many", many_files)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in OPEN_FILES.iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 64, hard))
    try:
        assert len(files_digest(builder, ["train", "test"])) == 64
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
