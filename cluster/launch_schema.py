"""What a launch file must look like: Ray's own schema, KubeRay's fields, a shell's syntax."""

import io
import logging
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from cluster.launch_files import Key, LaunchFile
from spaces.problems import Problem, did_you_mean, shown

_POD = {
    "metadata": {"labels": dict, "annotations": dict},
    "spec!": {
        "containers!": list, "initContainers": list, "volumes": list, "securityContext": dict,
        "serviceAccountName": str, "imagePullSecrets": list, "nodeSelector": dict,
        "tolerations": list, "affinity": dict, "priorityClassName": str, "restartPolicy": str,
        "terminationGracePeriodSeconds": int, "hostNetwork": bool,
        "topologySpreadConstraints": list,
    },
}  # fmt: skip
# The fields of KubeRay's `ray.io/v1` that a search needs; `!` marks those that must be there.
_CLUSTER_SPEC: dict[str, Any] = {
    "rayVersion!": str,
    "authOptions": {"mode!": str, "secretName": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": dict,
    "gcsFaultToleranceOptions": dict,
    "suspend": bool,
    "headGroupSpec!": {
        "serviceType": str, "rayStartParams": dict, "template!": _POD, "enableIngress": bool,
        "resources": dict, "labels": dict, "headService": dict,
    },
    "workerGroupSpecs": [{
        "groupName!": str, "replicas": int, "minReplicas!": int, "maxReplicas!": int,
        "rayStartParams": dict, "template!": _POD, "numOfHosts": int, "idleTimeoutSeconds": int,
        "resources": dict, "labels": dict, "suspend": bool,
    }],
}  # fmt: skip
_TOP = {"apiVersion!": str, "kind!": str, "metadata!": dict, "status": dict}
KUBERAY: Mapping[str, dict[str, Any]] = {
    "RayCluster": {**_TOP, "spec!": _CLUSTER_SPEC},
    "RayJob": {**_TOP, "spec!": {
        "entrypoint!": str, "rayClusterSpec!": _CLUSTER_SPEC, "submissionMode": str,
        "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "backoffLimit": int,
        "activeDeadlineSeconds": int, "runtimeEnvYAML": str, "jobId": str, "metadata": dict,
        "suspend": bool, "submitterPodTemplate": dict, "entrypointNumCpus": int,
        "entrypointNumGpus": int, "entrypointResources": str,
    }},
}  # fmt: skip
_KUBERAY_VERSION = "ray.io/v1"


def schema_problems(file: LaunchFile) -> list[Problem]:
    """What keeps Ray, KubeRay or the shell from understanding a file."""
    if file.kind == "ray":
        return list(_ray(file))
    if file.kind == "kuberay":
        return list(_kuberay(file))
    return list(_shell(file)) if file.kind == "shell" else []


def _ray(file: LaunchFile) -> Iterator[Problem]:
    tree = next(t for t in file.documents if t is not None)
    provider = tree.get("provider")
    if not isinstance(provider, dict) or not isinstance(provider.get("type"), str):
        yield file.place((0, "provider")).problem("must name a type: aws, gcp, local", "provider")
        return
    wanted = ("head_ip", "worker_ips") if provider["type"] == "local" else ()
    missing = [key for key in wanted if not provider.get(key)]
    for key in missing:
        yield file.place((0, "provider")).problem(f"must hold {key}, but it does not", "provider")
    if not missing:
        yield from _ray_says(file, tree)


def _ray_says(file: LaunchFile, tree: dict[str, Any]) -> Iterator[Problem]:
    import click
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    # Ray tells of its defaults, and of an error before it raises it.
    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            validate_config(prepare_config(tree))
    except jsonschema.ValidationError as error:
        key: Key = (0, *error.absolute_path)
        reason = error.message.partition("\n")[0]
        yield file.place(key).problem(f"must fit Ray's schema, but: {reason}", "schema")
    except (click.ClickException, Exception) as error:  # noqa: BLE001  # Ray raises what it likes
        reason = str(error).partition("\n")[0] or type(error).__name__
        yield file.place((0,)).problem(f"must be usable by `ray up`, but: {reason}", "schema")


def _kuberay(file: LaunchFile) -> Iterator[Problem]:
    for number, tree in enumerate(file.documents):
        if not isinstance(tree, dict) or tree.get("kind") not in KUBERAY:
            continue
        if tree.get("apiVersion") != _KUBERAY_VERSION:
            got = shown(tree.get("apiVersion"))
            message = f"must be {_KUBERAY_VERSION}, but got {got}"
            yield file.place((number, "apiVersion")).problem(message, "schema")
        yield from _fits(file, (number,), tree, KUBERAY[tree["kind"]])


def _fits(file: LaunchFile, key: Key, value: Any, shape: Any) -> Iterator[Problem]:
    mark = file.place(key)
    if isinstance(shape, list):
        if not isinstance(value, list):
            yield mark.problem(f"must be a list, but got {shown(value)}", "schema")
            return
        for number, item in enumerate(value):
            yield from _fits(file, (*key, number), item, shape[0])
    elif isinstance(shape, dict):
        yield from _fits_mapping(file, key, value, shape)
    elif not isinstance(value, shape) or (shape is int and isinstance(value, bool)):
        kind = {str: "text", int: "a whole number", bool: "true or false"}.get(shape)
        kind = kind or ("a mapping" if shape is dict else "a list")
        yield mark.problem(f"must be {kind}, but got {shown(value)}", "schema")


def _fits_mapping(
    file: LaunchFile, key: Key, value: Any, shape: Mapping[str, Any]
) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield file.place(key).problem(f"must be a mapping, but got {shown(value)}", "schema")
        return
    shapes = {name.rstrip("!"): inner for name, inner in shape.items()}
    for name in shape:
        if name.endswith("!") and name[:-1] not in value:
            message = f"must hold {name[:-1]}, but it does not"
            yield file.place(key).problem(message, "schema")
    for name, inner in value.items():
        at = (*key, str(name))
        if name in shapes:
            yield from _fits(file, at, inner, shapes[name])
        else:
            message = f"must be a field that a search needs, but got {shown(name)}"
            yield file.place(at).problem(message + did_you_mean(name, tuple(shapes)), "schema")


def _shell(file: LaunchFile) -> Iterator[Problem]:
    try:
        done = subprocess.run(
            ["bash", "-n"], input=file.text.encode(), capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return  # no bash here: it will say so itself
    for line in done.stderr.decode(errors="replace").splitlines() if done.returncode else ():
        found = re.match(r"bash: line (\d+): (.*)", line)
        if found:
            index = len("".join(file.text.splitlines(keepends=True)[: int(found[1]) - 1]))
            yield file.mark(index).problem(f"must be bash, but: {found[2]}", "schema")
            return
