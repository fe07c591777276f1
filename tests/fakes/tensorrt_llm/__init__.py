"""A FAKE of TensorRT-LLM: the names, signatures and strictness that its LLM API 1.2 publishes, and no engine behind.

It exists because the real package can't be installed where these tests run (it is not on PyPI and needs an NVIDIA GPU).
The signatures follow the project's own API reference (tests/unittest/api_stability and llmapi in its repository, the
time of 1.2); `tests/unit/worker/test_tensorrt_contract.py` states them once more. What it generates is a function of
the prompt, the seed and nothing else. Tests put it on a rank's PYTHONPATH and order failures in the environment (see
`_orders`). It proves that what a user asks for arrives at this API in the way that it is published, and nothing about
what the real engine makes of it.
"""

from ._llm import LLM
from ._models import BuildConfig
from ._orders import orders
from ._sampling import SamplingParams

__version__ = "1.2.1+fake"

__all__ = ["LLM", "BuildConfig", "SamplingParams"]

if "import_error" in orders():
    raise ImportError("libnvinfer.so.10: cannot open shared object file: No such file or directory")
