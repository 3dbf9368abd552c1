"""Revisions as Deployments and Services: what is to be written for them, and what is seen of them."""

from modelrollout.workloads.children import Children, Ownership, Problem, name_taken, ownership
from modelrollout.workloads.effects import ensure, name_problems, record_of, workload_actions
from modelrollout.workloads.fields import differences, differs, drift, foreign_manager, last_writer
from modelrollout.workloads.gates import gate_actions
from modelrollout.workloads.names import Claims, needed_names, referred, selector_overlap, template_labels
from modelrollout.workloads.observation import observe, pinned
from modelrollout.workloads.revisions import Record, closed_port, dry_run_object, render_template

__all__ = [
    "Children",
    "Claims",
    "Ownership",
    "Problem",
    "Record",
    "closed_port",
    "differences",
    "differs",
    "drift",
    "dry_run_object",
    "ensure",
    "foreign_manager",
    "gate_actions",
    "last_writer",
    "name_problems",
    "name_taken",
    "needed_names",
    "observe",
    "ownership",
    "pinned",
    "record_of",
    "referred",
    "render_template",
    "selector_overlap",
    "template_labels",
    "workload_actions",
]
