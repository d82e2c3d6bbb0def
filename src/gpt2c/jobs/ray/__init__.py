"""Jobs on a Ray cluster: tasks for datasets of Ray Data, and windows of `gpt2c batch` on actors.

Needs the extra "ray". Each machine of the cluster needs this gpt2c and the model's files.
docs/jobs.md has examples.
"""

from gpt2c.jobs.ray.cluster import Cluster, Placement, connect
from gpt2c.jobs.ray.datasets import generate, run_task, score
from gpt2c.jobs.ray.processors import GPT2ProcessorConfig, Processor, build_processor

__all__ = [
    "Cluster",
    "GPT2ProcessorConfig",
    "Placement",
    "Processor",
    "build_processor",
    "connect",
    "generate",
    "run_task",
    "score",
]
