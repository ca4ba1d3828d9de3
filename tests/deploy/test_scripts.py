"""Tests of the scripts without a cluster; clusters.py tests them on real ones."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.parametrize(
    "path", [*DEPLOY.glob("*.sh"), *DEPLOY.glob("*.sbatch")], ids=lambda path: path.name
)
def test_shellcheck_finds_nothing(path: Path):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    said = subprocess.run([shellcheck, "--severity=warning", path], capture_output=True)
    assert (said.returncode, said.stdout.decode()) == (0, "")


def test_every_host_of_a_tpu_pod_gets_the_unchanged_arguments(tmp_path: Path):
    bash = shutil.which("bash")
    assert bash is not None
    python = tmp_path / "optax-warmup" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{bash}\nprintf '%s\\n' \"$@\"\n")
    gcloud = tmp_path / "gcloud"  # runs its last word in a shell, as ssh does
    gcloud.write_text(f'#!{bash}\ncd "$(dirname "$0")" && {bash} -c "${{@: -1}}"\n')
    for path in (python, gcloud):
        path.chmod(0o755)
    said = subprocess.run(
        [DEPLOY / "tpu-pod.sh", "imagenet", "--workdir", "a folder's name", "--seeds", "0", "1"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TPU": "pod", "ZONE": "here"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.splitlines() == [
        *("-m", "train", "imagenet", "--workdir", "a folder's name", "--seeds", "0", "1")
    ]
