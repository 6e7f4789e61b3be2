"""What a launch file must not do: each rule has a name, and says where, what and what instead."""

import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

from cluster.launch_files import LaunchError, LaunchFile, Piece, read_launch_file
from cluster.launch_schema import schema_problems
from cluster.launch_trees import Found, clusters, guarded, node_types, pods, start_commands
from spaces.nodes import Mark
from spaces.problems import Problem, shown
from spaces.redaction import holds_secret

FILL_IN = "FILL_IN"

_START = r"\bray start\b"
_LOOPBACK = r"(?:127\.0\.0\.1|localhost|::1)(?=[\s'\";]|$)"
_REFERENCE = re.compile(r"\$\([^)]*\)|\$\{\w+[^}]*\}|\$\w+")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}\Z")
_WORLD = re.compile(r"(?<![\d.])0\.0\.0\.0/0|(?<![\w:])::/0")
_EVERY = re.compile(r"(?<![\d.])0\.0\.0\.0(?![\d./])|\[::\]")
_PUBLIC = ("LoadBalancer", "NodePort")


def fill_in(file: LaunchFile) -> Iterator[Found]:
    """Placeholders are filled in."""
    for piece in file.pieces:
        for word in dict.fromkeys(re.findall(rf"{FILL_IN}\w*", piece.value)):
            yield file.find(piece, word), f"must be filled in, but is still {word}"


def token_auth(file: LaunchFile) -> Iterator[Found]:
    """Ray asks everyone for its token."""
    for piece in file.pieces:
        named = re.search(r"RAY_AUTH_MODE=[\"']?(?!token\b)(\w*)", piece.value)
        if named:
            mark = file.find(piece, "RAY_AUTH_MODE")
            yield mark, f"RAY_AUTH_MODE must be token, but got {shown(named[1])}"
    if file.kind == "kuberay":
        names = {p.key[:-1] for p in file.pieces if p.value == "RAY_AUTH_MODE"}
        for piece in file.pieces:  # a container's own variable would win
            if piece.key[-1] == "value" and piece.key[:-1] in names and piece.value != "token":
                mark = file.mark(piece.start)
                yield mark, f"RAY_AUTH_MODE must be token, but got {shown(piece.value)}"
        for key, spec in clusters(file):
            options = spec.get("authOptions")
            mode = options.get("mode") if isinstance(options, dict) else None
            if mode != "token":
                mark = file.place((*key, "authOptions", "mode"))
                yield mark, f"authOptions.mode must be token, but got {shown(mode)}"
        return
    if file.kind == "docker":
        if not any(re.search(r"^ENV .*RAY_AUTH_MODE=token\b", p.value) for p in file.pieces):
            yield file.mark(0), "must set ENV RAY_AUTH_MODE=token, but it does not"
        return
    yield from _started_with_token(file)


def _started_with_token(file: LaunchFile) -> Iterator[Found]:
    found, missing = start_commands(file)
    for name in missing:
        message = f"must have {name} that start Ray with RAY_AUTH_MODE=token: Ray's own commands "
        yield file.mark(0), message + "listen everywhere and ask for nothing"
    before = ""  # of a script, what ran earlier counts too
    for piece in file.pieces:
        if piece in found:
            said = before + piece.value[: _starts(piece)]
            if not re.search(r"\bRAY_AUTH_MODE=token\b", said):
                mark = file.find(piece, _START)
                yield mark, "must start Ray with RAY_AUTH_MODE=token exported before, but does not"
        if file.kind == "shell":
            before += piece.value + "\n"


def _starts(piece: Piece) -> int:
    found = re.search(_START, piece.value)
    return found.start() if found else len(piece.value)


def token_file(file: LaunchFile) -> Iterator[Found]:
    """The token's copy on a node is its owner's alone."""
    if any(re.search(r"chmod 600 [^;&|]*auth_token", p.value, re.I) for p in file.pieces):
        return
    for piece in file.pieces:
        if "file_mounts" in piece.key and "auth_token" in str(piece.key[-1]) + piece.value:
            message = "setup_commands must `chmod 600` the token's copy, but they do not"
            yield file.mark(file.places[piece.key]), message
        elif not piece.key and re.search(r"RAY_AUTH_TOKEN_PATH=", piece.value):
            message = 'must `chmod 600 "$RAY_AUTH_TOKEN_PATH"`, but does not'
            yield file.find(piece, "RAY_AUTH_TOKEN_PATH"), message


