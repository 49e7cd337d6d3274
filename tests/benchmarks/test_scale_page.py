"""benchmarks/scale.md: Kubernetes would take its Job, and the command line its commands."""

import copy
import csv
import re
import shlex

import pytest
import yaml
from helpers import ROOT

from algorithms.dqn import Config
from benchmarks.learning import RESULTS, table
from common.runner.cli import parse

PAGE = (ROOT / "benchmarks" / "scale.md").read_text()

# Fields and types of batch/v1 Job in Kubernetes 1.33 and later, of those parts that such a job
# uses: a type, [type of items], {choices} or {field: ...}; "!" marks a field that must be there.
CONTAINER = {
    **{"name!": str, "image!": str, "command": [str], "args": [str], "workingDir": str},
    **{"env": [dict], "resources": dict, "volumeMounts": [dict], "imagePullPolicy": str},
}
POD = {
    **{"containers!": [CONTAINER], "initContainers": [CONTAINER], "volumes": [dict]},
    **{"restartPolicy": {"Always", "OnFailure", "Never"}, "nodeSelector": dict, "hostname": str},
    **{"subdomain": str, "tolerations": [dict], "terminationGracePeriodSeconds": int},
}
EXIT_CODES = {"containerName": str, "operator!": {"In", "NotIn"}, "values!": [int]}
RULE = {
    "action!": {"FailJob", "FailIndex", "Ignore", "Count"},
    "onExitCodes": EXIT_CODES,
    "onPodConditions": [{"type!": str, "status": str}],
}
META = {"name": str, "namespace": str, "labels": dict, "annotations": dict}
SPEC = {
    **{"template!": {"metadata": META, "spec!": POD}, "podFailurePolicy": {"rules!": [RULE]}},
    **{"completionMode": {"NonIndexed", "Indexed"}, "podReplacementPolicy": {"Failed"}},
    **dict.fromkeys(["activeDeadlineSeconds", "backoffLimit", "backoffLimitPerIndex"], int),
    **dict.fromkeys(["completions", "parallelism", "maxFailedIndexes"], int),
    **{"ttlSecondsAfterFinished": int, "suspend": bool},
}
JOB = {"apiVersion!": {"batch/v1"}, "kind!": {"Job"}, "metadata!": META, "spec!": SPEC}


def wrong_types(value, kind, path="job"):
    """Yield a line for each value that is not of its kind."""
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            yield f"{path} is no mapping"
            return
        fields = {name.rstrip("!"): x for name, x in kind.items()}
        yield from (f"{path}.{name} is unknown" for name in value if name not in fields)
        must = [name[:-1] for name in kind if name.endswith("!")]
        yield from (f"{path}.{name} is missing" for name in must if name not in value)
        for name in value.keys() & fields:
            yield from wrong_types(value[name], fields[name], f"{path}.{name}")
    elif isinstance(kind, list):
        if not isinstance(value, list) or not value:
            yield f"{path} is no list with items"
            return
        for i, item in enumerate(value):
            yield from wrong_types(item, kind[0], f"{path}[{i}]")
    elif isinstance(kind, set):
        if value not in kind:
            yield f"{path} is not one of {kind}"
    elif type(value) is not kind or (kind is int and value < 0):
        yield f"{path} is no {kind.__name__}"


def broken_rules(job):
    """Yield a line for each of the rules that connect fields; the types are right.

    From the reference of batch/v1 JobSpec and the server's validation.
    """
    spec = job["spec"]
    pod, rules = spec["template"]["spec"], spec.get("podFailurePolicy", {}).get("rules", [])
    indexed = spec.get("completionMode") == "Indexed"
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job["metadata"].get("name", "")):
        yield "a name has small letters, digits and -"
    if indexed and "completions" not in spec:
        yield "Indexed needs completions"
    if "backoffLimitPerIndex" in spec and not indexed:
        yield "backoffLimitPerIndex needs Indexed"
    if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        yield "maxFailedIndexes needs backoffLimitPerIndex"
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "a Job's restartPolicy is Never or OnFailure"
    if "backoffLimitPerIndex" in spec and pod.get("restartPolicy") != "Never":
        yield "backoffLimitPerIndex needs restartPolicy Never"
    if rules and pod.get("restartPolicy") != "Never":
        yield "podFailurePolicy needs restartPolicy Never"
    if len(rules) > 20:
        yield "at most 20 rules"
    for rule in rules:
        if ("onExitCodes" in rule) == ("onPodConditions" in rule):
            yield "a rule has either onExitCodes or onPodConditions"
        codes = rule.get("onExitCodes", {"operator": "NotIn", "values": [1]})
        if codes["values"] != sorted(set(codes["values"])) or len(codes["values"]) > 255:
            yield "exit codes are in order, each once, at most 255"
        if codes["operator"] == "In" and 0 in codes["values"]:
            yield "exit code 0 is no failure"
        if rule["action"] == "FailIndex" and "backoffLimitPerIndex" not in spec:
            yield "FailIndex needs backoffLimitPerIndex"


