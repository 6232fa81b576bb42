"""The producer room: the wire contract, dataset files, enqueueing, status.

Knows the server and the dataset; refuses to know torch, numpy and zarr.
"""

from importlib.metadata import version

from halp_producer.job import Job, JobFormatError
from halp_producer.keys import RunKeys

__all__ = ["Job", "JobFormatError", "RunKeys", "__version__"]

__version__ = version("halp-stream")
