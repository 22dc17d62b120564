"""Training and evaluation of the models that Soundstage serves."""
