"""Where in a launch file clusters, pods, node types and the commands that start Ray are."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.launch_files import Key, LaunchFile, Piece
from spaces.nodes import Mark

Found = tuple[Mark, str]

_LISTS = ("head_start_ray_commands", "worker_start_ray_commands")
_WORLD = ("0.0.0.0/0", "::/0")


def start_commands(file: LaunchFile) -> tuple[list[Piece], list[str]]:
    """The commands that start Ray, and which lists of a cluster YAML have none."""
    if file.kind in ("kuberay", "docker"):
        return [], []
    found = [p for p in file.pieces if re.search(r"\bray start\b", p.value)]
    if file.kind == "shell":
        return found, []
    return found, [name for name in _LISTS if not any(name in p.key for p in found)]


def clusters(file: LaunchFile) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    """The specification of every cluster in a manifest, and its key."""
    for number, tree in enumerate(file.documents if file.kind == "kuberay" else ()):
        spec = tree.get("spec") if isinstance(tree, dict) else None
        if not isinstance(spec, dict):
            continue
        if tree.get("kind") == "RayCluster":
            yield (number, "spec"), spec
        inner = spec.get("rayClusterSpec")
        if tree.get("kind") == "RayJob" and isinstance(inner, dict):
            yield (number, "spec", "rayClusterSpec"), inner


def pods(file: LaunchFile) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    """The specification of every pod of the clusters, and its key."""
    for key, spec in clusters(file):
        groups = [((*key, "headGroupSpec"), spec.get("headGroupSpec"))]
        workers = spec.get("workerGroupSpecs")
        if isinstance(workers, list):
            groups += [((*key, "workerGroupSpecs", n), group) for n, group in enumerate(workers)]
        for at, group in groups:
            pod = _inside(group, "template", "spec")
            if isinstance(pod, dict):
                yield (*at, "template", "spec"), pod


def node_types(file: LaunchFile) -> Iterator[tuple[str, Key, Mapping[str, Any]]]:
    """Provider, key and configuration of every kind of machine that a cloud is asked for."""
    for number, tree in enumerate(file.documents if file.kind == "ray" else ()):
        kinds = _inside(tree, "available_node_types")
        provider = _inside(tree, "provider", "type")
        for name, kind in kinds.items() if isinstance(kinds, dict) else ():
            config = _inside(kind, "node_config")
            at = (number, "available_node_types", str(name), "node_config")
            yield str(provider), at, config if isinstance(config, dict) else {}


def guarded(file: LaunchFile, head: Any) -> bool:
    """Whether a NetworkPolicy of the file says who may reach the pod of a head."""
    labels = _inside(head, "template", "metadata", "labels")
    return isinstance(labels, dict) and any(
        _guards(tree.get("spec"), labels)
        for tree in file.documents
        if isinstance(tree, dict) and tree.get("kind") == "NetworkPolicy"
    )


def _guards(policy: Any, labels: Mapping[str, Any]) -> bool:
    if not isinstance(policy, dict) or not isinstance(policy.get("podSelector"), dict):
        return False
    selected = policy["podSelector"].get("matchLabels") or {}
    extra = set(policy["podSelector"]) - {"matchLabels"}
    types, rules = policy.get("policyTypes"), policy.get("ingress", [])
    if extra or not isinstance(types, list) or "Ingress" not in types:
        return False
    if not isinstance(selected, dict) or not selected.items() <= labels.items():
        return False
    return isinstance(rules, list) and all(_narrow(rule) for rule in rules)


def _narrow(rule: Any) -> bool:
    peers = rule.get("from") if isinstance(rule, dict) else None
    if not isinstance(peers, list) or not peers:
        return False
    return all(
        isinstance(peer, dict)
        and _inside(peer, "ipBlock", "cidr") not in _WORLD
        # A selector that selects everything is a policy without effect.
        and bool(_inside(peer, "podSelector") or _inside(peer, "ipBlock"))
        for peer in peers
    )


def _inside(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