def dashboard_host(file: LaunchFile) -> Iterator[Found]:
    """The dashboard, which runs what it is told, listens on loopback."""
    for piece in start_commands(file)[0]:
        if "--head" not in piece.value:
            continue
        given = re.search(r"--dashboard-host[= ][\"']?(\S+)", piece.value)
        if not given:
            mark = file.find(piece, _START)
            yield mark, "must say --dashboard-host=127.0.0.1, but says nothing"
        elif not re.match(_LOOPBACK, given[1]):
            mark = file.find(piece, "--dashboard-host")
            yield (
                mark,
                f"--dashboard-host must be 127.0.0.1, but got {shown(given[1])}; use a tunnel",
            )
    for key, spec in clusters(file):
        at = (*key, "headGroupSpec", "rayStartParams", "dashboard-host")
        head = spec.get("headGroupSpec")
        params = head.get("rayStartParams") if isinstance(head, dict) else None
        host = params.get("dashboard-host") if isinstance(params, dict) else None
        if not (isinstance(host, str) and re.match(_LOOPBACK, host)) and not guarded(file, head):
            message = "dashboard-host must be 127.0.0.1 (KubeRay's default is 0.0.0.0) unless a "
            message += (
                f"NetworkPolicy of this file keeps others from the head, but got {shown(host)}"
            )
            yield file.place(at), message


def open_address(file: LaunchFile) -> Iterator[Found]:
    """Nothing else listens on every address."""
    for piece in file.pieces:
        others = re.sub(r"--dashboard-host[= ]\S+", "", piece.value)
        if piece.key[-1:] != ("dashboard-host",) and _EVERY.search(others):
            message = "must listen on 127.0.0.1 or a private address, but got every address"
            yield file.find(piece, _EVERY.pattern), message


def ssh_open(file: LaunchFile) -> Iterator[Found]:
    """SSH is open to known addresses only."""
    for piece in file.pieces:
        if _WORLD.search(piece.value):
            mark = file.find(piece, _WORLD.pattern)
            yield (
                mark,
                "must let in known addresses only, as 203.0.113.7/32, but got the whole world",
            )
    for provider, key, config in node_types(file):
        if provider == "aws" and not _own_group(config):
            message = "must name SecurityGroupIds of your own, but has none: the group that Ray "
            yield file.place(key), message + "makes lets the whole world at port 22"
        if provider == "gcp" and not _own_network(config):
            message = "must name networkInterfaces with a subnetwork of your own, but has none: "
            yield file.place(key), message + "the network `default` lets the whole world at port 22"


def _own_group(config: Mapping[str, Any]) -> bool:
    interfaces = config.get("NetworkInterfaces")
    if isinstance(interfaces, list) and interfaces:
        return all(isinstance(i, dict) and i.get("Groups") for i in interfaces)
    return bool(config.get("SecurityGroupIds"))


def _own_network(config: Mapping[str, Any]) -> bool:
    interfaces = config.get("networkInterfaces")
    if not isinstance(interfaces, list) or not interfaces:
        return False
    names = [str(i.get("subnetwork") or "default") for i in interfaces if isinstance(i, dict)]
    return all(name.rpartition("/")[2] != "default" for name in names)


def public_service(file: LaunchFile) -> Iterator[Found]:
    """A cluster in Kubernetes is reached from inside it only."""
    for piece in file.pieces if file.kind == "kuberay" else ():
        last = piece.key[-1]
        if last in ("serviceType", "type") and piece.value in _PUBLIC:
            yield file.place(piece.key), f"must be ClusterIP, but got {piece.value}"
        if last == "kind" and piece.value in ("Ingress", "Route", "Gateway", "HTTPRoute"):
            message = "must not lead in from outside; use `kubectl port-forward`"
            yield file.place(piece.key), f"{message}, but got {piece.value}"
        if last in ("hostNetwork", "enableIngress") and piece.value.lower() == "true":
            yield file.place(piece.key), f"{last} must be false, but got true"
        if last == "hostPort":
            yield file.place(piece.key), "must not open a port of the machine, but has a hostPort"