def problems(job):
    """Return what Kubernetes would refuse."""
    return list(wrong_types(job, JOB)) or list(broken_rules(job))


@pytest.fixture
def job():
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    return yaml.safe_load(block)


def test_the_job_is_one(job):
    assert problems(job) == []
    spec = job["spec"]
    assert spec["parallelism"] == spec["completions"] and spec["completionMode"] == "Indexed"
    ignored, fatal = spec["podFailurePolicy"]["rules"]
    assert ignored["action"] == "Ignore"  # a lost machine is no failure of the index
    assert fatal["onExitCodes"]["values"] == [2, 3, 4]  # trying again would not help


def changed(job, path, value):
    """Return the job with a field changed, or without it (None)."""
    job = copy.deepcopy(job)
    *parents, last = path
    inner = job
    for name in parents:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return job


RULES = ("spec", "podFailurePolicy", "rules")
POD_SPEC = ("spec", "template", "spec")


@pytest.mark.parametrize(
    "path, value, says",
    [
        (("apiVersion",), "batch/v2", "apiVersion"),
        (("metadata", "name"), "DQN", "small letters"),
        (("spec", "completion"), 64, "unknown"),
        (("spec", "completions"), "64", "no int"),
        (("spec", "parallelism"), -1, "no int"),
        (("spec", "completions"), None, "needs completions"),
        (("spec", "completionMode"), None, "backoffLimitPerIndex needs Indexed"),
        (("spec", "completionMode"), "indexed", "not one of"),
        (("spec", "podReplacementPolicy"), "TerminatingOrFailed", "not one of"),
        (("spec", "template"), None, "missing"),
        ((*POD_SPEC, "restartPolicy"), None, "restartPolicy"),
        ((*POD_SPEC, "restartPolicy"), "OnFailure", "needs restartPolicy Never"),
        ((*POD_SPEC, "containers"), [], "no list"),
        ((*POD_SPEC, "containers", 0, "image"), None, "missing"),
        ((*POD_SPEC, "containers", 0, "command"), "python", "no list"),
        ((*RULES, 0, "action"), "ignore", "not one of"),
        ((*RULES, 0, "onExitCodes"), {"operator": "In", "values": [2]}, "either"),
        ((*RULES, 1, "onExitCodes", "values"), [0, 2], "no failure"),
        ((*RULES, 1, "onExitCodes", "values"), [3, 2], "in order"),
        ((*RULES, 1, "onExitCodes", "operator"), None, "missing"),
    ],
)
def test_a_job_that_kubernetes_refuses_is_found(path, value, says, job):
    assert any(says in line for line in problems(changed(job, path, value)))


def test_the_commands_of_the_page_are_flags_that_exist(job):
    """With values for the variables of SLURM and Kubernetes."""
    pod = job["spec"]["template"]["spec"]
    shell = pod["containers"][0]["command"]
    assert shell[:2] == ["sh", "-c"]
    text = [*re.findall(r"`([^`\n]*python -m algorithms\.dqn[^`\n]*)`", PAGE), shell[2]]
    assert len(text) == 5
    for command in text:
        command = command.replace("$SLURM_ARRAY_TASK_ID", "3").replace("$JOB_COMPLETION_INDEX", "3")
        words = shlex.split(command.partition("python -m algorithms.dqn")[2].rstrip("'"))
        assert parse(Config, "x", "", words)[1].num_seeds > 1


@pytest.mark.parametrize("name", ["many_seeds", "cost_model"])
def test_the_page_shows_the_committed_tables(name):
    with open(RESULTS / f"{name}.csv", newline="") as file:
        assert table(list(csv.reader(file))) in PAGE
