"""Tests of the Kubernetes files, parsed with types generated from the published schemas."""

from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as published
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
KINDS: dict[str, Any] = {
    "jobset.x-k8s.io/v1alpha2 JobSet": published.JobsetV1alpha2JobSet,
    "batch/v1 Job": published.IoK8sApiBatchV1Job,
    "v1 Service": published.IoK8sApiCoreV1Service,
}


def read(path: Path) -> dict[str, dict[str, Any]]:
    return {
        f"{item['apiVersion']} {item['kind']}": item
        for item in yaml.safe_load_all(path.read_text())
    }


def job_spec(name: str) -> dict[str, Any]:
    items = read(DEPLOY / name)
    if name == "jobset.yaml":
        (replicated,) = items["jobset.x-k8s.io/v1alpha2 JobSet"]["spec"]["replicatedJobs"]
        return replicated["template"]["spec"]
    return items["batch/v1 Job"]["spec"]


@pytest.mark.parametrize("path", [*DEPLOY.glob("*.yaml")], ids=lambda path: path.name)
def test_the_published_types_know_every_field(path: Path):
    """Wrong types raise; unknown fields are missing from the serialized object."""
    for kind, item in read(path).items():
        assert KINDS[kind].from_dict(item).to_dict() == item


@pytest.mark.parametrize("name", ["jobset.yaml", "indexed-job.yaml"])
def test_jax_can_count_and_index_the_processes(name: str):
    """JAX counts the processes by `parallelism` and uses the index of the completion."""
    spec = job_spec(name)
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]


def test_pods_of_the_indexed_job_resolve_each_other_by_name():
    service = read(DEPLOY / "indexed-job.yaml")["v1 Service"]
    job = read(DEPLOY / "indexed-job.yaml")["batch/v1 Job"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]


def test_both_run_the_same_pod():
    pods = [job_spec(name)["template"]["spec"] for name in ("jobset.yaml", "indexed-job.yaml")]
    assert pods[0] == {name: value for name, value in pods[1].items() if name != "subdomain"}
