import soundstage as soundstage  # before TensorFlow, whose kernels it chooses
