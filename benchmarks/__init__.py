"""What it costs and how fast it is, measured side by side in one run."""

import soundstage as soundstage  # before TensorFlow, whose kernels it chooses
