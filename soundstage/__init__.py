"""What is said, what is heard, how loud, and when: the library, without Ray and without a web framework."""

import os
import platform

if platform.machine() in ("x86_64", "AMD64"):
    # TensorFlow looks at it once, when it is imported, and takes oneDNN by itself only where a processor has VNNI. On
    # the others it is faster as well, and has 8-bit products (docs/architecture.md).
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
