"""Training and evaluation of the models that Soundstage serves."""

import soundstage as soundstage  # before TensorFlow, whose kernels it chooses