def unpinned(file: LaunchFile) -> Iterator[Found]:
    """What is installed tomorrow is what was tested today."""
    arguments = set()  # of a Dockerfile, before its first FROM
    for piece in takewhile(lambda p: not p.value.startswith("FROM "), file.pieces):
        if piece.value.startswith("ARG "):
            arguments.add(piece.value.partition(" ")[2].strip())
    for piece in file.pieces:
        at, message = file.mark(piece.start), ""
        last = str(piece.key[-1]) if piece.key else ""
        if file.kind in ("ray", "kuberay") and re.fullmatch(r"(head_|worker_)?image", last):
            message = _image(piece.value)
        elif file.kind == "docker" and piece.value.startswith("FROM "):
            message = _base(piece.value.split()[1], arguments)
        elif last == "sourceImage" and "/family/" in piece.value:
            message = "must be one image, but got a family, which changes"
        elif last == "rayVersion" and piece.value != version("ray"):
            message = f"must be {version('ray')}, as the lock has it, but got {shown(piece.value)}"
        if message:
            yield at, message
        yield from _installs(file, piece)


def _image(image: str) -> str:
    if FILL_IN in image or _DIGEST.search(image):
        return ""
    return f"must be an image by digest (name@sha256:…), but got {shown(image)}"


def _base(image: str, arguments: set[str]) -> str:
    named = re.fullmatch(r"\$\{?(\w+)\}?", image)
    if named and named[1] in arguments:  # without a default: whoever builds must say which
        return ""
    return _image(image)


def _installs(file: LaunchFile, piece: Piece) -> Iterator[Found]:
    for command in re.finditer(r"\bpip3? install\b([^;&|\n]*)", piece.value):
        if not re.search(r"--require-hashes|--no-index", command[1]):
            message = "must install by hashes (--require-hashes -r …), or a local wheel with "
            yield file.find(piece, "pip3? install"), f"{message}--no-deps --no-index"
    if re.search(r"\b(?:curl|wget)\b[^|;\n]*\|\s*(?:sudo\s+)?(?:ba|z)?sh\b", piece.value):
        yield file.find(piece, "curl|wget"), "must not run what a server sends at that moment"
    if re.search(r":latest\b", piece.value):
        yield file.find(piece, ":latest"), "must name a version, but got latest"


def secret(file: LaunchFile) -> Iterator[Found]:
    """Secrets are in files of their own or in the environment."""
    names = {p.key[:-1]: p.value for p in file.pieces if p.key[-1:] == ("name",)}
    for piece in file.pieces:
        bare = _REFERENCE.sub("", piece.value)
        last = str(piece.key[-1]) if piece.key else ""
        name = names.get(piece.key[:-1], "") if last == "value" else last
        named = f"{name}={bare}" if bare and " " not in bare and "/" not in bare[:2] else ""
        if holds_secret(bare) or _PRIVATE_KEY.search(bare) or _names_secret(named):
            message = "must not hold a password, token or key: refer to a file or a Secret"
            yield _secret_line(file, piece), message


def _secret_line(file: LaunchFile, piece: Piece) -> Mark:
    index = piece.start
    for line in file.text[piece.start : piece.end].splitlines(keepends=True):
        if holds_secret(_REFERENCE.sub("", line)):
            return file.mark(index + len(line) - len(line.lstrip()))
        index += len(line)
    return file.mark(piece.start)


def _names_secret(text: str) -> bool:
    # A key that says where a secret is, or the name of one, is none.
    name, _, value = text.partition("=")
    harmless = re.search(r"(?i)(name|path|file|mode|ref|key)\Z", name) or value.startswith("~")
    return not harmless and holds_secret(text)


