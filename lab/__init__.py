"""A real Kubernetes on one machine: control plane, node, gateway and Prometheus as plain processes on loopback.

Nothing about rollouts is believed until it ran against a real API server, and Docker is often missing where the tests
run. The lab is a tool of this repository for its demo and its tests; it is no part of the operator's package.
"""
