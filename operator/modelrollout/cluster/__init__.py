"""The Kubernetes port: objects as plain dicts, a store of what was seen, a work queue, a lease."""