def root_user(file: LaunchFile) -> Iterator[Found]:
    """Nothing runs as root, or could become it."""
    if file.kind == "docker":
        users = [p for p in file.pieces if p.value.startswith("USER ")]
        if not users:
            yield file.mark(0), "must end as USER with a number other than 0, but has no USER"
        elif users[-1].value.split()[1].partition(":")[0] in ("root", "0"):
            yield file.mark(users[-1].start), "must end as another USER than root"
    for key, pod in pods(file):
        context = pod.get("securityContext")
        if not isinstance(context, dict) or context.get("runAsNonRoot") is not True:
            at = file.place((*key, "securityContext", "runAsNonRoot"))
            yield at, "securityContext.runAsNonRoot must be true"
    for piece in file.pieces:
        last = piece.key[-1] if piece.key else ""
        if last in ("privileged", "allowPrivilegeEscalation") and piece.value.lower() == "true":
            yield file.place(piece.key), f"{last} must be false, but got true"
        if re.search(r"(?<!\S)--privileged\b", piece.value):
            yield file.find(piece, "--privileged"), "must not give a container all rights"
        if last == "ssh_user" and piece.value == "root":
            yield file.place(piece.key), "ssh_user must be a user of its own, but got root"


def telemetry(file: LaunchFile) -> Iterator[Found]:
    """Ray reports nothing to its makers."""
    for piece in start_commands(file)[0]:
        if "--disable-usage-stats" not in piece.value:
            yield file.find(piece, _START), "must say --disable-usage-stats, but does not"
    for key, spec in clusters(file):
        params = (spec.get("headGroupSpec") or {}).get("rayStartParams") or {}
        if not isinstance(params, dict) or str(params.get("disable-usage-stats")) != "true":
            at = file.place((*key, "headGroupSpec", "rayStartParams"))
            yield at, 'must hold disable-usage-stats: "true", but does not'


def mlflow_server(file: LaunchFile) -> Iterator[Found]:
    """MLflow's server asks who one is and answers to its own name only."""
    for piece in file.pieces:
        if not re.search(r"\bmlflow (?:server|ui)\b", piece.value):
            continue
        mark = file.find(piece, r"mlflow (?:server|ui)")
        for option in (r"--app-name[= ]basic-auth", "--allowed-hosts"):
            if not re.search(option, piece.value):
                words = option.replace("[= ]", " ")
                yield (
                    mark,
                    f"must say {words}, but does not; `python -m cluster.tracking_server` does",
                )


def capacity(file: LaunchFile) -> Iterator[Found]:
    """A search knows how far its cluster can grow."""
    if any("SPIKETUNE_CAPACITY" in p.value for p in file.pieces):
        return
    grows = [key for _, key, _ in node_types(file)]
    grows += [k for k, spec in clusters(file) if spec.get("enableInTreeAutoscaling") is True]
    for key in grows[:1]:
        message = "must set SPIKETUNE_CAPACITY (as CPU=64,GPU=8) where the head starts: the search "
        yield file.place(key), message + "would else never ask for more than runs already"


Rule = Callable[[LaunchFile], Iterator[Found]]
RULES: dict[str, Rule] = {
    "fill-in": fill_in,
    "token-auth": token_auth,
    "token-file": token_file,
    "dashboard-host": dashboard_host,
    "open-address": open_address,
    "ssh-open": ssh_open,
    "public-service": public_service,
    "unpinned": unpinned,
    "secret": secret,
    "root-user": root_user,
    "telemetry": telemetry,
    "mlflow-server": mlflow_server,
    "capacity": capacity,
}


def check_launch_file(path: Path) -> str:
    """Check a launch file.

    Returns:
        What it is: `ray`, `kuberay`, `shell` or `docker`.

    Raises:
        LaunchError: lists everything that must change.
    """
    file = read_launch_file(path)
    problems = schema_problems(file)
    problems += [
        _problem(mark, name, text) for name, rule in RULES.items() for mark, text in rule(file)
    ]
    if problems:
        raise LaunchError(problems)
    return file.kind


def _problem(mark: Mark, rule: str, message: str) -> Problem:
    return mark.problem(message, rule)
