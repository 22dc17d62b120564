"""Speech to text: Moonshine in TensorFlow, its weights, tokenizer and decoding."""
