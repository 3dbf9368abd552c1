"""Sets of values that stand for the ways in which people install the operator."""

from __future__ import annotations

from typing import Any

SERVER = {"name": "default", "url": "http://prometheus.monitoring.svc:9090"}
TOKEN = {"bearerToken": {"secretName": "prometheus", "key": "token"}}
BASIC = {"basic": {"username": "modelrollout", "secretName": "metrics", "key": "password"}}

# What a large, careful platform team would set: everything.
EVERYTHING: dict[str, Any] = {
    "nameOverride": "releases",
    "image": {"repository": "registry.example.com:5000/ml/modelrollout", "digest": "sha256:" + "ab" * 32},
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 2,
    "watchNamespaces": ["fraud", "search"],
    "servers": [
        {
            **SERVER,
            "url": "https://thanos.example.com/prometheus",
            "namespaceLabel": "kubernetes_namespace",
            "podLabel": "kubernetes_pod_name",
            "delay": "45s",
            "headers": {"X-Scope-OrgID": "ml"},
            "auth": TOKEN,
            "ca": {"secretName": "prometheus", "key": "ca.crt"},
        },
        {"name": "gpu", "url": "http://gpu:9090", "auth": BASIC},
    ],
    "timing": {"raiseAfter": "1m30s"},
    "gates": {"webhooks": ["https://ci.example.com:8443/gates/"], "jobs": True},
    "serviceAccount": {"create": True, "name": "releaser", "annotations": {"example.com/team": "ml"}},
    "resources": {"requests": {"cpu": 1, "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
    "podAnnotations": {"example.com/scrape": "true"},
    "podLabels": {"team": "ml", "app.kubernetes.io/name": "an attempt to break the selector"},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "infra", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "podDisruptionBudget": {"enabled": True},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}

SETS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "one server without a login": {"servers": [SERVER]},
    "two replicas that serve two namespaces": {"replicas": 2, "watchNamespaces": ["a", "b"]},
    "an account that exists already": {"serviceAccount": {"create": False, "name": "existing"}},
    "users who look and users who release": {"userRoles": True},
    "everything": EVERYTHING,
}
